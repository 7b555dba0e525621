import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split
from edgewise.distill import (
    DataFree,
    DataFreeDistillation,
    Generator,
    balance_loss,
    discrepancy,
    ensemble_logits,
    generator_loss,
    leading_loss,
    memory,
    moment_loss,
)
from edgewise.distill.data_free import batchnorm_inputs
from edgewise.errors import DataError, ModelError, RunFolderError
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit
from edgewise.train.randomness import mixed_seed
from train.tiny import CLASSES, TASK, same, tensors, tiny_net, tiny_split

SHAPE = (3, 8, 8)
TRAIN = TrainConfig(
    epochs=2,
    batch=16,
    lr=0.05,
    nesterov=False,
    decay="all",
    schedule="step",
    warmup=0.0,
    milestones=(0.5,),
    augment=(),
)


def teachers(count: int) -> list[nn.Module]:
    """Networks whose BatchNorms have seen images."""
    nets = [tiny_net(seed=10 + place, dropout=0.0) for place in range(count)]
    for net in nets:
        for _ in range(20):
            net(torch.randn(16, *SHAPE) * 2 + 1)
    return nets


def config(count: int = 1, **settings: Any) -> DataFree:
    given = {"steps": 2, "student_steps": 3, "noise": 6, **settings}
    return DataFree(teachers=tuple(f"runs/{place}" for place in range(count)), **given)


def distillation(nets: list[nn.Module], **settings: Any) -> DataFreeDistillation:
    return DataFreeDistillation(nets, config(len(nets), **settings), SHAPE, CLASSES)


def distilled(method: DataFreeDistillation, train: TrainConfig = TRAIN, **settings: Any) -> nn.Module:
    methods = [method, *settings.pop("methods", [])]
    net = settings.pop("net", tiny_net(dropout=0.0))
    return fit(net, method.task, method.split(train.batch), train, methods=methods, **settings)


# --- the formulas, transcribed -------------------------------------------------------------------------------------


def moments_of(teacher: nn.Sequential, images: np.ndarray, first: float) -> float:
    """The published sum, layer by layer in NumPy."""
    x, loss, factor = torch.from_numpy(images).float(), 0.0, first
    for layer in teacher:
        if isinstance(layer, nn.BatchNorm2d):
            channels = x.detach().double().numpy().transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
            var = channels.var(1) - layer.running_var.numpy()
            mean = channels.mean(1) - layer.running_mean.numpy()
            loss += factor * (np.sqrt((var**2).sum()) + np.sqrt((mean**2).sum()))
            factor = 1.0
        x = layer(x)
    return loss


@pytest.mark.parametrize(("count", "weight"), [(1, 0.0), (1, 0.7), (3, 0.0), (3, 0.1)])
def test_the_losses_are_the_published_ones(count: int, weight: float) -> None:
    nets = [net.eval() for net in teachers(count)]
    student = tiny_net(dropout=0.0).eval()
    images = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
    x = torch.from_numpy(images)
    with torch.no_grad():
        answers = [net(x).double().numpy() for net in nets]
        found = student(x).double().numpy()
        mean = sum(answers) / count
        l1 = np.abs(found - mean).sum() / found.size
        moments = sum(moments_of(net, images, 5.0) for net in nets) / count

    assert np.allclose(ensemble_logits(nets, x).detach().numpy(), mean, atol=1e-5)
    assert discrepancy(student(x), ensemble_logits(nets, x)).item() == pytest.approx(l1, rel=1e-5)
    loss, targets = generator_loss(student, nets, x, weight=weight)
    assert loss.item() == pytest.approx(-l1 + weight * moments, rel=1e-5)
    assert np.allclose(targets.numpy(), mean, atol=1e-5)
    assert not targets.requires_grad


