"""Scales that leave no sum in the middle of two codes, so that every runtime rounds it to the same one.

An integer kernel multiplies a whole number, its sum, by a ratio of scales ``M``, in float32, and rounds; a
convolution by ``s_in s_w / s_out``. Where the product is as good as in the middle of two codes, the order of the
runtime's float operations decides, and the layers that follow multiply the difference: of MobileNetV2's codes 60 %
were not the same in two runtimes at the end. If ``M`` is a fraction ``i / n`` and n is odd, no product is nearer to a
middle than ``1 / (2 n)``, which is beyond what float32 errs by for all n up to `STEPS`. Scales are moved by less than
0.2 % for that, that of an operand far smaller than what it is added to by up to 1 %.

Sigmoids, softmax and normalisations are no fractions: what follows them may differ in single codes.
"""

from __future__ import annotations

import math
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
SUMS = ("Add", "Concat", "Relu", "Clip")  # each operand is multiplied by a ratio of its own
PRODUCTS = ("Mul", "MatMul", "AveragePool", "GlobalAveragePool")  # there is one ratio for all


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
        if node.op_type in SUMS:
            _settle_sum(made, read, settled)
        elif node.op_type in PRODUCTS and made not in settled and (area := _area(node)) > 0:
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
        _settle(made, _scale(base) * STEPS / max(1, round(STEPS * _scale(base) / _scale(made))))
    for tap in read:
        if tap not in settled:
            _settle(tap, _scale(made) * max(1, round(STEPS * _scale(tap) / _scale(made))) / STEPS)


def _settle(tap: FakeQuantize, scale: float) -> None:
    """Give a tensor another scale, unless it would change by too much."""
    if abs(scale / _scale(tap) - 1) <= CHANGE:
        tap.scale.data = torch.full_like(tap.scale, scale)


def _area(node: ir.Node) -> int:
    """Return how many numbers a pooling averages, 0 where it is not the same everywhere; 1 for what is no pooling."""
    if node.op_type == "AveragePool":
        whole = not any(attribute(node, "pads", [0])) and not attribute(node, "ceil_mode", 0)
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
