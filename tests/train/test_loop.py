"""The loop against the same training written out, its promises, and everything that can be wrong with its input."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split, crop, flip, load, normalize
from edgewise.errors import DataError, ModelError, TrainingDiverged, UnknownName
from edgewise.models import build
from edgewise.tasks import Classification
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit, learning_rate
from edgewise.train.loop import IMAGES, LOOK_EVERY, NETWORK
from edgewise.train.randomness import mixed_seed
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(100)
CONFIG = TrainConfig(epochs=2, batch=32, lr=0.05)  # 3 steps an epoch

CONFIGS = {
    "one_cycle": CONFIG,
    "cosine": replace(CONFIG, schedule="cosine"),
    "step": replace(CONFIG, schedule="step"),
    "adamw": replace(CONFIG, optimizer="adamw", lr=0.01),
    "average": replace(CONFIG, ema=0.9),
    "smoothing": replace(CONFIG, label_smoothing=0.1),
    "bfloat16": replace(CONFIG, precision="bfloat16"),
    "every augmentation": replace(CONFIG, augment=("crop", "flip", "cutout", "mixup")),
    "plain": replace(CONFIG, augment=()),
}


def bare_training(model: nn.Module, split: Split, config: TrainConfig, seed: int) -> nn.Module:
    """The same as `fit` for SGD, crop and flip, written out for one reader and one case."""
    net = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    steps = len(split) // config.batch
    weights, others = [p for p in net.parameters() if p.dim() > 1], [p for p in net.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": config.weight_decay}, {"params": others}],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=True,
    )
    with torch.random.fork_rng(devices=[]):
        for epoch in range(config.epochs):
            torch.manual_seed(mixed_seed(seed, NETWORK, epoch))
            generator = torch.Generator().manual_seed(mixed_seed(seed, IMAGES, epoch))
            order = torch.randperm(len(split), generator=generator)
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, epoch * steps + step, config.epochs * steps)
                index = order[step * config.batch : (step + 1) * config.batch]
                images = flip(crop(split.images[index], 1, generator), generator)
                inputs = normalize(images, TASK.mean, TASK.std).to(memory_format=torch.channels_last)
                loss = F.cross_entropy(net(inputs), split.labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net


def test_it_is_the_training_written_out_to_the_bit() -> None:
    assert same(fit(tiny_net(), TASK, SPLIT, CONFIG, seed=4), bare_training(tiny_net(), SPLIT, CONFIG, seed=4))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_one_seed_gives_one_network_and_another_seed_another(config: TrainConfig) -> None:
    first, second, other = (fit(tiny_net(), TASK, SPLIT, config, seed=seed) for seed in (0, 0, 1))
    assert same(first, second)
    assert not same(first, other)
    assert all(tensor.isfinite().all() for tensor in first.state_dict().values())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "one_cycle"])
def test_every_choice_makes_a_difference(name: str) -> None:
    assert not same(fit(tiny_net(), TASK, SPLIT, CONFIG), fit(tiny_net(), TASK, SPLIT, CONFIGS[name]))


def test_everything_of_the_callers_is_left_as_it_was() -> None:
    net = tiny_net()
    net[3].eval()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    modes = [module.training for module in net.modules()]
    before, images = tensors(net), SPLIT.images.clone()
    random_state = torch.get_rng_state()
    trained = fit(net, TASK, SPLIT, CONFIG)
    assert same(net, before)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(SPLIT.images, images)
    assert [module.training for module in trained.modules()] == modes
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert all(tensor.is_contiguous() for tensor in trained.state_dict().values())


def test_the_weights_of_convolutions_are_channels_last_meanwhile() -> None:
    class Layout(TrainingMethod):
        """Looks at the layout of what it is given."""

        def after_epoch(self, model: nn.Module, epoch: int) -> None:
            weight = build_net[0].weight
            assert weight.stride() == weight.contiguous().stride()
            assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
            assert not model[0].weight.is_contiguous()

    build_net = tiny_net()
    fit(build_net, TASK, SPLIT, CONFIG, methods=[Layout()])


def test_a_frozen_parameter_stays_and_stays_frozen() -> None:
    net = tiny_net()
    net[0].weight.requires_grad_(False)
    trained = fit(net, TASK, SPLIT, CONFIG)
    assert torch.equal(trained[0].weight, net[0].weight)
    assert not trained[0].weight.requires_grad
    assert not torch.equal(trained[8].weight, net[8].weight)


def test_each_epoch_sees_its_own_full_batches() -> None:
    class Seen(TrainingMethod):
        """Keeps the first pixel's labels of every batch."""

        def __init__(self) -> None:
            self.targets: list[Tensor] = []

        def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
            self.targets.append(targets)
            return loss

    seen = Seen()
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[seen])
    assert [len(targets) for targets in seen.targets] == [32] * 6
    assert not torch.equal(torch.cat(seen.targets[:3]), torch.cat(seen.targets[3:]))


def test_no_image_is_seen_twice_in_an_epoch() -> None:
    class Numbered(Classification):
        """Records the indices that it is asked for."""

        def batch(self, split, index, *, augment, generator=None):  # type: ignore[no-untyped-def]
            asked.append(index)
            return super().batch(split, index, augment=augment, generator=generator)

    asked: list[Tensor] = []
    fit(tiny_net(), Numbered(TASK.mean, TASK.std, TASK.classes), SPLIT, CONFIG)
    first, second = torch.cat(asked[:3]), torch.cat(asked[3:])
    assert len(first.unique()) == len(second.unique()) == 96
    assert set(first.tolist()) != set(second.tolist())  # other images are left out


