"""Files and folders appear whole or not at all."""

import os
import subprocess
import sys

import pytest

from edgewise.errors import RunFolderError
from edgewise.files import canonical_json, locked, partial_folder, sha256, whole_folder, write_bytes, write_json


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


def test_a_write_that_fails_names_the_file_and_not_its_partial(tmp_path):
    for path in (tmp_path / "missing" / "x.html", tmp_path / ("x" * 300)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which of them is the system's to say
            write_bytes(path, b"x")
        assert caught.value.filename == str(path)


def test_a_folder_that_somebody_else_made_meanwhile_is_named(tmp_path):
    target = tmp_path / "step"

    def meet():
        with whole_folder(target):
            target.mkdir()
            (target / "theirs").write_text("x")

    with pytest.raises(RunFolderError, match="step: appeared meanwhile"):
        meet()
    assert (target / "theirs").exists()


def test_a_folder_is_held_by_one_and_let_go_of_by_a_kill(tmp_path):
    code = (
        "import sys; from pathlib import Path; from edgewise.files import locked\n"
        "with locked(Path(sys.argv[1])) as free: print(free, flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=-1, stdout=-1, text=True)
    assert other.stdout.readline() == "True\n"
    with locked(tmp_path) as free:
        assert not free
    other.kill()
    other.communicate()
    with locked(tmp_path) as free:
        assert free
    assert not list(tmp_path.iterdir())


def test_json_has_one_form_and_no_nan(tmp_path):
    assert canonical_json({"b": 1, "a": "é"}).decode() == '{\n  "b": 1,\n  "a": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()


def test_sha256_of_a_file(tmp_path):
    path = write_bytes(tmp_path / "abc", b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
