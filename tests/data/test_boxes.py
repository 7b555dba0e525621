"""Images with boxes: the three forms they come in, what is refused, what is held out."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from edgewise.data import Dataset, Split, boxes, fewer, load
from edgewise.errors import DataError
from image_files import encode

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SPLITS = ("train", "val", "test")

# Of each image: its width and height, and its boxes, (class, x1, y1, x2, y2).
IMAGES = {
    "a": (40, 20, [("cat", 0, 0, 40, 20), ("dog", 10, 5, 20, 15)]),
    "b": (20, 40, [("dog", 1, 2, 11, 32)]),
    "c": (32, 32, [("cat", 4, 4, 8, 8), ("cat", 16, 8, 32, 24), ("dog", 0, 0, 1, 1)]),
    "d": (32, 32, []),
    "e": (40, 40, [("dog", 20, 20, 40, 40), ("cat", 3, 4, 5, 6)]),
    "f": (10, 20, [("cat", 5, 5, 10, 20)]),
}
WHERE = {"train": ("a", "b", "c", "d"), "val": ("e",), "test": ("f",)}
Contents = dict[str, tuple[int, int, list[tuple[str, float, float, float, float]]]]


@pytest.fixture
def pixels(noise: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    return {name: noise(height, width, 3) for name, (width, height, _) in IMAGES.items()}


def write_pack(root: Path, pixels: dict[str, np.ndarray], images: Contents = IMAGES, **changes: object) -> str:
    encoded = [encode(pixels[name]) for name in images]
    rows = [
        (index, ("cat", "dog", "eel").index(label), *box)
        for index, (_, _, of_image) in enumerate(images.values())
        for label, *box in of_image
    ]
    content = {
        "data": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]),
        "boxes": np.array(rows, np.float32),
        "classes": np.array(["cat", "dog", "eel"]),
        "names": np.array(list(images)),
        **{f"split_{split}": np.array(names) for split, names in WHERE.items()},
        **changes,
    }
    root.mkdir(exist_ok=True)
    np.savez(root / "things.npz", **{name: array for name, array in content.items() if array is not None})
    return f"pack:{root / 'things.npz'}"


def coco_content(names: tuple[str, ...], images: Contents = IMAGES) -> dict[str, list[dict[str, object]]]:
    """The annotations of some images; the numbers of images and categories have gaps."""
    number = {"dog": 18, "cat": 17, "eel": 90}
    annotations = [
        {"image_id": 100 + place, "category_id": number[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for place, name in enumerate(names)
        for label, x1, y1, x2, y2 in images[name][2]
    ]
    return {
        "images": [
            {"id": 100 + place, "file_name": f"{name}.png", "width": images[name][0], "height": images[name][1]}
            for place, name in enumerate(names)
        ],
        "annotations": [{"id": place, **annotation} for place, annotation in enumerate(annotations)],
        "categories": [{"id": place, "name": name} for name, place in number.items()],
    }


def write_coco(root: Path, pixels: dict[str, np.ndarray], images: Contents = IMAGES, *, roboflow: bool = False) -> str:
    (root / "annotations").mkdir(parents=True)
    for split, names in WHERE.items():
        folder = root / (split.replace("val", "valid") if roboflow else f"{split}2017")
        folder.mkdir()
        for name in names:
            (folder / f"{name}.png").write_bytes(encode(pixels[name]))
        file = folder / "_annotations.coco.json" if roboflow else root / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(coco_content(names, images)))
    return f"coco:{root}"


def write_voc(root: Path, pixels: dict[str, np.ndarray], images: Contents = IMAGES) -> str:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, (width, height, of_image) in images.items():
        (root / "JPEGImages" / f"{name}.png").write_bytes(encode(pixels[name]))
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for label, x1, y1, x2, y2 in of_image
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    for split, names in WHERE.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return f"voc:{root}"


WRITERS = {
    "pack": write_pack,
    "coco": write_coco,
    "roboflow": lambda *given: write_coco(*given, roboflow=True),
    "voc": write_voc,
}
EACH = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def listed(split: Split) -> list[list[tuple[int, ...]]]:
    """The boxes of each image, without those that fill up, with places to a hundredth."""
    return [
        [tuple(round(value, 2) for value in row) for row in image.tolist() if row[0] >= 0] for image in split.labels
    ]


@EACH
def test_every_form_gives_the_same_images_and_boxes(tmp_path: Path, pixels: dict[str, np.ndarray], write) -> None:
    told: list[tuple[object, ...]] = []
    data = load(write(tmp_path / "things", pixels), size=20, progress=lambda *step: told.append(step))
    assert (data.name, data.kind, data.classes, data.note) == ("things", "detection", ("cat", "dog"), "")
    assert (len(data.train), len(data.held), len(data.test)) == (4, 1, 1)
    assert data.train.labels.shape == (4, 3, 5)
    assert data.train.labels.dtype == torch.float32
    # Divided by the sides and multiplied by 20: a is 40x20, b 20x40, c 32x32, e 40x40, f 10x20.
    assert listed(data.train) == [
        [(0, 0, 0, 20, 20), (1, 5, 5, 10, 15)],
        [(1, 1, 1, 11, 16)],
        [(0, 2.5, 2.5, 5, 5), (0, 10, 5, 20, 15), (1, 0, 0, 0.62, 0.62)],
        [],
    ]
    assert listed(data.held) == [[(1, 10, 10, 20, 20), (0, 1.5, 2, 2.5, 3)]]
    assert listed(data.test) == [[(0, 10, 5, 20, 20)]]
    assert data.input_shape == (3, 20, 20)
    assert told[-1][:2] == ("decode images", 1)
    # torch's antialiased bilinear interpolation is another program for the same resizing.
    expected = F.interpolate(
        torch.from_numpy(pixels["b"]).permute(2, 0, 1)[None].float(), (20, 20), mode="bilinear", antialias=True
    )
    assert (data.train.images[1] - expected[0]).abs().max() <= 1.5


@EACH
def test_a_box_follows_what_it_surrounds(tmp_path: Path, write) -> None:
    """A white rectangle on black stays inside its box when the image is stretched."""
    painted = {name: np.zeros((height, width, 3), np.uint8) for name, (width, height, _) in IMAGES.items()}
    for name, (_, _, of_image) in IMAGES.items():
        for _, x1, y1, x2, y2 in of_image[-1:]:
            painted[name][y1:y2, x1:x2] = 255
    data = load(write(tmp_path / "things", painted), size=64)
    for images, labels in ((data.train.images[:2], data.train.labels[:2]), (data.test.images, data.test.labels)):
        for image, rows in zip(images, labels, strict=True):
            x1, y1, x2, y2 = (round(edge) for edge in rows[rows[:, 0] >= 0][-1, 1:].tolist())
            white = (image[0] > 127).nonzero()
            assert white.amin(0).tolist() == [y1, x1]
            assert white.amax(0).tolist() == [y2 - 1, x2 - 1]


@EACH
def test_a_bad_box_is_refused_by_name_or_dropped_and_counted(
    tmp_path: Path, pixels: dict[str, np.ndarray], write
) -> None:
    bad = [("dog", 5, 5, 5, 9), ("cat", 20, 1, 43, 9), ("cat", 8, 8, 6, 12), ("cat", 3, 50, 9, 60)]
    images = {**IMAGES, "e": (40, 40, [bad[0], *IMAGES["e"][2], *bad[1:]])}
    spec = write(tmp_path / "things", pixels, images)
    with pytest.raises(DataError, match=r"\be\b.*(row 6|annotation 0|object 1).*\(dog, 5, 5, 5, 9\).*40x40") as caught:
        load(spec, size=20)
    assert "\n" not in str(caught.value)
    data = load(spec, size=20, skip_bad=True)
    assert data.note == "4 bad boxes dropped"
    assert listed(data.held) == [[(1, 10, 10, 20, 20), (0, 1.5, 2, 2.5, 3)]]


@EACH
def test_a_box_that_rounds_over_the_edge_is_cut_off(tmp_path: Path, pixels: dict[str, np.ndarray], write) -> None:
    images = {**IMAGES, "f": (10, 20, [("cat", -1, 5, 10.5, 20.25)])}
    assert listed(load(write(tmp_path / "things", pixels, images), size=20).test) == [[(0, 0, 5, 20, 20)]]


@EACH
def test_a_class_without_training_images_is_named(tmp_path: Path, pixels: dict[str, np.ndarray], write) -> None:
    images = {**IMAGES, "f": (10, 20, [("eel", 5, 5, 10, 20)])}
    with pytest.raises(DataError, match='class "eel" has boxes in test but none in the training'):
        load(write(tmp_path / "things", pixels, images), size=20)


@EACH
def test_a_broken_image_is_named(tmp_path: Path, pixels: dict[str, np.ndarray], write) -> None:
    spec = write(tmp_path / "things", pixels)
    for file in tmp_path.rglob("b.png"):
        file.write_bytes(file.read_bytes()[:60])
    if "pack" in spec:
        encoded = [encode(pixels[name]) for name in IMAGES]
        encoded[1] = encoded[1][:60]
        data = {"data": np.frombuffer(b"".join(encoded), np.uint8), "offsets": np.cumsum([0, *map(len, encoded)])}
        spec = write_pack(tmp_path / "things", pixels, **data)
    with pytest.raises(DataError, match=r"\bb\b.* is (a broken|no) image"):
        load(spec, size=20)


@EACH
def test_the_usual_side_is_near_that_of_the_images(tmp_path: Path, pixels: dict[str, np.ndarray], write) -> None:
    assert load(write(tmp_path / "things", pixels)).size == 32


def same(a: Dataset, b: Dataset) -> bool:
    return all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels)
        for x, y in ((a.train, b.train), (a.held, b.held), (a.test, b.test))
    )


def test_the_same_files_give_the_same_data(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    spec = write_pack(tmp_path, pixels, split_val=None)
    first, other = load(spec, size=20), load(spec, size=20, held=0.5)
    torch.manual_seed(1)
    assert same(first, load(spec, size=20))
    assert (len(first.held), len(other.held)) == (1, 2)
    assert first.checksum == other.checksum
    assert first.checksum != load(write_pack(tmp_path, pixels), size=20).checksum


def test_without_a_test_split_val_is_the_test(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    data = load(write_pack(tmp_path, pixels, split_test=None), size=20)
    assert (len(data.train), len(data.held), len(data.test)) == (3, 1, 1)
    assert listed(data.test) == [[(1, 10, 10, 20, 20), (0, 1.5, 2, 2.5, 3)]]
    with pytest.raises(DataError, match="there are no images to test on, no val and no test"):
        load(write_pack(tmp_path, pixels, split_test=None, split_val=None), size=20)


def numbered(classes: list[list[int]]) -> Split:
    """Images whose pixel is their number, with a box of each of the classes."""
    labels = torch.full((len(classes), 3, 5), -1.0)
    for place, shown in enumerate(classes):
        labels[place, : len(shown), 0] = torch.tensor(shown, dtype=torch.float32)
    return Split(torch.arange(len(classes), dtype=torch.uint8).view(-1, 1, 1, 1), labels)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 5), (0.99, 18)])
def test_hold_out_leaves_every_class_to_learn_from(share: float, count: int) -> None:
    classes = [[0], [0, 1], [2, 2, 0], *([[0, 1]] * 16), []]
    learned, held = boxes.hold_out("d", numbered(classes), share)
    assert len(held) == count
    numbers = [part.images.flatten().tolist() for part in (learned, held)]
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert all(part == sorted(part) for part in numbers)
    assert {2} <= set(learned.labels[:, :, 0].flatten().tolist()) >= {0, 1}


def test_hold_out_refuses_images_that_each_show_a_class_of_their_own() -> None:
    with pytest.raises(DataError, match="d: every training image is the only one of some class"):
        boxes.hold_out("d", numbered([[0], [1], [2]]), 0.5)


def test_fewer_images_are_drawn(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    data = fewer(load(write_pack(tmp_path, pixels), size=20), 3, seed=0)
    assert len(data.train) == 3
    assert data.note == "trained on 3 of 4 images"
    with pytest.raises(DataError, match="things: images = 5, but it has 4"):
        fewer(load(write_pack(tmp_path, pixels), size=20), 5, seed=0)


def test_skipping_boxes_means_nothing_to_images_without() -> None:
    with pytest.raises(DataError, match="skip_bad drops boxes, and it has none"):
        load("fashion-mnist", skip_bad=True)


# -- what only one form can say -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "holds no boxes"),
        ({"names": None}, "holds no names"),
        ({"split_train": None}, "holds no split_train"),
        ({"boxes": np.zeros((3, 5))}, r"boxes is float64 \[3, 5\]; it must be numbers \[boxes, 6\]"),
        ({"boxes": np.array([[9, 0, 0, 0, 1, 1]])}, "row 0 of boxes is of image 9 and class 0"),
        ({"boxes": np.array([[0, 3, 0, 0, 1, 1]])}, "row 0 of boxes is of image 0 and class 3"),
        ({"boxes": np.array([[0.5, 1, 0, 0, 1, 1]])}, r"row 0 of boxes is of image 0\.5"),
        ({"boxes": np.array([[0, 1, 0, 0, np.nan, 1]])}, "row 0 of boxes .*nan"),
        ({"boxes": np.zeros((0, 6))}, "the training images have no boxes"),
        ({"names": np.array(list("aacdef"))}, "6 images need as many names"),
        ({"split_val": np.array(["z"])}, 'split_val names "z", and no image is called so'),
        ({"split_train": np.array([], "U1")}, "there are no training images"),
        ({"offsets": np.zeros(7, int)}, "the offsets do not rise"),
    ],
)
def test_a_pack_that_does_not_fit_together(
    tmp_path: Path, pixels: dict[str, np.ndarray], changes: dict[str, object], message: str
) -> None:
    spec = write_pack(tmp_path, pixels, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(spec, size=20)
    assert "things.npz" in str(caught.value)


def edit(file: Path, change: Callable[[dict[str, list[dict[str, object]]]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), 'must hold lists called "images", "annotations" and "categories"'),
        (lambda c: c["annotations"][0].pop("bbox"), r"holds .*image_id.* not as COCO writes it \(KeyError\('bbox'\)\)"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "not as COCO writes it"),
        (lambda c: c["annotations"][0].update(category_id=5), r"not as COCO writes it \(KeyError\(5\)\)"),
        (lambda c: c["annotations"][0].update(image_id=7), "annotation 0 is of image 7, and there is no such image"),
        (lambda c: c["images"].append({"id": 1, "file_name": "no.png"}), r"train2017/no\.png is missing"),
        (lambda c: c["images"][1].update(width=99), r"b\.png is 20x40, and its boxes are for 99x40"),
    ],
)
def test_coco_that_does_not_fit_together(tmp_path: Path, pixels: dict[str, np.ndarray], change, message: str) -> None:
    spec = write_coco(tmp_path / "things", pixels)
    edit(tmp_path / "things/annotations/instances_train2017.json", change)
    with pytest.raises(DataError, match=message) as caught:
        load(spec, size=20)
    assert "\n" not in str(caught.value)


def test_crowds_are_left_out_and_counted(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    spec = write_coco(tmp_path / "things", pixels)
    edit(tmp_path / "things/annotations/instances_train2017.json", lambda c: c["annotations"][1].update(iscrowd=1))
    data = load(spec, size=20)
    assert data.note == "1 boxes of crowds left out"
    assert listed(data.train)[0] == [(0, 0, 0, 20, 20)]


def test_coco_in_other_places(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    spec = write_coco(tmp_path / "things", pixels)
    expected = load(spec, size=20)
    (tmp_path / "things" / "images").mkdir()
    for split in SPLITS:
        (tmp_path / "things" / f"{split}2017").rename(tmp_path / "things" / "images" / f"{split}2017")
    assert same(load(spec, size=20), expected)
    (tmp_path / "things/annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(DataError, match=r"instances_train2014.json and .*instances_train2017.json are both of one"):
        load(spec)


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_json_that_is_none(tmp_path: Path, pixels: dict[str, np.ndarray], junk: bytes) -> None:
    spec = write_coco(tmp_path / "things", pixels)
    (tmp_path / "things/annotations/instances_val2017.json").write_bytes(junk)
    with pytest.raises(DataError, match=r"instances_val2017\.json (cannot be read as JSON|must hold lists)"):
        load(spec)


def test_voc_counts_pixels_from_one(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    spec = write_voc(tmp_path / "things", pixels)
    assert "<xmin>11</xmin><ymin>6</ymin><xmax>20</xmax>" in (tmp_path / "things/Annotations/a.xml").read_text()
    assert listed(load(spec, size=20).train)[0][1] == (1, 5, 5, 10, 15)


def test_difficult_boxes_are_left_out_and_counted(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    spec = write_voc(tmp_path / "things", pixels)
    file = tmp_path / "things/Annotations/e.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    data = load(spec, size=20)
    assert data.note == "1 difficult boxes left out"
    assert listed(data.held) == [[(0, 1.5, 2, 2.5, 3)]]


def test_trainval_is_the_training_where_there_is_no_train(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    spec = write_voc(tmp_path / "things", pixels)
    expected = load(spec, size=20)
    lists = tmp_path / "things/ImageSets/Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    assert same(load(spec, size=20), expected)
    (lists / "trainval.txt").unlink()
    with pytest.raises(DataError, match=r"Main/train\.txt is missing or empty"):
        load(spec)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", r"b\.xml cannot be read as XML"),
        ("<name>dog</name>", "", r"b\.xml: object 1 is not as VOC writes it"),
        ("<xmin>2</xmin>", "<xmin>two</xmin>", r"b\.xml: object 1 is not as VOC writes it"),
        ("<xmax>11</xmax>", "", r"b\.xml: object 1 is not as VOC writes it"),
        ("<width>20", "<width>21", r"b\.xml is 20x40, and its boxes are for 21x40"),
    ],
)
def test_xml_that_does_not_fit(tmp_path: Path, pixels: dict[str, np.ndarray], old: str, new: str, message: str) -> None:
    spec = write_voc(tmp_path / "things", pixels)
    file = tmp_path / "things/Annotations/b.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        load(spec, size=20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("Annotations/c.xml", r"c\.xml is missing, the boxes of c\.png"),
        ("JPEGImages/c.png", r"c\.jpg is missing, an image that ImageSets/Main lists for train"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, pixels: dict[str, np.ndarray], gone: str, message: str) -> None:
    spec = write_voc(tmp_path / "things", pixels)
    (tmp_path / "things" / gone).unlink()
    with pytest.raises(DataError, match=message):
        load(spec)


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_what_is_no_such_folder(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"{kind}:{tmp_path / 'nowhere'} is no folder")):
        load(f"{kind}:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"JPEGImages is missing|has neither annotations/instances_train"):
        load(f"{kind}:{tmp_path}")


@pytest.mark.parametrize("stated", [(20, 40), (40, 20), None])
def test_an_image_that_lies_on_its_side(tmp_path: Path, stated: tuple[int, int] | None) -> None:
    """Boxes belong to the image as it is stored, if they were drawn on that; otherwise to the upright one."""
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    image.paste((255, 0, 0), (0, 0, 40, 5))  # red above, as stored; on the right, upright
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.png", exif=exif)
    picture = boxes.Picture(tmp_path / "side.png", "side", (), np.zeros((0, 4)), (), stated)
    images, sizes = boxes.stretch([picture.image], 20, lambda index: "side", [picture.size])
    above = images[0, 0, :4].float().mean() > 250
    assert above == (stated == (40, 20))
    assert sizes == [(40, 20) if stated == (40, 20) else (20, 40)]


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "bccd.npz").exists(), reason="the large packs are not here")
def test_the_blood_cells() -> None:
    spec = f"pack:{SHARED / 'bccd.npz'}"
    with pytest.raises(DataError, match=r"BloodImage_00343: row 4004 of boxes \(RBC, 181, 329, 181, 329\)"):
        load(spec, size=64)
    data = load(spec, size=64, skip_bad=True)
    assert (len(data.train), len(data.held), len(data.test)) == (205, 87, 72)
    assert data.classes == ("Platelets", "RBC", "WBC")
    assert data.note == "2 bad boxes dropped"
    counts = sum(int((split.labels[:, :, 0] >= 0).sum()) for split in (data.train, data.held, data.test))
    assert counts == 4_886