@pytest.mark.parametrize("images", [2, 31])
def test_a_split_smaller_than_a_batch_is_one_batch(images: int) -> None:
    steps: list[tuple[str, int, int]] = []
    fit(tiny_net(), TASK, tiny_split(images), CONFIG, progress=lambda *step: steps.append(step))
    assert steps == [("train", 1, 2), ("train", 2, 2)]


def test_progress_and_log_tell_steps_and_mean_losses() -> None:
    class Losses(TrainingMethod):
        """Keeps every loss."""

        def __init__(self) -> None:
            self.losses: list[float] = []

        def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
            self.losses.append(loss.item())
            return loss

    steps: list[tuple[str, int, int]] = []
    logged: list[float] = []
    seen = Losses()
    fit(
        *(tiny_net(), TASK, SPLIT, CONFIG),
        methods=[seen],
        progress=lambda *step: steps.append(step),
        log=logged.append,
    )
    assert steps == [("train", done, 6) for done in range(1, 7)]
    assert logged == pytest.approx([sum(seen.losses[:3]) / 3, sum(seen.losses[3:]) / 3])


class BreakAt(TrainingMethod):
    """Makes the loss or, afterwards, a weight NaN at one step."""

    def __init__(self, step: int, what: str) -> None:
        self.at, self.what, self.step = step, what, 0

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        factor = float(self.what) if self.step == self.at and self.what != "weight" else 1.0
        self.step += 1
        return loss * factor

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        if self.what == "weight" and step == self.at:
            model[0].weight[0] = float("nan")


@pytest.mark.parametrize("what", ["nan", "inf"])
@pytest.mark.parametrize(("step", "place"), [(0, "step 1 of epoch 1"), (4, "step 2 of epoch 2")])
def test_a_loss_that_diverges_stops_the_training_by_step_and_epoch(step: int, place: str, what: str) -> None:
    with pytest.raises(TrainingDiverged, match=rf"the loss became {what} at {place} \(of 2\)"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[BreakAt(step, what)])


def test_a_long_epoch_is_stopped_soon_after_it_diverged() -> None:
    steps: list[int] = []
    config = TrainConfig(epochs=1, batch=2)
    with pytest.raises(TrainingDiverged, match="step 12 of epoch 1"):
        fit(
            *(tiny_net(), TASK, tiny_split(4 * LOOK_EVERY), config),
            methods=[BreakAt(11, "nan")],
            progress=lambda what, done, total: steps.append(done),
        )
    assert len(steps) < LOOK_EVERY


def test_a_weight_that_the_last_step_breaks_is_not_handed_on() -> None:
    with pytest.raises(TrainingDiverged, match=r"0\.weight holds NaN or infinity after the last step of epoch 2"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[BreakAt(5, "weight")])


def test_a_rate_far_too_high_diverges_by_itself() -> None:
    with pytest.raises(TrainingDiverged, match="a lower lr than 1e"):
        fit(tiny_net(), TASK, SPLIT, TrainConfig(epochs=4, batch=32, lr=1e30, warmup=0.0))


class Raises(nn.Linear):
    """Fails as users' networks do."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore lines")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), Raises(192, 4)), "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (tiny_net(classes=7), r"the network's output is \[32, 7\]; it must be \[32, 4\]"),
        (nn.Conv2d(3, 4, 8), r"the network's output is \[32, 4, 1, 1\]; it must be \[32, 4\]"),
        (tiny_net(channels=1), r"inputs \[32, 3, 8, 8\]: RuntimeError: .*to have 1 channels"),
        (tiny_net().requires_grad_(False), "no parameter that requires a gradient"),
    ],
    ids=["raises", "classes", "map", "channels", "frozen"],
)
def test_a_network_that_cannot_learn_the_task_is_refused_in_one_line(net: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        fit(net, TASK, SPLIT, CONFIG)
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        fit(tiny_net(), TASK, tiny_split(0), CONFIG)
    with pytest.raises(DataError, match="label 9 of image 3"):
        fit(tiny_net(), TASK, Split(SPLIT.images, SPLIT.labels.index_fill(0, torch.tensor([3]), 9)), CONFIG)
    with pytest.raises(ValueError, match="seed is -1"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, seed=-1)
    with pytest.raises(UnknownName, match='device "cuda:99" is not here'):
        fit(tiny_net(), TASK, SPLIT, CONFIG, device="cuda:99")


def test_random_state_comes_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(TrainingDiverged):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[BreakAt(0, "nan")])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["one_cycle", "adamw", "average", "bfloat16"])
def test_the_tiny_task_is_learned(name: str) -> None:
    config = replace(CONFIGS[name], epochs=6, augment=("crop",))
    trained = fit(tiny_net(), TASK, tiny_split(400), config)
    assert evaluate(trained, TASK, tiny_split(200, seed=9)) > 0.95


def test_real_images_are_learned() -> None:
    data = load("fashion-mnist")
    train = Split(data.train.images[:600], data.train.labels[:600])
    test = Split(data.test.images[:300], data.test.labels[:300])
    task = Classification(data.mean, data.std, len(data.classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build("resnet20", channels=1, size=28, width=0.5)
    config = TrainConfig(epochs=4, batch=32, lr=0.1, augment=("flip",))
    losses: list[float] = []
    trained = fit(net, task, train, config, log=losses.append)
    assert losses == sorted(losses, reverse=True)
    assert evaluate(trained, task, test) > 0.6
