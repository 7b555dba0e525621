"""Affine quantisation: numbers as codes, ``value = scale * (code - zero_point)``; the arithmetic of every scheme.

Rounding is to the nearest code and to the even one of two, after a division in float32, as ONNX's QuantizeLinear
defines it. (torch multiplies by the reciprocal of the scale, and can differ by a code where a value lies between two.)

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, arXiv 1712.05877; the gradient of the scale: Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv
1902.08153.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = -1  # as the length of a block: all of its dimension
HALF = 0.5 + 2.0**-20  # of a code: what is moved by more was out of range
SMALLEST_SCALE = 2.0**-126  # what float32 divides by at full precision


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """Which codes there are, and which numbers share a scale.

    Args:
        bits: of a code, 2 to 16.
        signed: whether codes are two's complement.
        symmetric: whether 0 has the middle code, and as many codes on either side where they are signed.
        block: the shape of the block of numbers that share a scale, one length for each dimension; -1 is all of it.
            ``None`` is one scale for the whole tensor, ``(1, -1, -1, -1)`` one for each output channel of a
            convolution, ``(1, 32)`` one for every 32 inputs of a linear layer.

    >>> QSpec(bits=8, signed=True, symmetric=True).codes, QSpec(bits=4).codes
    ((-127, 127), (0, 15))
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    block: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits = {self.bits}: 2 to 16")
        if self.block is not None and not all(length == WHOLE or length >= 1 for length in self.block):
            raise ValueError(f"block = {self.block}: lengths of at least 1, or -1 for all of a dimension")

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        count = 1 << self.bits
        if not self.signed:
            return 0, count - 1
        return -(count // 2) + self.symmetric, count // 2 - 1

    @property
    def middle(self) -> int:
        """The zero point where it is the middle code."""
        return 0 if self.signed else 1 << (self.bits - 1)

    def grid(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
        """Return how many blocks a tensor has along each dimension: the shape of its scales.

        Raises:
            ValueError: the blocks have another number of dimensions, or do not divide the tensor.
        """
        lengths = self._lengths(shape)
        return tuple(size // length if size else 0 for size, length in zip(shape, lengths, strict=True))

    def _lengths(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
        block = self.block or (WHOLE,) * len(shape)
        if len(block) != len(shape):
            raise ValueError(f"a block of {len(block)} dimensions for a tensor of the shape {list(shape)}")
        lengths = tuple(max(size, 1) if length == WHOLE else length for size, length in zip(shape, block, strict=True))
        if any(size % length for size, length in zip(shape, lengths, strict=True)):
            raise ValueError(f"blocks of {list(block)} do not divide a tensor of the shape {list(shape)}")
        return lengths

    def rows(self, x: Tensor) -> Tensor:
        """Return the blocks of a tensor as rows ``[blocks, numbers]``, in the order of the flattened grid."""
        grid, lengths = self.grid(x.shape), self._lengths(x.shape)
        split = x.reshape([part for pair in zip(grid, lengths, strict=True) for part in pair])
        order = [*range(0, 2 * x.dim(), 2), *range(1, 2 * x.dim(), 2)]
        return split.permute(order).reshape(math.prod(grid), math.prod(lengths))

    def spread(self, values: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Give each number of a tensor its block's value: ``[*grid]`` becomes something that broadcasts to `shape`."""
        for dim, (blocks, length) in enumerate(zip(self.grid(shape), self._lengths(shape), strict=True)):
            if blocks > 1 and length > 1:
                values = values.repeat_interleave(length, dim)
        return values


class QParams(NamedTuple):
    """What turns codes into numbers, for each block.

    Args:
        scale: the distance between two codes, ``[*grid]`` float32, positive.
        zero_point: the code of 0, ``[*grid]`` int32.
    """

    scale: Tensor
    zero_point: Tensor


def choose(low: Tensor, high: Tensor, spec: QSpec) -> QParams:
    """Return the scale and the zero point that cover a range; 0 is always in it and has a code of its own.

    Args:
        low: the smallest number of each block, ``[*grid]``.
        high: the largest.
        spec: which codes there are. Symmetric ones cover the larger of both sides; a range of nothing but 0 gets a
            scale of 1.
    """
    lowest, highest = spec.codes
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    covered = (
        torch.maximum(-low, high) / (highest - spec.middle) if spec.symmetric else (high - low) / (highest - lowest)
    )
    scale = torch.where(covered > 0, covered.clamp(min=SMALLEST_SCALE), 1.0)
    nearest = (lowest - low / scale).round().clamp(lowest, highest)
    zero_point = torch.full_like(scale, spec.middle) if spec.symmetric else nearest
    return QParams(scale, zero_point.to(torch.int32))


def quantize(x: Tensor, params: QParams, spec: QSpec) -> Tensor:
    """Return the codes of a tensor, int32 of its shape; what is out of range becomes the lowest or the highest."""
    scale, zero_point = (spec.spread(values, x.shape) for values in params)
    return ((x.float() / scale).round() + zero_point).clamp(*spec.codes).to(torch.int32)


def dequantize(codes: Tensor, params: QParams, spec: QSpec) -> Tensor:
    """Return the numbers that codes stand for, float32 of their shape."""
    scale, zero_point = (spec.spread(values, codes.shape) for values in params)
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, params: QParams, spec: QSpec) -> Tensor:
    """Return the nearest number that has a code: what `dequantize` makes of `quantize`, of the tensor's own type.

    Straight-through gradients: 1 for a number within the range and 0 beyond. The scale may require a gradient, that
    of a learned step size: the rounding error of what is within the range, the limiting code of what is beyond.
    """
    scale, zero_point = (spec.spread(values, x.shape) for values in params)
    if not torch.is_grad_enabled():
        low, high = (code - zero_point for code in spec.codes)
        return x.div(scale.to(x.dtype)).round_().clamp_(low, high).mul_(scale.to(x.dtype))
    return _FakeQuantize.apply(x, scale.to(x.dtype), zero_point, spec.codes)  # type: ignore[no-any-return,no-untyped-call]


class _FakeQuantize(torch.autograd.Function):
    """Round and clamp; backwards, what both did to the number and to the scale.

    All that is kept is by how many codes each number was moved: by more than half a one where it was out of range,
    upwards from below it and downwards from above.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, codes):  # type: ignore[no-untyped-def]
        scaled = x / scale
        low, high = (code - zero_point for code in codes)
        rounded = scaled.round().clamp_(low, high)
        ctx.save_for_backward(torch.sub(rounded, scaled, out=scaled), scale, low, high)
        return rounded.mul_(scale)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        moved, scale, low, high = ctx.saved_tensors
        if gradient.stride() != moved.stride():
            gradient = torch.empty_like(moved).copy_(gradient)
        of_x = _where(gradient, moved, -HALF, HALF)
        if not ctx.needs_input_grad[1]:
            return of_x, None, None, None
        if scale.numel() > 1:
            limit = torch.where(moved > 0, low, high).to(gradient.dtype)
            return of_x, (of_x * moved + (gradient - of_x) * limit).sum_to_size(scale.shape), None, None
        of_scale = torch.dot(_flat(of_x), _flat(moved)) + high * _where(gradient, moved, -math.inf, -HALF).sum()
        if bool(low):
            of_scale = of_scale + low * _where(gradient, moved, HALF, math.inf).sum()
        return of_x, of_scale.reshape(scale.shape).to(scale.dtype), None, None


def _where(x: Tensor, place: Tensor, low: float, high: float) -> Tensor:
    """Return a tensor with zeros wherever another one is not between two bounds, in one pass."""
    kept: Tensor = torch.ops.aten.hardtanh_backward(x, place, low, high)
    return kept


def _flat(x: Tensor) -> Tensor:
    """Return the numbers in the order in which they lie, images with the channels last without a copy."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return (x.permute(0, 2, 3, 1) if last else x).reshape(-1)
