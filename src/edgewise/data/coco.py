"""Images with boxes as COCO writes them: one JSON file for each split.

Either ``FOLDER/annotations/instances_train*.json`` (``val``, ``test``) with the images in ``FOLDER/train*`` or
``FOLDER/images``, as COCO itself; or ``FOLDER/train/_annotations.coco.json`` (``valid`` or ``val``, ``test``) with the
images beside it, as Roboflow exports it. Numbers of categories may have gaps: classes are told apart by their names.

Reference: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv 1405.0312; https://cocodataset.org
(format of the annotations: a box is x, y, width, height, from the image's corner at 0, 0).
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.data.source import Annotated, Picture
from edgewise.errors import DataError

BESIDE = "_annotations.coco.json"
SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def read(path: Path) -> Annotated:
    """List the images and boxes of a folder; see `BoxReader`.

    Boxes that stand for a crowd (``iscrowd``) are left out and counted. The classes are the training file's.
    """
    if not path.is_dir():
        raise DataError(f"coco:{path} is no folder")
    files = {split: _file(path, names) for split, names in SPLITS.items()}
    train = files["train"]
    if train is None:
        raise DataError(f"coco:{path} has neither annotations/instances_train*.json nor train/{BESIDE}")
    pictures: dict[str, tuple[Picture, ...]] = {}
    classes: tuple[str, ...] = ()
    crowds = 0
    for split, file in files.items():
        pictures[split] = ()
        if file is not None:
            names, pictures[split], crowd = _read(path, file)
            classes, crowds = classes or names, crowds + crowd
    note = f"{crowds} boxes of crowds left out" if crowds else ""
    return Annotated(path.resolve().name, classes, pictures["train"], pictures["val"], pictures["test"], note)


def _file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Find the annotations of a split, under any of its names."""
    found = [file for name in names for file in sorted((folder / "annotations").glob(f"instances_{name}*.json"))]
    found += [file for name in names if (file := folder / name / BESIDE).is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} are both of one split; leave one of them there")
    return found[0] if found else None


def _read(folder: Path, file: Path) -> tuple[tuple[str, ...], tuple[Picture, ...], int]:
    """Read one split: the names of its categories, its images, and how many boxes of crowds it has."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error}); it may be damaged") from error
    listed = [
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")
    ]
    if not all(isinstance(rows, list) for rows in listed):
        raise DataError(f'{file} must hold lists called "images", "annotations" and "categories", as COCO writes them')
    images, annotations, categories = (list(rows or ()) for rows in listed)
    row: Any = None
    try:
        names = {}
        for row in sorted(categories, key=lambda category: category["id"]):
            names[row["id"]] = str(row["name"])
        of_image, crowds = defaultdict(list), 0
        for row in annotations:
            if row.get("iscrowd"):
                crowds += 1
                continue
            x, y, width, height = (float(number) for number in row["bbox"])
            box = names[row["category_id"]], (x, y, x + width, y + height), f"annotation {row.get('id', '?')}"
            of_image[row["image_id"]].append(box)
        pictures, place = [], _images(folder, file)
        for row in images:
            pictures.append(_picture(place / row["file_name"], of_image.pop(row["id"], []), row))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = json.dumps(row)
        shown = said if len(said) <= 100 else said[:100] + "..."
        raise DataError(f"{file} holds {shown}, which is not as COCO writes it ({error!r})") from error
    if of_image:
        image, boxes = next(iter(of_image.items()))
        raise DataError(f"{file}: {boxes[0][2]} is of image {image}, and there is no such image")
    for picture in pictures:
        if not Path(picture.name).is_file():
            raise DataError(f"{picture.name} is missing, an image that {file} lists")
    return tuple(dict.fromkeys(names.values())), tuple(pictures), crowds


def _picture(
    image: Path, boxes: list[tuple[str, tuple[float, float, float, float], str]], row: dict[str, Any]
) -> Picture:
    stated = int(row.get("width") or 0), int(row.get("height") or 0)
    return Picture(
        image=image,
        name=str(image),
        classes=tuple(name for name, _, _ in boxes),
        boxes=np.array([box for _, box, _ in boxes], np.float64).reshape(-1, 4),
        called=tuple(called for _, _, called in boxes),
        size=stated if all(stated) else None,
    )


def _images(folder: Path, file: Path) -> Path:
    """Find the folder that a split's images lie in."""
    if file.name == BESIDE:
        return file.parent
    split = file.stem.removeprefix("instances_")
    places = [folder / split, folder / "images" / split, folder / "images"]
    return next((place for place in places if place.is_dir()), places[0])
