import re
from pathlib import Path

import numpy as np
import pytest

from edgewise.data import load
from edgewise.errors import DataError
from image_files import encode

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def pack(tmp_path, noise, write_pack):
    """A pack of PNG images, its pixels and its folder."""
    folder = tmp_path / "mine"
    pixels = {"train": noise(12, 8, 8, 3), "test": noise(4, 8, 8, 3)}
    for split, images in pixels.items():
        write_pack(folder / f"{split}.npz", [encode(image) for image in images], [n % 3 for n in range(len(images))])
    return folder, pixels


def rewrite(file, **changes):
    with np.load(file) as arrays:
        content = {**arrays, **changes}
    np.savez(file, **{name: array for name, array in content.items() if array is not None})


def test_a_pack_decodes_to_its_pixels(pack):
    folder, pixels = pack
    told = []
    data = load(f"pack:{folder}", held=0.25, progress=lambda *step: told.append(step))
    assert data.name == "mine"
    assert data.note == ""
    assert data.classes == ("0", "1", "2")
    assert (len(data.train), len(data.held), len(data.test)) == (9, 3, 4)
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), pixels["test"])
    assert data.test.labels.tolist() == [0, 1, 2, 0]
    assert told == [("decode images", 12, 12), ("decode images", 4, 4)]


def test_val_is_the_test_split_where_there_is_no_test(pack):
    folder, _ = pack
    before = load(f"pack:{folder}").checksum
    (folder / "test.npz").rename(folder / "val.npz")
    assert load(f"pack:{folder}").checksum == before


def test_a_pack_is_resized_on_request(pack):
    assert load(f"pack:{pack[0]}", size=5).input_shape == (3, 5, 5)


def test_grey_images_become_rgb(tmp_path, noise, write_pack):
    pixels = noise(4, 6, 6)
    for split in ("train", "test"):
        write_pack(tmp_path / f"{split}.npz", [encode(image) for image in pixels], [0, 0, 1, 1])
    images = load(f"pack:{tmp_path}").test.images.numpy()
    assert np.array_equal(images, np.repeat(pixels[:, None], 3, axis=1))


@pytest.mark.parametrize(
    ("more", "classes"),
    [
        ({"classes": np.array(["cat", "dog", "eel", "fly"])}, ("cat", "dog", "eel", "fly")),
        ({"names": np.array(["cat", "dog", "eel"])}, ("cat", "dog", "eel")),
        ({"names": np.array([f"{n}.png" for n in range(12)])}, ("0", "1", "2")),
        ({"classes": np.array(["cat", "dog", "eel"]), "names": np.array(list("xyz"))}, ("cat", "dog", "eel")),
    ],
)
def test_classes_are_called_as_the_pack_calls_them(pack, more, classes):
    rewrite(pack[0] / "train.npz", **more)
    assert load(f"pack:{pack[0]}").classes == classes


