"""Gray JPEGs as what they are made of: quantised DCT coefficients, and the unrounded pixels that follow from them.

References: ITU-T T.81, "Digital compression and coding of continuous-tone still images", 1992, annexes A.3.3 (the
DCT) and K.1 (the table). The Independent JPEG Group's libjpeg for what a quality does to the table.
"""

import math
import tempfile
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.errors import DataError, MissingExtra

BLOCK = 8

Coefficients = NDArray[np.int16]

# Annex K.1, table K.1: for luminance, at quality 50.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def quantization_table(quality: int) -> NDArray[np.int64]:
    """Compute what libjpeg divides coefficients by, int64 [8, 8], vertical frequency first.

    Raises:
        ValueError: a quality out of [1, 100].

    >>> quantization_table(75)[0].tolist()
    [8, 6, 5, 8, 12, 20, 26, 31]
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it must be in [1, 100]")
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((np.array(LUMINANCE) * percent + 50) // 100).clip(1, 255)


def dct_matrix(side: int) -> Tensor:
    """Compute the orthonormal matrix of the one-dimensional DCT-II, float64 [n, n], a frequency a row.

    D_kx = c_k cos(pi k (2x + 1) / 2n),  c_0 = sqrt(1/n), else sqrt(2/n)

    >>> dct_matrix(2).tolist()
    [[0.707..., 0.707...], [0.707..., -0.707...]]
    """
    number = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(torch.outer(number, 2 * number + 1) * (math.pi / (2 * side))) * math.sqrt(2 / side)
    matrix[0] = math.sqrt(1 / side)
    return matrix


def decompress(coefficients: Coefficients, table: NDArray[np.int64]) -> Tensor:
    """Compute the pixels of gray JPEGs without rounding or clipping them, which would hide what is looked for.

    X = D^T (Q * Y) D + 128 in each block, D of `dct_matrix`.

    Args:
        coefficients: [..., H / 8, W / 8, 8, 8], quantised, vertical frequency first.
        table: [8, 8].

    Returns:
        float32 [..., H, W], of 0 to 255 and a little beyond.
    """
    matrix = dct_matrix(BLOCK)
    blocks = torch.from_numpy(coefficients * table).double()  # in float64: the same float32 on every machine
    pixels = (matrix.T @ blocks @ matrix + 128).float()
    return pixels.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def read_cover(encoded: bytes, name: str, quality: int, side: int | None) -> Coefficients:
    """Read the coefficients of an image as a gray JPEG of a quality.

    A JPEG of that quality is taken as it is, an image of another format is compressed. A side cuts the centre out,
    to whole blocks of 8 pixels.

    Args:
        encoded: the file's content.
        name: how to call the image in a message.
        quality: in [1, 100].
        side: in pixels, a multiple of 8; None takes the whole of a square image whose side is one.

    Returns:
        int16 [side / 8, side / 8, 8, 8], vertical frequency first.

    Raises:
        DataError: no image or a broken one, one in colour, a JPEG of another quality, an image that is too small or
            has no such square.
        MissingExtra: jpeglib is not installed.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(encoded)) as image:
            image.load()  # libjpeg would end the process on some broken files, Pillow says what is wrong
            kind, mode, width, height = image.format, image.mode, *image.size
            pixels = None if kind in ("JPEG", "MPO") else np.asarray(image)
    except Exception as error:  # Pillow's decoders raise almost anything on corrupt input
        raise DataError(f"{name} is no image or a broken one ({error}); mend or remove it") from error
    if side is None and (width != height or width % BLOCK):
        raise DataError(f"{name} is {width}x{height}, no square of whole 8x8 blocks; choose a size to cut out of it")
    side = side or width
    if min(width, height) < side:
        raise DataError(f"{name} is {width}x{height}, smaller than {side}x{side}; choose a smaller size, or remove it")
    blocks, top, left = side // BLOCK, (height - side) // 2 // BLOCK, (width - side) // 2 // BLOCK
    if pixels is None:
        if mode != "L":
            raise DataError(f"{name} is a JPEG in colour (mode {mode}); steganalysis takes gray ones")
        coefficients, table = _read(encoded)
        if not np.array_equal(table, quantization_table(quality)):
            raise DataError(
                f"{name} is a JPEG of other quantisation tables than quality {quality}'s (its first step is "
                f"{table[0, 0]}, not {quantization_table(quality)[0, 0]}); choose its quality, or remove it"
            )
        return coefficients[top : top + blocks, left : left + blocks]
    gray = _gray(pixels, mode, name)
    return _compress(gray[top * BLOCK :, left * BLOCK :][:side, :side], quality)


def _gray(pixels: NDArray[np.uint8], mode: str, name: str) -> NDArray[np.uint8]:
    """Return the one channel [H, W] of a gray image; some formats know none but coloured ones."""
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    if mode != "L":
        raise DataError(f"{name} is not gray with 8 bits (mode {mode}); convert it first")
    return pixels


def _compress(pixels: NDArray[np.uint8], quality: int) -> Coefficients:
    jpeglib = _jpeglib()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/cover.jpg"
        jpeglib.from_spatial(np.ascontiguousarray(pixels)[..., None]).write_spatial(file, qt=quality)
        return np.array(jpeglib.read_dct(file).Y, np.int16)


def _read(encoded: bytes) -> tuple[Coefficients, NDArray[np.int64]]:
    """Read coefficients and table of a gray JPEG that is whole."""
    jpeglib = _jpeglib()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cover.jpg")
        file.write_bytes(encoded)
        jpeg = jpeglib.read_dct(str(file))
        return np.array(jpeg.Y, np.int16), np.array(jpeg.qt[0], np.int64)


def _jpeglib() -> ModuleType:
    try:
        return import_module("jpeglib")
    except ImportError as error:
        raise MissingExtra('JPEG coefficients need jpeglib: pip install "edgewise[steganalysis]"') from error
