import shutil
from pathlib import Path

import numpy as np
import pytest

from edgewise.data import folders, load
from edgewise.errors import DataError
from image_files import encode

FORMS = ["png", "jpeg", "bmp", "gif", "webp"]


@pytest.fixture
def fill(noise):
    """Put images of several formats and a side into a class's folder."""

    def write(folder, count, height=40, width=50):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            form = FORMS[number % len(FORMS)]
            (folder / f"{number}.{form}").write_bytes(encode(noise(height, width, 3), form))
        return folder

    return write


@pytest.fixture
def animals(tmp_path, fill):
    """A folder of two classes with ten images each."""
    for name in ("cat", "dog"):
        fill(tmp_path / "animals" / name, 10)
    return tmp_path / "animals"


def test_a_folder_of_classes_gives_a_fifth_of_each_to_the_test(animals):
    data = load(f"folder:{animals}", held=0.25)
    assert data.name == "animals"
    assert data.classes == ("cat", "dog")
    assert data.input_shape == (3, 32, 32)
    assert [part.labels.bincount().tolist() for part in (data.train, data.held, data.test)] == [[6, 6], [2, 2], [2, 2]]
    assert "a fifth of each class is the test split" in data.note


def test_the_split_depends_on_the_names_alone(animals, tmp_path, fill):
    train, test, _ = folders._layout(animals)
    elsewhere = tmp_path / "other" / "place"
    shutil.copytree(animals, elsewhere)
    fill(elsewhere / "ant", 5)  # another class changes nothing for the others
    moved = [{name: [elsewhere / f.relative_to(animals) for f in fs] for name, fs in s.items()} for s in (train, test)]
    other_train, other_test, _ = folders._layout(elsewhere)
    for before, after in zip(moved, (other_train, other_test), strict=True):
        assert {name: after[name] for name in before} == before
    assert [f.name for f in test["cat"]] != [f.name for f in sorted((animals / "cat").iterdir())[:2]]
    assert all(not set(train[name]) & set(test[name]) for name in train)


def test_the_split_never_changes_and_differs_between_classes():
    # Written down once: another choice would make every earlier figure on a user's folder incomparable.
    for name, chosen in (("cat", ["0.png", "8.png"]), ("dog", ["5.png", "7.png"])):
        files = [Path(f"/images/{name}/{number}.png") for number in range(10)]
        assert [file.name for file in folders._tested(Path("/images"), files)] == chosen


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_that_is_split_already_stays_so(tmp_path, fill, name):
    for animal, count in (("cat", 4), ("dog", 3)):
        fill(tmp_path / "train" / animal, count)
        fill(tmp_path / name / animal, count - 2)
    data = load(f"folder:{tmp_path}")
    assert len(data.train) + len(data.held) == 7
    assert data.test.labels.tolist() == [0, 0, 1]
    assert data.note == ""


def test_val_beside_test_is_left_out_and_said_so(tmp_path, fill):
    for split in ("train", "test", "val"):
        for animal in ("cat", "dog"):
            fill(tmp_path / split / animal, 3 if split != "val" else 1)
    data = load(f"folder:{tmp_path}")
    assert len(data.test) == 6
    assert data.note == f"{tmp_path.name}/val was not read"


def test_pixels_arrive_under_their_label(tmp_path, noise):
    pixels = {}
    for split in ("train", "test"):
        for label, animal in enumerate(("cat", "dog")):
            for number in range(3):
                file = tmp_path / split / animal / "deeper" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels[split, label, number] = image = noise(32, 32, 3)
                file.write_bytes(encode(image))
    data = load(f"folder:{tmp_path}")
    expected = np.stack([pixels["test", label, number] for label in (0, 1) for number in range(3)])
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), expected)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("sides", "size"),
    [((40, 40), 32), ((100, 130), 96), ((20, 20), 32), ((500, 600), 224), ((64, 64), 64), ((90, 700), 64)],
)
def test_the_size_is_chosen_near_the_images(tmp_path, fill, sides, size):
    for animal in ("cat", "dog"):
        fill(tmp_path / animal, 5, *sides)
    assert load(f"folder:{tmp_path}").size == size


