"""Files and folders appear whole or not at all."""

import os

import pytest

from edgewise.files import canonical_json, partial_folder, sha256, whole_folder, write_bytes, write_json


def test_a_file_is_replaced_whole(tmp_path):
    path = write_bytes(tmp_path / "a.bin", b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "a.bin", b"one")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_appears_when_the_block_ends_well(tmp_path):
    target = tmp_path / "step"
    with whole_folder(target) as partial:
        (partial / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert not partial_folder(target).exists()


def test_a_folder_that_fails_stays_away_and_can_be_gone_on_with(tmp_path):
    target = tmp_path / "step"

    def fail():
        with whole_folder(target) as partial:
            (partial / "x").write_text("1")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert not target.exists()
    with whole_folder(target, keep_partial=True) as partial:
        assert (partial / "x").read_text() == "1"
    assert (target / "x").exists()


def test_the_next_try_starts_empty_unless_told_otherwise(tmp_path):
    partial = partial_folder(tmp_path / "step")
    partial.mkdir()
    (partial / "x").write_text("1")
    with whole_folder(tmp_path / "step") as empty:
        assert not list(empty.iterdir())


def test_json_has_one_form_and_no_nan(tmp_path):
    assert canonical_json({"b": 1, "a": "é"}).decode() == '{\n  "b": 1,\n  "a": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()


def test_sha256_of_a_file(tmp_path):
    path = write_bytes(tmp_path / "abc", b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
