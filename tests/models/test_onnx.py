"""ONNX files as networks: operator by operator beside ONNX Runtime, and whole ones beside where they came from."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgewise.errors import ModelError, UnsupportedOp
from edgewise.export.onnx import export
from edgewise.export.verify import outputs, relative_error
from edgewise.graph import shrink, silence, trace
from edgewise.models import build
from edgewise.models.onnx import OnnxNetwork
from edgewise.models.operators import OPERATORS

F32 = np.float32


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F32)


def whole(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def model_of(nodes: list[Any], constants: dict[str, Any], shape: tuple[int, ...] = (2, 6, 9, 9)) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def check(model: ModelProto, shape: tuple[int, ...] = (2, 6, 9, 9)) -> None:
    """Hold a file in torch against the same in ONNX Runtime."""
    x = floats(*shape)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    with torch.no_grad():
        found = OnnxNetwork(ir.from_proto(model).graph)(torch.from_numpy(x))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


KERNEL = {"kernel_shape": [3, 3]}
ONE_INPUT: list[tuple[str, dict[str, Any], list[Any]]] = [  # operator, attributes, constants after the input
    ("Conv", {"pads": [1, 1, 1, 1]}, [floats(4, 6, 3, 3), floats(4)]),
    ("Conv", {"pads": [0, 1, 2, 1], "strides": [2, 1]}, [floats(4, 6, 3, 3)]),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [floats(4, 6, 2, 2), floats(4)]),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [floats(4, 6, 2, 2), floats(4)]),
    ("Conv", {"auto_pad": "VALID"}, [floats(4, 6, 3, 3)]),
    ("Conv", {"group": 6, "dilations": [2, 2], "pads": [2, 2, 2, 2]}, [floats(6, 1, 3, 3)]),
    (
        "ConvTranspose",
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        [floats(6, 4, 3, 3), floats(4)],
    ),
    ("ConvTranspose", {"group": 2}, [floats(6, 2, 2, 2)]),
    ("MatMul", {}, [floats(9, 5)]),
    ("BatchNormalization", {"epsilon": 1e-3}, [floats(6), floats(6), floats(6), np.abs(floats(6)) + 1]),
    ("LayerNormalization", {"axis": -1}, [floats(9), floats(9)]),
    ("LayerNormalization", {"axis": 1, "epsilon": 1e-3}, [floats(6, 9, 9)]),
    ("GroupNormalization", {"num_groups": 3}, [floats(3), floats(3)]),
    ("InstanceNormalization", {}, [floats(6), floats(6)]),
    *[
        (name, {}, [])
        for name in ("Neg", "Abs", "Exp", "Erf", "Floor", "Ceil", "Sin", "Cos", "Relu", "Sigmoid", "Tanh")
    ],
    *[(name, {}, []) for name in ("Softplus", "Mish", "HardSwish", "Identity", "Reciprocal")],
    *[(name, {}, [floats(6, 1, 1)]) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")],
    ("Pow", {}, [np.array(2, F32)]),
    ("Clip", {}, [np.array(-0.5, F32), np.array(0.5, F32)]),
    ("Clip", {}, [np.array(-0.5, F32)]),
    ("Clip", {}, []),
    ("LeakyRelu", {"alpha": 0.2}, []),
    ("Elu", {"alpha": 0.7}, []),
    ("HardSigmoid", {}, []),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, []),
    ("Gelu", {}, []),
    ("Gelu", {"approximate": "tanh"}, []),
    ("Softmax", {"axis": 1}, []),
    ("Cast", {"to": TensorProto.FLOAT}, []),
    ("Dropout", {}, []),
    ("MaxPool", {**KERNEL, "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("MaxPool", {**KERNEL, "strides": [2, 2], "pads": [0, 0, 1, 1]}, []),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, []),
    ("MaxPool", {**KERNEL, "dilations": [2, 2]}, []),
    ("AveragePool", {**KERNEL, "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    ("AveragePool", {**KERNEL, "pads": [1, 1, 1, 1], "count_include_pad": 1}, []),
    ("GlobalAveragePool", {}, []),
    ("GlobalMaxPool", {}, []),
    ("ReduceMean", {"keepdims": 0}, [whole(2, 3)]),
    ("ReduceMean", {}, []),
    ("ReduceSum", {}, [whole(1)]),
    ("ReduceMax", {}, [whole(-1)]),
    ("ReduceMin", {}, [whole(1)]),
    ("ReduceL2", {}, [whole(1)]),
    ("ReduceSum", {"noop_with_empty_axes": 1}, []),
    ("Reshape", {}, [whole(0, -1, 9)]),
    ("Reshape", {}, [whole(-1)]),
    ("Flatten", {"axis": 1}, []),
    ("Flatten", {"axis": 2}, []),
    ("Transpose", {"perm": [0, 2, 3, 1]}, []),
    ("Transpose", {}, []),
    ("Unsqueeze", {}, [whole(1, -1)]),
    ("Expand", {}, [whole(3, 2, 6, 1, 9)]),
    ("Slice", {}, [whole(1, 0), whole(-1, 1 << 62), whole(2, 3), whole(2, 3)]),
    ("Slice", {}, [whole(1), whole(2)]),
    ("Gather", {"axis": 1}, [whole(2, -1, 0)]),
    ("Gather", {"axis": 2}, [whole(1, 0, 3, 2).reshape(2, 2)]),
    ("Gather", {"axis": 1}, [np.array(-2, np.int64)]),
    ("Pad", {}, [whole(0, 0, 1, 2, 0, 0, 3, 0)]),
    ("Pad", {}, [whole(1, 2), np.array(-1, F32), whole(3)]),
    ("Pad", {}, [whole(0, 1, 0, 0, 0, 2, 0, 0), np.array(0.5, F32)]),
    ("Pad", {"mode": "reflect"}, [whole(0, 0, 1, 2, 0, 0, 3, 0)]),
    ("Pad", {"mode": "edge"}, [whole(0, 0, 1, 2, 0, 0, 3, 0)]),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, []),
    ("Where", {}, [floats(6, 1, 1)]),
]


@pytest.mark.parametrize(("name", "attributes", "constants"), ONE_INPUT, ids=[row[0] for row in ONE_INPUT])
def test_an_operator_computes_what_onnx_runtime_does(
    name: str, attributes: dict[str, Any], constants: list[Any]
) -> None:
    shape = (2, 8, 6, 6) if name == "DepthToSpace" else (2, 6, 9, 9)
    named = {f"c{place}": value for place, value in enumerate(constants)}
    inputs = ["x", *named]
    if name == "Where":
        named["condition"] = np.arange(9) % 2 == 0
        inputs = ["condition", *inputs]
    check(model_of([helper.make_node(name, inputs, ["y"], **attributes)], named, shape), shape)


@pytest.mark.parametrize("name", ["Sqrt", "Log"])
def test_what_positive_numbers_have(name: str) -> None:
    check(model_of([helper.make_node("Abs", ["x"], ["a"]), helper.make_node(name, ["a"], ["y"])], {}))


@pytest.mark.parametrize(
    ("mode", "coordinates", "rounding", "by"),
    [
        ("nearest", "asymmetric", "floor", "scales"),
        ("nearest", "half_pixel", "round_prefer_floor", "sizes"),
        ("linear", "half_pixel", "", "scales"),
        ("linear", "pytorch_half_pixel", "", "sizes"),
        ("linear", "align_corners", "", "sizes"),
        ("cubic", "half_pixel", "", "scales"),
        ("cubic", "align_corners", "", "sizes"),
    ],
)
def test_resizing(mode: str, coordinates: str, rounding: str, by: str) -> None:
    constants = {"scales": np.array([1, 1, 2, 2], F32)} if by == "scales" else {"sizes": whole(2, 6, 18, 18)}
    inputs = ["x", "", "scales"] if by == "scales" else ["x", "", "", "sizes"]
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if rounding:
        attributes["nearest_mode"] = rounding
    check(model_of([helper.make_node("Resize", inputs, ["y"], **attributes)], constants))


def test_parts_are_cut_and_joined() -> None:
    nodes = [
        helper.make_node("Split", ["x", "lengths"], ["a", "b"], axis=1),
        helper.make_node("Split", ["a"], ["c", "d"], axis=2, num_outputs=2),
        helper.make_node("Concat", ["d", "c"], ["e"], axis=2),
        helper.make_node("Concat", ["b", "e"], ["y"], axis=1),
    ]
    check(model_of(nodes, {"lengths": whole(2, 4)}))


def test_matrices_are_multiplied_as_asked() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "c"], ["b"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["b", "v"], ["y"], transA=1),
    ]
    check(model_of(nodes, {"w": floats(5, 486), "c": floats(5), "v": floats(2, 3)}))


def test_shapes_are_computed_as_whole_numbers() -> None:
    """A reshape to lengths that are read from the input, sliced, joined, multiplied and cast on the way."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        helper.make_node("Slice", ["shape", "first", "second"], ["same"]),
        helper.make_node("Mul", ["batch", "one"], ["times"]),
        helper.make_node("Cast", ["times"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["channels", "zero"], ["c"]),
        helper.make_node("Concat", ["cast", "c", "rest"], ["lengths"], axis=0),
        helper.make_node("Reshape", ["x", "lengths"], ["z"]),
        helper.make_node("Squeeze", ["z", "last"], ["y"]),
    ]
    constants = {
        **{"first": whole(0), "second": whole(1), "one": whole(1), "zero": whole(0), "last": whole(-1)},
        **{"channels": np.array(6, np.int64), "rest": whole(-1, 1)},
    }
    check(model_of(nodes, constants))


