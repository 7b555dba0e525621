"""What a source of images is, and what it hands over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.data.dataset import Dataset, Kind, Split
from edgewise.progress import Progress


@dataclass(frozen=True)
class Decoded:
    """Images as a source decodes them, before they are resized, checked and split.

    Args:
        name: what to call the data set where people read.
        classes: the names of the classes.
        train: the training images, all of them.
        test: the images that are only reported.
        mean: per channel, as published; empty where it is to be computed from the training images.
        std: per channel, likewise.
        note: what a reader of figures made with these images must know.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    note: str = ""


class Reader(Protocol):
    """Reads a source."""

    def __call__(self, path: Path | None, size: int | None, progress: Progress | None) -> Decoded:
        """Decode the images of a source.

        Args:
            path: what follows the colon of ``name:PATH``.
            size: the side wanted, in pixels. A source whose images are all of one size may leave it to the caller.
            progress: is told (what, done, total).

        Raises:
            DataError: files that are missing, corrupt or not what the source expects.
        """
        ...


class Loader(Protocol):
    """Makes a whole data set, where labels are no classes that images could be split by."""

    def __call__(self, path: Path, held: float, size: int | None, progress: Progress | None) -> Dataset:
        """Read a source and split it three ways; see `Reader`.

        Args:
            path: what follows the colon of ``name:PATH``.
            held: share of what is not tested on, to be held out; in (0, 1).
            size: the side wanted, in pixels.
            progress: is told (what, done, total).

        Raises:
            DataError: files that are missing, corrupt or not what the source expects.
        """
        ...


@dataclass(frozen=True)
class Picture:
    """An encoded image and the boxes drawn on it.

    Args:
        image: a file, or the content of one.
        name: how to call the image in a message.
        classes: the class of each box, by name.
        boxes: float64 [n, 4], each (x1, y1, x2, y2): its edges in pixels, from 0 to the image's width and height.
        called: how to call each box in a message.
        size: the (width, height) that the boxes were drawn on; None where nothing states it.
    """

    image: Path | bytes
    name: str
    classes: tuple[str, ...]
    boxes: NDArray[np.float64]
    called: tuple[str, ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Annotated:
    """Images with boxes as a source lists them, before any is decoded.

    Args:
        name: what to call the data set where people read.
        classes: the names of the classes, in the order of their numbers; those without a box may be among them.
        train: the training images.
        val: those to hold out; empty where the source has none.
        test: those that are only reported; empty where the source has none.
        note: what was left out.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    test: tuple[Picture, ...]
    note: str = ""


class BoxReader(Protocol):
    """Reads the annotations of a source of boxes."""

    def __call__(self, path: Path) -> Annotated:
        """List the images and boxes of a source.

        Args:
            path: what follows the colon of ``name:PATH``.

        Raises:
            DataError: files that are missing, unreadable or not what the source expects.
        """
        ...


@dataclass(frozen=True)
class Source:
    """A kind of data set that `load` knows.

    Args:
        read: decodes it; None where all that it can be is images with boxes, or pairs.
        about: one line for people.
        path: what follows the colon, in capitals; empty where nothing does.
        path_needed: whether it may be left out.
        read_boxes: lists images with boxes; where there is a ``read`` too, that one takes folders and this one files.
        load: makes the whole data set in place of both; such a source has a path.
        kind: of what is read without boxes.
    """

    read: Reader | None
    about: str
    path: str = ""
    path_needed: bool = False
    read_boxes: BoxReader | None = None
    load: Loader | None = None
    kind: Kind = "classification"
