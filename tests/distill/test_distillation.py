"""Distillation in trainings: taps, adapters, several teachers, the cache, and what can be wrong with them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.distill import (
    Distill,
    Distillation,
    attention_loss,
    dkd_loss,
    hint_loss,
    kd_loss,
    mean_logits,
    memory,
    relational_loss,
    similarity_loss,
)
from edgewise.errors import DataError, ModelError
from edgewise.models import build
from edgewise.prune import Dhspg, DhspgPruning, Hesso, HessoPruning
from edgewise.tasks import Steganalysis
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit
from train.tiny import TASK, same, tensors, tiny_net, tiny_split

SPLIT = tiny_split(100)
PLAIN = TrainConfig(epochs=2, batch=32, lr=0.05, augment=())
CONFIG = TrainConfig(epochs=2, batch=32, lr=0.05)


def wide_net(seed: int = 5, channels: int = 12, stride: int = 1) -> nn.Sequential:
    """`tiny_net` with more channels, and half the height and width where the stride is 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, stride=stride, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * channels, 4),
        )


def distillation(*teachers: nn.Module, split: Split = SPLIT, **given: Any) -> Distillation:
    return Distillation(teachers or (wide_net(),), Distill(**given), TASK, split)


def batch(images: int = 8) -> tuple[Tensor, Tensor]:
    return TASK.batch(SPLIT, torch.arange(images), augment=False)


def started(method: Distillation, student: nn.Module, config: TrainConfig = PLAIN) -> nn.Module:
    """Let a method prepare a student, in eval mode so that features can be computed again."""
    method.start(student, config, 1)
    return student.eval()


def step_loss(method: Distillation, student: nn.Module, before: float = 8.0, images: int = 8) -> Tensor:
    inputs, targets = batch(images)
    method.before_step(student, torch.arange(images))
    return method.loss(student, inputs, student(inputs), targets, torch.tensor(before))


# -- what the loss is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention", "similarity", "relational"])
def test_the_losses_of_all_taps_are_added_with_their_weight(name: str) -> None:
    student, teacher, (inputs, _) = tiny_net().eval(), wide_net().eval(), batch()
    function = {"attention": attention_loss, "similarity": similarity_loss, "relational": relational_loss}[name]
    method = distillation(teacher, alpha=0.25, taps=("2", "5"), **{name: 3.0})
    found = step_loss(method, started(method, copy.deepcopy(student)))
    expected = 0.75 * 8.0 + 0.25 * kd_loss(student(inputs), teacher(inputs), 4.0)
    for last in (2, 5):
        expected = expected + 3.0 * function(student[: last + 1](inputs), teacher[: last + 1](inputs))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_hint_goes_through_the_students_adapter() -> None:
    student, teacher, (inputs, _) = tiny_net().eval(), wide_net().eval(), batch()
    method = distillation(teacher, alpha=0.0, hint=0.5, taps=("5",), teacher_taps=("2",))
    net = started(method, copy.deepcopy(student))
    added = dict(net.named_parameters()).keys() - dict(student.named_parameters()).keys()
    assert added == {"hint_0_weight", "hint_0_bias"}
    weight, bias = net.hint_0_weight, net.hint_0_bias
    assert (weight.shape, bias.shape) == ((12, 8, 1, 1), (12,))
    assert not bias.any()
    assert 0.3 < weight.abs().max() * 8**0.5 <= 1
    with torch.no_grad():
        bias.normal_()
    mapped = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], student[:6](inputs)) + bias[:, None, None]
    expected = 8.0 + 0.5 * hint_loss(mapped, teacher[:3](inputs))
    loss = step_loss(method, net)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert weight.grad.any()
    assert bias.grad.any()
    assert net[0].weight.grad.any()
    assert net[8].weight.grad is None or not net[8].weight.grad.any()  # behind the tap


