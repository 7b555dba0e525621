"""What ONNX Runtime's quantiser leaves to be said better: operators that run on codes as they are, and float outputs.

All of them change an ONNX graph in place. QuantizeLinear turns floats into codes, DequantizeLinear codes into floats:
``float = scale * (code - zero_point)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def pad_codes_(graph: ir.Graph) -> None:
    """Pad codes with the zero point, where floats are padded with 0 between two equal quantisations.

    ONNX Runtime has no fusion for this one, and would leave the integers to pad. No output changes by a bit.
    """
    import onnx_ir as ir

    for pad in list(graph):
        if pad.op_type != "Pad" or not _pads_zeros(pad):
            continue
        before, after = _producer(pad.inputs[0], "DequantizeLinear"), _only_reader(pad.outputs[0], "QuantizeLinear")
        if before is None or after is None or not _same_quantization(before, after):
            continue
        padded = ir.node("Pad", [before.inputs[0], pad.inputs[1], after.inputs[2], *pad.inputs[3:]])
        graph.insert_before(pad, padded)
        ir.convenience.replace_all_uses_with(after.outputs[0], padded.outputs[0])
        graph.remove([after, pad], safe=True)


def float_outputs_(graph: ir.Graph) -> None:
    """Give out what the last operator computed, instead of the nearest of 256 codes."""
    for position, coarse in enumerate(graph.outputs):
        dequantize = _producer(coarse, "DequantizeLinear")
        quantize = None if dequantize is None else _producer(dequantize.inputs[0], "QuantizeLinear")
        fine = None if quantize is None else quantize.inputs[0]
        if fine is not None and fine.producer() is not None:
            fine.shape, fine.type = coarse.shape, coarse.type
            graph.outputs[position] = fine
            fine.name, coarse.name = coarse.name, None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the operator that computes a tensor, if it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the operator that reads a tensor, if it is the only one and of that type."""
    readers = [use.node for use in value.uses()]
    alone = len(readers) == 1 and not value.is_graph_output() and readers[0].op_type == op_type
    return readers[0] if alone else None


def _pads_zeros(pad: ir.Node) -> bool:
    mode, value = pad.attributes.get("mode"), pad.inputs[2] if len(pad.inputs) > 2 else None
    if mode is not None and mode.as_string() != "constant":
        return False
    dequantize = _producer(value, "DequantizeLinear")
    if value is None or dequantize is None:
        return value is None or _equals(value, 0)
    code, _, zero_point = dequantize.inputs
    return _constant(code) is not None and _equals(code, _constant(zero_point))


def _same_quantization(before: ir.Node, after: ir.Node) -> bool:
    if len(before.inputs) != 3 or len(after.inputs) != 3:
        return False
    return all(_equals(a, _constant(b)) for a, b in zip(before.inputs[1:], after.inputs[1:], strict=True))


def _equals(value: ir.Value | None, expected: object) -> bool:
    found = _constant(value)
    return found is not None and expected is not None and bool(np.array_equal(found, np.asarray(expected)))


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()