def test_images_of_several_sizes_need_a_size(tmp_path, noise, write_pack):
    encoded = [encode(noise(8, 8, 3)), encode(noise(8, 9, 3))] * 2
    for split in ("train", "test"):
        write_pack(tmp_path / f"{split}.npz", encoded, [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"train.npz: image 1 is 9x8, the first image 8x8; choose a size"):
        load(f"pack:{tmp_path}")
    assert load(f"pack:{tmp_path}", size=8).size == 8


def test_images_that_are_not_square_need_a_size(tmp_path, noise, write_pack):
    for split in ("train", "test"):
        write_pack(tmp_path / f"{split}.npz", [encode(noise(6, 9, 3)) for _ in range(4)], [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"train.npz: image 0 is 9x6, not square; choose a size"):
        load(f"pack:{tmp_path}")


def test_a_broken_image_is_named(pack, write_pack, noise):
    whole = encode(noise(8, 8, 3))
    for broken, message in ((whole[: len(whole) // 2], "a broken image"), (b"no image", "no image that Pillow knows")):
        write_pack(pack[0] / "test.npz", [whole, whole, broken, whole], [0, 1, 2, 0])
        with pytest.raises(DataError, match=re.escape(f"test.npz: image 2 is {message}")):
            load(f"pack:{pack[0]}")


def test_a_missing_folder_or_file_is_named(pack, tmp_path):
    folder, _ = pack
    with pytest.raises(DataError, match=r"pack:.*nowhere is no folder"):
        load(f"pack:{tmp_path / 'nowhere'}")
    (folder / "test.npz").unlink()
    with pytest.raises(DataError, match=r"test.npz is missing"):
        load(f"pack:{folder}")


@pytest.mark.parametrize(
    "damage", [lambda c: c[:100], lambda c: b"", lambda c: b"junk" * 50, lambda c: c[: len(c) // 2]]
)
def test_a_corrupt_file_is_named(pack, damage):
    file = pack[0] / "train.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"train.npz cannot be read"):
        load(f"pack:{pack[0]}")


def test_a_single_array_is_no_pack(pack):
    with (pack[0] / "train.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"train.npz"):
        load(f"pack:{pack[0]}")


def test_a_changed_byte_is_found(pack):
    file = pack[0] / "train.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train.npz"):
        load(f"pack:{pack[0]}")


def test_objects_are_never_unpickled(pack):
    rewrite(pack[0] / "train.npz", labels=np.array([object] * 12))
    with pytest.raises(DataError, match=r"train.npz cannot be read"):
        load(f"pack:{pack[0]}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "holds no labels"),
        ({"labels": None, "offsets": None}, "holds no labels and no offsets"),
        ({"labels": np.zeros(11, int)}, "13 offsets and 11 labels"),
        ({"labels": np.zeros(12)}, "labels is float64"),
        ({"labels": np.zeros((12, 1), int)}, r"labels is int64 \[12, 1\]"),
        ({"data": np.zeros(10, np.int64)}, "data is int64"),
        ({"offsets": np.arange(13) * 10**9}, "the offsets do not rise"),
        ({"offsets": np.zeros(13, int)}, "the offsets do not rise"),
        ({"labels": np.zeros(0, int), "offsets": np.zeros(1, int)}, "1 offsets and 0 labels"),
        ({"labels": np.array([0, 1, 2, 0, 1, -7, 0, 1, 2, 0, 1, 2])}, "label -7 of training image 5 is not in"),
        ({"classes": np.array(["cat", "dog"])}, r"label 2 of training image 2 is not in \[0, 2\)"),
        ({"labels": np.zeros(12, int)}, "only 1 class"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(pack, changes, message):
    rewrite(pack[0] / "train.npz", **changes)
    with pytest.raises(DataError, match=message):
        load(f"pack:{pack[0]}")


def test_a_test_label_beyond_the_training_is_named(pack):
    rewrite(pack[0] / "test.npz", labels=np.array([0, 1, 3, 0]))
    with pytest.raises(DataError, match=r"label 3 of test image 2 is not in \[0, 3\)"):
        load(f"pack:{pack[0]}")


@pytest.mark.shared
def test_cifar10_jpeg75_decodes_as_pillow_does_and_says_what_it_is():
    if not SHARED.exists():
        pytest.skip("the large packs are not here")
    from io import BytesIO

    from PIL import Image

    data = load(f"pack:{SHARED / 'cifar10-jpeg75'}")
    assert data.note == "CIFAR-10-JPEG75: not the original pixels"
    assert data.classes[0] == "airplane"
    assert (len(data.train), len(data.held), len(data.test)) == (47_500, 2_500, 10_000)
    with np.load(SHARED / "cifar10-jpeg75" / "test.npz") as pack:
        encoded, offsets, labels = pack["data"], pack["offsets"], pack["labels"]
    assert np.array_equal(data.test.labels.numpy(), labels)
    for index in range(0, 10_000, 997):
        image = Image.open(BytesIO(encoded[offsets[index] : offsets[index + 1]].tobytes())).convert("RGB")
        assert np.array_equal(data.test.images[index].permute(1, 2, 0).numpy(), np.asarray(image))
