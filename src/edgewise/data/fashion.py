"""Fashion-MNIST, embedded: the first 10,000 training and the first 2,000 test images, grey, 28x28, 10 classes.

`scripts/build_fashion_mnist.py` makes the files. Per split, two lossless WebP images of grey pixels: the labels, one
pixel each; and a mosaic of the images, row by row, ordered by label, which brings like beside like and saves 2 %.
Within a label they keep their original order, so the labels alone tell each image's place.

Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017, arXiv 1708.07747. MIT licence, in `fashion_mnist/LICENSE`.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.data.dataset import Split
from edgewise.data.source import Decoded
from edgewise.errors import DataError
from edgewise.progress import Progress

SIDE = 28
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Of the 10,000 embedded training images.
MEAN = (0.2863,)
STD = (0.354,)


def read(path: Path | None = None, size: int | None = None, progress: Progress | None = None) -> Decoded:
    """Decode the embedded images; see `Reader`."""
    folder = files("edgewise.data") / "fashion_mnist"
    train, test = read_split(folder, "train"), read_split(folder, "test")
    return Decoded("fashion-mnist", CLASSES, train, test, MEAN, STD)


def read_split(folder: Traversable, split: str) -> Split:
    """Decode ``SPLIT.webp`` and ``SPLIT-labels.webp``.

    Raises:
        DataError: a file that is missing or broken.
    """
    mosaic, labels = _grey(folder / f"{split}.webp"), _grey(folder / f"{split}-labels.webp").flatten()
    rows, columns = mosaic.shape[0] // SIDE, mosaic.shape[1] // SIDE
    tiles = mosaic.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2).reshape(-1, 1, SIDE, SIDE)
    images = np.empty((len(labels), 1, SIDE, SIDE), np.uint8)
    images[np.argsort(labels, kind="stable")] = tiles
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _grey(file: Traversable) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with file.open("rb") as opened, Image.open(opened) as image:
            # WebP stores colour; the three channels are equal.
            return np.asarray(image.convert("RGB"))[:, :, 0]
    except OSError as error:
        raise DataError(f"fashion-mnist: {file} is missing or broken ({error}); install edgewise again") from error