def test_features_without_space_have_linear_adapters() -> None:
    student, teacher, (inputs, _) = tiny_net().eval(), wide_net().eval(), batch()
    method = distillation(teacher, alpha=0.0, hint=1.0, taps=("7",))  # [8, 512] and [8, 48]
    net = started(method, copy.deepcopy(student))
    assert net.hint_0_weight.shape == (48, 512)
    expected = 8.0 + hint_loss(student[:8](inputs) @ net.hint_0_weight.T, teacher[:8](inputs))
    assert step_loss(method, net).item() == pytest.approx(expected.item(), rel=1e-5)


def test_maps_of_another_size_meet_at_the_smaller() -> None:
    student, teacher, (inputs, _) = tiny_net().eval(), wide_net(stride=2).eval(), batch()
    method = distillation(teacher, alpha=0.0, attention=1.0, taps=("5",))
    ours, theirs = student[:6](inputs), teacher[:6](inputs)
    small = ours.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    expected = 8.0 + attention_loss(small, theirs)
    assert step_loss(method, started(method, tiny_net())).item() == pytest.approx(expected.item(), rel=1e-5)


def test_of_several_teachers_the_mean_counts() -> None:
    student, (inputs, _) = tiny_net().eval(), batch()
    teachers = [wide_net(5).eval(), wide_net(6, channels=4).eval(), tiny_net(7).eval()]
    method = distillation(*teachers, alpha=0.5, temperature=2.0, attention=3.0, taps=("2",))
    found = step_loss(method, started(method, tiny_net()))
    answers = mean_logits([teacher(inputs) for teacher in teachers], 2.0)
    on_maps = sum(attention_loss(student[:3](inputs), teacher[:3](inputs)) for teacher in teachers) / 3
    expected = 0.5 * 8.0 + 0.5 * kd_loss(student(inputs), answers, 2.0) + 3.0 * on_maps
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_teacher_has_adapters_of_its_own() -> None:
    method = distillation(wide_net(5), wide_net(6, channels=4), alpha=0.0, hint=1.0, taps=("2", "5"))
    net = started(method, tiny_net())
    shapes = [tuple(net.get_parameter(f"hint_{place}_weight").shape[:2]) for place in range(4)]
    assert shapes == [(12, 8), (12, 8), (4, 8), (4, 8)]
    other = distillation(wide_net(5), alpha=0.0, hint=1.0, taps=("2",))  # a second one in the same training
    other.start(net, PLAIN, 1)
    assert net.hint_4_weight.shape == (12, 8, 1, 1)
    method.finish(net)
    other.finish(net)
    assert net.state_dict().keys() == tiny_net().state_dict().keys()


def test_decoupled_logits() -> None:
    student, teacher, (inputs, labels) = tiny_net().eval(), wide_net().eval(), batch()
    method = distillation(teacher, loss="dkd", beta=3.0, temperature=2.0, alpha=0.25)
    expected = 0.75 * 8.0 + 0.25 * dkd_loss(student(inputs), teacher(inputs), labels, 2.0, 1.0, 3.0)
    assert step_loss(method, started(method, tiny_net())).item() == pytest.approx(expected.item(), rel=1e-5)


# -- in trainings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"hint": 1.0},
        {"attention": 10.0},
        {"similarity": 100.0},
        {"relational": 5.0},
        {"hint": 0.1, "attention": 1.0, "similarity": 10.0, "relational": 1.0},
    ],
    ids=lambda given: " ".join(given),
)
def test_a_student_comes_to_see_what_its_teacher_sees(given: dict[str, float]) -> None:
    data = tiny_split(400)
    config = TrainConfig(epochs=6, batch=32, lr=0.05, augment=())
    teacher = fit(wide_net(), TASK, data, config)
    method = distillation(teacher, split=data, alpha=0.0, taps=("5",), **given)
    student, alone = fit(tiny_net(), TASK, data, config, methods=[method]), fit(tiny_net(), TASK, data, config)
    assert student.state_dict().keys() == tiny_net().state_dict().keys()
    assert not any(each._forward_hooks for each in student.modules())
    assert evaluate(student, TASK, tiny_split(200, seed=9)) > 0.9
    inputs = TASK.batch(tiny_split(200, seed=9), torch.arange(200), augment=False)[0]
    with torch.no_grad():
        theirs, ours, without = (net.eval()[:6](inputs) for net in (teacher, student, alone))
    for name in given:
        if name == "hint":  # the adapter is gone: the best one that there is
            left = [_unexplained(maps, theirs) for maps in (ours, without)]
        else:
            function = {"attention": attention_loss, "similarity": similarity_loss, "relational": relational_loss}[name]
            left = [function(maps, theirs).item() for maps in (ours, without)]
        assert left[0] < 0.8 * left[1]


