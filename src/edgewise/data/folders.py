"""Folders of images, one folder a class.

Either the images are split already, ``PATH/train/CLASS/...`` with ``PATH/test/CLASS/...`` (or ``val``), or
``PATH/CLASS/...`` holds all of them and a fifth of each class becomes the test split, chosen by a hash of the file's
path below PATH, so that the split is the same on every machine. Images may lie deeper inside a class's folder. Hidden
files and folders are left out; any other file that is no image is an error.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median_low

import torch

from edgewise.data.dataset import Split
from edgewise.data.decode import decode, shorter_side
from edgewise.data.source import Decoded
from edgewise.errors import DataError
from edgewise.progress import Progress

# The share of each class that is tested on where the folder has no split of its own.
TEST_SHARE = 0.2

# The side where none is given: a multiple of 32, since most networks halve it five times, up to ImageNet's usual one.
SIDE_STEP, SIDE_MAX = 32, 224

FilesByClass = dict[str, list[Path]]


def read(path: Path | None, size: int | None = None, progress: Progress | None = None) -> Decoded:
    """Decode a folder's images to RGB squares; see `Reader`.

    Where no size is given it is the median shorter side of the training images, rounded down to a multiple of 32, at
    least 32 and at most 224.
    """
    assert path is not None
    if not path.is_dir():
        raise DataError(f"folder:{path} is no folder")
    train, test, note = _layout(path)
    classes = tuple(train)
    if len(classes) < 2:
        found = f'only one class, "{classes[0]}"' if classes else "no folders of classes"
        raise DataError(f"folder:{path} has {found}; two or more are needed, each a folder of images")
    side = size or _usual_side([file for files in train.values() for file in files])
    return Decoded(
        name=path.resolve().name,
        classes=classes,
        train=_split(train, classes, side, progress),
        test=_split(test, classes, side, progress),
        note=note,
    )


def _layout(path: Path) -> tuple[FilesByClass, FilesByClass, str]:
    """Find the training and the test files, and what a reader should know of how they were split."""
    folders = _subfolders(path)
    tests = [name for name in ("test", "val") if name in folders]
    if "train" in folders and tests:
        train, test = _files(path / "train"), _files(path / tests[0])
        _refuse_empty(path / "train", train)
        unknown = sorted(test.keys() - train.keys())
        if unknown:
            raise DataError(f"{path / tests[0] / unknown[0]} is a class that {path / 'train'} does not have")
        if not any(test.values()):
            raise DataError(f"{path / tests[0]} holds no images")
        return train, test, f"{path.name}/val was not read" if len(tests) == 2 else ""
    if folders == ["train"]:
        raise DataError(f"{path} has train but no test or val; folder:{path / 'train'} would split its images")
    files = _files(path)
    _refuse_empty(path, files)
    test = {name: _tested(path, of_class) for name, of_class in files.items()}
    train = {name: sorted(set(of_class) - set(test[name])) for name, of_class in files.items()}
    return train, test, "a fifth of each class is the test split, by a hash of the file names"


def _refuse_empty(folder: Path, files: FilesByClass) -> None:
    for name, of_class in files.items():
        if not of_class:
            raise DataError(f"{folder / name} holds no images; fill it or remove it")


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> FilesByClass:
    """List the files of each class at any depth, sorted, without hidden ones."""
    return {name: sorted(visible(folder / name)) for name in _subfolders(folder)}


def visible(folder: Path) -> list[Path]:
    """List the files of a folder at any depth, without hidden ones."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return found


def _tested(root: Path, files: Sequence[Path]) -> list[Path]:
    """Choose a fifth of a class's files, at least one: those whose relative paths have the smallest SHA-256."""
    ranked = sorted(files, key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    return sorted(ranked[: max(1, round(TEST_SHARE * len(files)))])


def _usual_side(files: Sequence[Path]) -> int:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sides = list(pool.map(lambda file: shorter_side(file, str(file)), files))
    return min(max(median_low(sides) // SIDE_STEP * SIDE_STEP, SIDE_STEP), SIDE_MAX)


def _split(files: FilesByClass, classes: Sequence[str], side: int, progress: Progress | None) -> Split:
    labelled = [(file, classes.index(name)) for name, of_class in files.items() for file in of_class]
    paths = [file for file, _ in labelled]
    labels = torch.tensor([label for _, label in labelled], dtype=torch.int64)
    return Split(decode(paths, side, lambda index: str(paths[index]), progress), labels)
