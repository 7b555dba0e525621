"""Memory of ONNX files counted by hand, and against the cost of the networks they were written from."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor, nn

from edgewise import cost_of, models, trace
from edgewise.errors import ModelError, UserError
from edgewise.export.onnx import export
from edgewise.quantize import ActivationCost, activation_cost, quantize_static, weight_bytes

IMAGE = 4 * 8 * 8  # numbers in a tensor [1, 4, 8, 8]
EXAMPLE = torch.zeros(1, 3, 32, 32)
node = helper.make_node


def file(path: Path, nodes: Sequence[NodeProto], output: Sequence[int | str] = ("n", 4, 8, 8)) -> Path:
    """Write operators as a file: from "x" ``[n, 4, 8, 8]`` to "y", with 1x1 weights "w", scale "s" and zero point."""
    constants = [
        helper.make_tensor("w", TensorProto.FLOAT, [4, 4, 1, 1], [0.5] * 16),
        helper.make_tensor("codes", TensorProto.INT8, [4, 4, 1, 1], [1] * 16),
        helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 1, 1]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph(nodes, "by_hand", [x], [y], constants)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def quantize(source: str, name: str) -> NodeProto:
    return node("QuantizeLinear", [source, "s", "zero"], [name])


def floats(source: str, name: str) -> NodeProto:
    return node("DequantizeLinear", [source, "s", "zero"], [name])


def test_a_residual_block_holds_three_tensors_while_its_second_convolution_runs(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),  # in place
        node("Conv", ["b", "w"], ["c"]),  # x for the sum, b and c
        node("Add", ["c", "x"], ["y"]),  # in place of c
    ]
    expected = ActivationCost(peak_activation_bytes=3 * IMAGE * 4, activation_bytes=2 * IMAGE * 4)
    assert activation_cost(file(tmp_path / "float.onnx", nodes)) == expected


def test_a_sum_that_others_still_need_is_not_overwritten(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Tanh", ["a"], ["b"]), node("Add", ["a", "b"], ["y"])]
    # relu(x) lies in x's memory; tanh(a) needs its own, since a is read again; the sum takes over one of both.
    expected = ActivationCost(peak_activation_bytes=2 * IMAGE * 4, activation_bytes=IMAGE * 4)
    assert activation_cost(file(tmp_path / "float.onnx", nodes)) == expected


def test_a_view_keeps_what_it_is_a_view_of(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["x"], ["turned"], perm=[0, 1, 3, 2]),
        node("MaxPool", ["x"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        node("MaxPool", ["turned"], ["turned_small"], kernel_shape=[2, 2], strides=[2, 2]),  # of x
        node("Add", ["small", "turned_small"], ["y"]),
    ]
    small = IMAGE // 4 * 4
    expected = ActivationCost(peak_activation_bytes=IMAGE * 4 + 2 * small, activation_bytes=2 * small)
    assert activation_cost(file(tmp_path / "view.onnx", nodes, ("n", 4, 4, 4))) == expected


def test_between_conversions_tensors_are_stored_as_codes(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "x8"),  # the image as floats, and its codes
        floats("x8", "xf"),
        node("DequantizeLinear", ["codes", "s"], ["wf"]),
        node("Conv", ["xf", "wf"], ["a"]),  # codes to codes
        quantize("a", "a8"),
        floats("a8", "y"),  # codes, and the floats that are given out
    ]
    expected = ActivationCost(peak_activation_bytes=IMAGE * 5, activation_bytes=IMAGE * (1 + 1 + 4))
    assert activation_cost(file(tmp_path / "int8.onnx", nodes)) == expected


ON_CODES = [
    node("LeakyRelu", ["xf"], ["a"], alpha=0.1),
    node("Sigmoid", ["xf"], ["a"]),
    node("Add", ["xf", "xf"], ["a"]),
    node("Mul", ["xf", "xf"], ["a"]),
    node("MatMul", ["xf", "xf"], ["a"]),
    node("MaxPool", ["xf"], ["a"], kernel_shape=[1, 1]),
    node("AveragePool", ["xf"], ["a"], kernel_shape=[1, 1]),
    node("GlobalAveragePool", ["xf"], ["a"]),
    node("Transpose", ["xf"], ["a"], perm=[0, 1, 3, 2]),
    node("Resize", ["xf", "", "scales"], ["a"], mode="nearest"),
]
ON_FLOATS = [
    node("Gelu", ["xf"], ["a"]),
    node("Sub", ["xf", "xf"], ["a"]),
    node("ConvTranspose", ["xf", "wf"], ["a"]),
    node("Resize", ["xf", "", "scales"], ["a"], mode="linear"),
]


@pytest.mark.parametrize("operator", [*ON_CODES, *ON_FLOATS], ids=lambda node: node.op_type)
def test_what_runs_on_codes_is_what_onnx_runtime_runs_on_codes(operator: NodeProto, tmp_path: Path) -> None:
    weights = node("DequantizeLinear", ["codes", "s"], ["wf"])
    nodes = [quantize("x", "x8"), floats("x8", "xf"), weights, operator, quantize("a", "a8"), floats("a8", "y")]
    path = file(tmp_path / "one.onnx", nodes, ("n", "c", "h", "w"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "run.onnx"), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    conversions = [n for n in onnx.load(tmp_path / "run.onnx").graph.node if n.op_type == "DequantizeLinear"]
    on_floats = any("x8" in conversion.input for conversion in conversions)
    assert on_floats == (operator in ON_FLOATS)
    # The image's codes, the result's, and its floats for whoever asked; on floats, at least one tensor of them more.
    assert (activation_cost(path).activation_bytes >= IMAGE * (1 + 4 + 1 + 4)) == on_floats


def test_an_operator_without_an_integer_kernel_has_its_floats_stored(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "x8"),
        floats("x8", "xf"),
        node("Gelu", ["xf"], ["a"]),  # in place of the floats made for it
        quantize("a", "a8"),
        floats("a8", "y"),
    ]
    expected = ActivationCost(peak_activation_bytes=IMAGE * 5, activation_bytes=IMAGE * (1 + 4 + 1 + 4))
    assert activation_cost(file(tmp_path / "gelu.onnx", nodes)) == expected


class Mixer(nn.Module):
    """What ConvNeXt is made of: a convolution, a normalisation over channels and an MLP with a Gelu, last of axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Path]]:
    """Networks with their float files."""
    folder = tmp_path_factory.mktemp("float")
    built = {"mixer": Mixer().eval(), "resnet20": models.build("resnet20", classes=10, channels=3, size=32).eval()}
    return {name: (model, export(model, EXAMPLE, folder / f"{name}.onnx")) for name, model in built.items()}


