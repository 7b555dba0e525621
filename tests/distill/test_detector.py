"""Distillation of heatmaps against the formulas written out, CenterNet's loss, and what must hold of gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgewise.distill.detector import retained_heatmap_loss


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
