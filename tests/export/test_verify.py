"""Checks worked out by hand, on networks and files whose outputs are known exactly."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgewise.errors import CheckFailed, MeasurementFailed, ModelError, UnknownName, UserError
from edgewise.export.verify import (
    Check,
    compare_float,
    compare_networks,
    compare_quantized,
    outputs,
    relative_error,
    require,
    rms_error,
)
from export.nets import CLASSES, images, tiny_net


class Scores(nn.Module):
    """The three channels' single pixels as the logits of three classes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.factor


def scores_file(path: Path, factors: list[float], offset: float = 0.0) -> Path:
    """A file that multiplies the three scores by factors and adds an offset."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Mul", ["flat", "factors"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        ],
        "scores",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.asarray(factors, np.float32), "factors"),
            numpy_helper.from_array(np.asarray(offset, np.float32), "offset"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


# The classes are 0, 1, 2, 0; the sum of squares is 16 + 9 + 4 + 16 + 1 + 4 = 50, the largest 4.
SCORES = torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0], [4.0, 1.0, 2.0]])[:, :, None, None]


def test_outputs_by_hand_in_batches_that_do_not_divide_the_images(tmp_path: Path) -> None:
    path = scores_file(tmp_path / "net.onnx", [1.0, 2.0, 3.0], offset=0.5)
    expected = torch.tensor([[4.5, 0.5, 0.5], [0.5, 6.5, 0.5], [0.5, 0.5, 6.5], [4.5, 2.5, 6.5]])
    for batch in (1, 3, 4, 100):
        found = outputs(path, SCORES, 1, batch=batch)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_outputs_takes_a_view_that_is_not_contiguous(tmp_path: Path) -> None:
    path = scores_file(tmp_path / "net.onnx", [1.0, 2.0, 3.0])
    strided = SCORES.repeat(2, 1, 1, 1)[::2]
    assert torch.equal(outputs(path, strided), outputs(path, strided.clone()))


def test_outputs_in_openvino_are_those_of_onnx_runtime(exported: Path) -> None:
    inputs = images(10, seed=3)
    expected = outputs(exported, inputs, 1)
    for batch in (1, 4, 10):
        assert relative_error(outputs(exported, inputs, 1, batch=batch, runtime="openvino"), expected) < 1e-5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_of_one_batch_is_run_in_such(runtime: str, tmp_path: Path) -> None:
    """Its batch of 2 is its own; 4 images are two of them, 3 are none."""
    model = onnx.load(scores_file(tmp_path / "net.onnx", [1.0, 2.0, 3.0]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "net.onnx")
    expected = SCORES.flatten(1) * torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(outputs(tmp_path / "net.onnx", SCORES, runtime=runtime), expected)
    with pytest.raises(MeasurementFailed, match="cannot run it on inputs"):
        outputs(tmp_path / "net.onnx", SCORES[:3], runtime=runtime)


def test_an_unknown_runtime_or_format_is_the_users_mistake(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match='"openvin" is unknown; did you mean "openvino"'):
        outputs(exported, SCORES, runtime="openvin")
    with pytest.raises(UserError, match=r'net\.h5: no runtime takes files with the suffix "\.h5"'):
        outputs(tmp_path / "net.h5", SCORES)


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.onnx: no such file"):
        outputs(tmp_path / "nowhere.onnx", SCORES)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" + bytes(range(40))])
def test_a_corrupt_file_is_named_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(MeasurementFailed, match=r"broken\.onnx: ONNX Runtime cannot load it: ") as caught:
        outputs(path, SCORES)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_is_named(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(exported.read_bytes()[:-100])
    with pytest.raises(MeasurementFailed, match=r"cut\.onnx: ONNX Runtime cannot load it: "):
        outputs(path, images(1))


def test_inputs_of_another_shape_are_named_in_one_line(exported: Path) -> None:
    with pytest.raises(MeasurementFailed, match=r"cannot run it on inputs \[2, 3, 1, 1\]: ") as caught:
        outputs(exported, SCORES[:2])
    assert "\n" not in str(caught.value)


def test_compare_float_by_hand(tmp_path: Path) -> None:
    """The largest error is 0.5 on the 4, of the largest output 4."""
    check = compare_float(Scores(), scores_file(tmp_path / "net.onnx", [1.125, 1.0, 1.0]), SCORES, limit=0.2)
    assert (check.value, check.limit, check.passed, check.unit) == (0.125, 0.2, True, "of the largest output")
    assert check.detail == "4 images in batches of up to 64, 4 of them also one by one"
    assert not compare_float(Scores(), tmp_path / "net.onnx", SCORES).passed


def test_compare_float_holds_for_what_was_exported_and_not_for_another_network(
    model: nn.Module, exported: Path
) -> None:
    inputs = images(100, seed=3)
    check = compare_float(model, exported, inputs)
    assert check.passed
    assert 0 < check.value < 1e-5
    assert not compare_float(tiny_net(seed=1), exported, inputs).passed


def test_compare_float_finds_a_batch_of_one_that_is_wrong(tmp_path: Path) -> None:
    """A file that subtracts the batch's mean is right only where that happens to be zero."""
    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[batch, 3, 1, 1] input) => (float[batch, 3] logits)'
        "<int64[1] axes = {0}> { flat = Flatten(input) mean = ReduceMean(flat, axes) logits = Sub(flat, mean) }"
    )
    onnx.save(graph, tmp_path / "net.onnx")
    balanced = torch.cat([SCORES, -SCORES])
    assert torch.equal(outputs(tmp_path / "net.onnx", balanced), balanced.flatten(1))
    assert compare_float(Scores(), tmp_path / "net.onnx", balanced).value == 1.0


