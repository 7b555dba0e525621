"""Graphs made ready: the same outputs, with biases and scales inside the layers."""

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from edgewise.export.verify import relative_error
from edgewise.models.onnx import OnnxNetwork
from edgewise.quantize.prepare import layers, output_axis, prepare
from export.nets import images


def run(network: ir.Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = OnnxNetwork(network.graph)(x)
    return found


def prepared(text: str, shape: tuple[int, ...], **constants: Tensor) -> ir.Model:
    """Prepare a graph that is written out, and hold its outputs against what they were."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in constants.items())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = run(ir.from_proto(proto), x)
    network = prepare(ir.from_proto(proto))
    assert relative_error(run(network, x), before) < 1e-5
    return network


def operators(network: ir.Model) -> list[str]:
    return [node.op_type for node in network.graph]


def test_a_network_of_every_kind_computes_the_same(float_file: Path) -> None:
    network, x = ir.load(float_file), images(4, seed=3)
    before = run(network, x)
    ready = prepare(network)
    assert relative_error(run(ready, x), before) < 1e-5
    found = Counter(operators(ready))
    assert found["MatMul"] == 0
    assert found["Gemm"] == 3
    assert found["Mul"] == 2  # the gate's, and that in hard-swish; the layer scale is in the weights
    assert [layer.name for layer in layers(ready.graph)][:4] == ["stem", "mixer.depthwise", "mixer.up", "mixer.down"]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("factor", [numbers(4, 1, 1), numbers(1, 4, 1, 1), numbers(1), torch.tensor(2.0)])
@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_a_scale_of_channels_goes_into_the_convolution(operator: str, factor: Tensor) -> None:
    text = "(float[N,3,5,5] x) => (float[N,4,5,5] y) { c = Conv <kernel_shape=[1,1]> (x, w, b) y = %s(c, f) }"
    network = prepared(text % operator, (2, 3, 5, 5), w=numbers(4, 3, 1, 1), b=numbers(4), f=factor)
    assert operators(network) == ["Conv"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{ c = Conv <kernel_shape=[1,1]> (x, w, b) y = Mul(c, f) }", "one number a column is no channel's"),
        ("{ c = Conv <kernel_shape=[1,1]> (x, w, b) s = Mul(c, g) r = Relu(c) y = Add(s, r) }", "others read it too"),
        ("{ c = Conv <kernel_shape=[1,1]> (x, w, b) y = Div(g, c) }", "it is divided by the map"),
    ],
)
def test_other_products_stay(text: str, why: str) -> None:
    constants = {"w": numbers(4, 3, 1, 1), "b": 2 + numbers(4).abs(), "f": numbers(5), "g": numbers(4, 1, 1)}
    text = f"(float[N,3,5,5] x) => (float[N,4,5,5] y) {text}"
    used = {
        name: value for name, value in constants.items() if f" {name})" in text or f"({name}," in text or name in "wb"
    }
    network = prepared(text, (2, 3, 5, 5), **used)
    assert {"Mul", "Div"} & set(operators(network)), why


@pytest.mark.parametrize(
    ("shape", "bias"),
    [("N,4", numbers(6)), ("N,4", numbers(1, 6)), ("N,3,4", numbers(1, 1, 6)), ("N,3,2,4", numbers(6))],
)
def test_a_product_and_its_bias_become_one_operator(shape: str, bias: Tensor) -> None:
    rank = len(shape.split(","))
    text = f"(float[{shape}] x) => (float[{shape[:-1]}6] y) {{ p = MatMul(x, w) y = Add(b, p) }}"
    network = prepared(text, (2, *[3, 2][: rank - 2], 4), w=numbers(4, 6), b=bias)
    assert Counter(operators(network))["Gemm"] == 1
    assert not {"MatMul", "Add"} & set(operators(network))


def test_what_is_added_to_a_product_otherwise_stays() -> None:
    text = "(float[N,3,4] x) => (float[N,3,6] y) { p = MatMul(x, w) y = Add(p, b) }"
    assert operators(prepared(text, (2, 3, 4), w=numbers(4, 6), b=numbers(3, 6))) == ["MatMul", "Add"]


def test_each_layer_has_constants_of_its_own() -> None:
    text = "{ c = Conv <kernel_shape=[1,1]> (x, w, b) y = Conv <kernel_shape=[1,1]> (c, w, b) }"
    text = f"(float[N,4,5,5] x) => (float[N,4,5,5] y) {text}"
    network = prepared(text, (2, 4, 5, 5), w=numbers(4, 4, 1, 1), b=numbers(4))
    first, second = layers(network.graph)
    assert not set(first.inputs[1:]) & set(second.inputs[1:])
    assert first.name != second.name


def test_layers_of_one_name_are_told_apart() -> None:
    text = "{ c = Conv <kernel_shape=[1,1]> (x, w, b) y = Conv <kernel_shape=[1,1]> (c, w, b) }"
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[N,4,5,5] x) => (float[N,4,5,5] y) {text}'
    )
    constants = {"w": numbers(4, 4, 1, 1), "b": numbers(4)}
    proto.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in constants.items())
    for node in proto.graph.node:
        node.name = "same"
    assert [layer.name for layer in layers(prepare(ir.from_proto(proto)).graph)] == ["same", "same_1"]


def test_batch_normalisations_of_foreign_files_are_folded() -> None:
    text = "{ c = Conv <kernel_shape=[1,1]> (x, w) y = BatchNormalization(c, s, b, m, v) }"
    text = f"(float[N,3,5,5] x) => (float[N,4,5,5] y) {text}"
    constants = {"s": numbers(4), "b": numbers(4), "m": numbers(4), "v": 1 + numbers(4).square()}
    assert operators(prepared(text, (2, 3, 5, 5), w=numbers(4, 3, 1, 1), **constants)) == ["Conv"]


def test_layers_that_scale_or_turn_their_input_are_none() -> None:
    text = "(float[3,4] x) => (float[4,6] y) { y = Gemm <transA=1> (x, w) }"
    assert layers(prepared(text, (3, 4), w=numbers(3, 6)).graph) == []
    text = "(float[3,4] x) => (float[3,6] y) { y = Gemm <alpha=2.0> (x, w) }"
    assert layers(prepared(text, (3, 4), w=numbers(4, 6)).graph) == []


def test_output_channels_are_where_each_operator_has_them() -> None:
    text = "(float[N,4] x) => (float[N,6] y) { y = Gemm <transB=1> (x, w) }"
    (layer,) = layers(prepared(text, (3, 4), w=numbers(6, 4)).graph)
    assert output_axis(layer) == 0
    text = "(float[N,4,3,3] x) => (float[N,5,3,3] y) { y = ConvTranspose <kernel_shape=[1,1]> (x, w) }"
    (layer,) = layers(prepared(text, (2, 4, 3, 3), w=numbers(4, 5, 1, 1)).graph)
    assert output_axis(layer) == 1