def test_moments_by_hand() -> None:
    # One channel of 1, 3, 5, 7: mean 4, biased variance (9 + 1 + 1 + 9) / 4 = 5. Then two: of 0, 2 and of 1, 1.
    one, two = nn.BatchNorm2d(1), nn.BatchNorm2d(2)
    one.running_mean, one.running_var = torch.tensor([1.0]), torch.tensor([3.0])
    two.running_mean, two.running_var = torch.tensor([1.0, 5.0]), torch.tensor([4.0, 4.0])
    first = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(2, 1, 2, 1)
    second = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).view(2, 2, 1, 1)
    # |5 - 3| + |4 - 1| = 5; sqrt((1 - 4)^2 + (0 - 4)^2) + sqrt(0 + (1 - 5)^2) = 5 + 4.
    assert moment_loss([first], [one]).item() == pytest.approx(25)
    assert moment_loss([first, second], [one, two]).item() == pytest.approx(34)
    assert moment_loss([first, second], [one, two], first=2.0).item() == pytest.approx(19)
    assert moment_loss([second, first], [two, one]).item() == pytest.approx(50)
    assert moment_loss([], []).item() == 0


def test_moments_that_agree_have_no_gradient_that_is_not_finite() -> None:
    layer = nn.BatchNorm2d(1)
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).requires_grad_()  # mean 0 and variance 1, as a new BatchNorm's
    loss = moment_loss([x], [layer])
    loss.backward()
    assert loss.item() == 0
    assert x.grad.isfinite().all()


def test_a_bfloat16_answer_is_compared_in_float32() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    assert discrepancy(a.bfloat16(), b) == discrepancy(a.bfloat16().float(), b)
    assert discrepancy(a.bfloat16(), b.bfloat16()).dtype == torch.float32


# --- the loop ------------------------------------------------------------------------------------------------------


def straight(nets: list[nn.Module], weight: float, seed: int = 0) -> tuple[nn.Module, Generator]:
    """The published loop, whole, with two plain optimisers; its noise is that of `fit`."""
    settings = config(len(nets))
    torch.manual_seed(mixed_seed(seed, 0))
    generator = Generator(settings.noise, 3, 8).to(memory_format=torch.channels_last)
    student = tiny_net(dropout=0.0).to(memory_format=torch.channels_last).train()
    nets = [copy.deepcopy(net).to(memory_format=torch.channels_last).eval() for net in nets]
    for net in nets:
        net.requires_grad_(False)
    of_student = torch.optim.SGD(student.parameters(), lr=TRAIN.lr, momentum=0.9, weight_decay=5e-4)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
    seen: list[tuple[nn.BatchNorm2d, Tensor]] = []
    for net in nets:
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(lambda layer, given, _: seen.append((layer, given[0])))

    for epoch in range(TRAIN.epochs):
        torch.manual_seed(mixed_seed(seed, 2, epoch))
        drop = 0.1**epoch  # the milestone at half of two epochs
        of_student.param_groups[0]["lr"] = TRAIN.lr * drop
        of_generator.param_groups[0]["lr"] = 1e-3 * drop
        for _ in range(settings.steps):
            for _ in range(settings.student_steps):
                fake = generator(torch.randn(TRAIN.batch, settings.noise)).detach()
                of_student.zero_grad()
                wanted = sum(net(fake) for net in nets) / len(nets)
                F.l1_loss(student(fake), wanted).backward()
                of_student.step()
            seen.clear()
            of_generator.zero_grad()
            fake = generator(torch.randn(TRAIN.batch, settings.noise))
            wanted = sum(net(fake) for net in nets) / len(nets)
            loss = -F.l1_loss(student(fake), wanted)
            for place, (layer, x) in enumerate(seen if weight else []):
                factor = 5 if place % 2 == 0 else 1  # a tiny network has two BatchNorms
                rows = x.transpose(0, 1).flatten(1)
                distance = torch.linalg.norm(rows.var(1, unbiased=False) - layer.running_var)
                distance = distance + torch.linalg.norm(rows.mean(1) - layer.running_mean)
                loss = loss + weight / len(nets) * factor * distance
            loss.backward()
            of_generator.step()
    return student, generator


