"""Cross-layer equalisation: channels between two layers get ranges that are alike, and no output changes.

What a layer makes of a channel may be divided by a number, if the layer that reads it multiplies by the same one, and
what lies between lets such numbers pass. Weights that share a scale then fill their codes, and so do the channels of
the tensor between, which always share one.

Reference: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, arXiv
1906.04721, section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgewise.export.edit import attribute, known, only_reader, operand
from edgewise.quantize.prepare import layers, output_axis

if TYPE_CHECKING:
    import onnx_ir as ir

# f(s x) = s f(x) for s > 0, channel by channel. Clip is not among them: its bounds are one number for all channels, so
# that what it would have to be behind a divided channel cannot be said.
PASSES = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity")
READERS = ("Conv", "Gemm", "MatMul")
CONVERGED = 1e-3  # no factor is farther from 1
SWEEPS = 50


class Pair(NamedTuple):
    """Two layers with nothing but what lets factors pass between them, and no other reader."""

    first: ir.Node
    second: ir.Node


def equalize_(graph: ir.Graph) -> list[tuple[str, str]]:
    """Equalise all pairs of layers again and again until nothing changes, in place.

    Each layer's constants must be its own.

    Args:
        graph: what `edgewise.quantize.prepare.prepare` made.

    Returns:
        The names of the layers of each pair.
    """
    found = pairs(graph)
    for _ in range(SWEEPS):
        moved = [_equalize_pair_(pair) for pair in found]
        if max(moved, default=0.0) < CONVERGED:
            break
    return [(str(pair.first.name), str(pair.second.name)) for pair in found]


def pairs(graph: ir.Graph) -> list[Pair]:
    """List the pairs of layers that can be equalised, in the graph's order."""
    every = layers(graph)
    found = []
    for first in every:
        node = None if first.op_type == "ConvTranspose" else only_reader(first.outputs[0])
        while node is not None and node.op_type in PASSES and len(node.outputs) == 1:
            node = only_reader(node.outputs[0])
        if node in every and node is not None and node.op_type in READERS and _same_channels(first, node):
            found.append(Pair(first, node))
    return found


def _same_channels(first: ir.Node, second: ir.Node) -> bool:
    """Say whether the outputs of a layer are the inputs of the other, one by one."""
    outputs = known(first.inputs[1]).shape[output_axis(first)]
    alike = (first.op_type == "Conv") == (second.op_type == "Conv")
    return alike and len(_input_ranges(second)) == outputs


def _equalize_pair_(pair: Pair) -> float:
    """Equalise a pair, in place, and return how far the factors are from 1 at most."""
    first, second = pair
    weight, axis = known(first.inputs[1]), output_axis(first)
    r1 = np.abs(weight).max(tuple(dim for dim in range(weight.ndim) if dim != axis))
    r2 = _input_ranges(second)
    used = (r1 > 0) & (r2 > 0)
    # Eq. (11): s = sqrt(r1 r2) / r2 = sqrt(r1 / r2), so that both ranges become sqrt(r1 r2).
    s = np.ones(len(r1))
    s[used] = np.sqrt(r1[used].astype(np.float64) / r2[used])
    shape = [1] * weight.ndim
    shape[axis] = -1
    _put(first, 1, weight / s.reshape(shape))
    if (bias := known(operand(first, 2))) is not None:
        _put(first, 2, bias.reshape(-1) / s)
    _put(second, 1, known(second.inputs[1]) * _of_inputs(second, s))
    return float(np.abs(s - 1).max(initial=0.0))


def _input_ranges(layer: ir.Node) -> Any:
    """Return the largest magnitude of the weights on each input channel, ``[C]``."""
    weight = np.abs(known(layer.inputs[1]))
    if layer.op_type != "Conv":
        return weight.max(output_axis(layer))
    groups = attribute(layer, "group", 1)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).max((1, 3)).reshape(-1)


def _of_inputs(layer: ir.Node, s: Any) -> Any:
    """Return a factor for each input channel as something that broadcasts to a layer's weights."""
    weight = known(layer.inputs[1])
    if layer.op_type != "Conv":
        return s[None] if output_axis(layer) == 0 else s[:, None]
    groups = attribute(layer, "group", 1)
    by_output = np.repeat(s.reshape(groups, -1), weight.shape[0] // groups, axis=0)  # [K, C / groups]
    return by_output.reshape(*by_output.shape, *[1] * (weight.ndim - 2))


def _put(layer: ir.Node, place: int, array: Any) -> None:
    """Give a layer another constant under the same name."""
    import onnx_ir as ir

    value = layer.inputs[place]
    assert value is not None
    value.shape = ir.Shape(array.shape)
    value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
