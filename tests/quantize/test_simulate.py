"""The simulated network, and the files written from it: one arithmetic."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgewise.devices.kernels import Kernels, kernels
from edgewise.errors import UnknownName
from edgewise.export.onnx import export
from edgewise.export.verify import compare_simulation, outputs, relative_error, rms_error
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.correct import means
from edgewise.quantize.observe import OBSERVERS
from edgewise.quantize.simulate import FakeQuantize, in_floats, integer_outputs
from export.nets import images
from quantize.nets import on_codes, optimized


def computed(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(x)
    return found


def test_the_file_computes_what_the_simulation_does(quantizer: Quantizer, tmp_path: Path) -> None:
    """In float32 all but single codes, with exact sums every one of them."""
    simulated = quantizer.simulated()
    path = quantizer.write(tmp_path / "int8.onnx", simulated=simulated)
    x = on_codes(simulated, images(100, seed=8))
    expected, found, whole = computed(simulated, x), outputs(path, x), outputs(quantizer.path, x)
    assert rms_error(found, expected) < 0.1 * rms_error(expected, whole)
    assert all(check.passed for check in compare_simulation(integer_outputs(simulated, x, 64), found))


def test_without_its_taps_it_is_the_float_network(quantizer: Quantizer) -> None:
    simulated, x = quantizer.simulated(), images(16, seed=9)
    whole = outputs(quantizer.path, x)
    with in_floats(simulated):
        # Only the biases were corrected.
        assert relative_error(computed(simulated, x), whole) < 0.05
    assert relative_error(computed(simulated, x), whole) > 0


def test_integer_kernels_compute_all_that_they_can(quantizer: Quantizer, tmp_path: Path) -> None:
    found = optimized(quantizer.write(tmp_path / "int8.onnx"), tmp_path)
    assert (found["QLinearConv"], found["QGemm"], found["Conv"], found["Gemm"]) == (5, 3, 0, 0)
    assert (found["QLinearAdd"], found["QLinearSigmoid"], found["QLinearMul"]) == (1, 1, 2)
    assert found["QLinearLeakyRelu"] == 1  # the hard sigmoid in hard-swish
    assert not {"Add", "Sigmoid", "HardSigmoid", "Mul", "GlobalAveragePool"} & set(found)
    # Codes become floats for the normalisation alone; floats become codes behind it and the Gelu, and of the image.
    assert (found["DequantizeLinear"], found["QuantizeLinear"]) == (1, 3)


def test_a_layer_left_out_computes_on_floats(quantizer: Quantizer, tmp_path: Path) -> None:
    path = quantizer.write(tmp_path / "int8.onnx", ["mixer.depthwise", "head"])
    found = optimized(path, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["QGemm"], found["Gemm"]) == (4, 1, 2, 1)
    floats = {numpy_helper.to_array(c).size for c in onnx.load(path).graph.initializer if c.data_type == 1}
    assert {16 * 9, 5 * 32} <= floats
    x = images(64, seed=8)
    assert rms_error(outputs(path, x), outputs(quantizer.path, x)) < 0.2


def test_what_was_moved_as_codes_has_a_range_where_it_is_moved_as_floats(quantizer: Quantizer, tmp_path: Path) -> None:
    """Without the layer before a transposition or a pooling, the layer behind it rounds what was moved."""
    for name in quantizer.layers:
        path, x = quantizer.write(tmp_path / "int8.onnx", [name]), images(32, seed=8)
        assert rms_error(outputs(path, x), outputs(quantizer.path, x)) < 0.2


def test_a_layer_that_is_not_there_is_named(quantizer: Quantizer) -> None:
    with pytest.raises(UnknownName, match=r'exclude = "mixer.dwn": there is no such layer; did you mean "mixer.down"'):
        quantizer.sites(["mixer.dwn"])


def test_everything_left_out_is_the_float_file(quantizer: Quantizer, tmp_path: Path) -> None:
    path, x = quantizer.write(tmp_path / "none.onnx", list(quantizer.layers)), images(8)
    assert not any("Quantize" in node.op_type for node in onnx.load(path).graph.node)
    assert relative_error(outputs(path, x), outputs(quantizer.path, x)) < 1e-5


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_every_observer_leaves_a_small_error(observer: str, float_file: Path, tmp_path: Path) -> None:
    config = Quantize(observer=observer, percentile=99.99)  # type: ignore[arg-type]
    path = Quantizer(float_file, images(64, seed=1), config).write(tmp_path / "int8.onnx")
    x = images(200, seed=8)
    assert rms_error(outputs(path, x), outputs(float_file, x)) < 0.15


def test_corrected_biases_keep_the_mean_of_each_layer(float_file: Path) -> None:
    """With weights rounded and activations in floats, every layer's mean is what it was on the calibration images."""
    calibration = images(64, seed=1)
    gaps = {}
    for correct in (True, False):
        quantizer = Quantizer(float_file, calibration, Quantize(correct_bias=correct))
        network, sites = quantizer.simulated(), quantizer.sites()
        layer = sites.layers["gated.conv"]
        seen: list[Tensor] = []

        class Look(nn.Module):
            def forward(self, x: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(means(x, 1))
                return x

        weights = {each.weight: network.tapped(each.weight) for each in sites.layers.values()}
        plain = Quantizer(float_file, calibration, Quantize(correct_bias=False)).simulated()
        for each in (network, plain):
            each.taps.clear()
            each.tap(layer.output, Look())
        for name, tap in weights.items():
            assert tap is not None
            network.tap(name, tap)
        computed(network, calibration)
        computed(plain, calibration)
        gaps[correct] = (seen[0] - seen[1]).abs().max().item()
    assert gaps[True] < 1e-5 < 0.02 * gaps[False]


def test_a_bias_that_its_weights_scale_cannot_hold_gets_a_coarser_one(tmp_path: Path) -> None:
    """Of a channel with tiny weights and a large bias the bias must not overflow 32 bits."""
    conv = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        conv.weight.fill_(1e-12)
        conv.bias.fill_(3.0)  # type: ignore[union-attr]
    source = export(nn.Sequential(conv, nn.ReLU()), images(1), tmp_path / "float.onnx")
    found = outputs(Quantizer(source, images(16)).write(tmp_path / "int8.onnx"), images(4))
    torch.testing.assert_close(found, torch.full_like(found, 3.0), rtol=0.01, atol=0)


def test_an_input_that_never_changes_is_named(tmp_path: Path) -> None:
    class Deaf(nn.Module):
        """Its second layer reads zeros, whatever it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            with torch.no_grad():
                self.first.bias.fill_(-1000.0)  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = export(Deaf(), images(1), tmp_path / "float.onnx", names=True)
    quantizer = Quantizer(source, images(16))
    assert quantizer.constant == ["second"]
    found = outputs(quantizer.write(tmp_path / "int8.onnx"), images(4))
    torch.testing.assert_close(found, outputs(source, images(4)), rtol=0.02, atol=0.02)


def test_scales_follow_what_only_moves_codes(quantizer: Quantizer) -> None:
    sites = quantizer.sites()
    moved = {name: source for name, source in sites.scales.items() if name != source}
    assert moved  # the transposed map before the normalisation, the pooled one, the flattened one
    simulated = quantizer.simulated()
    assert all(isinstance(simulated.tapped(source), FakeQuantize) for source in moved.values())
    assert all(simulated.tapped(name) is None for name in moved)


def test_weights_of_channels_use_all_their_codes(quantizer: Quantizer, tmp_path: Path) -> None:
    graph = onnx.load(quantizer.write(tmp_path / "int8.onnx")).graph
    codes = [numpy_helper.to_array(c) for c in graph.initializer if c.data_type == 3 and len(c.dims) == 4]
    assert len(codes) == 5
    assert all((np.abs(array).max((1, 2, 3)) == 127).all() for array in codes)


def test_the_channels_of_any_convolution_are_corrected(tmp_path: Path) -> None:
    """The channels of a one-dimensional convolution, as many as it is long, are no places."""
    network = nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0))
    source = export(network, x[:1], tmp_path / "sequence.onnx", names=True)
    errors = [
        rms_error(
            outputs(Quantizer(source, x, Quantize(correct_bias=on)).write(tmp_path / "q.onnx"), x), outputs(source, x)
        )
        for on in (True, False)
    ]
    assert errors[0] < 1.1 * errors[1]
    torch.testing.assert_close(means(torch.arange(12.0).reshape(1, 3, 4), 1), torch.tensor([1.5, 5.5, 9.5]))


@pytest.mark.parametrize("name", ["0", "2", "4", "7"])
def test_a_layer_between_codes_computes_on_its_own_floats(name: str, tmp_path: Path) -> None:
    """ONNX Runtime would round the weights of one that it finds between codes, with a scale for all."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6()),
        *(nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()
    with torch.no_grad():  # channels of very different weights, which one scale would ruin
        network[2].weight *= torch.logspace(-2, 1, 16).reshape(-1, 1, 1, 1)
    x = images(64, seed=4)
    quantizer = Quantizer(export(network, x[:1], tmp_path / "chain.onnx", names=True), x)
    path = quantizer.write(tmp_path / "int8.onnx", [name])
    assert kernels(path) == Kernels(integer=3, floating=1)
    assert rms_error(outputs(path, x), computed(quantizer.simulated([name]), x)) < 0.01
