import re

import pytest

from edgewise import data
from edgewise.errors import DataError, UnknownName


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fashion-mist", 'data "fashion-mist" is not known; did you mean "fashion-mnist"?'),
        ("cifar11", 'data "cifar11" is not known; did you mean "cifar10"?'),
        ("", 'data "" is not known; known: cifar10, cifar100, coco, fashion-mnist, folder, pack, voc'),
        ("Pack:somewhere", 'did you mean "pack"?'),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(spec, message):
    with pytest.raises(UnknownName, match=re.escape(message)):
        data.load(spec)


def test_a_folder_without_its_kind_gets_it(tmp_path):
    with pytest.raises(UnknownName, match=f"write folder:{tmp_path}"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "usage"),
    [
        ("pack", "pack:FOLDER"),
        ("pack:", "pack:FOLDER"),
        ("folder", "folder:FOLDER"),
        ("fashion-mnist:x", "fashion-mnist"),
    ],
)
def test_a_path_too_few_or_too_many_is_refused(spec, usage):
    with pytest.raises(DataError, match=re.escape(f'data "{spec}" is no complete name; write "{usage}"')):
        data.load(spec)


@pytest.mark.parametrize("held", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(held):
    with pytest.raises(DataError, match=re.escape(f"held is {held}; it must be in (0, 1)")):
        data.load("fashion-mnist", held=held)


@pytest.mark.parametrize("size", [0, -32])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(DataError, match=f"size is {size}; it must be at least 1"):
        data.load("fashion-mnist", size=size)


def test_the_held_share_moves_images_and_nothing_else():
    few, many = (data.load("fashion-mnist", held=held) for held in (0.05, 0.5))
    assert (len(many.train), len(many.held)) == (5_000, 5_000)
    assert few.checksum == many.checksum
    assert (few.mean, few.std) == (many.mean, many.std)


def test_images_are_resized_on_request():
    resized = data.load("fashion-mnist", size=32)
    assert resized.input_shape == (1, 32, 32)
    assert resized.held.images.shape == (500, 1, 32, 32)
    assert resized.checksum != data.load("fashion-mnist").checksum


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"folder:{tmp_path}/photos is no folder"):
        data.load("folder:~/photos")


def test_every_source_says_how_to_name_it_and_what_it_is():
    names = data.names()
    paths = ["pack:FOLDER", "folder:FOLDER", "coco:FOLDER", "voc:FOLDER"]
    assert list(names) == ["fashion-mnist", "cifar10[:PATH]", "cifar100[:PATH]", *paths]
    assert all(about and "\n" not in about for about in names.values())


def test_what_is_public_is_there():
    assert data.__all__ == sorted(data.__all__)
    assert all(hasattr(data, name) for name in data.__all__)
