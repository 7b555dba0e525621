"""Scales that leave no sum in the middle of two codes, so that every runtime rounds it to the same one.

An integer kernel multiplies a whole number, its sum, by a ratio of scales ``M``, in float32, and rounds; a
convolution by ``s_in s_w / s_out``. Where the product is as good as in the middle of two codes, the order of the
runtime's float operations decides, and the layers that follow multiply the difference: of MobileNetV2's codes 60 %
were not the same in two runtimes at the end. If ``M`` is a fraction ``i / n`` and n is odd, no product is nearer to a
middle than ``1 / (2 n)``, which is beyond what float32 errs by for all n up to `STEPS`. Scales are moved by less than
0.2 % for that, that of an operand far smaller than what it is added to by up to 1 %; they never grow where a Clip ends
at the highest code. Functions of single codes, such as Sigmoid, are tables of 256 numbers: their output's scale grows
until none of those is in a middle.

What follows floats, of a softmax or a normalisation, may still differ in single codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgewise.export.edit import attribute
from edgewise.quantize.simulate import FakeQuantize
from edgewise.quantize.sites import operands

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.models.onnx import OnnxNetwork
    from edgewise.quantize.sites import Sites

STEPS = 2047  # the largest n: float32 errs by 4 roundings of 255 codes, 6e-5 of a code; the nearest tie is at 2.4e-4
CHANGE = 0.01  # of a scale at most
NEAR = 5e-4  # of a code: how near to a middle a table's numbers may lie, which runtimes compute to 1e-6 of themselves
GROWTH = 1.0005  # of a table's scale in one try
RATIO_EACH = ("Add", "Concat", "Relu", "Clip")  # each operand is multiplied by a ratio of its own
RATIO_OF_ALL = ("Mul", "MatMul", "AveragePool", "GlobalAveragePool")
TABLES: dict[str, Callable[[float, Tensor], Tensor]] = {
    "Sigmoid": lambda alpha, x: x.sigmoid(),
    "LeakyRelu": lambda alpha, x: x.where(x > 0, alpha * x),
}


def avoid_ties_(network: OnnxNetwork, sites: Sites) -> None:
    """Move the scales of activations and weights to where no sum lies in the middle of two codes.

    Operators are gone through in the graph's order, and the scales of what they read and make are then settled. Where
    all of them were before, as where two residual streams are added, they stay as they are.

    Args:
        network: with its taps, as `edgewise.quantize.simulate.attach` puts them on.
        sites: what becomes codes.
    """
    taps = {name: _tap(network, source) for name, source in sites.scales.items()}
    for clamp in reversed(sites.clamps):  # what is clamped has no codes of its own
        taps |= {str(value.name): taps[str(clamp.outputs[0].name)] for value in clamp.inputs[:1] if value is not None}
    settled = {taps[name] for name in sites.gates}
    for node in sites.operators:
        names = [str(value.name) for value in (node.outputs[0], *operands(node))]
        if node in sites.clamps or str(node.name) in sites.layers or not taps.keys() >= set(names):
            continue
        made, *read = (taps[name] for name in names)
        if node.op_type in RATIO_EACH:
            _settle_sum(made, read, settled)
        elif node.op_type in TABLES and made not in settled:
            settle_table_(made, read[0], partial(TABLES[node.op_type], attribute(node, "alpha", 0.01)))
        elif node.op_type in RATIO_OF_ALL and made not in settled and (area := _area(node)) > 0:
            factor = math.prod(_scale(tap) for tap in read) / area
            ratio = torch.tensor(factor / _scale(made), dtype=torch.float64)
            _settle(made, factor / fraction(ratio).item())
        else:
            continue
        settled |= {made, *read}
    for layer in sites.layers.values():
        if (made_by := taps.get(layer.output)) is not None:
            weight = _tap(network, layer.weight)
            step = _scale(taps[layer.input]) / _scale(made_by)
            weight.scale.data = (fraction(weight.scale.detach().double() * step) / step).float()


def fraction(ratio: Tensor) -> Tensor:
    """Return the next fractions upwards with an odd denominator of at most 2047, or of 1 and an odd number.

    Args:
        ratio: float64, positive.

    >>> 1 / fraction(torch.tensor([1 / 3, 1 / 3.999, 1 / 4000.5], dtype=torch.float64))
    tensor([2.9985e+00, 3.9980e+00, 3.9990e+03], dtype=torch.float64)
    """
    above = (STEPS * ratio).floor().clamp(min=1)
    below = (above / ratio).floor()
    below = (below - (below.remainder(2) == 0).double()).clamp(min=1)
    return above / below


def _settle_sum(made: FakeQuantize, read: list[FakeQuantize], settled: set[FakeQuantize]) -> None:
    """Make the scale of each operand a number of 2047ths of the output's."""
    base = next((tap for tap in read if tap in settled), None)
    if base is not None and made not in settled:
        _settle(made, _scale(base) * STEPS / math.ceil(STEPS * _scale(base) / _scale(made)))
    for tap in read:
        if tap not in settled:
            _settle(tap, _scale(made) * max(1, math.floor(STEPS * _scale(tap) / _scale(made))) / STEPS)


def settle_table_(made: FakeQuantize, read: FakeQuantize, of: Callable[[Tensor], Tensor]) -> None:
    """Let the scale of what is looked up grow until no entry lies in the middle of two codes."""
    entries = of((torch.arange(256, dtype=torch.float64) - read.zero_point.double()) * _scale(read))
    scale = first = _scale(made)
    while scale <= first * (1 + CHANGE):
        found = entries / scale + made.zero_point.double()
        near = ((found.remainder(1) - 0.5).abs() < NEAR) & (found > -1) & (found < 256)
        if not near.any():
            _settle(made, scale)
            return
        scale *= GROWTH


def _settle(tap: FakeQuantize, scale: float) -> None:
    """Give a tensor another scale, unless it would change by too much."""
    if abs(scale / _scale(tap) - 1) <= CHANGE:
        tap.scale.data = torch.full_like(tap.scale, scale)


def _area(node: ir.Node) -> int:
    """Return how many numbers a pooling averages, 0 where it is not the same everywhere; 1 for what is no pooling."""
    if node.op_type == "AveragePool":
        padded = any(attribute(node, "pads", [0])) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        whole = not padded and not attribute(node, "ceil_mode", 0)
        return math.prod(attribute(node, "kernel_shape", [])) if whole else 0
    if node.op_type == "GlobalAveragePool":
        lengths = list(operands(node)[0].shape or [])[2:]
        return math.prod(length if isinstance(length, int) else 0 for length in lengths)
    return 1


def _tap(network: OnnxNetwork, name: str) -> FakeQuantize:
    tap = network.tapped(name)
    assert isinstance(tap, FakeQuantize)
    return tap


def _scale(tap: FakeQuantize) -> float:
    return float(tap.scale.item())
