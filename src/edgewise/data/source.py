"""What a source of images is, and what it hands over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgewise.data.dataset import Dataset, Split
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
class Source:
    """A kind of data set that `load` knows.

    Args:
        read: decodes it; or a whole data set is made by `load`.
        about: one line for people.
        path: what follows the colon, in capitals; empty where nothing does.
        path_needed: whether it may be left out.
        load: in place of `read`; such a source has a path.
    """

    read: Reader | None
    about: str
    path: str = ""
    path_needed: bool = False
    load: Loader | None = None
