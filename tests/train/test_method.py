"""What the loop promises to a method, and how several act together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewise.distill import Distill, Distillation
from edgewise.train import TrainConfig, TrainingMethod, fit
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(100)
CONFIG = TrainConfig(epochs=2, batch=32, lr=0.05)  # 3 steps an epoch


class Neutral(TrainingMethod):
    """Implements nothing."""


class Recorder(TrainingMethod):
    """Writes every call into a list that others share."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name, self.calls = name, calls

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        self.calls.append((self.name, "start", steps_per_epoch))

    def before_step(self, model: nn.Module, index: Tensor) -> None:
        assert not torch.is_grad_enabled()
        self.index = index
        self.calls.append((self.name, "before_step"))

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        assert model.training
        assert torch.is_grad_enabled()
        assert inputs.shape == (32, 3, 8, 8)
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        assert outputs.shape == (32, 4)
        assert torch.equal(targets, SPLIT.labels[self.index])
        self.calls.append((self.name, "loss"))
        return loss

    def gradients(self, model: nn.Module) -> None:
        assert not torch.is_grad_enabled()
        assert all(parameter.grad is not None for parameter in model.parameters())
        self.calls.append((self.name, "gradients"))

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        assert not torch.is_grad_enabled()
        assert 0 < lr <= CONFIG.lr
        self.calls.append((self.name, "after_step", step))

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        self.calls.append((self.name, "after_epoch", epoch))

    def finish(self, model: nn.Module) -> nn.Module:
        assert not torch.is_grad_enabled()
        self.calls.append((self.name, "finish"))
        return model


class Clip(TrainingMethod):
    """Clips every weight to [-limit, limit] after each step and counts how many it had to."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.clipped = torch.zeros((), dtype=torch.int64)

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        self.clipped = torch.zeros((), dtype=torch.int64)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        for parameter in model.parameters():
            self.clipped += (parameter.abs() > self.limit).sum()
            parameter.clamp_(-self.limit, self.limit)

    def finish(self, model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.clamp_(-self.limit, self.limit)
        return model

    def state(self) -> dict[str, Tensor]:
        return {"clipped": self.clipped}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.clipped = state["clipped"].clone()


def test_a_method_that_does_nothing_changes_nothing() -> None:
    assert same(fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Neutral()]), fit(tiny_net(), TASK, SPLIT, CONFIG))


def test_the_hooks_come_in_the_recipes_order_and_finish_in_reverse() -> None:
    calls: list[Any] = []
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Recorder("a", calls), Recorder("b", calls)])

    def both(*call: Any) -> list[Any]:
        return [("a", *call), ("b", *call)]

    steps = [[*both("before_step"), *both("loss"), *both("gradients"), *both("after_step", step)] for step in range(6)]
    first, second = [call for step in steps[:3] for call in step], [call for step in steps[3:] for call in step]
    assert calls == [
        *both("start", 3),
        *first,
        *both("after_epoch", 0),
        *second,
        *both("after_epoch", 1),
        ("b", "finish"),
        ("a", "finish"),
    ]


class Scale(TrainingMethod):
    """loss <- factor * loss + term."""

    def __init__(self, factor: float, term: float) -> None:
        self.factor, self.term = factor, term
        self.seen: list[float] = []

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        self.seen.append(loss.item())
        return self.factor * loss + self.term


def test_each_method_receives_the_loss_of_the_one_before() -> None:
    first, second = Scale(2.0, 1.0), Scale(1.0, 0.0)
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[first, second])
    assert second.seen == pytest.approx([2 * loss + 1 for loss in first.seen], rel=1e-6)


class Freeze(TrainingMethod):
    """Zeroes all gradients."""

    def gradients(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad.zero_()


def test_gradients_are_changed_before_the_step() -> None:
    config = TrainConfig(epochs=1, batch=32, weight_decay=0.0)
    trained = fit(tiny_net(), TASK, SPLIT, config, methods=[Freeze()])
    assert same(dict(trained.named_parameters()), dict(tiny_net().named_parameters()))


class Draw(TrainingMethod):
    """Draws many random numbers and remembers the inputs that it saw."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.drawn: list[float] = []

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        self.inputs.append(inputs)
        self.drawn.append(torch.rand(100).sum().item())
        return loss


