"""Each rewriting by hand: where it applies, what it leaves alone, and that no bit of an output changes."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from edgewise.export.compact import compact_
from edgewise.quantize.rewrite import float_outputs_, pad_codes_

CONSTANTS = {
    "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
    "axes": np.arange(4),
    "s": np.float32(0.25),
    "t": np.float32(0.5),
    "z": np.uint8(100),
    "nil": np.float32(0),
    "one": np.float32(1),
    "seven": np.uint8(7),
    "eight": np.uint8(8),
}


def padding(
    *, scale: str = "s", mode: str = "constant", more: str = "", then: str = "", out: str = "y"
) -> onnx.ModelProto:
    """Codes, floats, a padding of one pixel on every side, codes, floats."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[1, 1, 3, 3] x) => (float[1, 1, 5, 5] {out}) {{
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            nought = DequantizeLinear(seven, one, seven)
            minus = DequantizeLinear(seven, one, eight)
            p = Pad <mode = "{mode}"> (d, pads{more})
            r = QuantizeLinear(p, {scale}, z)
            y = DequantizeLinear(r, {scale}, z)
            {then}
        }}"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in CONSTANTS.items())
    return model


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    network = ir.from_proto(copy.deepcopy(model))  # the tensors would be shared
    pad_codes_(network.graph)
    compact_(network)
    return ir.to_proto(network)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).uniform(-30, 45, (1, 1, 3, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("more", ["", ", nil", ", nought", ", nil, axes"])
def test_codes_are_padded_with_the_zero_point(more: str) -> None:
    before = padding(more=more)
    after = rewritten(before)
    assert operators(after) == ["QuantizeLinear", "Pad", "DequantizeLinear"]
    onnx.checker.check_model(after, full_check=True)
    assert np.array_equal(run(after), run(before))
    assert (run(after)[0, 0, 0] == 0).all()


@pytest.mark.parametrize(
    "model",
    [
        padding(scale="t"),
        padding(more=", one"),
        padding(more=", minus"),
        padding(mode="edge"),
        padding(mode="reflect"),
        padding(then="w = Neg(p)", out="w"),
        padding(out="p"),
    ],
    ids=["another scale", "ones", "minus ones", "edge", "reflect", "read as floats too", "the output itself"],
)
def test_other_paddings_stay_between_floats(model: onnx.ModelProto) -> None:
    after = rewritten(model)
    pad = next(node for node in after.graph.node if node.op_type == "Pad")
    codes = {node.output[0] for node in after.graph.node if node.op_type == "QuantizeLinear"}
    assert pad.input[0] not in codes
    assert np.array_equal(run(after), run(model))


def test_the_output_is_what_the_last_operator_computed() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 18]> g (float[2] x) => (float[2] y)'
            "<float s = {0.5}, uint8 z = {9}> { n = Neg(x) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }"
        )
    )
    float_outputs_(model.graph)
    compact_(model)
    proto = ir.to_proto(model)
    assert operators(proto) == ["Neg"]
    assert [str(dim.dim_value) for dim in proto.graph.output[0].type.tensor_type.shape.dim] == ["2"]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.asarray([0.3, -0.1], np.float32)
    assert np.array_equal(session.run(["y"], {"x": x})[0], -x)


def test_an_output_that_no_operator_computes_stays() -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 18]> g (float[2] x) => (float[2] y)'
        "<float s = {0.5}, uint8 z = {9}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    float_outputs_(model.graph)
    assert operators(ir.to_proto(model)) == ["QuantizeLinear", "DequantizeLinear"]
