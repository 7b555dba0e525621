"""Build the Fashion-MNIST images that the package embeds.

    apt install dataset-fashion-mnist
    python scripts/build_fashion_mnist.py

takes the first 10,000 training and the first 2,000 test images in their original order (the classes are as good as
balanced: 942 to 1,027 and 190 to 219 images) and writes what `edgewise.data.fashion` describes. The pixels follow
from the source alone; the bytes of the files may change with the version of the WebP encoder.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgewise.data.fashion import SIDE, read_split

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "edgewise" / "data" / "fashion_mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IDX_NAMES = {"train": "train", "test": "t10k"}


def main() -> None:
    """Build both splits, read them back and compare every pixel and label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of the four idx files (%(default)s)")
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder to write to (%(default)s)")
    parser.add_argument("--train", type=int, default=10_000, help="training images (%(default)s)")
    parser.add_argument("--test", type=int, default=2_000, help="test images (%(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", arguments.train), ("test", arguments.test)):
        name = IDX_NAMES[split]
        images = read_idx(arguments.source / f"{name}-images-idx3-ubyte.gz")[:count]
        labels = read_idx(arguments.source / f"{name}-labels-idx1-ubyte.gz")[:count]
        write_split(arguments.out, split, images, labels)
        back = read_split(arguments.out, split)
        if not (np.array_equal(back.images[:, 0], images) and np.array_equal(back.labels, labels)):
            raise SystemExit(f"{split}: what was written does not decode to what was read")
        written = sum((arguments.out / f"{split}{part}.webp").stat().st_size for part in ("", "-labels"))
        print(f"{split}: {len(images)} images, {np.bincount(labels).tolist()} a class, {written} bytes")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped idx file of bytes: two zeros, the type 8, the rank, big-endian sizes, then the numbers.

    Reference: Yann LeCun, "The MNIST database of handwritten digits", section "FILE FORMATS".
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an idx file of bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_split(folder: Path, split: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write the mosaic of a split's images, ordered by label, and its labels."""
    columns = widest_divisor(len(images))
    ordered = images[np.argsort(labels, kind="stable")]
    mosaic = ordered.reshape(-1, columns, SIDE, SIDE).swapaxes(1, 2).reshape(-1, columns * SIDE)
    for name, pixels in ((split, mosaic), (f"{split}-labels", labels.reshape(-1, columns))):
        # The slowest and smallest that the encoder offers.
        Image.fromarray(pixels).convert("RGB").save(folder / f"{name}.webp", lossless=True, quality=100, method=6)


def widest_divisor(count: int) -> int:
    """Return the largest divisor up to the square root, so that the mosaic is full and as square as can be.

    WebP images have at most 16,383 pixels a side.
    """
    return max(columns for columns in range(1, int(count**0.5) + 1) if count % columns == 0)


if __name__ == "__main__":
    main()
