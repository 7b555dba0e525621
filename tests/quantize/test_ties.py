"""No sum lies in the middle of two codes, so that every way to round it gives the same one."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgewise.devices.kernels import Kernels, kernels
from edgewise.export.onnx import export
from edgewise.export.verify import compare_codes, compare_simulation, outputs, relative_error, rms_error
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.affine import QParams, QSpec
from edgewise.quantize.observe import Range
from edgewise.quantize.simulate import FakeQuantize, integer_outputs
from edgewise.quantize.ties import STEPS, fraction, settle_table_
from export.nets import images
from quantize.nets import on_codes, optimized

SCALES = st.floats(1e-4, 1.0)
NO_SATURATION = Quantize(reduce_range=True, bit_exact=True)  # sums of 7-bit weights are whole on every processor


def as_float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(given=SCALES, weight=SCALES, made=SCALES)
def test_every_order_of_float_operations_rounds_a_sum_to_the_same_code(
    given: float, weight: float, made: float
) -> None:
    """All sums are tried whose code is not cut off, with what ONNX Runtime, OpenVINO and exact arithmetic do."""
    s_in, s_out = np.float32(given), np.float32(made)
    ratio = fraction(as_float64(float(s_in) * weight / float(s_out))).item()
    s_w = np.float32(ratio * float(s_out) / float(s_in))
    sums = np.arange(min(int(256 / ratio) + 1, 2_000_000)).astype(np.int32)
    exact = np.rint(sums * ratio)
    at_once = np.rint(sums.astype(np.float32) * np.float32(np.float32(s_in * s_w) / s_out))
    one_by_one = np.rint(sums.astype(np.float32) * np.float32(s_in * s_w) * np.float32(1 / s_out))
    divided = np.rint(sums.astype(np.float32) * s_in * s_w / s_out)
    if 1 / ratio < 2 * STEPS:  # of more, the nearest tie is as near as float32 errs
        for found in (at_once, one_by_one, divided):
            np.testing.assert_array_equal(found, exact)


@given(st.floats(1e-6, 1e3))
def test_a_ratio_becomes_a_fraction_with_an_odd_denominator_next_to_it(ratio: float) -> None:
    found = fraction(as_float64(ratio)).item()
    assert ratio <= found * (1 + 1e-12)
    assert found <= ratio * 1.002
    denominators = np.arange(1, STEPS + 1, 2) if found > 1 / STEPS else np.asarray([round(1 / found)])
    parts = found * denominators
    assert np.abs(parts - np.rint(parts)).min() < 1e-9
    assert denominators[-1] % 2 == 1


class Streams(nn.Module):
    """Two residual streams that are averaged, multiplied by each other's mean, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, z = torch.relu(self.first(x)), self.second(x)
        y, z = self.pool(y + self.a(y)), self.pool(nn.functional.relu6(z + self.b(z)))
        y, z = y * z.mean((2, 3), keepdim=True), z * y.mean((2, 3), keepdim=True)
        return self.head((y + z).mean((2, 3)))


