"""int8 files against arithmetic written out in numpy, and everything a file or its images can have wrong."""

import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgewise.errors import DataError, ModelError, UserError
from edgewise.export.onnx import export
from edgewise.export.verify import compare_quantized, outputs, rms_error
from edgewise.quantize import Quantize, quantize_static, weight_bytes
from edgewise.quantize.observe import OBSERVERS
from edgewise.quantize.static import BATCH
from export.nets import CLASSES, images

Arrays = dict[str, np.ndarray]


def constants(path: Path) -> tuple[onnx.GraphProto, Arrays]:
    graph = onnx.load(path).graph
    return graph, {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}


def quantization_of(graph: onnx.GraphProto, arrays: Arrays, value: str) -> list[np.ndarray]:
    """Return codes if they are constant, scale and zero point of what a DequantizeLinear gives."""
    node = next(node for node in graph.node if value in node.output)
    assert node.op_type == "DequantizeLinear"
    return [arrays[name] for name in node.input if name in arrays]


@pytest.fixture(scope="module")
def quantized(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_static(exported, tmp_path_factory.mktemp("int8") / "tiny.onnx", images(64, seed=1))


class OneConv(nn.Module):
    """A convolution with a bias, an output channel of zeros, and one whose weights are a hundred times larger."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            self.conv.weight.normal_()
            self.conv.bias.normal_()  # type: ignore[union-attr]
            self.conv.weight[2] = 0
            self.conv.weight[4] *= 100

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.fixture(scope="module")
def one_conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conv")
    return quantize_static(
        export(OneConv(), images(1), folder / "float.onnx"), folder / "int8.onnx", images(40, seed=2)
    )


def convolve(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Convolve integers ``[N, I, H, W]`` with ``[O, I, 3, 3]``, padding by one zero, with loops over the taps."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = ((i, j) for i in range(3) for j in range(3))
    return sum(np.einsum("nihw,oi->nohw", padded[:, :, i : i + height, j : j + width], w[:, :, i, j]) for i, j in taps)


def test_a_convolution_computes_what_integers_compute(one_conv: Path) -> None:
    """Codes to int32 sums to codes; only the last rounding may go the other way, near a tie."""
    graph, arrays = constants(one_conv)
    (conv,) = (node for node in graph.node if node.op_type == "Conv")
    scale, zero = quantization_of(graph, arrays, conv.input[0])
    codes, weight_scale, weight_zero = quantization_of(graph, arrays, conv.input[1])
    bias, bias_scale, _ = quantization_of(graph, arrays, conv.input[2])
    out_scale, out_zero = quantization_of(graph, arrays, "logits")
    assert (codes.dtype, zero.dtype, out_zero.dtype, bias.dtype) == (np.int8, np.uint8, np.uint8, np.int32)
    assert not weight_zero.any()
    np.testing.assert_allclose(bias_scale, scale * weight_scale, rtol=1e-6)

    x = images(20, seed=3).numpy()
    inputs = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    sums = convolve(inputs, codes.astype(np.int64)) + bias[:, None, None]
    floats = sums * (np.float64(scale) * weight_scale)[:, None, None]
    expected = np.clip(np.rint(floats / np.float64(out_scale)) + out_zero, 0, 255)
    found = np.rint(outputs(one_conv, torch.from_numpy(x)).numpy() / out_scale) + out_zero
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.999


def test_weights_are_rounded_to_127_steps_of_each_channels_largest(one_conv: Path) -> None:
    """Steps are up to 0.2 % larger, so that no sum lies between two codes."""
    graph, arrays = constants(one_conv)
    (conv,) = (node for node in graph.node if node.op_type == "Conv")
    codes, scale, _ = quantization_of(graph, arrays, conv.input[1])
    weight = OneConv().conv.weight.detach().numpy()
    largest = np.abs(weight).max((1, 2, 3))
    alive = largest > 0
    steps = scale[alive] / (largest[alive] / 127)
    assert ((steps > 1 - 1e-6) & (steps < 1.002)).all()
    assert np.abs(codes[alive]).max((1, 2, 3)).tolist() == [127] * int(alive.sum())
    assert not codes[~alive].any()
    error = np.abs(codes * scale[:, None, None, None] - weight)
    assert (error <= scale[:, None, None, None] * (0.5 + 1e-5)).all()


def test_ranges_span_all_that_was_seen_in_every_batch(exported: Path, tmp_path: Path) -> None:
    calibration = images(2 * BATCH + 1, seed=4)
    calibration[0, 0, 0, 0], calibration[-1, 0, 0, 0] = -9.0, 21.0  # in the first batch and the last
    widest = Quantize(observer="minmax")
    graph, arrays = constants(quantize_static(exported, tmp_path / "int8.onnx", calibration, widest))
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    assert first.input[0] == "input"
    scale, zero = (arrays[name] for name in first.input[1:])
    assert scale == pytest.approx(30 / 255)
    assert zero == round(9 / (30 / 255))


def test_an_input_that_is_always_zero_quantises(exported: Path, tmp_path: Path) -> None:
    path = quantize_static(exported, tmp_path / "int8.onnx", torch.zeros(8, 3, 8, 8))
    assert torch.isfinite(outputs(path, torch.zeros(2, 3, 8, 8))).all()


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_the_file_agrees_with_the_network_and_nothing_is_said(
    observer: str,
    model: nn.Module,
    exported: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = Quantize(observer=observer, percentile=99.99)  # type: ignore[arg-type]
    path = quantize_static(exported, tmp_path / "int8.onnx", images(64, seed=1), config)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    checks = compare_quantized(model, path, images(500, seed=5), agreement=0.9, error=0.1)
    assert all(check.passed for check in checks), checks


def test_reduced_weights_have_seven_bits(exported: Path, tmp_path: Path) -> None:
    path = quantize_static(exported, tmp_path / "int8.onnx", images(16), Quantize(reduce_range=True))
    _, arrays = constants(path)
    codes = [array for array in arrays.values() if array.dtype == np.int8 and array.ndim > 1]
    assert {int(np.abs(array).max()) for array in codes} == {63}


def test_every_operator_is_between_conversions_and_activations_are_fused(quantized: Path) -> None:
    graph, arrays = constants(quantized)
    found = Counter(node.op_type for node in graph.node)
    assert found["Relu"] == found["Clip"] == 0
    assert (found["Conv"], found["Gemm"], found["Add"], found["Pad"]) == (4, 1, 2, 1)
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            for value in node.input:
                quantization_of(graph, arrays, value)


def test_onnx_runtime_computes_all_of_it_in_integers(quantized: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found == {
        "QuantizeLinear": 1,
        "QLinearConv": 4,
        "QLinearAdd": 2,
        "Slice": 2,
        "Pad": 1,
        "QLinearGlobalAveragePool": 1,
        "Reshape": 1,
        "QGemm": 1,
    }


class EndsInRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).relu()


def test_the_logits_are_not_rounded_to_codes(quantized: Path, tmp_path: Path) -> None:
    logits = outputs(quantized, images(500, seed=6))
    assert len(logits.unique()) > 256
    assert onnx.load(quantized).graph.output[0].name == "logits"


def test_a_last_relu_stays_though_the_quantiser_leaves_it_to_the_codes(tmp_path: Path) -> None:
    source = export(EndsInRelu(), images(1), tmp_path / "float.onnx")
    widest = Quantize(observer="minmax")
    found = outputs(quantize_static(source, tmp_path / "int8.onnx", images(64), widest), images(64))
    assert found.min() == 0
    torch.testing.assert_close(found, outputs(source, images(64)), rtol=0, atol=0.05)


def test_the_same_input_gives_the_same_bytes(exported: Path, quantized: Path, tmp_path: Path) -> None:
    again = quantize_static(exported, tmp_path / "again.onnx", images(64, seed=1), Quantize())
    assert again.read_bytes() == quantized.read_bytes()


def test_the_file_is_valid_and_small(exported: Path, quantized: Path) -> None:
    onnx.checker.check_model(onnx.load(quantized), full_check=True)
    _, arrays = constants(quantized)
    assert weight_bytes(quantized) == sum(array.nbytes for array in arrays.values())
    unique = {(array.dtype, array.shape, array.tobytes()) for array in arrays.values()}
    assert len(unique) == len(arrays)
    assert quantized.stat().st_size < weight_bytes(quantized) + 5000


def test_weight_bytes_by_hand(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["output"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.zeros((4, 3), np.int8), "codes"),
            numpy_helper.from_array(np.zeros(4, np.float32), "scales"),
            numpy_helper.from_array(np.zeros((), np.uint8), "zero_point"),
            numpy_helper.from_array(np.zeros(4, np.int32), "bias"),
        ],
    )
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    assert weight_bytes(tmp_path / "net.onnx") == 12 + 16 + 1 + 16


def test_progress_counts_batches(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        print("drawn")  # a bar's stdout is not the quantiser's

    quantize_static(exported, tmp_path / "int8.onnx", images(2 * BATCH + 1), progress=progress)
    assert told == [("calibrate", 1, 3), ("calibrate", 2, 3), ("calibrate", 3, 3)]
    assert capsys.readouterr().out == "drawn\n" * 3


def with_nan() -> Tensor:
    inputs = images(10)
    inputs[4, 1, 2, 3], inputs[7] = float("nan"), float("inf")
    return inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (images(7), "there are 7 calibration inputs, at least 8 are needed"),
        (images(8).double(), "the calibration inputs are float64 [8, 3, 8, 8], but "),
        (images(8)[:, :2], "the calibration inputs are float32 [8, 2, 8, 8], but "),
        (images(8)[0], "the calibration inputs are float32 [3, 8, 8], but "),
        (with_nan(), "calibration input 4 holds NaN or infinity"),
    ],
)
def test_images_that_cannot_calibrate(inputs: Tensor, message: str, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        quantize_static(exported, tmp_path / "int8.onnx", inputs)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(" takes float32 [N, 3, 8, 8]") == ("but" in message)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_quantised(quantized: Path, tmp_path: Path) -> None:
    broken, two = tmp_path / "broken.onnx", tmp_path / "two.onnx"
    broken.write_bytes(b"no model")
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 18]>'
            "g (float[N, 3, 8, 8] a, float[N, 3, 8, 8] b) => (float[N, 3, 8, 8] c) { c = Add(a, b) }"
        ),
        two,
    )
    for source, error, message in [
        (tmp_path / "nowhere.onnx", UserError, "nowhere.onnx: no such file"),
        (broken, ModelError, "broken.onnx: no ONNX file: "),
        (quantized, ModelError, "tiny.onnx: it is quantised already; quantise the float file that it was made from"),
        (two, ModelError, "two.onnx: it has 2 inputs (a, b), it must have one"),
    ]:
        with pytest.raises(error) as caught:
            quantize_static(source, tmp_path / "int8.onnx", images(8))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "int8.onnx").exists()
    with pytest.raises(ModelError, match=r"broken\.onnx: no ONNX file: "):
        weight_bytes(broken)


def test_a_quantiser_that_fails_is_named_in_one_line_and_leaves_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    graph = onnx.load(exported)
    graph.graph.node[0].op_type = "Convolution"  # no such operator
    onnx.save(graph, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=r'odd\.onnx: the operator "Convolution" is not known') as caught:
        quantize_static(tmp_path / "odd.onnx", out / "int8.onnx", images(8))
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == list(scratch.iterdir()) == []
    quantize_static(exported, out / "int8.onnx", images(8))
    assert [path.name for path in out.iterdir()] == ["int8.onnx"]
    assert list(scratch.iterdir()) == []
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration": 7}, "calibration = 7: at least 8 images"),
        ({"percentile": 50.0}, "percentile = 50.0: more than 50, at most 100"),
        ({"percentile": 100.1}, "percentile = 100.1: more than 50, at most 100"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**values)  # type: ignore[arg-type]


class Heads(nn.Module):
    """Two outputs of very different size, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.small, self.large = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).relu()
        return torch.cat([self.small(y), 100 * self.large(y)], 1)


def test_outputs_side_by_side_have_scales_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Heads().eval(), torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    file = quantize_static(
        export(net, x[:1], tmp_path / "net.onnx", names=True), tmp_path / "q.onnx", x, Quantize(calibration=32)
    )
    with torch.no_grad():
        whole, found = net(x), outputs(file, x)
    for part in (slice(0, 2), slice(2, 4)):
        assert rms_error(found[:, part], whole[:, part]) < 0.05