def test_constants_that_are_nodes() -> None:
    held = numpy_helper.from_array(floats(6, 1, 1))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=held),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["y"]),
    ]
    check(model_of(nodes, {}))


def test_every_operator_has_a_row() -> None:
    elsewhere = {"Sqrt", "Log", "Resize", "Split", "Concat", "Gemm", "Shape", "Squeeze"}
    assert {row[0] for row in ONE_INPUT} | elsewhere == set(OPERATORS)


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "mobilenet_v2", "vgg16_bn", "convnext_atto"])
def test_a_network_that_was_exported_computes_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build(name, classes=7, size=32).eval(), torch.randn(3, 3, 32, 32)
    path = export(model, x, tmp_path / "net.onnx")

    network = OnnxNetwork(ir.load(path).graph).eval()

    with torch.no_grad():
        assert relative_error(network(x), outputs(path, x)) < 1e-5
        assert relative_error(network(x), model(x)) < 1e-5


def test_a_file_is_pruned_like_any_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 32, 32)
    path = export(build("resnet20", classes=7, size=32).eval(), example, tmp_path / "net.onnx")
    network = OnnxNetwork(ir.load(path).graph).double().eval()
    graph = trace(network, example.double())

    keep = {group.name: range(0, group.size, 2) for group in graph.groups}
    small, silent = shrink(network, graph, keep), silence(network, graph, keep)

    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(small(x), silent(x)) < 1e-9
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in network.parameters())


