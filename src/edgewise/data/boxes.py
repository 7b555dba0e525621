"""From images with boxes as a source lists them to a data set: decoded, checked, and some of them held out."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from statistics import median_low

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.data.dataset import Dataset, Split
from edgewise.data.decode import shorter_side, stretch
from edgewise.data.prepare import HELD_SEED, checksum, normalisation
from edgewise.data.source import Annotated, Picture
from edgewise.errors import DataError
from edgewise.progress import Progress

# The side where none is given: a multiple of 32, since detectors halve it five times, up to CenterNet's usual one.
SIDE_STEP, SIDE_MAX = 32, 512

# Pixels by which a box may reach over its image's edge: annotations round. Such boxes are cut off at the edge.
ROUNDING = 1.0

Boxes = list[tuple[str, NDArray[np.float64]]]
"""Of one image: each box's class and (x1, y1, x2, y2)."""


def dataset(
    found: Annotated,
    spec: str,
    held: float,
    size: int | None,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Make a data set of images with boxes.

    Images are stretched to squares of bytes, and boxes with them: labels are float32 [N, M, 5] with rows (class, x1,
    y1, x2, y2) in pixels of the resized image, M the most boxes that any image has; rows of class -1 fill up. Classes
    without a single box are left out.

    Where there is no validation split, a share of the training images is held out, always the same ones; and where
    there is no test split, the validation split is the test.

    Args:
        found: the images and their boxes.
        spec: how the user calls it, for messages.
        held: share of the training images to hold out where there is no split for that, in (0, 1).
        size: side in pixels to resize to; None takes the training images' median shorter side, rounded down to a
            multiple of 32, at least 32 and at most 512.
        skip_bad: drop boxes that lie outside their image or have no area, and count them in the note.
        progress: is told (what, done, total).

    Raises:
        DataError: no training images, or none to test on; an image that is missing or broken; a box outside its image
            or without area; a class in the other images that no training image shows; a channel that is the same in
            every training image.
    """
    if not found.train:
        raise DataError(f"{spec}: there are no training images")
    if not found.val and not found.test:
        raise DataError(f"{spec}: there are no images to test on, no val and no test; split some off")
    size = size or _usual_side(found.train)
    decoded, dropped = {}, 0
    for name, pictures in (("train", found.train), ("val", found.val), ("test", found.test)):
        if pictures:
            decoded[name], bad = _decoded(pictures, size, skip_bad, progress)
            dropped += bad
    classes = _classes(spec, found.classes, {name: boxes for name, (_, boxes) in decoded.items()})
    most = max(len(boxes) for _, of_images in decoded.values() for boxes in of_images)
    splits = {name: Split(images, _labels(of_images, classes, most)) for name, (images, of_images) in decoded.items()}

    train, test = splits["train"], splits.get("test", splits.get("val"))
    assert test is not None
    whole = train
    if "val" in splits and "test" in splits:
        kept = splits["val"]
        whole = Split(torch.cat([train.images, kept.images]), torch.cat([train.labels, kept.labels]))
    else:
        train, kept = hold_out(spec, train, held)
    mean, std = normalisation(spec, splits["train"].images)
    notes = [found.note, f"{dropped} bad boxes dropped" if dropped else ""]
    return Dataset(
        name=found.name,
        classes=classes,
        train=train,
        held=kept,
        test=test,
        mean=mean,
        std=std,
        checksum=checksum(whole, test),
        note="; ".join(filter(None, notes)),
        kind="detection",
    )


def hold_out(name: str, train: Split, share: float) -> tuple[Split, Split]:
    """Split off a share of the training images, always the same ones, and never the last image that shows a class.

    Args:
        name: of the data set, for the message.
        train: labels [N, M, 5].
        share: in (0, 1); rounded, at least one image is held out.

    Returns:
        The images to learn from and those held out, both in their original order.

    Raises:
        DataError: every image is the only one of a class.
    """
    shown = [set(labels[labels[:, 0] >= 0, 0].tolist()) for labels in train.labels]
    left = Counter(chain.from_iterable(shown))
    chosen: list[int] = []
    wanted = max(1, round(share * len(train)))
    for index in torch.randperm(len(train), generator=torch.Generator().manual_seed(HELD_SEED)).tolist():
        spared = len(chosen) + 1 < len(train) and all(left[label] > 1 for label in shown[index])
        if len(chosen) < wanted and spared:
            chosen.append(index)
            left.subtract(shown[index])
    if not chosen:
        raise DataError(f"{name}: every training image is the only one of some class; more are needed to hold one out")
    mask = torch.zeros(len(train), dtype=torch.bool)
    mask[chosen] = True
    return Split(train.images[~mask], train.labels[~mask]), Split(train.images[mask], train.labels[mask])


def _decoded(
    pictures: Sequence[Picture], size: int, skip_bad: bool, progress: Progress | None
) -> tuple[tuple[Tensor, list[Boxes]], int]:
    """Decode images, scale their boxes alike; return how many bad ones were dropped too."""
    images, sizes = stretch(
        [picture.image for picture in pictures],
        size,
        lambda index: pictures[index].name,
        [picture.size for picture in pictures],
        progress,
    )
    of_images, dropped = [], 0
    for picture, (width, height) in zip(pictures, sizes, strict=True):
        extent = np.array([width, height, width, height], np.float64)
        boxes = picture.boxes.clip(0, extent)
        good = (
            np.isfinite(picture.boxes).all(1)
            & (np.abs(boxes - picture.boxes) <= ROUNDING).all(1)
            & (boxes[:, 2:] > boxes[:, :2]).all(1)
        )
        if not good.all() and not skip_bad:
            first = int(np.argmin(good))
            raise DataError(
                f"{picture.name}: {picture.called[first]} ({picture.classes[first]}, "
                f"{', '.join(f'{edge:g}' for edge in picture.boxes[first])}) has no area inside the image of "
                f"{width}x{height}, or leaves it; mend it, or drop such boxes: --skip-bad, in a recipe skip_bad = true"
            )
        dropped += int((~good).sum())
        scaled = boxes * (size / extent)
        of_images.append([(picture.classes[i], scaled[i]) for i in np.flatnonzero(good)])
    return (images, of_images), dropped


def _classes(spec: str, known: Sequence[str], splits: dict[str, list[Boxes]]) -> tuple[str, ...]:
    """Return the classes that the training images show."""
    seen = {name: {label for boxes in of_images for label, _ in boxes} for name, of_images in splits.items()}
    for name, labels in seen.items():
        unknown = sorted(labels - seen["train"])
        if unknown:
            raise DataError(f'{spec}: class "{unknown[0]}" has boxes in {name} but none in the training images')
    if not seen["train"]:
        raise DataError(f"{spec}: the training images have no boxes")
    return tuple(name for name in known if name in seen["train"])


def _labels(of_images: list[Boxes], classes: tuple[str, ...], most: int) -> Tensor:
    """Write boxes as float32 [N, most, 5]."""
    number = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(of_images), most, 5), np.float32)
    labels[:, :, 0] = -1
    for place, boxes in enumerate(of_images):
        for row, (name, box) in enumerate(boxes):
            labels[place, row] = number[name], *box
    return torch.from_numpy(labels)


def _usual_side(pictures: Sequence[Picture]) -> int:
    with ThreadPoolExecutor() as pool:
        sides = list(pool.map(lambda picture: shorter_side(picture.image, picture.name), pictures))
    return min(max(median_low(sides) // SIDE_STEP * SIDE_STEP, SIDE_STEP), SIDE_MAX)
