"""AdaRound: every choice of up and down tried on layers of few weights, and what holds on all."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgewise.export.onnx import export
from edgewise.export.verify import compare_simulation, outputs, rms_error
from edgewise.models.onnx import OnnxNetwork
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.adaround import Reconstruction, input_rows, learn_codes, learn_rounding, rectified_sigmoid
from edgewise.quantize.simulate import FakeQuantize
from export.nets import images

LEARN = Quantize(rounding="adaround", rounding_iterations=300, rounding_images=64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(inputs: int, seed: int, clamp: tuple[float, float]) -> tuple[Tensor, Tensor, Reconstruction]:
    """Return weights, scales, and what a layer of one output shall compute, on inputs that are alike."""
    g = seeded(seed)
    weight, scale = torch.randn(1, 1, inputs, generator=g), torch.full((1, 1, inputs), 0.4)
    shared = torch.randn(400, 1, generator=g)  # inputs that rise together: errors of one sign add up
    x = (shared + 0.5 * torch.randn(400, inputs, generator=g)).abs()[None]
    bias = torch.full((1, 1, 1), -0.3)
    target = torch.baddbmm(bias, x, weight.mT).clamp(*clamp)
    return weight, scale, Reconstruction(x, target, bias, clamp)


@pytest.mark.parametrize("clamp", [(-torch.inf, torch.inf), (0.0, torch.inf), (0.0, 1.0)])
def test_what_is_learnt_is_nearly_the_best_of_all_choices(clamp: tuple[float, float]) -> None:
    """Of 256 choices for each of six layers; nearest rounding is far from the best of them."""
    ranks, ours, theirs = [], 0.0, 0.0
    for seed in range(6):
        weight, scale, whole = layer(8, seed, clamp)
        floor = (weight / scale).floor()
        choices = [floor + torch.tensor(up)[None, None] for up in itertools.product((0.0, 1.0), repeat=8)]
        errors = torch.stack([whole.errors(codes * scale).mean() for codes in choices])
        codes = learn_codes(weight, scale, (-127, 127), whole, 500, seeded())
        assert set((codes - floor).unique().tolist()) <= {0.0, 1.0}
        found = whole.errors(codes * scale).mean()
        ranks.append(int((errors < found * 0.9999).sum()))
        ours += found.item()
        theirs += whole.errors((weight / scale).round() * scale).mean().item()
    assert sorted(ranks)[3] <= 8  # most of them within the best 3 %
    assert ours < 0.5 * theirs


def test_rounding_by_hand() -> None:
    """Two weights of 0.4 codes on equal inputs make 0.8: to the nearest it is 0, with one rounded up it is 1."""
    weight, scale = torch.full((1, 1, 2), 0.4), torch.ones(1, 1, 2)
    x = torch.rand(1, 64, 1, generator=seeded()).expand(1, 64, 2)
    whole = Reconstruction(x, 0.8 * x[..., :1], torch.zeros(1, 1, 1))
    weight[0, 0, 0] += 0.05  # which of both is not left to chance
    codes = learn_codes(weight, scale, (-7, 7), whole, 1000, seeded())
    assert codes.flatten().tolist() == [1.0, 0.0]


def test_codes_beyond_the_last_stay_the_last() -> None:
    weight, scale = torch.tensor([[[9.7, -9.2, 6.6]]]), torch.ones(1, 1, 3)
    x = torch.rand(1, 64, 3, generator=seeded())
    whole = Reconstruction(x, torch.baddbmm(torch.zeros(1, 1, 1), x, weight.mT), torch.zeros(1, 1, 1))
    assert learn_codes(weight, scale, (-7, 7), whole, 200, seeded()).flatten().tolist()[:2] == [7.0, -7.0]


def test_the_rectified_sigmoid_by_hand() -> None:
    """1.2 / (1 + exp(-1)) - 0.1 = 0.777..., and it ends at 0 and 1."""
    found = rectified_sigmoid(torch.tensor([1.0, -5.0, 5.0]))
    torch.testing.assert_close(found, torch.tensor([0.7772703, 0.0, 1.0]))


def test_the_bias_that_suits_by_hand() -> None:
    """Outputs 1, 3 and 9 for 2, 5 and 6, cut off at 6: the mean of -1 and -2 goes, the last says nothing."""
    x, weight = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.ones(1, 1, 1)
    whole = Reconstruction(x, torch.tensor([[[2.0], [5.0], [6.0]]]), torch.zeros(1, 1, 1), (0.0, 6.0))
    assert whole.suiting(weight).item() == 1.5
    assert whole.errors(weight).flatten().tolist() == [1.0, 4.0, 0.0]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
        nn.Conv2d(4, 8, 3, stride=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 6, 1, groups=2, bias=False),
    ],
    ids=["plain", "uneven", "grouped", "depthwise", "pointwise"],
)
def test_rows_of_inputs_times_weights_are_the_layers_output(conv: nn.Conv2d, tmp_path: Path) -> None:
    x = torch.randn(2, 4, 9, 8, generator=seeded())
    quantizer = Quantizer(export(conv, x, tmp_path / "conv.onnx"), x.repeat(4, 1, 1, 1))
    network = OnnxNetwork(quantizer.prepared().graph)
    ((_, found),) = quantizer.sites().layers.items()
    with torch.no_grad():
        expected = conv(x).flatten(2)
    places = torch.tensor([[0, 5, expected.shape[2] - 1], [7, 1, 2]])
    rows = input_rows(x, network.steps[0], found, places)
    weight = conv.weight.detach().reshape(conv.groups, conv.out_channels // conv.groups, -1)
    product = (rows @ weight.mT).transpose(0, 1).reshape(2, 3, -1)
    bias = 0.0 if conv.bias is None else conv.bias.detach()
    wanted = torch.stack([expected[n][:, places[n]].T for n in range(2)])
    torch.testing.assert_close(product + bias, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def learnt(float_file: Path) -> Quantizer:
    return Quantizer(float_file, images(64, seed=1), LEARN)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_layer_is_at_least_as_near_as_by_nearest_rounding(bits: int, learnt: Quantizer) -> None:
    network = learnt.simulated(bits=bits, rounding="nearest")
    plain = OnnxNetwork(learnt.prepared().graph)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    taps = list(network.taps)
    rounded = learn_rounding(network, learnt.sites(), learnt.images[:32], 200)
    after = network.state_dict()
    assert list(network.taps) == taps
    for found in rounded.values():
        assert torch.isfinite(found.bias).all()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert set(rounded) == set(learnt.sites().layers)
    assert all(found.learnt <= found.nearest for found in rounded.values())
    assert bits == 8 or sum(found.learnt < found.nearest for found in rounded.values()) >= len(rounded) // 2
    for name, layer in learnt.sites().layers.items():
        tap, weight = network.tapped(layer.weight), plain.weight(layer.weight).detach()
        assert isinstance(tap, FakeQuantize)
        floor = (weight / tap.spec.spread(tap.scale.detach(), weight.shape)).floor().clamp(*tap.spec.codes)
        assert set((tap.codes(rounded[name].weight) - floor).unique().tolist()) <= {0.0, 1.0}


def test_the_files_codes_are_the_learnt_ones(learnt: Quantizer, tmp_path: Path) -> None:
    simulated = learnt.simulated(bits=4)
    path = learnt.write(tmp_path / "int4.onnx", simulated=simulated)
    stored = [numpy_helper.to_array(c) for c in onnx.load(path).graph.initializer if c.data_type == 22]
    whole = learnt.simulated(bits=4, rounding="nearest")
    changed = 0
    for layer in learnt.sites().layers.values():
        tap, weight = simulated.tapped(layer.weight), simulated.weight(layer.weight).detach()
        assert isinstance(tap, FakeQuantize)
        codes = tap.codes(weight)
        assert torch.equal(dequantized(tap, codes), weight)  # on its codes already
        assert any(np.array_equal(array.astype(np.int32), codes.numpy()) for array in stored)
        changed += int((codes != tap.codes(whole.weight(layer.weight).detach())).sum())
    assert changed > 0
    x = images(100, seed=8)
    with torch.no_grad():
        assert all(check.passed for check in compare_simulation(simulated(x), outputs(path, x)))


def dequantized(tap: FakeQuantize, codes: Tensor) -> Tensor:
    return codes * tap.spec.spread(tap.scale.detach(), codes.shape)


def test_biases_change_only_if_they_may(learnt: Quantizer) -> None:
    network, plain = learnt.simulated(bits=4, rounding="nearest"), OnnxNetwork(learnt.prepared().graph)
    for layer in learnt.sites().layers.values():
        network.weight(layer.bias).data = plain.weight(layer.bias).data.clone()
    for correct in (False, True):
        rounded = learn_rounding(network, learnt.sites(), learnt.images[:16], 20, correct_bias=correct)
        same = [
            torch.equal(rounded[name].bias, plain.weight(layer.bias)) for name, layer in learnt.sites().layers.items()
        ]
        assert all(same) != correct


def test_four_bit_weights_lose_less(learnt: Quantizer, tmp_path: Path) -> None:
    """On the average of two sets of calibration images: one of them alone may go either way."""
    x = images(300, seed=8)
    expected, errors = outputs(learnt.path, x), {"nearest": 0.0, "adaround": 0.0}
    for quantizer in (learnt, Quantizer(learnt.path, images(64, seed=2), LEARN)):
        for rounding in errors:
            simulated = quantizer.simulated(bits=4, rounding=rounding)  # type: ignore[arg-type]
            path = quantizer.write(tmp_path / f"{rounding}.onnx", simulated=simulated)
            errors[rounding] += rms_error(outputs(path, x), expected)
    assert errors["adaround"] < 0.98 * errors["nearest"]


def test_what_was_learnt_is_not_learnt_again(float_file: Path) -> None:
    told: list[str] = []
    config = Quantize(rounding="adaround", rounding_iterations=2, rounding_images=8)
    quantizer = Quantizer(float_file, images(16, seed=1), config, lambda what, done, total: told.append(what))
    first = quantizer.simulated()
    layers = len(quantizer.sites().layers)
    assert told.count("adaround") == layers
    again, without = quantizer.simulated(), quantizer.simulated(["head"])
    assert told.count("adaround") == layers
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    head = quantizer.sites().layers["head"]
    assert torch.equal(without.weight(head.weight), OnnxNetwork(quantizer.prepared().graph).weight(head.weight))
    again.weight(head.weight).data.zero_()  # what a caller does to one is not kept for the next
    assert torch.equal(quantizer.simulated().weight(head.weight), first.weight(head.weight))