def test_the_size_is_the_medians_and_not_the_tests(tmp_path, fill):
    for animal in ("cat", "dog"):
        fill(tmp_path / "train" / animal, 3, 70, 90)
        fill(tmp_path / "test" / animal, 5, 200, 200)
    fill(tmp_path / "train" / "cat" / "large", 2, 300, 300)
    assert load(f"folder:{tmp_path}").size == 64


def test_the_size_may_be_given(animals):
    assert load(f"folder:{animals}", size=24).input_shape == (3, 24, 24)


def test_hidden_files_and_files_beside_the_classes_are_left_out(animals, fill):
    before = load(f"folder:{animals}").checksum
    (animals / "README.txt").write_text("about")
    (animals / "cat" / ".DS_Store").write_bytes(b"hidden")
    fill(animals / ".cache", 3)
    fill(animals / "dog" / ".thumbnails", 3)
    assert load(f"folder:{animals}").checksum == before


def test_a_file_that_is_no_image_is_named(animals):
    (animals / "dog" / "notes.txt").write_text("about")
    with pytest.raises(DataError, match=f"{animals / 'dog' / 'notes.txt'} is no image that Pillow knows"):
        load(f"folder:{animals}")
    with pytest.raises(DataError, match=f"{animals / 'dog' / 'notes.txt'} is no image that Pillow knows"):
        load(f"folder:{animals}", size=32)


@pytest.mark.parametrize("file", ["cat/0.png", "cat/1.jpeg", "dog/3.gif", "dog/4.webp"])
def test_a_broken_image_is_named(animals, file):
    content = (animals / file).read_bytes()
    (animals / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{animals / file} is "):
        load(f"folder:{animals}")


def test_one_class_is_refused(tmp_path, fill):
    fill(tmp_path / "cat", 5)
    with pytest.raises(DataError, match='only one class, "cat"; two or more are needed'):
        load(f"folder:{tmp_path}")


def test_one_class_in_train_is_refused(tmp_path, fill):
    for split in ("train", "test"):
        fill(tmp_path / split / "cat", 5)
    with pytest.raises(DataError, match='only one class, "cat"'):
        load(f"folder:{tmp_path}")


def test_an_empty_folder_is_refused(tmp_path, fill):
    with pytest.raises(DataError, match="no folders of classes"):
        load(f"folder:{tmp_path}")
    fill(tmp_path / "cat", 5)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path / 'dog'} holds no images"):
        load(f"folder:{tmp_path}")


def test_an_empty_test_folder_is_refused(tmp_path, fill):
    for animal in ("cat", "dog"):
        fill(tmp_path / "train" / animal, 3)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{tmp_path / 'test'} holds no images"):
        load(f"folder:{tmp_path}")


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file"):
        with pytest.raises(DataError, match=f"folder:{tmp_path / name} is no folder"):
            load(f"folder:{tmp_path / name}")


def test_train_without_test_is_refused_with_a_way_out(tmp_path, fill):
    fill(tmp_path / "train" / "cat", 3)
    with pytest.raises(DataError, match=f"folder:{tmp_path / 'train'} would split its images"):
        load(f"folder:{tmp_path}")


def test_a_class_of_the_test_that_training_lacks_is_refused(tmp_path, fill):
    for animal in ("cat", "dog"):
        fill(tmp_path / "train" / animal, 3)
        fill(tmp_path / "test" / animal, 1)
    fill(tmp_path / "test" / "eel", 1)
    with pytest.raises(DataError, match=f"{tmp_path / 'test' / 'eel'} is a class that {tmp_path / 'train'} does not"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_too_small_to_split_is_named(animals, fill, count):
    fill(animals / "eel", count)
    with pytest.raises(DataError, match='"eel"'):
        load(f"folder:{animals}")