class Watch(TrainingMethod):
    """Remembers the inputs that it saw."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        self.inputs.append(inputs)
        return loss


def test_a_methods_random_numbers_follow_the_seed_and_leave_the_images_alone() -> None:
    draw, again, watch = Draw(), Draw(), Watch()
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[draw], seed=3)
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[again], seed=3)
    fit(tiny_net(seed=9), TASK, SPLIT, CONFIG, methods=[watch], seed=3)
    assert draw.drawn == again.drawn
    assert len(set(draw.drawn)) == 6
    assert all(torch.equal(a, b) for a, b in zip(draw.inputs, watch.inputs, strict=True))


class Gain(nn.Module):
    """A trained factor on a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.gain * weight


class Parametrised(TrainingMethod):
    """Trains the last layer's weight times a factor, and folds the factor in at the end."""

    def __init__(self) -> None:
        self.gain = 1.0

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        parametrize.register_parametrization(model[-1], "weight", Gain())

    def finish(self, model: nn.Module) -> nn.Module:
        self.gain = model[-1].parametrizations.weight[0].gain.item()
        parametrize.remove_parametrizations(model[-1], "weight")
        return model


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_start_adds_is_trained_and_finish_takes_it_away(ema: float) -> None:
    method = Parametrised()
    net = tiny_net()
    trained = fit(net, TASK, SPLIT, TrainConfig(epochs=2, batch=32, ema=ema), methods=[method])
    assert method.gain != 1.0
    assert trained.state_dict().keys() == net.state_dict().keys()
    assert not parametrize.is_parametrized(net[-1])


def test_a_network_that_finish_makes_is_the_one_returned() -> None:
    class Replace(TrainingMethod):
        """Gives another network back."""

        def finish(self, model: nn.Module) -> nn.Module:
            return nn.Sequential(model, nn.Identity())

    trained = fit(tiny_net().eval(), TASK, SPLIT, CONFIG, methods=[Replace()])
    assert isinstance(trained[1], nn.Identity)
    assert not any(module.training for module in trained.modules())


def test_distillation_and_clipping_act_in_one_training() -> None:
    teacher, student = tiny_net(seed=5), tiny_net()
    alone = fit(student, TASK, SPLIT, CONFIG, methods=[Distillation([teacher], Distill())])
    distil, clip = Distillation([teacher], Distill()), Clip(0.05)
    both = fit(student, TASK, SPLIT, CONFIG, methods=[distil, clip])
    other_order = fit(student, TASK, SPLIT, CONFIG, methods=[Clip(0.05), Distillation([teacher], Distill())])
    assert clip.clipped > 0
    assert max(parameter.abs().max() for parameter in both.parameters()) <= 0.05
    assert max(parameter.abs().max() for parameter in alone.parameters()) > 0.05
    assert same(both, other_order)  # they meet in no hook, so their order cannot matter
    assert not same(both, alone)


def test_with_an_average_finish_still_has_the_last_word() -> None:
    config = TrainConfig(epochs=2, batch=32, ema=0.99)
    trained = fit(tiny_net(), TASK, SPLIT, config, methods=[Clip(0.05)])
    assert max(parameter.abs().max() for parameter in trained.parameters()) <= 0.05


def test_a_method_serves_one_training_after_another() -> None:
    clip = Clip(0.05)
    results = [fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[clip]) for _ in range(2)]
    assert same(*results)


def test_the_callers_network_is_never_what_a_method_gets() -> None:
    net = tiny_net()
    before = tensors(net)
    fit(net, TASK, SPLIT, CONFIG, methods=[Clip(0.01), Parametrised()])
    assert same(net, before)
