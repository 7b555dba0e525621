"""CIFAR-10 and CIFAR-100 from their original "python" archives.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import gzip
import math
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewise.data.dataset import Split
from edgewise.data.download import fetch
from edgewise.data.source import Decoded
from edgewise.data.unpickle import unpickle
from edgewise.errors import DataError
from edgewise.progress import Progress

SHAPE = (3, 32, 32)

Contents = dict[bytes, Any]


@dataclass(frozen=True)
class Archive:
    """One of the two archives.

    Args:
        name: of the data set.
        url: where the archive is published.
        md5: as published beside it.
        folder: the one folder inside the archive.
        train: files of training images inside the folder.
        test: the file of test images.
        meta: the file with the names of the classes.
        labels: the key of the labels in a file of images.
        names: the key of the classes' names.
        mean: per channel, of the training images in [0, 1].
        std: per channel, likewise.
    """

    name: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    names: bytes
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Archive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels=b"labels",
    names=b"label_names",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = Archive(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    meta="meta",
    labels=b"fine_labels",
    names=b"fine_label_names",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def read_cifar10(path: Path | None, size: int | None = None, progress: Progress | None = None) -> Decoded:
    """Decode CIFAR-10 from a folder or an archive, or download it; see `Reader`."""
    return _read(CIFAR10, path, progress)


def read_cifar100(path: Path | None, size: int | None = None, progress: Progress | None = None) -> Decoded:
    """Decode CIFAR-100 with its 100 fine labels from a folder or an archive, or download it; see `Reader`."""
    return _read(CIFAR100, path, progress)


def _read(archive: Archive, path: Path | None, progress: Progress | None) -> Decoded:
    if path is None:
        otherwise = f'download it elsewhere and name it as data = "{archive.name}:PATH"'
        path = fetch(archive.url, archive.md5, otherwise=otherwise, progress=progress)
    files = _files(archive, path)
    names = files[archive.meta].get(archive.names)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{path}: {archive.meta} has no list {archive.names.decode()}; it may be corrupt")
    return Decoded(
        name=archive.name,
        classes=tuple(name.decode() for name in names),
        train=_split(archive, archive.train, files, path),
        test=_split(archive, (archive.test,), files, path),
        mean=archive.mean,
        std=archive.std,
    )


def _files(archive: Archive, path: Path) -> dict[str, Contents]:
    """Read the archive's files from an extracted folder, or from the archive itself or a folder that holds it."""
    wanted = (*archive.train, archive.test, archive.meta)
    packed = path / archive.url.rsplit("/", 1)[-1]
    if path.is_dir() and packed.exists():
        path = packed
    if path.is_dir():
        folder = path / archive.folder if (path / archive.folder).is_dir() else path
        raw = {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
    elif path.exists():
        raw = _extract(archive, wanted, path)
    else:
        raise DataError(f"{path} does not exist; name the folder {archive.folder} or the archive {packed.name}")
    missing = [name for name in wanted if name not in raw]
    if missing:
        raise DataError(f"{path} has no {missing[0]}; name the folder {archive.folder} or the archive {packed.name}")
    return {name: unpickle(raw[name], f"{path}: {name}") for name in wanted}


def _extract(archive: Archive, wanted: Sequence[str], path: Path) -> dict[str, bytes]:
    """Read files from the archive into memory; nothing is written."""
    members = {f"{archive.folder}/{name}": name for name in wanted}
    raw = {}
    try:
        with gzip.open(path) as unzipped:
            with tarfile.open(fileobj=unzipped, mode="r:") as tar:
                for member in tar:
                    if member.name in members and (file := tar.extractfile(member)) is not None:
                        raw[members[member.name]] = file.read()
            # A tar ends before its file does, and gzip compares its checksum only at the end of the file.
            while unzipped.read(1 << 20):
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} is a corrupt archive ({error}); remove it and download it again") from error
    return raw


def _split(archive: Archive, names: Sequence[str], files: dict[str, Contents], path: Path) -> Split:
    """Join files of images: each has a matrix of 3,072 bytes a row, the channels one after another, and labels."""
    images, labels = [], []
    for name in names:
        data, of_data = files[name].get(b"data"), files[name].get(archive.labels)
        if not isinstance(data, np.ndarray) or data.shape[1:] != (math.prod(SHAPE),):
            raise DataError(f"{path}: {name} has no images of 3x32x32 bytes; it may be corrupt")
        if not isinstance(of_data, list) or len(of_data) != len(data) or not all(isinstance(x, int) for x in of_data):
            raise DataError(f"{path}: {name} has no label for each of its {len(data)} images; it may be corrupt")
        images.append(data)
        labels += of_data
    pixels = np.concatenate(images).reshape(-1, *SHAPE)
    return Split(torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64))
