"""Packs: a folder with the encoded images of a data set in ``train.npz`` and ``test.npz`` (or ``val.npz``).

Each file holds ``data`` (uint8, encoded images one after another), ``offsets`` (integers [N + 1], where each begins
and the last ends) and ``labels`` (integers [N]). The training file may name the classes in ``classes`` or ``names``.
"""

from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.data.dataset import Split
from edgewise.data.decode import decode
from edgewise.data.source import Decoded
from edgewise.errors import DataError
from edgewise.progress import Progress

# Packs whose figures need a word of warning, by their folder's name.
NOTES = {"cifar10-jpeg75": "CIFAR-10-JPEG75: not the original pixels"}

Arrays = dict[str, NDArray[np.generic]]


def read(path: Path | None, size: int | None = None, progress: Progress | None = None) -> Decoded:
    """Decode a pack's images to RGB; see `Reader`. They keep their size where none is given."""
    assert path is not None
    if not path.is_dir():
        raise DataError(f"pack:{path} is no folder; a pack is a folder with train.npz and test.npz or val.npz")
    train_file = path / "train.npz"
    test_file = next((file for name in ("test", "val") if (file := path / f"{name}.npz").exists()), path / "test.npz")
    train, test = _arrays(train_file), _arrays(test_file)
    return Decoded(
        name=path.resolve().name,
        classes=_classes(train),
        train=_split(train, train_file, size, progress),
        test=_split(test, test_file, size, progress),
        note=NOTES.get(path.resolve().name, ""),
    )


def _arrays(file: Path) -> Arrays:
    """Read a pack file of labelled images and see that its arrays fit together."""
    arrays = read_arrays(file, "labels", "a pack is a folder with train.npz and test.npz or val.npz")
    offsets, labels = arrays["offsets"], arrays["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise DataError(f"{file}: labels is {labels.dtype} {list(labels.shape)}; it must be a row of integers")
    if len(offsets) != len(labels) + 1 or len(labels) == 0:
        raise DataError(f"{file}: {len(offsets)} offsets and {len(labels)} labels; N labels need N + 1 offsets, N > 0")
    return arrays


def read_arrays(file: Path, annotation: str, expected: str) -> Arrays:
    """Read a file of encoded images.

    Args:
        file: the pack.
        annotation: the array that says what the images show.
        expected: what the user is told where there is no such file.

    Raises:
        DataError: no such file, a corrupt one, one without the arrays; images that do not lie one after another.
    """
    try:
        with np.load(file, allow_pickle=False) as pack:
            arrays = {name: pack[name] for name in pack.files}
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing; {expected}") from error
    except (OSError, ValueError, EOFError, BadZipFile, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read ({error}); it may be corrupt") from error
    missing = {"data", "offsets", annotation} - arrays.keys()
    if missing:
        raise DataError(f"{file} holds no {' and no '.join(sorted(missing))}; is it a pack of labelled images?")
    data, offsets = arrays["data"], arrays["offsets"]
    for name, array, kinds in (("data", data, "u"), ("offsets", offsets, "ui")):
        if array.ndim != 1 or array.dtype.kind not in kinds or (name == "data" and array.dtype != np.uint8):
            raise DataError(f"{file}: {name} is {array.dtype} {list(array.shape)}; it must be a row of integers")
    edges = offsets.astype(np.int64)
    if len(edges) == 0 or edges[0] < 0 or edges[-1] > len(data) or (np.diff(edges) <= 0).any():
        raise DataError(f"{file}: the offsets do not rise from 0 to the {len(data)} bytes of data; it may be corrupt")
    return arrays


def split_bytes(arrays: Arrays) -> list[bytes]:
    """Return the encoded images of a file one by one."""
    data = arrays["data"].tobytes()
    return [data[start:end] for start, end in pairwise(arrays["offsets"].tolist())]


def _classes(train: Arrays) -> tuple[str, ...]:
    """Name the classes as the pack does, or by their numbers."""
    count = max(int(train["labels"].max()) + 1, 0)
    if "classes" in train:
        return tuple(str(name) for name in train["classes"])
    # Some packs use `names` for their files: it names classes where it has exactly one for each.
    if "names" in train and len(train["names"]) == count:
        return tuple(str(name) for name in train["names"])
    return tuple(str(label) for label in range(count))


def _split(arrays: Arrays, file: Path, size: int | None, progress: Progress | None) -> Split:
    images = decode(split_bytes(arrays), size, lambda index: f"{file}: image {index}", progress)
    return Split(images, torch.from_numpy(arrays["labels"].astype(np.int64)))