def _unexplained(ours: Tensor, theirs: Tensor) -> float:
    """The mean squared error of the best 1x1 convolution with bias."""
    x, y = (maps.permute(0, 2, 3, 1).flatten(0, 2).double() for maps in (ours, theirs))
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    return (x @ torch.linalg.lstsq(x, y).solution - y).square().mean().item()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_loss_at_once_gives_the_same_bytes_and_leaves_the_teacher(precision: str) -> None:
    teacher, config = wide_net(), replace(CONFIG, precision=precision, ema=0.9)
    before = tensors(teacher)

    def trained() -> nn.Module:
        given = {"hint": 1.0, "attention": 1.0, "similarity": 1.0, "relational": 1.0, "taps": ("2", "5")}
        return fit(tiny_net(), TASK, SPLIT, config, methods=[distillation(teacher, tiny_net(7), **given)])

    assert same(trained(), trained())
    assert same(teacher, before)
    assert not any(each._forward_hooks for each in teacher.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["hesso", "dhspg"])
@pytest.mark.parametrize("order", [1, -1])
def test_channels_are_pruned_beside_adapters(kind: str, order: int) -> None:
    example = torch.zeros(1, 3, 8, 8)
    pruning: TrainingMethod = HessoPruning(example, Hesso(sparsity=0.5, start=0.1, duration=0.5, periods=2))
    if kind == "dhspg":
        pruning = DhspgPruning(example, Dhspg(sparsity=0.5, start=0.1, penalty=5.0))
    methods = [distillation(hint=1.0, taps=("5",)), pruning]
    config = replace(CONFIG, epochs=4)
    made = fit(tiny_net(), TASK, SPLIT, config, methods=methods[::order])
    assert made.state_dict().keys() == tiny_net().state_dict().keys()
    if kind == "hesso":
        assert int((made[0].weight.flatten(1) == 0).all(1).sum()) == 4


def test_blocks_of_a_network_that_is_no_sequence_are_tapped() -> None:
    torch.manual_seed(0)
    teacher, student = (build("resnet20", classes=4, channels=3, size=8, width=width) for width in (0.5, 0.25))
    method = distillation(teacher, hint=1.0, attention=1.0, taps=("layer2", "layer3.2"))
    made = fit(student, TASK, SPLIT, replace(CONFIG, epochs=1), methods=[method])
    assert made.state_dict().keys() == student.state_dict().keys()


# -- the cache -------------------------------------------------------------------------------------------------------

TAPPED: dict[str, Any] = {"hint": 1.0, "attention": 1.0, "similarity": 1.0, "relational": 1.0, "taps": ("2", "5")}


class Counting(nn.Module):
    """Counts the images that pass."""

    images = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        Counting.images += len(x)
        return self.net(x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", [{}, {"loss": "dkd"}, TAPPED], ids=["kd", "dkd", "features"])
def test_kept_answers_are_those_that_the_teacher_would_give(given: dict[str, Any], precision: str) -> None:
    config = replace(PLAIN, precision=precision)
    nets = [wide_net(), tiny_net(7)]
    losses: list[list[float]] = [[], []]
    for cache in (False, True):
        method = distillation(*nets, cache=cache, **given)
        fit(tiny_net(), TASK, SPLIT, config, methods=[method], log=losses[cache].append)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if precision == "float32" else 1e-2)


