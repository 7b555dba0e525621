"""Operators between two conversions that are better said on the codes themselves.

All of them change an ONNX graph in place. QuantizeLinear turns floats into codes, DequantizeLinear codes into floats:
``float = scale * (code - zero_point)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgewise.export.edit import attribute, constant, known, like, only_reader, operand, producer
from edgewise.quantize.sites import CLAMPS, GATE_STEPS, averages_codes

if TYPE_CHECKING:
    import onnx_ir as ir

ROUNDED_UNASKED = ("Conv", "ConvTranspose", "Gemm")  # by ONNX Runtime, between codes


def pad_codes_(graph: ir.Graph) -> None:
    """Pad codes with the zero point, where floats are padded with 0 between two equal quantisations.

    ONNX Runtime has no fusion for this one, and would leave the integers to pad. No output changes by a bit.
    """
    import onnx_ir as ir

    for pad in list(graph):
        if pad.op_type != "Pad" or not _pads_zeros(pad):
            continue
        before, after = producer(pad.inputs[0], "DequantizeLinear"), _only_reader(pad.outputs[0], "QuantizeLinear")
        if before is None or after is None or not _same_quantization(before, after):
            continue
        padded = ir.node("Pad", [before.inputs[0], pad.inputs[1], after.inputs[2], *pad.inputs[3:]])
        graph.insert_before(pad, padded)
        ir.convenience.replace_all_uses_with(after.outputs[0], padded.outputs[0])
        graph.remove([after, pad], safe=True)


def gate_codes_(graph: ir.Graph) -> None:
    """Compute hard sigmoids by rounding alone: their codes are those of their input, with another scale, cut off.

    ``clip(alpha * x + beta, 0, 1)`` in steps of 1/256 is ``x`` in steps of ``1 / (256 alpha)`` around ``256 beta``. A
    LeakyRelu with the slope 1 rounds from one scale to another in one kernel; hard sigmoids have none for codes.
    """
    import onnx_ir as ir

    for gate in list(graph):
        before = producer(gate.inputs[0], "DequantizeLinear") if gate.op_type == "HardSigmoid" else None
        after = _only_reader(gate.outputs[0], "QuantizeLinear") if before is not None else None
        if after is None or not _equals(after.inputs[1], np.float32(1 / GATE_STEPS)) or not _equals(after.inputs[2], 0):
            continue
        alpha, beta = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
        scale = constant(graph, np.asarray(1 / (GATE_STEPS * alpha), np.float32))
        zero_point = constant(graph, np.asarray(GATE_STEPS * beta, np.uint8))
        rounded = ir.node("LeakyRelu", gate.inputs, attributes={"alpha": 1.0})
        codes = ir.node("QuantizeLinear", [rounded.outputs[0], scale, zero_point])
        graph.insert_before(gate, [rounded, codes])
        ir.convenience.replace_all_uses_with(after.outputs[0], codes.outputs[0])
        graph.remove([after, gate], safe=True)


def round_before_additions_(graph: ir.Graph) -> None:
    """Let what convolutions make be rounded before it is added to something.

    OpenVINO adds within the convolution's kernel, to what has not been rounded yet, and so other codes come out than in
    ONNX Runtime. A MaxPool of one pixel on the codes stands in the way; it costs its own time.
    """
    import onnx_ir as ir

    for addition in list(graph):
        for value in addition.inputs if addition.op_type == "Add" else ():
            dequantize = producer(value, "DequantizeLinear")
            quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
            space = 0 if quantize is None else _space_of_convolution(quantize)
            if dequantize is None or quantize is None or not space:
                continue
            codes = quantize.outputs[0]
            same = ir.node("MaxPool", [codes], attributes={"kernel_shape": [1] * space})
            graph.insert_before(dequantize, same)
            dequantize.replace_input_with(0, like(same.outputs[0], codes))


def _space_of_convolution(quantize: ir.Node) -> int:
    """Return the dimensions of space of the convolution whose output becomes codes, clamped or not; 0 if none does."""
    node = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    while node is not None and node.op_type in CLAMPS:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    weight = node.inputs[1] if node is not None and node.op_type == "Conv" else None
    return 0 if weight is None or weight.shape is None else len(weight.shape) - 2


def keep_floats_(graph: ir.Graph) -> None:
    """Let what shall compute on floats do so between codes as well: layers with float weights, and some averages.

    ONNX Runtime takes a convolution between codes for one that was forgotten, and rounds its weights itself, with one
    scale for all of them: MobileNetV2 without its first depthwise layer had twice the error that it has with it. A
    LeakyRelu with the slope 1 stands in the way; it is part of the convolution's kernel.
    """
    import onnx_ir as ir

    for layer in list(graph):
        if not _rounded_unasked(layer) or producer(layer.inputs[0], "DequantizeLinear") is None:
            continue
        last, reader = layer.outputs[0], only_reader(layer.outputs[0])
        while reader is not None and reader.op_type in CLAMPS:
            last, reader = reader.outputs[0], only_reader(reader.outputs[0])
        if reader is not None and reader.op_type == "QuantizeLinear":
            same = ir.node("LeakyRelu", [last], attributes={"alpha": 1.0})
            graph.insert_before(reader, same)
            reader.replace_input_with(0, like(same.outputs[0], last))


def _rounded_unasked(node: ir.Node) -> bool:
    if node.op_type == "AveragePool":
        return not averages_codes(node)
    return node.op_type in ROUNDED_UNASKED and known(operand(node, 1)) is not None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the operator that reads a tensor, if it is the only one and of that type."""
    readers = [use.node for use in value.uses()]
    alone = len(readers) == 1 and not value.is_graph_output() and readers[0].op_type == op_type
    return readers[0] if alone else None


def _pads_zeros(pad: ir.Node) -> bool:
    mode, value = pad.attributes.get("mode"), pad.inputs[2] if len(pad.inputs) > 2 else None
    if mode is not None and mode.as_string() != "constant":
        return False
    dequantize = producer(value, "DequantizeLinear")
    if value is None or dequantize is None:
        return value is None or _equals(value, 0)
    code, _, zero_point = dequantize.inputs
    return known(code) is not None and _equals(code, known(zero_point))


def _same_quantization(before: ir.Node, after: ir.Node) -> bool:
    if len(before.inputs) != 3 or len(after.inputs) != 3:
        return False
    return all(_equals(a, known(b)) for a, b in zip(before.inputs[1:], after.inputs[1:], strict=True))


def _equals(value: ir.Value | None, expected: object) -> bool:
    found = known(value)
    return found is not None and expected is not None and bool(np.array_equal(found, np.asarray(expected)))
