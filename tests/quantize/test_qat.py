"""Training for int8: step sizes that learn, and networks that lose less after it."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.data import normalize
from edgewise.export.onnx import export
from edgewise.export.verify import compare_simulation, outputs
from edgewise.models.onnx import OnnxNetwork
from edgewise.quantize import Quantizer
from edgewise.quantize.affine import QParams, QSpec
from edgewise.quantize.mixed import FEW
from edgewise.quantize.qat import Lsq
from edgewise.quantize.simulate import FakeQuantize
from edgewise.train import fit
from edgewise.train.config import TrainConfig
from train.tiny import TASK, tiny_net, tiny_split

TRAINING = TrainConfig(epochs=4, lr=0.05, batch=32, augment=())


@pytest.fixture(scope="module")
def quantizer(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    """A trained network, calibrated."""
    split = tiny_split(400)
    model = fit(tiny_net(), TASK, split, TRAINING)
    inputs = normalize(split.images[:64], TASK.mean, TASK.std)
    return Quantizer(export(model.eval(), inputs[:1], tmp_path_factory.mktemp("qat") / "float.onnx"), inputs)


def test_a_step_sizes_gradient_is_scaled_by_the_numbers_that_share_it() -> None:
    """Esser et al., section 2.2: divided by the square root of their count times the highest code."""
    tap = FakeQuantize(QSpec(bits=8), QParams(torch.full((1, 1, 1, 1), 0.02), torch.zeros(1, 1, 1, 1)))
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    method = Lsq()
    method.start(tap, TRAINING, 1)
    (tap(x) * 1e-3).sum().backward()
    assert tap.scale.grad is not None
    before = tap.scale.grad.clone()
    with torch.no_grad():
        method.gradients(tap)
    torch.testing.assert_close(tap.scale.grad, before / math.sqrt(3 * 5 * 5 * 255))


def test_a_step_size_cannot_jump() -> None:
    tap = FakeQuantize(QSpec(bits=8), QParams(torch.full((1,), 0.02), torch.zeros(1)))
    method = Lsq()
    method.start(tap, TRAINING, 1)
    tap.scale.grad = torch.full((1,), -1e6)
    with torch.no_grad():
        method.gradients(tap)
        assert tap.scale.grad.item() == pytest.approx(-0.02)
        tap.scale.fill_(-1.0)
        method.after_step(tap, 0, 0.1)
    assert tap.scale.item() > 0


def loss(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(network(x), labels).item()


def test_training_mends_what_four_bits_cost(quantizer: Quantizer, tmp_path: Path) -> None:
    """With 4-bit weights the network loses a lot, and learns it back; its file computes what it learnt."""
    train, test = tiny_split(400), tiny_split(400, seed=9)
    simulated = quantizer.simulated(bits=FEW)
    with torch.no_grad():
        for layer in quantizer.layers.values():  # coarser still: nearly all weights are 0
            tap = simulated.tapped(layer.weight)
            assert isinstance(tap, FakeQuantize)
            tap.scale *= 12
    x = normalize(test.images, TASK.mean, TASK.std)
    before = loss(simulated, x, test.labels)
    trained = fit(simulated, TASK, train, TrainConfig(epochs=4, lr=0.02, batch=32, augment=()), methods=[Lsq()])
    assert loss(trained, x, test.labels) < 0.5 * before
    found = {name: tap.scale for name, tap in trained.taps.items() if isinstance(tap, FakeQuantize)}
    assert all((scale > 0).all() for scale in found.values())
    path = quantizer.write(tmp_path / "int8.onnx", simulated=trained)  # type: ignore[arg-type]
    with torch.no_grad():
        assert all(check.passed for check in compare_simulation(trained(x), outputs(path, x)))


def test_zeros_stay_zero_and_have_the_code_of_zero(quantizer: Quantizer) -> None:
    simulated, split = quantizer.simulated(), tiny_split(200)
    zeros = {}
    for layer in quantizer.layers.values():
        weight = simulated.weight(layer.weight)
        zeros[layer.weight] = weight.detach().abs() < weight.detach().abs().median()
        weight.data[zeros[layer.weight]] = 0
    before = {name: simulated.weight(name).detach().clone() for name in zeros}
    trained = fit(simulated, TASK, split, TrainConfig(epochs=2, lr=0.02, batch=32, augment=()), methods=[Lsq()])
    assert isinstance(trained, OnnxNetwork)
    for name, zero in zeros.items():
        weight, tap = trained.weight(name).detach(), trained.tapped(name)
        assert isinstance(tap, FakeQuantize)
        assert not tap.codes(weight)[zero].any()
        assert not torch.equal(weight, before[name])


def test_rectifiers_are_back_after_training(quantizer: Quantizer) -> None:
    simulated = quantizer.simulated()
    operators = [step.op_type for step in simulated.steps]
    method = Lsq()
    method.start(simulated, TRAINING, 1)
    assert [step.op_type for step in simulated.steps].count("Relu") < operators.count("Relu")
    assert [step.op_type for step in method.finish(simulated).steps] == operators  # type: ignore[attr-defined]


def test_the_method_leaves_networks_without_taps_alone() -> None:
    model = nn.Linear(3, 2)
    method = Lsq()
    method.start(model, TRAINING, 1)
    method.gradients(model)
    method.after_step(model, 0, 0.1)
    assert method.finish(model) is model