@pytest.mark.parametrize("name", ["mixer", "resnet20"])
def test_a_float_file_costs_what_its_network_does(name: str, networks: dict[str, tuple[nn.Module, Path]]) -> None:
    model, path = networks[name]
    cost = cost_of(trace(model, EXAMPLE))
    assert activation_cost(path) == ActivationCost(cost.peak_activation_bytes, cost.activation_bytes)


def test_int8_saves_three_quarters_only_where_all_operators_run_on_codes(
    networks: dict[str, tuple[nn.Module, Path]], tmp_path: Path
) -> None:
    images, shares = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), {}
    for name, (_, float_file) in networks.items():
        int8_file = quantize_static(float_file, tmp_path / "int8.onnx", images)
        before, after = activation_cost(float_file), activation_cost(int8_file)
        shares[name] = after.peak_activation_bytes / before.peak_activation_bytes
    assert shares["resnet20"] == 0.25
    assert shares["mixer"] > 0.8  # its LayerNormalization and Gelu compute on floats


def test_a_shape_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    nodes = [node("NonZero", ["x"], ["where"]), node("Cast", ["where"], ["y"], to=TensorProto.FLOAT)]
    path = file(tmp_path / "open.onnx", nodes, (4, "found"))
    with pytest.raises(ModelError, match=r"open.onnx: the shape of the output of NonZero does not follow"):
        activation_cost(path)


@pytest.mark.parametrize("count", [activation_cost, weight_bytes])
def test_what_is_no_file_is_refused(count: object, tmp_path: Path) -> None:
    assert callable(count)
    with pytest.raises(UserError, match="no such file"):
        count(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ModelError, match="no ONNX file"):
        count(tmp_path / "text.onnx")
