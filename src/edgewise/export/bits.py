"""Codes of a few bits each, packed into bytes without gaps.

The order is that of DEFLATE: bit k of a stream is bit ``k % 8`` of its byte ``k // 8``, the least significant first,
and code i of width b takes the bits ``i * b`` to ``i * b + b - 1``, its least significant bit first. What is left of
the last byte is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Array = NDArray[Any]

WIDEST = 32  # bits of a code
TOGETHER = 8  # codes that fill whole bytes, whatever their width
CHUNK = 1 << 16  # groups at a time, so that what lies between stays in the cache


def bytes_of(bits: int) -> int:
    """Return how many bytes hold so many bits."""
    return -(-bits // 8)


def put(codes: Array, width: int) -> Bytes:
    """Pack codes.

    Args:
        codes: unsigned integers ``[n]`` below ``2 ** width``.
        width: bits of a code, 0 to 32.

    Returns:
        ``[ceil(n * width / 8)]``.

    >>> put(np.array([1, 2, 3, 0, 1], np.uint8), 2).tolist()
    [57, 1]
    """
    if width == 0:
        return np.empty(0, np.uint8)
    if width in (8, 16, 32):
        return codes.astype(f"<u{width // 8}").view(np.uint8)
    if width == 1:
        return np.packbits(codes.astype(np.bool_), bitorder="little")
    if width > 8:  # rare: places of few weights
        bits = codes.astype("<u4").view(np.uint8).reshape(-1, 4)
        bits = np.unpackbits(bits, axis=1, bitorder="little", count=width)
        return np.packbits(bits.reshape(-1), bitorder="little")
    groups = -(-len(codes) // TOGETHER)
    packed = np.empty((groups, width), np.uint8)
    for start in range(0, groups, CHUNK):
        some = codes[start * TOGETHER : (start + CHUNK) * TOGETHER]
        rows = -(-len(some) // TOGETHER)
        padded = np.zeros((rows, TOGETHER), np.uint8)
        padded.reshape(-1)[: len(some)] = some
        words = np.zeros(rows, "<u8")
        for place in range(TOGETHER):
            words |= padded[:, place].astype("<u8") << np.uint64(place * width)
        packed[start : start + rows] = words.view(np.uint8).reshape(rows, 8)[:, :width]
    return packed.reshape(-1)[: bytes_of(len(codes) * width)]


def get(packed: Bytes, count: int, width: int) -> Array:
    """Unpack codes: the inverse of `put`.

    Args:
        packed: ``[ceil(count * width / 8)]``.
        count: codes.
        width: bits of a code.

    Returns:
        ``[count]``, uint8 for up to 8 bits, else uint32.

    >>> get(np.array([57, 1], np.uint8), 5, 2).tolist()
    [1, 2, 3, 0, 1]
    """
    if len(packed) != bytes_of(count * width):
        raise ValueError(f"{len(packed)} bytes for {count} codes of {width} bits")
    if width == 0:
        return np.zeros(count, np.uint8)
    if width == 8:
        return packed
    if width == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    if width > 8:
        wide = np.zeros((count, WIDEST), np.uint8)
        wide[:, :width] = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
        return np.packbits(wide, axis=1, bitorder="little").view("<u4").reshape(-1).astype(np.uint32)
    groups = -(-count // TOGETHER)
    codes = np.empty((groups, TOGETHER), np.uint8)
    mask = np.uint8((1 << width) - 1)
    for start in range(0, groups, CHUNK):
        some = packed[start * width : (start + CHUNK) * width]
        rows = -(-len(some) // width)
        padded = np.zeros(rows * width, np.uint8)
        padded[: len(some)] = some
        words = np.zeros((rows, 8), np.uint8)
        words[:, :width] = padded.reshape(rows, width)
        whole: Array = words.view("<u8").reshape(-1)
        for place in range(TOGETHER):
            codes[start : start + rows, place] = (whole >> np.uint64(place * width)).astype(np.uint8) & mask
    return codes.reshape(-1)[:count]
