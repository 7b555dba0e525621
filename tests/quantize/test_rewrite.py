"""Each rewriting by hand: where it applies, what it leaves alone, and that no bit of an output changes."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from edgewise.export.compact import compact_
from edgewise.quantize.rewrite import gate_codes_, pad_codes_

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


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.25, 0.375)])
def test_a_hard_sigmoid_is_rounding_to_other_codes(alpha: float, beta: float) -> None:
    """In steps of 1/256, which have no code for 1."""
    text = f"""<ir_version: 9, opset_import: ["" : 18]> g (float[N] x) => (float[N] y)
        <float s = {{0.0625}}, uint8 z = {{120}}, float step = {{0.00390625}}, uint8 nil = {{0}}> {{
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            h = HardSigmoid <alpha = {alpha}, beta = {beta}> (d)
            r = QuantizeLinear(h, step, nil)
            y = DequantizeLinear(r, step, nil)
        }}"""
    model = onnx.parser.parse_model(text)
    network = ir.from_proto(copy.deepcopy(model))
    gate_codes_(network.graph)
    after = ir.to_proto(network)
    assert "HardSigmoid" not in operators(after)
    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    found = [
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for each in (model, after)
    ]
    # A number between two codes may be rounded either way, as alpha is no short one.
    assert np.abs(found[0][0] - found[1][0]).max() <= (1 / 256 if alpha == 1 / 6 else 0)
    assert (found[0][0] == found[1][0]).mean() > 0.99
