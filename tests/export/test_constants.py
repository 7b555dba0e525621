"""Constants that are added channel by channel: where they go, and that the function stays the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from edgewise import models
from edgewise.export.constants import absorb_constants_
from edgewise.export.onnx import export
from edgewise.export.verify import outputs
from edgewise.graph import shrink, trace

# Each network: the operators between x, which a convolution makes, and the output y; and the operators that are left.
# c and d are constants of four channels of both signs, up and down are c's positive and negative part, p is for seven.
CASES: dict[str, tuple[str, str]] = {
    "into the bias before it": ("y = Add(x, c)", "Conv"),
    "from the other side": ("y = Add(c, x)", "Conv"),
    "two of them": ("a = Add(x, c)  y = Add(a, d)", "Conv"),
    "into the bias of a summand": (
        "s = Sigmoid(x)  t = Add(x, s)  k = Conv<pads=[1, 1, 1, 1]>(x, w, b)  u = Add(t, k)  y = Add(u, c)",
        "Conv Sigmoid Add Conv Add",
    ),
    "through a rectifier": ("r = Relu(x)  a = Add(r, c)  y = Relu(a)", "Conv Relu Conv"),
    "negative ones alone": ("r = Relu(x)  a = Add(r, down)  y = Relu(a)", "Conv Relu"),
    "positive ones alone": ("r = Relu(x)  a = Add(r, up)  y = Relu(a)", "Conv Relu Conv"),
    "through three rectifiers": (
        "r = Relu(x)  a = Add(r, c)  q = Relu(a)  e = Add(q, d)  y = Relu(e)",
        "Conv Relu Conv",
    ),
    "behind a convolution without padding": (
        "r = Relu(x)  a = Add(r, c)  y = Conv<group=2>(a, grouped)",
        "Conv Relu Conv",
    ),
    "not behind padding": (
        "r = Relu(x)  a = Add(r, c)  y = Conv<pads=[1, 1, 1, 1]>(a, w, b)",
        "Conv Relu Conv Conv",
    ),
    "behind slices and padded channels": (
        "r = Relu(x)  a = Add(r, c)  s = Slice(a, zero, most, two, two)  q = Pad(s, pads)  z = Add(q, p)  y = Relu(z)",
        "Conv Relu Slice Pad Conv Relu",
    ),
    "not behind padded rows": ("r = Relu(x)  a = Add(r, c)  y = Pad(a, rows)", "Conv Relu Conv Pad"),
    "behind a maximum": (
        "r = Relu(x)  a = Add(r, c)  y = MaxPool<kernel_shape=[2, 2], pads=[1, 1, 1, 1]>(a)",
        "Conv Relu MaxPool Conv",
    ),
    "into the classifier": (
        "r = Relu(x)  a = Add(r, c)  g = GlobalAveragePool(a)  f = Flatten(g)  y = Gemm<transB=1>(f, v, b)",
        "Conv Relu GlobalAveragePool Flatten Gemm",
    ),
    "to every reader": (
        "r = Relu(x)  a = Add(r, c)  k = Conv(a, ones)  "
        "l = Conv<pads=[1, 1, 1, 1]>(r, w, b)  m = Add(a, l)  y = Add(k, m)",
        "Conv Relu Conv Conv Add Add",
    ),
    "not one over the width": ("r = Relu(x)  y = Add(r, wide)", "Conv Relu Add"),
    "not one that others read": (
        "r = Relu(x)  a = Add(r, c)  q = Relu(a)  y = Add(r, q)",
        "Conv Relu Conv Relu Add",
    ),
    "not a value that is given out": ("y = Relu(x)  a = Add(y, c)  z = Relu(a)  u = Sigmoid(z)", "Conv Relu"),
}


def network(body: str) -> onnx.ModelProto:
    """Write a network: a convolution makes x of the input, the body makes y of that."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[n, 3, 4, 4] input) => (float y) '
        f"{{ x = Conv<pads=[1, 1, 1, 1]>(input, first, b)  {body} }}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    numbers = np.random.default_rng(0)
    c = np.array([0.7, -0.4, 0.2, -0.9], np.float32)
    constants = {
        "first": numbers.standard_normal((4, 3, 3, 3)),
        "w": numbers.standard_normal((4, 4, 3, 3)),
        "ones": numbers.standard_normal((4, 4, 1, 1)),
        "grouped": numbers.standard_normal((8, 2, 1, 2)),
        "v": numbers.standard_normal((4, 4)),
        "b": numbers.standard_normal(4),
        "c": c.reshape(1, 4, 1, 1),
        "d": np.array([-0.3, 0.6, 0.5, -0.2]).reshape(4, 1, 1),
        "up": np.maximum(c, 0).reshape(1, 4, 1, 1),
        "down": np.minimum(c, 0).reshape(1, 4, 1, 1),
        "p": numbers.standard_normal((1, 7, 1, 1)),
        "wide": c.reshape(1, 1, 1, 4),
    }
    integers = {
        "zero": [0, 0],
        "most": [9, 9],
        "two": [2, 3],
        "pads": [0, 1, 0, 0, 0, 2, 0, 0],
        "rows": [0, 0, 1, 0, 0, 0, 0, 0],
    }
    for name, values in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), name))
    for name, whole in integers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(whole, np.int64), name))
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(1).standard_normal((5, 3, 4, 4)).astype(np.float32)
    (found,) = session.run(None, {"input": inputs})
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_constant_is_taken_in_and_the_function_stays(case: str) -> None:
    body, left = CASES[case]
    before = network(body)
    rewritten = ir.from_proto(before)
    absorb_constants_(rewritten.graph)
    after = ir.to_proto(rewritten)
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-5)
    assert Counter(node.op_type for node in after.graph.node) >= Counter(left.split())
    if "given out" not in case:
        assert Counter(node.op_type for node in after.graph.node) == Counter(left.split())


@pytest.mark.parametrize(("name", "most"), [("resnet20", 2), ("mobilenet_v2", 0), ("resnet50", 4)])
def test_a_network_without_branches_adds_at_most_one_constant_a_stage(name: str, most: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=10, size=32, width=0.25).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    small = shrink(model, graph, {branch: np.empty(0, np.int64) for branch in graph.branches})
    path = export(small, torch.zeros(1, 3, 32, 32), tmp_path / "small.onnx")
    inputs = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(outputs(path, inputs), small(inputs), rtol=1e-4, atol=1e-4)
    nodes = onnx.load(path).graph.node
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert not [node for node in nodes if node.op_type == "Add" and constants.keys() & set(node.input)]
    ones = [node for node in nodes if node.op_type == "Conv" and (constants[node.input[1]] == 1).all()]
    assert len(ones) <= most