def test_compare_float_finds_a_batch_of_one_that_is_nan(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[batch, 3, 1, 1] input) => (float[batch, 3] logits)'
        "<int64 first = {0}, float most = {1.5}, float none = {0}> {"
        " flat = Flatten(input) shape = Shape(input) count = Gather(shape, first) length = Cast<to = 1>(count)"
        " more = Sub(length, most) root = Sqrt(more) zero = Mul(root, none) logits = Add(flat, zero) }"
    )
    onnx.save(graph, tmp_path / "net.onnx")
    assert torch.equal(outputs(tmp_path / "net.onnx", SCORES), SCORES.flatten(1))
    assert not compare_float(Scores(), tmp_path / "net.onnx", SCORES).passed


def test_compare_float_fails_on_nan_and_on_another_shape(tmp_path: Path) -> None:
    check = compare_float(Scores(), scores_file(tmp_path / "net.onnx", [math.nan, 1.0, 1.0]), SCORES)
    assert math.isnan(check.value)
    assert not check.passed
    with pytest.raises(CheckFailed, match=r"outputs have the shape \[4, 3\], they must have \[4, 3, 1, 1\]"):
        compare_float(nn.Identity(), tmp_path / "net.onnx", SCORES)


def test_compare_quantized_by_hand(tmp_path: Path) -> None:
    """Tripling class 2 turns [4, 1, 2] to class 2, and adds errors of 4 and 4: sqrt(32 / 50)."""
    agreement, error = compare_quantized(Scores(), scores_file(tmp_path / "net.onnx", [1.0, 1.0, 3.0]), SCORES)
    assert agreement.value == 0.75
    assert (agreement.passed, agreement.limit) == (False, 0.8)
    assert error.value == pytest.approx(math.sqrt(32 / 50))
    assert not error.passed
    lenient = compare_quantized(Scores(), tmp_path / "net.onnx", SCORES, agreement=0.75, error=0.81)
    assert [check.passed for check in lenient] == [True, True]


def test_compare_quantized_is_one_and_zero_for_equal_outputs(tmp_path: Path) -> None:
    agreement, error = compare_quantized(Scores(), scores_file(tmp_path / "net.onnx", [1.0, 1.0, 1.0]), SCORES)
    assert (agreement.value, agreement.passed, error.value, error.passed) == (1.0, True, 0.0, True)


def test_compare_quantized_fails_on_nan(tmp_path: Path) -> None:
    _, error = compare_quantized(Scores(), scores_file(tmp_path / "net.onnx", [math.nan, 1.0, 1.0]), SCORES)
    assert not error.passed


def test_compare_networks_by_hand() -> None:
    check = compare_networks(Scores(1.0), Scores(2.0), SCORES, name="halves", limit=0.5)
    assert check == Check("halves", True, 0.5, 0.5, "of the largest output", "4 images, float32")
    assert not compare_networks(Scores(1.0), Scores(2.0), SCORES, limit=0.49).passed


def test_compare_networks_sees_in_float64_what_float32_rounds_away() -> None:
    class Shifted(Scores):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 2.0**-30)

    rounded = compare_networks(Shifted(), Scores(), SCORES[:1] + 4)
    assert (rounded.value, rounded.detail) == (0.0, "1 images, float32")
    exact = compare_networks(Shifted(), Scores(), SCORES[:1] + 4, precision="float64")
    assert (exact.value, exact.detail) == (2.0**-30 / 8, "1 images, float64")


def test_networks_are_left_as_they_are() -> None:
    model = tiny_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare_networks(model, tiny_net(), images(3), precision="float64")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_dropout_and_batch_statistics_are_off() -> None:
    model = tiny_net().train()
    assert compare_networks(model, model, images(70)).value == 0.0
    assert compare_networks(model, tiny_net().eval(), images(70)).value == 0.0


def test_a_forward_that_raises_is_named() -> None:
    with pytest.raises(ModelError, match=r"the network's forward raised on inputs \[4, 3, 1, 1\]: RuntimeError"):
        compare_networks(nn.Linear(7, CLASSES), Scores(), SCORES)


def test_require_names_the_first_that_failed_with_value_and_limit() -> None:
    good = Check("a holds", True, 0.0, 1.0, "units")
    bad = Check("b holds", False, 0.123456, 0.1, "of the largest output", "9 images")
    require([])
    require([good, good])
    message = "check failed: b holds: 0.123 of the largest output, limit 0.1 (9 images)"
    with pytest.raises(CheckFailed) as caught:
        require([good, bad, Check("c holds", False, 2.0, 1.0, "units")])
    assert str(caught.value) == message
    assert caught.value.exit_code == 1


def test_errors_of_zeros() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    assert relative_error(zeros, zeros) == rms_error(zeros, zeros) == 0.0
    assert relative_error(ones, zeros) == rms_error(ones, zeros) == math.inf
    assert relative_error(zeros, ones) == rms_error(zeros, ones) == 1.0
