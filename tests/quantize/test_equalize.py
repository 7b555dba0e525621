"""Equalised channels: ranges that are alike, and a network that computes what it did."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from edgewise.export.edit import known
from edgewise.export.verify import outputs, relative_error
from edgewise.models.onnx import OnnxNetwork
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.equalize import equalize_, pairs
from edgewise.quantize.prepare import prepare
from export.nets import images


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def network(text: str, **constants: Tensor) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in constants.items())
    return prepare(ir.from_proto(proto))


def computed(model: ir.Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = OnnxNetwork(model.graph)(x)
    return found


def test_two_layers_by_hand() -> None:
    """Ranges 8 and 1 on one side, 2 and 4 on the other: s = (1/2) sqrt(8 * 2) = 2 and (1/4) sqrt(1 * 4) = 1/2."""
    model = network(
        "(float[N,1] x) => (float[N,1] y) { c = Gemm (x, w, b) r = Relu(c) y = Gemm (r, v, d) }",
        w=torch.tensor([[8.0, -1.0]]),
        b=torch.tensor([2.0, 3.0]),
        v=torch.tensor([[-2.0], [4.0]]),
        d=torch.tensor([0.5]),
    )
    assert len(equalize_(model.graph)) == 1
    first, second = (node for node in model.graph if node.op_type == "Gemm")
    np.testing.assert_allclose(known(first.inputs[1]), [[4.0, -2.0]], rtol=1e-6)
    np.testing.assert_allclose(known(first.inputs[2]), [1.0, 6.0], rtol=1e-6)
    np.testing.assert_allclose(known(second.inputs[1]), [[-4.0], [2.0]], rtol=1e-6)
    np.testing.assert_allclose(known(second.inputs[2]), [0.5])


CONVS = {
    "plain": ("Conv <kernel_shape=[3,3]> (%s, v, d)", (5, 6, 3, 3)),
    "depthwise": ("Conv <kernel_shape=[3,3], group=6> (%s, v, d)", (6, 1, 3, 3)),
    "grouped": ("Conv <kernel_shape=[3,3], group=2> (%s, v, d)", (4, 3, 3, 3)),
}
BETWEEN = {
    "nothing": "",
    "relu": "r = Relu(c)",
    "leaky": "r = LeakyRelu <alpha=0.1> (c)",
    "pooled": "q = Relu(c) r = MaxPool <kernel_shape=[2,2]> (q)",
}


@pytest.mark.parametrize("between", sorted(BETWEEN))
@pytest.mark.parametrize("conv", sorted(CONVS))
def test_the_same_is_computed_and_ranges_are_alike(conv: str, between: str) -> None:
    second, shape = CONVS[conv]
    reads = "r" if BETWEEN[between] else "c"
    text = f"c = Conv <kernel_shape=[1,1]> (x, w, b) {BETWEEN[between]} y = {second % reads}"
    spread = torch.logspace(-2, 2, 6)
    constants = {"w": spread[:, None, None, None] * numbers(6, 3, 1, 1), "b": spread * numbers(6)}
    constants |= {"v": numbers(*shape), "d": numbers(shape[0])}
    model = network(f"(float[N,3,8,8] x) => (float[N,{shape[0]},a,b] y) {{ {text} }}", **constants)
    x = numbers(4, 3, 8, 8)
    before = computed(model, x)
    assert len(equalize_(model.graph)) == 1
    assert relative_error(computed(model, x), before) < 1e-5
    first, last = (known(node.inputs[1]) for node in model.graph if node.op_type == "Conv")
    groups = 6 // shape[1]
    of_inputs = np.abs(last).reshape(groups, -1, shape[1], 9).max((1, 3)).reshape(-1)
    np.testing.assert_allclose(np.abs(first).max((1, 2, 3)), of_inputs, rtol=1e-4)


def test_a_chain_of_layers_converges() -> None:
    text = "a = Conv <kernel_shape=[1,1]> (x, u) p = Relu(a) b = Conv <kernel_shape=[3,3], group=4> (p, v) q = Relu(b)"
    text = f"(float[N,3,8,8] x) => (float[N,2,6,6] y) {{ {text} y = Conv <kernel_shape=[1,1]> (q, w) }}"
    spread = torch.logspace(-2, 2, 4)[:, None, None, None]
    model = network(text, u=spread * numbers(4, 3, 1, 1), v=numbers(4, 1, 3, 3) / spread, w=numbers(2, 4, 1, 1))
    x = numbers(2, 3, 8, 8)
    before = computed(model, x)
    assert len(equalize_(model.graph)) == 2
    assert relative_error(computed(model, x), before) < 1e-5
    u, v, w = (np.abs(known(node.inputs[1])) for node in model.graph if node.op_type == "Conv")
    np.testing.assert_allclose(u.max((1, 2, 3)), v.max((1, 2, 3)), rtol=0.01)
    np.testing.assert_allclose(v.max((1, 2, 3)), w.max((0, 2, 3)), rtol=0.01)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("r = Clip(c, low, high) y = Conv <kernel_shape=[1,1]> (r, v)", "a bound is one number for all channels"),
        ("r = Sigmoid(c) y = Conv <kernel_shape=[1,1]> (r, v)", "it lets no factor pass"),
        ("r = Relu(c) z = Conv <kernel_shape=[1,1]> (r, v) y = Add(r, z)", "another reads it too"),
    ],
)
def test_pairs_that_are_none(text: str, why: str) -> None:
    constants = {"w": numbers(4, 3, 1, 1), "v": numbers(4, 4, 1, 1)}
    if "Clip" in text:
        constants |= {"low": torch.tensor(0.0), "high": torch.tensor(6.0)}
    text = f"(float[N,3,5,5] x) => (float[N,4,5,5] y) {{ c = Conv <kernel_shape=[1,1]> (x, w) {text} }}"
    assert pairs(network(text, **constants).graph) == [], why


def test_channels_of_zeros_stay() -> None:
    model = network(
        "(float[N,1] x) => (float[N,1] y) { c = Gemm (x, w, b) r = Relu(c) y = Gemm (r, v, d) }",
        w=torch.tensor([[0.0, 3.0]]),
        b=torch.tensor([2.0, 3.0]),
        v=torch.tensor([[-2.0], [0.0]]),
        d=torch.tensor([0.5]),
    )
    equalize_(model.graph)
    first, second = (node for node in model.graph if node.op_type == "Gemm")
    np.testing.assert_array_equal(known(first.inputs[1]), [[0.0, 3.0]])
    np.testing.assert_array_equal(known(second.inputs[1]), [[-2.0], [0.0]])


def test_a_whole_network_computes_what_it_did(float_file: Path, tmp_path: Path) -> None:
    quantizer = Quantizer(float_file, images(32, seed=1), Quantize(equalize=True))
    assert quantizer.equalized == [("gated.squeeze", "gated.excite")]
    x = images(32, seed=3)
    assert relative_error(computed(quantizer.prepared(), x), outputs(float_file, x)) < 1e-5
    assert relative_error(outputs(quantizer.write(tmp_path / "int8.onnx"), x), outputs(float_file, x)) < 0.1
