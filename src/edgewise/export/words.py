"""Tensors as bit patterns: what is compared, stored and given back, so that -0.0 and every NaN stay what they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgewise.errors import ModelError
from edgewise.export.bits import Array, Bytes

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Words:
    """A tensor's numbers as unsigned integers of their width, little-endian.

    Args:
        flat: ``[n]`` in C order, whatever the tensor's memory layout.
        dtype: the tensor's, a name in `DTYPES`.
        shape: the tensor's.
    """

    flat: Array
    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Of a number."""
        return 8 * DTYPES[self.dtype].itemsize

    @property
    def sign(self) -> int:
        """The sign bit of a float; 0 for an integer."""
        return 1 << (self.bits - 1) if DTYPES[self.dtype].is_floating_point else 0


def words(tensor: Tensor) -> Words:
    """Return a tensor's bit patterns; of a contiguous one on the CPU, its own memory.

    Raises:
        ModelError: a type of numbers, or a layout, that the format has none for.
    """
    if tensor.dtype not in NAMES or tensor.layout is not torch.strided or tensor.is_meta:
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}".replace("torch.", "")
        raise ModelError(f"a tensor of {kind} has no packed form; dense ones of {', '.join(DTYPES)} have")
    if not tensor.numel():  # whose strides are as they happen to be
        return Words(np.empty(0, f"<u{tensor.dtype.itemsize}"), NAMES[tensor.dtype], tuple(tensor.shape))
    whole = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return Words(whole.view(f"<u{tensor.dtype.itemsize}"), NAMES[tensor.dtype], tuple(tensor.shape))


def tensor(found: Words) -> Tensor:
    """Return the tensor of bit patterns; it has their memory.

    Raises:
        ValueError: they are more or fewer than the shape holds.
    """
    if len(found.flat) != math.prod(found.shape):
        raise ValueError(f"{len(found.flat)} numbers for the shape {list(found.shape)}")
    if not len(found.flat):
        return torch.empty(found.shape, dtype=DTYPES[found.dtype])
    patterns = found.flat if found.flat.flags.writeable else found.flat.copy()
    return torch.from_numpy(patterns.view(np.uint8)).view(DTYPES[found.dtype]).reshape(found.shape)


class Parts:
    """The stored bytes of a tensor, taken part by part.

    Args:
        stored: ``uint8 [n]``.
    """

    def __init__(self, stored: Bytes) -> None:
        self._rest = stored

    def take(self, count: int, width: int = 8) -> Array:
        """Return the next so many unsigned integers of a width in bits: 8, 16, 32 or 64.

        Raises:
            ValueError: there are fewer.
        """
        size = count * width // 8
        if not 0 <= size <= len(self._rest):
            raise ValueError(f"{size} bytes asked for, {len(self._rest)} left")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part if width == 8 else part.copy().view(f"<u{width // 8}")

    def end(self) -> None:
        """Hold that nothing is left.

        Raises:
            ValueError: something is.
        """
        if len(self._rest):
            raise ValueError(f"{len(self._rest)} bytes too many")
