"""A pack with boxes: one file of encoded images, their boxes and which image is in which split.

It holds ``data`` (uint8, encoded images one after another), ``offsets`` (integers [N + 1], where each begins and the
last ends), ``names`` (of the images, [N]), ``classes`` (names), ``boxes`` (numbers [B, 6]: image, class, x1, y1, x2,
y2, edges in pixels) and ``split_train``, ``split_val`` and ``split_test`` (names of images; either of the last two may
be left out).
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from edgewise.data.packs import Arrays, read_arrays, split_bytes
from edgewise.data.source import Annotated, Picture
from edgewise.errors import DataError


def read(path: Path) -> Annotated:
    """List the images and boxes of a pack; see `BoxReader`."""
    arrays = read_arrays(path, "boxes", "a pack with boxes is one file, FILE.npz")
    for name in ("names", "classes", "split_train"):
        if name not in arrays:
            raise DataError(f"{path} holds no {name}; is it a pack of images with boxes?")
    names, classes, boxes = [str(name) for name in arrays["names"]], arrays["classes"], arrays["boxes"]
    images = len(arrays["offsets"]) - 1
    if len(names) != images or len(set(names)) != images:
        raise DataError(f"{path}: {images} images need as many names, each another; there are {len(set(names))}")
    if boxes.ndim != 2 or boxes.shape[1] != 6 or boxes.dtype.kind not in "uif":
        raise DataError(f"{path}: boxes is {boxes.dtype} {list(boxes.shape)}; it must be numbers [boxes, 6]")
    pictures = _pictures(path, arrays, names)
    train, val, test = (
        tuple(pictures[_index(path, names, split, str(name))] for name in arrays.get(f"split_{split}", ()))
        for split in ("train", "val", "test")
    )
    return Annotated(path.stem, tuple(str(name) for name in classes), train, val, test)


def _pictures(file: Path, arrays: Arrays, names: list[str]) -> list[Picture]:
    """Give every image its boxes."""
    boxes, classes = arrays["boxes"].astype(np.float64), [str(name) for name in arrays["classes"]]
    rows = defaultdict(list)
    for row, (image, label) in enumerate(boxes[:, :2]):
        if image not in range(len(names)) or label not in range(len(classes)):
            raise DataError(
                f"{file}: row {row} of boxes is of image {image:g} and class {label:g}; "
                f"there are {len(names)} images and {len(classes)} classes, counted from 0"
            )
        rows[int(image)].append(row)
    return [
        Picture(
            image=encoded,
            name=f"{file}: {name}",
            classes=tuple(classes[int(boxes[row, 1])] for row in rows[index]),
            boxes=boxes[rows[index], 2:],
            called=tuple(f"row {row} of boxes" for row in rows[index]),
        )
        for index, (name, encoded) in enumerate(zip(names, split_bytes(arrays), strict=True))
    ]


def _index(file: Path, names: list[str], split: str, name: str) -> int:
    try:
        return names.index(name)
    except ValueError as error:
        raise DataError(f'{file}: split_{split} names "{name}", and no image is called so') from error