@pytest.mark.parametrize(("count", "weight"), [(1, 0.0), (3, 0.1)], ids=["DFAD", "DFED"])
def test_it_is_the_published_loop(count: int, weight: float) -> None:
    nets = teachers(count)
    with torch.random.fork_rng(devices=[]):
        student, generator = straight(nets, weight)
    method = distillation(nets, weight=weight)
    mine = distilled(method)
    for (name, wanted), found in zip(student.state_dict().items(), mine.state_dict().values(), strict=True):
        assert_near(found, wanted, name)
    assert method._generator is not None
    for (name, wanted), found in zip(
        generator.state_dict().items(), method._generator.state_dict().values(), strict=True
    ):
        # A bias before a BatchNorm has no gradient but rounding, of which Adam makes whole steps.
        if not name.endswith(("linear.bias", "blocks.0.1.bias", "running_mean")):
            assert_near(found, wanted, name)


def assert_near(found: Tensor, wanted: Tensor, name: str) -> None:
    """Within 0.5 %: an activation at a kink may fall to either side by rounding; 1 % off in a setting makes 3 %."""
    assert (found - wanted).float().norm() <= 5e-3 * wanted.float().norm(), name


def test_the_students_batchnorm_sees_the_generators_step_too() -> None:
    mine = distilled(distillation(teachers(1), student_steps=3, steps=2))
    assert int(mine[1].num_batches_tracked) == 2 * 2 * (3 + 1)


def test_the_generator_follows_the_students_schedule() -> None:
    method = distillation(teachers(1), generator_lr=0.01)
    rates = []

    class Watch(TrainingMethod):
        def after_step(self, model: nn.Module, step: int, lr: float) -> None:
            rates.append((step, method._optimizer.param_groups[0]["lr"]))

    distilled(method, methods=[Watch()])
    assert [rate for step, rate in rates if step % 3 == 2] == pytest.approx([0.01, 0.01, 0.001, 0.001])


# --- the contract of a training ------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def test_a_student_may_begin_as_its_first_teacher() -> None:
    nets = teachers(2)
    student = tiny_net(seed=9, dropout=0.0)
    distillation(nets, inherit=True).start(student, TRAIN, 6)
    assert same(student, nets[0])


@pytest.mark.parametrize("settings", [{}, {"memory": 2, "inherit": True, "lead": 3}], ids=str)
def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path, settings: dict[str, Any]) -> None:
    train, nets, file = replace(TRAIN, epochs=3, ema=0.9), teachers(2), tmp_path / "checkpoint"
    whole = distillation(nets, **settings)
    expected = distilled(whole, train)

    def kill(what: str, done: int, total: int) -> None:
        if what == "epochs" and done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        distilled(distillation(nets, **settings), train, checkpoint=file, progress=kill)
    resumed = distillation(nets, **settings)
    assert same(distilled(resumed, train, checkpoint=file), expected)
    assert whole._generator is not None
    assert resumed._generator is not None
    assert same(resumed._generator, whole._generator)
    assert torch.equal(resumed.sample(5), whole.sample(5))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    distilled(distillation(teachers(1)), checkpoint=file)
    with pytest.raises(RunFolderError, match=r"methods was .*weight=0\.1.* and is .*weight=0\.2"):
        distilled(distillation(teachers(1), weight=0.2), checkpoint=file)


def test_it_follows_from_the_seed_and_leaves_everything_else_alone() -> None:
    nets, net = teachers(2), tiny_net()
    before, modes = [tensors(n) for n in [*nets, net]], [m.training for n in nets for m in n.modules()]
    state = torch.get_rng_state()
    first = distilled(distillation(nets), net=net, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(7)
    method = distillation(nets)
    assert same(first, distilled(method, net=net, seed=3))
    assert same(first, distilled(method, net=net, seed=3))  # `start` begins afresh
    assert not same(first, distilled(method, net=net, seed=4))
    assert all(same(n, old) for n, old in zip([*nets, net], before, strict=True))
    assert [m.training for n in nets for m in n.modules()] == modes
    assert all(p.requires_grad and p.grad is None for n in [*nets, net] for p in n.parameters())
    assert not any(m._forward_pre_hooks for n in nets for m in n.modules())
    assert method._teachers is method._given


def test_bfloat16_answers_are_near_those_of_float32() -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        train = replace(TRAIN, precision=precision)
        net = distilled(distillation(teachers(2), weight=0.5), train, log=losses.setdefault(precision, []).append)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.15)
    assert losses["bfloat16"] != losses["float32"]


