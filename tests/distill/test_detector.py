"""Distillation of heatmaps against the formulas written out, CenterNet's loss, and what must hold of gradients."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.distill import DetectorDistillation, DistillDetector, hint_loss, retained_heatmap_loss
from edgewise.errors import ModelError
from edgewise.tasks.detection import Detection, box_losses, draw, split_outputs
from edgewise.train import TrainConfig, fit
from train.tiny import same, tensors


def logits(seed: int, scale: float = 4.0) -> Tensor:
    return scale * torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed: int = 0) -> Tensor:
    """Values in [0, 1) with a few centres of 1."""
    generator = torch.Generator().manual_seed(seed)
    heatmap = torch.rand(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(heatmap.shape, generator=generator) < 0.1, 1.0, heatmap * 0.99)


def sigmoid(z: float) -> float:
    return min(max(1 / (1 + math.exp(-z)), 1e-4), 1 - 1e-4)


def plain(student: Tensor, teacher: Tensor, heatmap: Tensor, retain: bool, soften: float) -> float:
    """Place by place."""
    total, centres = 0.0, 0
    for z, t, y in zip(*(each.flatten().tolist() for each in (student, teacher, heatmap)), strict=True):
        p, q = sigmoid(z / soften), sigmoid(t / soften)
        centres += y == 1
        if y == 1 and retain:
            total += (1 - p) ** 2 * -math.log(p)
        else:
            total += abs(q - p) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))
    return total / max(centres, 1)


@given(seed=st.integers(0, 1000), retain=st.booleans(), soften=st.sampled_from([1.0, 2.0, 3.5]))
def test_it_is_the_formula(seed: int, retain: bool, soften: float) -> None:
    given = logits(seed), logits(seed + 5000), drawn(seed)
    expected = plain(*given, retain, soften)
    assert retained_heatmap_loss(*given, retain=retain, soften=soften).item() == pytest.approx(expected, rel=1e-9)
    single = retained_heatmap_loss(*(each.float() for each in given), retain=retain, soften=soften)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-3)


def test_by_hand() -> None:
    # A centre, and a place where the teacher sees 3/4 and the student 1/2.
    student, teacher = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[5.0, math.log(3)]]]])
    heatmap = torch.tensor([[[[1.0, 0.2]]]])
    soft = 0.25**2 * math.log(2)
    assert retained_heatmap_loss(student, teacher, heatmap).item() == pytest.approx(0.25 * math.log(2) + soft, rel=1e-6)
    # Softened by 2 before the sigmoid, a logit of 2 log 3 is the same.
    softer = retained_heatmap_loss(student, 2 * teacher, heatmap, soften=2.0)
    assert softer.item() == pytest.approx(0.25 * math.log(2) + soft, rel=1e-6)


def test_at_retained_centres_the_teacher_does_not_matter() -> None:
    heatmap = drawn()
    centre = heatmap == 1
    assert 0 < int(centre.sum()) < centre.numel()
    gradients = {}
    for retain in (True, False):
        for teacher in (1, 2):
            student = logits(0).requires_grad_()
            retained_heatmap_loss(student, logits(teacher), heatmap, retain=retain, soften=2.0).backward()
            gradients[retain, teacher] = student.grad
    assert torch.equal(gradients[True, 1][centre], gradients[True, 2][centre])
    assert (gradients[True, 1][centre] < 0).all()  # every true centre is drawn up
    assert not torch.equal(gradients[True, 1][~centre], gradients[True, 2][~centre])
    assert not torch.equal(gradients[False, 1][centre], gradients[False, 2][centre])
    assert (gradients[False, 1][centre] > 0).any()  # a teacher that misses it pulls it down


def test_where_both_agree_there_is_nothing_to_learn() -> None:
    student = logits(0).requires_grad_()
    loss = retained_heatmap_loss(student, student.detach(), drawn(), retain=False, soften=2.0)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_no_centres_and_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[[[200.0, -200.0, 0.0]]]], requires_grad=True)
    loss = retained_heatmap_loss(student, -student.detach(), torch.zeros(1, 1, 1, 3))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_bfloat16_logits_are_compared_in_float32() -> None:
    student, teacher, heatmap = logits(0).bfloat16(), logits(1).bfloat16(), drawn().float()
    assert retained_heatmap_loss(student, teacher, heatmap) == retained_heatmap_loss(
        student.float(), teacher.float(), heatmap
    )


# -- in trainings ----------------------------------------------------------------------------------------------------

TASK = Detection(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2), classes=2)
CONFIG = TrainConfig(epochs=3, batch=16, lr=0.02, augment=())


def squares(images: int = 40, side: int = 24, seed: int = 0) -> Split:
    """Noise with a bright square in each image, of 8 pixels (class 0) or 12 (class 1); some have a second row."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(60, (images, 3, side, side), generator=generator, dtype=torch.uint8)
    boxes = torch.full((images, 2, 5), -1.0)
    for place in range(images):
        size = 8 + 4 * (place % 2)
        x, y = torch.randint(side - size, (2,), generator=generator).tolist()
        pixels[place, :, y : y + size, x : x + size] += 150
        boxes[place, 0] = torch.tensor([place % 2, x, y, x + size, y + size])
    return Split(pixels, boxes)


SPLIT = squares()