def test_a_file_is_trained_like_any_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 7
    path = export(build("mobilenet_v2", classes=7, size=32, width=0.25).eval(), x, tmp_path / "net.onnx")
    network = OnnxNetwork(ir.load(path).graph)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(weight.grad is not None for weight in network.parameters())


def test_a_tap_sees_and_replaces_a_tensor() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    nodes = [helper.make_node("Add", ["x", "layer.weight"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    network = OnnxNetwork(ir.from_proto(model_of(nodes, {"layer.weight": floats(6, 1, 1)})).graph)
    x = torch.from_numpy(floats(2, 6, 9, 9))
    weight = network.weights["layer/weight"]

    network.tap("layer.weight", Doubled())
    torch.testing.assert_close(network(x), (x + 2 * weight).relu())
    network.tap("a", Doubled())
    torch.testing.assert_close(network(x), 2 * (x + 2 * weight).relu())


def test_an_operator_that_is_not_known_is_named() -> None:
    model = model_of([helper.make_node("Det", ["x"], ["y"])], {})
    with pytest.raises(UnsupportedOp, match='the operator "Det" is not known'):
        OnnxNetwork(ir.from_proto(model).graph)


def test_two_outputs_are_refused() -> None:
    model = model_of([helper.make_node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2)], {})
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="1 inputs and 2 outputs; it must have one of each"):
        OnnxNetwork(ir.from_proto(model).graph)