def test_images_can_be_looked_at() -> None:
    method = distillation(teachers(1), noise=16)
    with pytest.raises(ValueError, match="there is no generator yet"):
        method.sample(3)
    distilled(method)
    state = torch.get_rng_state()
    images = method.sample(300, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (300, *SHAPE)
    assert images.dtype == torch.float32
    assert torch.allclose(images[:5], method.sample(5, seed=1), atol=1e-5)  # none depends on the others
    assert not torch.allclose(images[:5], method.sample(5, seed=2))
    assert len(images.flatten(1).unique(dim=0)) == 300
    assert method._generator is not None
    assert method._generator.training


def test_a_student_learns_what_its_teacher_knows_without_an_image() -> None:
    given = TrainConfig(epochs=6, batch=32, lr=0.05, augment=())
    teacher = fit(tiny_net(seed=5), TASK, tiny_split(400), given)
    method = distillation([teacher], steps=8, student_steps=5, noise=16)
    student = distilled(method, replace(TRAIN, epochs=6, batch=32))
    assert evaluate(student, TASK, tiny_split(200, seed=9)) > 0.9


# --- a generator that leads ----------------------------------------------------------------------------------------


def test_the_balance_is_the_negative_entropy_of_the_mean() -> None:
    logits = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    share = [sum(np.exp(row[k]) / np.exp(row).sum() for row in logits.double().numpy()) / 6 for k in range(4)]
    assert balance_loss(logits).item() == pytest.approx(sum(p * np.log(p) for p in share), rel=1e-5)
    assert balance_loss(torch.zeros(3, 4)).item() == pytest.approx(-np.log(4))  # the least there is
    one_class = torch.tensor([[500.0, 0.0], [500.0, 0.0]], requires_grad=True)  # the other's share underflows
    loss = balance_loss(one_class)
    loss.backward()
    assert loss.item() == 0
    assert one_class.grad.isfinite().all()


def test_the_leading_loss_is_as_published_with_moments() -> None:
    nets, x = [net.eval() for net in teachers(2)], torch.randn(5, *SHAPE)
    logits = ((nets[0](x) + nets[1](x)) / 2).double().detach().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sure, mean = -np.log(shares.max(1)).mean(), shares.mean(0)
    moments = []
    for net in nets:
        with batchnorm_inputs(net) as (seen, layers):
            net(x)
        moments.append(moment_loss(seen, layers).item())
    expected = sure + 5 * (mean * np.log(mean)).sum() + 0.1 * np.mean(moments)
    assert leading_loss(nets, x, weight=0.1).item() == pytest.approx(expected, rel=1e-4)


def test_a_generator_that_leads_makes_its_steps_before_the_students_first() -> None:
    told = []
    method = distillation(teachers(2), lead=30, generator_lr=0.01)
    method._progress = lambda what, done, total: told.append((what, done, total))
    first: list[float] = []

    class Watch(TrainingMethod):
        def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
            if not first:
                first.append(balance_loss(targets).item() + (-targets.log_softmax(1).max(1).values).mean().item())
            return loss

    fit(tiny_net(seed=9), method.task, method.split(TRAIN.batch), TRAIN, methods=[method, Watch()])
    unled, led = distillation(teachers(2)), first.pop()
    fit(tiny_net(seed=9), unled.task, unled.split(TRAIN.batch), TRAIN, methods=[unled, Watch()])
    assert told == [("lead", step, 30) for step in range(1, 31)]
    assert led < first[0] - 0.1


# --- a memory of images --------------------------------------------------------------------------------------------


def test_the_memory_holds_the_newest_batches_with_the_teachers_answers() -> None:
    nets = teachers(2)
    method = distillation(nets, memory=3, student_steps=4, fresh=2)
    made: list[Tensor] = []

    class Watch(TrainingMethod):
        def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
            answers = ensemble_logits([net.eval() for net in nets], inputs)
            assert torch.allclose(targets, answers, atol=1e-4)
            made.append(inputs.clone())
            return loss

    distilled(method, methods=[Watch()])
    # Each iteration puts in two fresh batches and the generator's own.
    assert int(method._stored) == 2 * 2 * 3
    known = {image.numpy().tobytes() for image in method._images.contiguous()}
    fresh = [image.contiguous().numpy().tobytes() for batch in made[-4:-2] for image in batch]
    assert known.issuperset(fresh)
    old = {image.contiguous().numpy().tobytes() for batch in made[-2:] for image in batch}
    assert old - set(fresh)  # drawn from older ones, too


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teachers": ()}, "teachers is empty; it must name at least one run folder"),
        ({"weight": -0.1}, "weight is -0.1; it must be at least 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"first": -1.0}, "first is -1.0"),
        ({"student_steps": 0}, "student_steps is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"noise": 0}, "noise is 0"),
        ({"generator_lr": 0.0}, "generator_lr is 0.0; it must be above 0"),
        ({"memory": -1}, "memory is -1"),
        ({"fresh": 6}, "fresh is 6; it must be from 1 to student_steps"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataFree(**{"teachers": ("runs/a",), **given})


def test_teachers_that_do_not_fit_are_refused_by_name() -> None:
    good = tiny_net()
    without = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    frozen = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), without)
    for bad, message in (
        (tiny_net(classes=7), r"teacher runs/1: the network returned a tensor \[2, 7\]"),
        (tiny_net(channels=1), r"teacher runs/1: the network's forward raised on inputs \[2, 3, 8, 8\]"),
        (without, "teacher runs/1 has no BatchNorm whose moments the images could match; set weight = 0"),
        (frozen, "teacher runs/1 has no BatchNorm"),
    ):
        with pytest.raises(ModelError, match=message) as raised:
            distillation([good, bad])
        assert "\n" not in str(raised.value)
    distilled(distillation([good, without], weight=0.0))  # needs none
    with pytest.raises(ValueError, match="1 teachers are given, and teachers names 2"):
        DataFreeDistillation([good], config(2), SHAPE, CLASSES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 8, 16), "no images of 8 x 16 pixels can be generated: they must be square"), ((3, 9, 9), "9 x 9 pixels")],
    ids=str,
)
def test_images_that_cannot_be_made_are_refused(shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        DataFreeDistillation([tiny_net()], config(), shape, CLASSES)


def test_a_student_of_other_classes_or_inputs_is_refused() -> None:
    for net, message in (
        (tiny_net(classes=7), r"the network returned a tensor \[2, 7\]"),
        (tiny_net(channels=1), r"forward raised on inputs \[2, 3, 8, 8\]"),
    ):
        with pytest.raises(ModelError, match=message):
            distilled(distillation(teachers(1)), net=net)


def test_it_reads_no_data() -> None:
    method = distillation(teachers(1))
    for split in (tiny_split(96), Split(torch.empty(96, 0), torch.zeros(96)), Split(torch.empty(0, 0), torch.empty(0))):
        with pytest.raises(DataError, match="data-free distillation reads no data, and was given images"):
            fit(tiny_net(), method.task, split, TRAIN, methods=[method])
    nothing = torch.empty(160, 0)
    with pytest.raises(ValueError, match=r"an epoch has 10 steps and needs 6; train on split\(16\)"):
        fit(tiny_net(), method.task, Split(nothing, nothing), TRAIN, methods=[method])


def test_a_memory_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_SHARE", 1e-12)
    with pytest.raises(DataError, match=r"memory needs .*, more than half of the .* that are free; 5 batches of 16"):
        distilled(distillation(teachers(1), memory=5))


def test_training_choices_that_mean_nothing_are_refused() -> None:
    for changed, message in (
        ({"augment": ("flip",)}, "generated images are not augmented"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1; without data there are no labels"),
    ):
        with pytest.raises(ValueError, match=message):
            distilled(distillation(teachers(1)), replace(TRAIN, **changed))
