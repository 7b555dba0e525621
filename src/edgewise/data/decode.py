"""Encoded images of any format that Pillow reads, decoded in parallel threads to one tensor of bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.errors import DataError
from edgewise.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

Encoded = Path | bytes

# Images that a thread decodes before it reports; also the step of the progress.
CHUNK = 256

# More threads only wait for each other: on small images Python's share of the work, done one at a time, is large.
THREADS_MAX = 8

# Pillow's modes of 8 bits a channel. Others hold 16 or 32, and which of them matter only their maker knows.
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

# The EXIF tag of how an image is to be turned, and its values that swap width and height.
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)


def decode(
    encoded: Sequence[Encoded], size: int | None, name: Callable[[int], str], progress: Progress | None = None
) -> Tensor:
    """Decode images to RGB, upright as their EXIF orientation says.

    Args:
        encoded: at least one; files, or the content of files.
        size: side to resize to: the shorter side, antialiased, and the centre is cut out of the longer. None keeps
            the pixels, and then the images must be square and of one size.
        name: how to call an image in a message.
        progress: is told (what, done, total).

    Returns:
        uint8 [N, 3, size, size].

    Raises:
        DataError: a file that is no image, or a broken one; an image of another size or not square where size is
            None; more than 8 bits a channel; more than the memory holds.
    """
    side = size or _side(encoded[0], name(0))
    return _in_threads(lambda index: _decode(encoded[index], size, side, name(index)), len(encoded), side, progress)


def stretch(
    encoded: Sequence[Encoded],
    size: int,
    name: Callable[[int], str],
    stated: Sequence[tuple[int, int] | None],
    progress: Progress | None = None,
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Decode images of any shape to RGB and stretch each to a square, antialiased, width and height by themselves.

    Args:
        encoded: at least one; files, or the content of files.
        size: side to resize to.
        name: how to call an image in a message.
        stated: the (width, height) that boxes were drawn on, where it is known. An image is turned upright as its
            EXIF orientation says, unless the boxes were drawn on it as it is stored.
        progress: is told (what, done, total).

    Returns:
        uint8 [N, 3, size, size], and the (width, height) in pixels that each image had.

    Raises:
        DataError: a file that is no image, or a broken one; an image of another size than stated; more than 8 bits a
            channel; more than the memory holds.
    """
    found = [(0, 0)] * len(encoded)

    def decode_one(index: int) -> NDArray[np.uint8]:
        pixels, found[index] = _stretch(encoded[index], size, name(index), stated[index])
        return pixels

    return _in_threads(decode_one, len(encoded), size, progress), found


def _in_threads(
    decode_one: Callable[[int], NDArray[np.uint8]], count: int, side: int, progress: Progress | None
) -> Tensor:
    """Decode so many images, each to [side, side, 3], into one tensor [N, 3, side, side]."""
    needed, free = count * 3 * side * side, psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{count} images of {side}x{side} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
            "free; choose a smaller size"
        )
    pixels = np.empty((count, 3, side, side), np.uint8)

    def decode_chunk(start: int) -> int:
        chunk = range(start, min(start + CHUNK, count))
        pixels[start : chunk.stop] = np.stack([decode_one(index) for index in chunk]).transpose(0, 3, 1, 2)
        return chunk.stop

    # Pillow decodes without Python's lock, so threads are enough, and they share the result.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS_MAX)) as pool:
        for done in pool.map(decode_chunk, range(0, count, CHUNK)):
            if progress is not None:
                progress("decode images", done, count)
    return torch.from_numpy(pixels)


def shorter_side(encoded: Encoded, name: str) -> int:
    """Return the shorter side of an image in pixels, from its header.

    Raises:
        DataError: a file that is no image.
    """
    with _open(encoded, name) as image:
        return min(image.size)


def _side(encoded: Encoded, name: str) -> int:
    """Return the side of a square image."""
    with _open(encoded, name) as image:
        if image.width != image.height:
            raise DataError(f"{name} is {image.width}x{image.height}, not square; choose a size to resize to")
        return image.width


def _decode(encoded: Encoded, size: int | None, side: int, name: str) -> NDArray[np.uint8]:
    """Decode one image to uint8 [side, side, 3]."""
    from PIL import Image, ImageOps

    with _open(encoded, name) as image:
        _refuse_deep(image, name)
        if size is None and image.size != (side, side):
            found = f"{image.width}x{image.height}"
            raise DataError(f"{name} is {found}, the first image {side}x{side}; choose a size to resize all of them to")
        try:
            # A large JPEG is decoded at a half, a quarter or an eighth, still twice as large as needed: much faster.
            image.draft("RGB", (2 * side, 2 * side))
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image)
            if rgb.size != (side, side):
                rgb = ImageOps.fit(rgb, (side, side), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
        except Exception as error:  # Pillow's decoders raise almost anything on corrupt input
            raise DataError(f"{name} is a broken image ({error}); mend or remove it") from error


def _stretch(
    encoded: Encoded, side: int, name: str, stated: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode one image to uint8 [side, side, 3]; return the (width, height) that it had too."""
    from PIL import Image, ImageOps

    with _open(encoded, name) as image:
        _refuse_deep(image, name)
        stored = image.size
        try:
            turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
        except Exception as error:
            raise DataError(f"{name} is a broken image ({error}); mend or remove it") from error
        upright = stored[::-1] if turned else stored
        if stated is not None and stated not in (upright, stored):
            found = f"{upright[0]}x{upright[1]}"
            raise DataError(f"{name} is {found}, and its boxes are for {stated[0]}x{stated[1]}; is it the right image?")
        as_stored = stated is not None and stated != upright
        try:
            image.draft("RGB", (2 * side, 2 * side))  # as in `_decode`
            if not as_stored:
                ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image).resize((side, side), Image.Resampling.BILINEAR)
            return np.asarray(rgb), stored if as_stored else upright
        except Exception as error:
            raise DataError(f"{name} is a broken image ({error}); mend or remove it") from error


def _refuse_deep(image: Image.Image, name: str) -> None:
    if image.mode not in EIGHT_BITS:
        raise DataError(f"{name} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, if it is not."""
    if image.mode == "P":  # Pillow warns where a palette with transparency becomes RGB at once
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(encoded: Encoded, name: str) -> Image.Image:
    """Read an image's header."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no image that Pillow knows" if unknown else f"a broken image ({error})"
        raise DataError(f"{name} is {reason}; mend or remove it") from error
