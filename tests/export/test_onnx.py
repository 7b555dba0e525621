"""What an exported file holds, what exporting leaves alone, and what it refuses."""

import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.export.onnx import export, pool_globally_
from edgewise.export.verify import outputs
from export.nets import CLASSES, SIZE, images, tiny_net


def test_the_file_computes_what_the_network_computes(model: nn.Module, exported: Path) -> None:
    inputs = images(5, seed=1)
    with torch.no_grad():
        expected = tiny_net().eval()(inputs)
    torch.testing.assert_close(outputs(exported, inputs), expected, rtol=1e-5, atol=1e-5)


def test_it_is_one_valid_file_with_named_ends_and_an_open_batch_axis(exported: Path) -> None:
    content = onnx.load(exported)
    onnx.checker.check_model(content, full_check=True)
    (source,), (result,) = content.graph.input, content.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (source, result)]
    assert (source.name, result.name) == ("input", "logits")
    assert shapes == [["batch", 3, SIZE, SIZE], ["batch", CLASSES]]
    assert [path.name for path in exported.parent.iterdir()] == ["tiny.onnx"]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_runs_and_gives_each_image_its_own_result(exported: Path, batch: int) -> None:
    inputs = images(14, seed=2)
    whole, parts = outputs(exported, inputs, batch=14), outputs(exported, inputs, batch=batch)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_batch_norm_is_folded_and_only_the_networks_operators_remain(exported: Path) -> None:
    found = Counter(node.op_type for node in onnx.load(exported).graph.node)
    assert found == {
        "Conv": 4,
        "Relu": 2,
        "Clip": 1,
        "Add": 2,
        "Slice": 2,
        "Pad": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_net()
    model.stem.eval()  # frozen, as in fine-tuning
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    export(model, images(1), tmp_path / "net.onnx")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_is_said_and_no_filter_is_touched(tmp_path: Path) -> None:
    """In a process of its own, where no other test has made the exporter speak before."""
    script = (
        "import logging, warnings\n"
        "from pathlib import Path\n"
        "from edgewise.export.onnx import export\n"
        "from export.nets import images, tiny_net\n"
        "filters, level = list(warnings.filters), logging.root.manager.disable\n"
        f"export(tiny_net(), images(1), Path({str(tmp_path / 'net.onnx')!r}))\n"
        "assert logging.root.manager.disable == level\n"
        "new = [f for f in warnings.filters if f not in filters and f[0] == 'ignore' and f[2] is Warning]\n"
        "assert not new, new\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_warnings_and_logs_speak_again_after_a_failed_export(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        export(Misbehaving("unknown operator"), images(1), tmp_path / "net.onnx")
    assert logging.root.manager.disable == logging.NOTSET
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


class Misbehaving(nn.Module):
    """A network with one thing wrong about its forward."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, CLASSES)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(1))
        changed = {
            "raises": lambda: y.view(-1, 3),
            "tuple": lambda: (y, y),
            "double": y.double,
            "mixes the batch": lambda: y.mean(0, keepdim=True),
            "one batch size": lambda: y.reshape(2, CLASSES),
            "depends on values": lambda: y if y.sum() > 0 else -y,
            "unknown operator": lambda: torch.special.bessel_j0(y),
        }
        return changed[self.fault]()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "the network's forward raised on inputs [2, 3, 8, 8]: RuntimeError: shape '[-1, 3]' is invalid"),
        ("tuple", "the network returned an object of type tuple; it must return one tensor"),
        ("double", "returned float64 [2, 5] for float32 inputs [2, 3, 8, 8]; it must return float32 [2, ...]"),
        ("mixes the batch", "returned float32 [1, 5] for float32 inputs [2, 3, 8, 8]"),
        ("one batch size", "the network takes one batch size only"),
        ("depends on values", "the network cannot be written as ONNX: GuardOnDataDependentSymNode: "),
        ("unknown operator", "the network cannot be written as ONNX: DispatchError: No ONNX function found for "),
    ],
)
def test_a_network_that_has_no_file_is_refused_in_one_line(fault: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        export(Misbehaving(fault), images(1), tmp_path / "net.onnx")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_the_old_one(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.mkdir()
    with pytest.raises(OSError, match=r"net\.onnx"):
        export(model, images(1), path)
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]


class Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...], *, keepdim: bool) -> None:
        super().__init__()
        self.conv, self.axes, self.keepdim = nn.Conv2d(3, 4, 1), axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(self.axes, keepdim=self.keepdim)


@pytest.mark.parametrize(
    ("axes", "keepdim", "pooled"),
    [((2, 3), False, True), ((-1, -2), True, True), ((2,), False, False), ((1, 2), False, False)],
)
def test_means_over_space_become_poolings(axes: tuple[int, ...], keepdim: bool, pooled: bool, tmp_path: Path) -> None:
    model = Mean(axes, keepdim=keepdim).eval()
    path = export(model, images(1), tmp_path / "net.onnx")  # the mean is the network's output
    found = {node.op_type for node in onnx.load(path).graph.node}
    assert ("GlobalAveragePool" in found, "ReduceMean" in found) == (pooled, not pooled)
    with torch.no_grad():
        torch.testing.assert_close(outputs(path, images(3)), model(images(3)))


def test_a_mean_over_three_axes_of_unknown_rank_is_left_alone() -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float x) => (float y) <int64[2] axes = {2, 3}>'
        "{ y = ReduceMean <keepdims = 0> (x, axes) }"
    )
    model = ir.from_proto(graph)
    model.graph.inputs[0].shape = None
    pool_globally_(model.graph)
    assert [node.op_type for node in model.graph] == ["ReduceMean"]


def test_onnx_runtime_needs_no_fusion_of_ours_to_load_it(exported: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
    inputs = images(3, seed=4)
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0]),
        outputs(exported, inputs),
        rtol=1e-5,
        atol=1e-6,
    )


class _Repeated(nn.Module):
    """Two normalisations whose equal weights are stored once, and a convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)))).mean((2, 3))


def test_operators_with_names_have_a_name_each(tmp_path: Path) -> None:
    path = export(_Repeated(), images(1), tmp_path / "repeated.onnx", names=True)
    names = [node.name for node in onnx.load(path).graph.node if node.name]
    assert len(set(names)) == len(names)
    assert {"conv", "conv#2", "first", "second"} <= set(names)
    assert outputs(path, images(2)).shape == (2, 3)  # ONNX Runtime takes no name twice
