"""Images with boxes as Pascal VOC writes them: an XML file for each image, and lists of the images of each split.

``FOLDER/Annotations/NAME.xml``, ``FOLDER/JPEGImages/NAME.jpg`` (or another format) and
``FOLDER/ImageSets/Main/train.txt`` with ``val.txt`` and ``test.txt``, a name a line; ``trainval.txt`` is the training
where there is no ``train.txt``. VOC numbers pixels from 1 and counts both ends of a box in: the edges of xmin = 1, xmax
= 3 are 0 and 3.

Objects marked ``difficult`` are left out everywhere, and counted. VOC's protocol asks to find none of them, and most
train without them; it also forgives who finds them, which is not done here, so figures are a little below VOC's own.

Reference: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 88, 2010.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from edgewise.data.source import Annotated, Picture
from edgewise.errors import DataError


def read(path: Path) -> Annotated:
    """List the images and boxes of a folder; see `BoxReader`. The classes are sorted by name."""
    if not path.is_dir():
        raise DataError(f"voc:{path} is no folder")
    images = path / "JPEGImages"
    if not images.is_dir():
        raise DataError(f"{images} is missing; voc:FOLDER needs Annotations, JPEGImages and ImageSets/Main")
    files = {file.stem: file for file in sorted(images.iterdir()) if not file.name.startswith(".")}
    names = {split: _names(path, split) for split in ("train", "val", "test")}
    names["train"] = names["train"] or _names(path, "trainval")
    if not names["train"]:
        raise DataError(
            f"{path / 'ImageSets' / 'Main' / 'train.txt'} is missing or empty; it lists the training images"
        )
    pictures: dict[str, list[Picture]] = {}
    difficult = 0
    for split, of_split in names.items():
        pictures[split] = []
        for name in of_split:
            if name not in files:
                raise DataError(f"{images / name}.jpg is missing, an image that ImageSets/Main lists for {split}")
            picture, left_out = _picture(files[name], path / "Annotations" / f"{name}.xml")
            pictures[split].append(picture)
            difficult += left_out
    classes = sorted({name for of_split in pictures.values() for picture in of_split for name in picture.classes})
    train, val, test = (tuple(pictures[split]) for split in ("train", "val", "test"))
    note = f"{difficult} difficult boxes left out" if difficult else ""
    return Annotated(path.resolve().name, tuple(classes), train, val, test, note)


def _names(folder: Path, split: str) -> list[str]:
    """List the images of a split; none where there is no list."""
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    return [line.split()[0] for line in lines if line.strip()]


def _picture(image: Path, file: Path) -> tuple[Picture, int]:
    """Read an image's boxes, and count those that are left out."""
    try:
        root = ElementTree.parse(file).getroot()
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing, the boxes of {image.name}") from error
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file} cannot be read as XML ({error}); it may be damaged") from error
    classes, boxes, called, difficult = [], [], [], 0
    for number, thing in enumerate(root.iter("object"), start=1):
        if (thing.findtext("difficult") or "0").strip() == "1":
            difficult += 1
            continue
        name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        try:
            if not name or box is None:
                raise ValueError("it needs a name and a bndbox")
            x1, y1, x2, y2 = (float(box.findtext(edge) or "") for edge in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            raise DataError(f"{file}: object {number} is not as VOC writes it ({error})") from error
        classes.append(name)
        boxes.append((x1 - 1, y1 - 1, x2, y2))
        called.append(f"object {number}")
    return (
        Picture(
            image=image,
            name=str(file),
            classes=tuple(classes),
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            called=tuple(called),
            size=_size(root),
        ),
        difficult,
    )


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the size that the boxes were drawn on; tools that do not know it write nothing or 0."""
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width and height else None
