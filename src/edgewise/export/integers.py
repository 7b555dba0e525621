"""Integers times a scale: the numbers that symmetric quantisation leaves, as codes of 4 or 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise.errors import ModelError
from edgewise.export import bits
from edgewise.export.bits import Array
from edgewise.export.words import DTYPES, Parts, Words, tensor, words

SAMPLE = 16  # numbers of a channel that a scale is tried on before all of them


@dataclass(frozen=True, eq=False)
class Integers:
    """Signed codes, two's complement, times a float32 scale; the product in float32, rounded to the tensor's type.

    -0.0, which rounding leaves behind, has the lowest code where it occurs.

    Args:
        bits: of a code, 4 or 8.
        axis: each index along it has its own scale; None is one scale for all.
        scale: float32 ``[channels]``, or ``[1]``. By default it is looked for, in float32 tensors: every scale
            that makes the largest number of a channel a code is tried.
    """

    bits: int = 8
    axis: int | None = 0
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits = {self.bits}: 4 or 8")

    @property
    def kind(self) -> str:
        """The name in the file."""
        return f"int{self.bits}"

    def encode(self, x: Words) -> tuple[dict[str, Any], list[Array]]:
        """Return the layout and the parts; see `edgewise.export.encodings`."""
        if not x.sign:
            raise ModelError(f"{self.kind} codes times a scale are floats, and this tensor is of {x.dtype}")
        if self.axis is not None and not 0 <= self.axis < len(x.shape):
            raise ModelError(f"axis {self.axis} of a tensor of the shape {list(x.shape)}; give one it has, or None")
        channels = 1 if self.axis is None else x.shape[self.axis]
        minus_zero = bool((x.flat == x.sign).any())
        lowest = minus_zero - (1 << (self.bits - 1))  # of the codes that stand for their products
        scale = self._found(x, lowest) if self.scale is None else self.scale.detach().float().cpu().numpy().reshape(-1)
        if len(scale) != channels:
            raise ModelError(f"{len(scale)} scales for {channels} channels")
        numbers = tensor(x).float().numpy()
        highest = (1 << (self.bits - 1)) - 1
        with np.errstate(all="ignore"):
            codes = np.rint(numbers / _along(scale, self.axis, x.shape))
        codes = np.clip(np.nan_to_num(codes), lowest, highest).astype(np.int8).reshape(-1)
        codes[x.flat == x.sign] = -highest - 1
        layout: dict[str, Any] = {"kind": self.kind, "axis": self.axis, "minus_zero": minus_zero}
        if not np.array_equal(_numbers(codes, scale, layout, x.dtype, x.shape).flat, x.flat):
            raise ModelError(
                f"not every number is its scale times a code of {self.bits} bits; quantise the tensor first"
            )
        stored = bits.put(codes.view(np.uint8) & np.uint8((1 << self.bits) - 1), self.bits)
        return layout, [scale.astype("<f4"), stored]

    def _found(self, x: Words, lowest: int) -> Array:
        """Return scales that fit, float32 ``[channels]``; 0 for a channel of nothing but 0."""
        if x.dtype != "float32":
            raise ModelError(f"the scales of a tensor of {x.dtype} must be given")
        numbers = x.flat.view(np.float32).reshape(x.shape)
        rows = numbers.reshape(1, -1) if self.axis is None else np.moveaxis(numbers, self.axis, 0)
        rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
        largest = np.abs(rows).max(axis=1, initial=0)
        if not np.isfinite(largest).all():
            raise ModelError("NaN or infinity is no code times a scale; store the tensor plain")
        return self._fitting(rows, _near(largest, -lowest), lowest)

    def _fitting(self, rows: Array, tried: Array, lowest: int) -> Array:
        """Return the first of the scales tried, ``[C, s]``, that makes codes of all numbers of its row ``[C, n]``."""
        sample = rows[:, :: max(1, rows.shape[1] // SAMPLE)]
        scales, left = np.zeros(len(rows), np.float32), np.arange(len(rows))
        # One channel, that of the largest number, tells most often that there is no such scale.
        one = int(tried[:, 0].argmax()) if len(rows) else 0
        if len(rows) and not self._fit(sample[[one] * tried.shape[1]], tried[one], lowest).any():
            left, tried = left[one : one + 1], tried[:, :0]
        for scale in tried.T:
            if not len(left):
                break
            some = left[self._fit(sample[left], scale[left], lowest)]
            if len(some):
                some = some[self._fit(rows if len(some) == len(rows) else rows[some], scale[some], lowest)]
                scales[some] = scale[some]
                left = np.setdiff1d(left, some)
        if len(left):
            raise ModelError(f"no scale makes codes of {self.bits} bits of these numbers; quantise the tensor first")
        return scales

    def _fit(self, rows: Array, scales: Array, lowest: int) -> Array:
        """Whether each scale makes codes of its row's numbers, bool ``[C]``."""
        scale = scales[:, None]
        with np.errstate(all="ignore"):
            codes = np.clip(np.rint(rows / scale), lowest, (1 << (self.bits - 1)) - 1)
            fit: Array = ((codes * scale == rows) | (rows == 0)).all(axis=1)
        return fit

    @staticmethod
    def decode(layout: dict[str, Any], parts: Parts, dtype: str, shape: tuple[int, ...]) -> Words:
        """Return the numbers; see `edgewise.export.encodings`."""
        width, count, axis = int(layout["kind"].removeprefix("int")), math.prod(shape), layout["axis"]
        scale = parts.take(1 if axis is None else shape[axis], 32).view("<f4")
        codes = bits.get(parts.take(bits.bytes_of(count * width)), count, width)
        signed = (codes << np.uint8(8 - width)).view(np.int8) >> (8 - width)
        return _numbers(signed, scale, layout, dtype, shape)

    @staticmethod
    def bound_bits(layout: dict[str, Any], width: int, shape: tuple[int, ...]) -> int:
        """Return a code for each number and 32 bits for each scale."""
        axis = layout["axis"]
        return int(layout["kind"].removeprefix("int")) * math.prod(shape) + 32 * (1 if axis is None else shape[axis])


def _near(largest: Array, highest: int) -> Array:
    """Return the scales that make the largest magnitudes ``[C]`` a code of at most `highest`, float32 ``[C, s]``.

    The rounding of the product and of the division can move a scale to its neighbour: those are there as well.
    """
    near = largest[:, None] / np.arange(highest, 0, -1, dtype=np.float32)
    below, above = np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))
    return np.stack([near, below, above], axis=2).reshape(len(largest), 3 * highest)


def _along(scale: Array, axis: int | None, shape: tuple[int, ...]) -> Array:
    """Return scales ``[channels]`` in a shape that broadcasts to the tensor's."""
    return scale.reshape([size if dim == axis else 1 for dim, size in enumerate(shape)])


def _numbers(codes: Array, scale: Array, layout: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> Words:
    """Return what codes ``int8 [n]`` stand for."""
    with np.errstate(all="ignore"):
        products = codes.reshape(shape).astype(np.float32) * _along(scale, layout["axis"], shape)
    found = words(torch.from_numpy(np.asarray(products, np.float32)).to(DTYPES[dtype]))
    if layout["minus_zero"]:
        lowest = -(1 << (int(layout["kind"].removeprefix("int")) - 1))
        found.flat[codes == lowest] = found.sign
    return found