def detector(seed: int = 1, channels: int = 6, classes: int = 2, stride: int = 2) -> nn.Sequential:
    """Two convolutions of stride 2 and a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, classes + 4, 1),
        )


def distillation(*teachers: nn.Module, **given: Any) -> DetectorDistillation:
    return DetectorDistillation(teachers or (detector(5, channels=10),), DistillDetector(**given), TASK, SPLIT)


def plain_focal(outputs: Tensor, heatmap: Tensor) -> float:
    """CenterNet's loss, place by place (Zhou et al., eq. (1), alpha = 2, beta = 4)."""
    total, centres = 0.0, 0
    for z, y in zip(outputs[:, :2].flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        p = sigmoid(z)
        centres += y == 1
        total -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total / max(centres, 1)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("teachers", [1, 2])
def test_the_teachers_have_their_share_of_the_heatmaps_loss(gamma: float, teachers: int) -> None:
    nets = [detector(5 + place, channels=10).eval() for place in range(teachers)]
    student = detector().eval()
    method = distillation(*nets, gamma=gamma, soften=2.0, retain=True, hint=0.7, taps=("5",))
    net = copy.deepcopy(student)
    method.start(net, CONFIG, 1)
    inputs, boxes = TASK.batch(SPLIT, torch.arange(6), augment=False)
    outputs, heatmap = student(inputs), draw(boxes, 2, 6, 6)
    offset, size = (each.item() for each in box_losses(*split_outputs(outputs)[1:], boxes))
    expected = (1 - gamma) * plain_focal(outputs, heatmap) + offset + 0.1 * size
    for place, teacher in enumerate(nets):
        with torch.no_grad():
            share = plain(outputs[:, :2], teacher(inputs)[:, :2], heatmap, True, 2.0)
            weight, bias = (net.get_parameter(f"hint_{place}_{kind}") for kind in ("weight", "bias"))
            mapped = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], student[:6](inputs)) + bias[:, None, None]
            expected += (gamma * share + 0.7 * hint_loss(mapped, teacher[:6](inputs)).item()) / teachers
    method.before_step(net, torch.arange(6))
    found = method.loss(net, inputs, net.eval()(inputs), boxes, TASK.loss(outputs, boxes))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_without_a_share_it_is_the_training_without_a_teacher() -> None:
    alone = fit(detector(), TASK, SPLIT, CONFIG)
    for settings in ({"gamma": 0.0}, {"gamma": 0.0, "soften": 1.0, "retain": False}):
        assert same(fit(detector(), TASK, SPLIT, CONFIG, methods=[distillation(**settings)]), alone)


def test_early_softening_ends_with_the_training() -> None:
    for schedule, expected in (("early", [3 - 2 * step / 6 for step in range(7)]), ("constant", [3.0] * 7)):
        method = distillation(soften=3.0, schedule=schedule)
        method.start(detector(), CONFIG, 2)  # 3 epochs of 2 steps
        found = [method.softening]
        for step in range(6):
            method.after_step(detector(), step, 0.1)
            found.append(method.softening)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "given",
    [{}, {"hint": 1.0, "taps": ("5",), "schedule": "early"}, {"retain": False, "soften": 1.0, "gamma": 1.0}],
    ids=str,
)
def test_the_contract_of_training_methods(given: dict[str, Any], tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("train", 5):
            raise StoppedError

    teacher, path = detector(5, channels=10), tmp_path / "checkpoint"
    before, config = tensors(teacher), replace(CONFIG, ema=0.9)
    used = distillation(teacher, detector(6), **given)

    def trained(**rest: Any) -> nn.Module:
        return fit(detector(), TASK, SPLIT, config, methods=[used], **rest)

    made = trained()
    assert made.state_dict().keys() == detector().state_dict().keys()
    assert not any(each._forward_hooks for net in (made, teacher) for each in net.modules())
    assert same(trained(), made)
    assert same(teacher, before)
    assert not same(made, fit(detector(), TASK, SPLIT, config))
    with pytest.raises(StoppedError):
        trained(checkpoint=path, progress=stop)
    assert same(trained(checkpoint=path), made)


def test_a_student_learns_heatmaps_from_its_teacher_alone() -> None:
    config = replace(CONFIG, epochs=30, lr=0.05)
    teacher = fit(detector(5, channels=10), TASK, SPLIT, config)
    method = distillation(teacher, gamma=1.0, retain=False, soften=1.0)
    student = fit(detector(), TASK, SPLIT, config, methods=[method])
    inputs, boxes = TASK.batch(SPLIT, torch.arange(40), augment=False)
    with torch.no_grad():
        answers = teacher.eval()(inputs)[:, :2]
        before, after = (
            retained_heatmap_loss(net.eval()(inputs)[:, :2], answers, draw(boxes, 2, 6, 6), retain=False)
            for net in (detector(), student)
        )
    assert after < 0.3 * before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma": 1.5}, r"gamma is 1.5; it must be in \[0, 1\]"),
        ({"soften": 0.5}, "soften is 0.5; it must be at least 1"),
        ({"soften": float("inf")}, "soften is inf; it must be at least 1"),
        ({"hint": 1.0}, "hint compares features, and taps names none"),
        ({"taps": ("5",)}, r"taps is \['5'\], and nothing compares them; set one of hint above 0"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillDetector(**given)


def test_teachers_that_do_not_go_together_are_refused() -> None:
    for teacher, message in (
        (detector(classes=5), r"the teacher's output is \[2, 9, 6, 6\], the student's \[2, 6, 6, 6\]"),
        (detector(stride=1), r"the teacher's output is \[2, 6, 12, 12\], the student's \[2, 6, 6, 6\]"),
    ):
        with pytest.raises(ModelError, match=message):
            fit(detector(), TASK, SPLIT, CONFIG, methods=[distillation(teacher)])
    with pytest.raises(ValueError, match="teachers is empty; a distillation needs at least one"):
        DetectorDistillation([], DistillDetector(), TASK, SPLIT)