@pytest.fixture(scope="module")
def streams(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        path = export(Streams().eval(), images(1), tmp_path_factory.mktemp("streams") / "float.onnx", names=True)
    return Quantizer(path, images(16, seed=1), NO_SATURATION)


class Alike(nn.Module):
    """Two convolutions whose channels have weights of one range, and so one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for conv in (self.layers[0], self.layers[2]):
                conv.weight /= conv.weight.abs().amax((1, 2, 3), keepdim=True) * 3

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def test_scales_whose_ratio_is_a_power_of_two_leave_no_ties(tmp_path: Path) -> None:
    """One sum in some hundreds would lie in the middle of two codes, and the last bit of a scale decide."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = export(Alike().eval(), images(1), tmp_path / "float.onnx", names=True)
    quantizer = Quantizer(source, images(16, seed=1), NO_SATURATION)
    scales, sites = scale_of(quantizer.simulated()), quantizer.sites()
    second = list(sites.layers.values())[1]
    made = str(next(clamp for clamp in sites.clamps if clamp.inputs[0].name == second.output).outputs[0].name)
    unit = scales[sites.scales[second.input]] * (1 / 3 / 63)  # of 7-bit weights that reach to a third
    step = unit * 2 ** round(math.log2(scales[made] / unit))
    quantizer.ranges = quantizer.ranges | {made: Range(torch.tensor(0.0), torch.tensor(255 * step))}
    simulated = quantizer.simulated()
    x, path = on_codes(simulated, images(256, seed=2)), quantizer.write(tmp_path / "int8.onnx", simulated=simulated)
    for runtime in ("onnxruntime", "openvino"):
        found = outputs(path, x, runtime=runtime)
        assert relative_error(found, integer_outputs(simulated, x, batch=64)) < 1e-6


def scale_of(network: nn.Module) -> dict[str, float]:
    return {name: tap.scale.max().item() for name, tap in network.taps.items() if isinstance(tap, FakeQuantize)}


def test_sums_products_and_averages_are_equal_in_both_runtimes(streams: Quantizer, tmp_path: Path) -> None:
    simulated = streams.simulated()
    x = on_codes(simulated, images(256, seed=2))
    path = streams.write(tmp_path / "int8.onnx", simulated=simulated)
    expected = integer_outputs(simulated, x, batch=64)
    for runtime in ("onnxruntime", "openvino"):
        assert relative_error(outputs(path, x, runtime=runtime), expected) < 1e-6


def test_scales_hardly_move(streams: Quantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    after = scale_of(streams.simulated())
    monkeypatch.setattr("edgewise.quantize.static.avoid_ties_", lambda network, sites: None)
    before = scale_of(streams.simulated())
    assert after.keys() == before.keys()
    moved = {name: abs(after[name] / scale - 1) for name, scale in before.items()}
    assert 0 < max(moved.values()) <= 0.01
    assert np.median(list(moved.values())) < 0.002


def test_a_small_fault_of_one_layer_is_found(streams: Quantizer, tmp_path: Path) -> None:
    """A bias that is off by half a code costs less than quantising does, but leaves hardly an image as it was."""
    simulated = streams.simulated()
    x = on_codes(simulated, images(64, seed=2))
    expected, whole = integer_outputs(simulated, x, batch=64), outputs(streams.path, x)
    assert streams.sites().whole
    layer = list(streams.sites().layers.values())[1]
    half = 0.5 * scale_of(simulated)[streams.sites().scales[layer.output]]
    for fault, sound in ((0.0, True), (half, False)):
        simulated.weight(layer.bias).data += fault
        found = outputs(streams.write(tmp_path / "int8.onnx", simulated=simulated), x)
        assert all(check.passed for check in compare_simulation(expected, found, whole=whole))
        assert compare_codes(expected, found, "int8").passed == sound


def quantized(model: nn.Module, folder: Path, size: int = 16, **settings: bool) -> tuple[Quantizer, Path]:
    source = export(model.eval(), noise(1, 0, size), folder / "float.onnx", names=True)
    quantizer = Quantizer(source, noise(16, 1, size), Quantize(reduce_range=True, **settings))  # type: ignore[arg-type]
    return quantizer, quantizer.write(folder / "int8.onnx")


def noise(count: int, seed: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


@pytest.mark.parametrize(
    ("scale", "zero_point", "out"),
    [(0.04391113296151161, 109, 0.00391517486423254), (0.031830474734306335, 98, 0.00389503943733871)],
)
def test_no_entry_of_a_table_lies_in_the_middle_of_two_codes(scale: float, zero_point: int, out: float) -> None:
    """Two pairs of scales at which ONNX Runtime's float32 sigmoid and an exact one have another code somewhere."""

    def nearest(scale_out: float) -> float:
        entries = torch.sigmoid((torch.arange(256).double() - zero_point) * scale) / scale_out
        return (entries.remainder(1) - 0.5).abs().min().item()

    taps = [
        FakeQuantize(QSpec(), QParams(torch.tensor(s), torch.tensor(z))) for s, z in ((scale, zero_point), (out, 0))
    ]
    assert nearest(out) < 1e-5
    settle_table_(taps[1], taps[0], torch.sigmoid)
    assert nearest(taps[1].scale.item()) > 1e-4
    assert 1 <= taps[1].scale.item() / out < 1.01


class Pools(nn.Module):
    """Poolings whose last window reaches out of the map."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.last = nn.Conv2d(3, 8, 3, padding=1), pool, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(torch.relu(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("padding", [0, 1])
def test_averages_at_the_edge_of_a_map_are_those_of_the_float_file(padding: int, tmp_path: Path) -> None:
    pool = nn.AvgPool2d(3, 2, padding=padding, ceil_mode=True)
    quantizer, path = quantized(seeded(lambda: Pools(pool)), tmp_path)
    simulated = quantizer.simulated()
    x = on_codes(simulated, noise(64, 2, 16))
    assert quantizer.sites().whole == (padding == 0)
    assert rms_error(integer_outputs(simulated, x, 64), outputs(path, x)) < (1e-6 if padding == 0 else 1e-3)
    assert rms_error(outputs(path, x), outputs(quantizer.path, x)) < 0.05


class Clipped(nn.Module):
    """What is clipped at 6 is small beside what it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 3, 8))
        self.a.weight.data *= 10
        self.b.weight.data *= 15

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.relu6(self.a(x)) + self.b(x)).mean((2, 3))


def test_a_clip_is_still_the_end_of_the_codes(tmp_path: Path) -> None:
    """A scale that grew by a fifth of a percent would leave it to do, and its convolution to floats."""
    _, path = quantized(seeded(Clipped), tmp_path)
    assert optimized(path, tmp_path)["QLinearConv"] == 3
    assert kernels(path) == Kernels(3, 0)


class Rows(nn.Module):
    """A convolution over one dimension, added."""

    def __init__(self) -> None:
        super().__init__()
        self.plane, self.row = nn.Conv2d(3, 8, 3), nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.plane(x)).flatten(2)
        return torch.relu(y + self.row(y)).mean(2)


def test_additions_of_any_dimensions_are_kept_apart(tmp_path: Path) -> None:
    quantizer, path = quantized(seeded(Rows), tmp_path, bit_exact=True)
    x = noise(16, 2, 16)
    assert rms_error(outputs(path, x), outputs(quantizer.path, x)) < 0.05


def test_additions_are_kept_out_of_convolutions_only_where_it_is_asked_for(streams: Quantizer, tmp_path: Path) -> None:
    plain = Quantizer(streams.path, streams.images, Quantize(reduce_range=True))
    counts = [
        [node.op_type for node in onnx.load(quantizer.write(tmp_path / "int8.onnx")).graph.node].count("MaxPool")
        for quantizer in (plain, streams)
    ]
    assert counts == [0, 4]