def test_of_pairs_the_answers_to_both_are_kept() -> None:
    torch.manual_seed(0)
    pairs, task = 255 * torch.rand(12, 2, 1, 8, 8), Steganalysis()
    split, plain = Split(pairs, torch.arange(12)), replace(PLAIN, epochs=2, batch=4)
    losses: list[list[float]] = [[], []]
    for cache in (False, True):
        teacher, student = (tiny_net(seed, channels=1, classes=2) for seed in (7, 0))
        method = Distillation([teacher], Distill(cache=cache), task, split)
        fit(student, task, split, plain, methods=[method], log=losses[cache].append)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_every_image_is_asked_about_once() -> None:
    counts = {}
    for cache in (False, True):
        Counting.images = 0
        fit(
            tiny_net(), TASK, SPLIT, replace(PLAIN, epochs=3), methods=[distillation(Counting(wide_net()), cache=cache)]
        )
        counts[cache] = Counting.images
    assert counts == {False: 2 + 3 * 96, True: 2 + 100}  # the first two images are compared before it begins


def test_a_cache_of_features_is_filled_anew_after_a_kill(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("train", 7):
            raise StoppedError

    def trained(**rest: Any) -> nn.Module:
        config = replace(PLAIN, epochs=4, ema=0.9)
        return fit(tiny_net(), TASK, SPLIT, config, methods=[distillation(cache=True, **TAPPED)], **rest)

    path = tmp_path / "checkpoint"
    with pytest.raises(StoppedError):
        trained(checkpoint=path, progress=stop)
    assert same(trained(checkpoint=path), trained())


@pytest.mark.parametrize(
    "split",
    [tiny_split(100, seed=3), tiny_split(50), Split(SPLIT.images.flip(0), SPLIT.labels)],
    ids=["other", "fewer", "order"],
)
def test_a_cache_of_other_images_is_noticed(split: Split) -> None:
    with pytest.raises(ValueError, match="the cache was filled with other images than the training sees"):
        fit(tiny_net(), TASK, SPLIT, PLAIN, methods=[distillation(split=split, cache=True)])


@pytest.mark.parametrize("augment", [("flip",), ("crop", "mixup")])
def test_a_cache_needs_images_as_they_are(augment: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"augment = \['.*'\] changes the image each time; set augment = \[\]"):
        fit(tiny_net(), TASK, SPLIT, replace(PLAIN, augment=augment), methods=[distillation(cache=True)])


def test_a_cache_that_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY_SHARE", 1e-12)
    with pytest.raises(DataError, match=r"cache needs 1\.60 kB, more than half of the .* that are free; set cache"):
        fit(tiny_net(), TASK, SPLIT, PLAIN, methods=[distillation(cache=True)])


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hint": -1.0, "taps": ("5",)}, "hint is -1.0; it must be at least 0"),
        ({"attention": float("nan"), "taps": ("5",)}, "attention is nan; it must be at least 0"),
        ({"similarity": 1.0}, "similarity compares features, and taps names none"),
        ({"taps": ("5",)}, r"taps is \['5'\], and nothing compares them; set one of hint, attention"),
        ({"hint": 1.0, "taps": ("5",), "teacher_taps": ("2", "5")}, "teacher_taps names 2 features, taps 1"),
        ({"hint": 1.0, "teacher_taps": ("2",)}, "hint compares features, and taps names none"),
        ({"teacher_taps": ("2",)}, "teacher_taps names 1 features, taps 0"),
        ({"beta": -1.0}, "beta is -1.0; it must be at least 0"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distill(**given)


def test_what_a_method_cannot_do_without() -> None:
    with pytest.raises(ValueError, match="teachers is empty; a distillation needs at least one"):
        Distillation([], Distill())
    for config in (Distill(hint=1.0, taps=("5",)), Distill(cache=True)):
        with pytest.raises(ValueError, match="taps and the cache need the task and the split"):
            Distillation([wide_net()], config)


class Twice(nn.Module):
    """Runs one module twice, another never, and a third that returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.relu, self.idle, self.pair = tiny_net(), nn.ReLU(), nn.ReLU(), Pair()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pair(self.relu(self.relu(self.net(x))))
        return first + second


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("student", "teacher", "given", "message"),
    [
        (tiny_net(), wide_net(), {"taps": ("55",)}, 'the student has no module "55" to tap; did you mean "5"?'),
        (tiny_net(), wide_net(), {"taps": ("",)}, 'the student has no module "" to tap'),
        (
            *(tiny_net(), wide_net(), {"taps": ("2",), "teacher_taps": ("relu",)}),
            'the teacher has no module "relu" to tap; known: 0, 1, 2, 3, 4, 5, 6, 7, 8',
        ),
        (Twice(), wide_net(), {"taps": ("relu",), "teacher_taps": ("2",)}, '"relu" of the student ran 2 times'),
        (Twice(), wide_net(), {"taps": ("idle",), "teacher_taps": ("2",)}, '"idle" of the student did not run'),
        (wide_net(), Twice(), {"taps": ("2",), "teacher_taps": ("pair",)}, '"pair" of the teacher returns .* tuple'),
        (
            *(tiny_net(), wide_net(), {"taps": ("5",), "teacher_taps": ("7",)}),
            r'hint cannot compare "5" of the student, \[2, 8, 8, 8\], with its partner in the teacher, \[2, 48\]',
        ),
        (
            *(tiny_net(), wide_net(), {"taps": ("7",), "attention": 1.0, "hint": 0.0}),
            r'attention cannot compare "7" of the student, \[2, 512\]',
        ),
        (
            tiny_net(),
            tiny_net(classes=7),
            {"taps": ("5",)},
            r"the teacher's output is \[2, 7\], the student's \[2, 4\]",
        ),
        (tiny_net(), tiny_net(channels=1), {"taps": ("5",)}, r"forward raised on inputs \[2, 3, 8, 8\]: RuntimeError"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_networks_that_do_not_go_together_are_refused_before_it_begins(
    student: nn.Module, teacher: nn.Module, given: dict[str, Any], message: str
) -> None:
    method = distillation(teacher, **{"hint": 1.0, **given})
    with pytest.raises(ModelError, match=message) as caught:
        method.start(copy.deepcopy(student), PLAIN, 1)
    assert "\n" not in str(caught.value)


def test_the_teacher_of_other_classes_is_named_among_several() -> None:
    with pytest.raises(ModelError, match=r"teacher 2's output is \[2, 7\], the student's \[2, 4\]"):
        distillation(wide_net(), tiny_net(classes=7)).start(tiny_net(), PLAIN, 1)


def test_decoupled_logits_need_one_right_class() -> None:
    with pytest.raises(ValueError, match='loss = "dkd" needs one right class per image, and mixup blends two'):
        fit(tiny_net(), TASK, SPLIT, replace(CONFIG, augment=("mixup",)), methods=[distillation(loss="dkd")])


def test_maps_are_no_logits() -> None:
    net = tiny_net()[:6]
    method = Distillation([net], Distill())
    method.start(copy.deepcopy(net), PLAIN, 1)
    inputs, targets = batch()
    with pytest.raises(
        ModelError, match=r"distill compares logits \[N, classes\], and the student's output is \[8, 8,"
    ):
        method.loss(net, inputs, net(inputs), targets, torch.tensor(1.0))


def test_a_student_may_begin_as_its_first_teacher() -> None:
    nets = [tiny_net(seed=1), tiny_net(seed=2)]
    student = tiny_net(seed=9)
    Distillation(nets, Distill(teachers=("a", "b"), inherit=True)).start(student, TrainConfig(epochs=1), 1)
    assert same(student, nets[0])
