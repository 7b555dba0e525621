"""Decoupled logits against the paper's formulas in plain probabilities, and several teachers' answers as one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgewise.distill import dkd_loss, kd_loss, mean_logits


def logits(seed: int, scale: float = 3.0, rows: int = 6, classes: int = 5) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float
) -> tuple[float, float, float]:
    """The loss, TCKD and NCKD, image by image and class by class (Zhao et al., section 3.1)."""
    tckd = nckd = 0.0
    for row, label in enumerate(labels.tolist()):
        p, q = (
            [math.exp(value / temperature) for value in logits[row].tolist()] for logits in (teacher, student)
        )  # unnormalised
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        pt, qt = p[label], q[label]
        tckd += pt * math.log(pt / qt) + (1 - pt) * math.log((1 - pt) / (1 - qt))
        for place in range(len(p)):
            if place != label:
                p_hat, q_hat = p[place] / (1 - pt), q[place] / (1 - qt)
                nckd += p_hat * math.log(p_hat / q_hat)
    tckd, nckd = (temperature**2 * part / len(labels) for part in (tckd, nckd))
    return alpha * tckd + beta * nckd, tckd, nckd


def test_by_hand() -> None:
    # At T = 1 the teacher has (1/2, 1/4, 1/4) and the student (1/4, 1/2, 1/4); the right class is 0.
    student, teacher = (torch.tensor([row]).log() for row in ([0.25, 0.5, 0.25], [0.5, 0.25, 0.25]))
    tckd = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    nckd = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))  # (1/2, 1/2) beside (2/3, 1/3)
    found = dkd_loss(student, teacher, torch.tensor([0]), 1.0, alpha=3.0, beta=5.0)
    assert found.item() == pytest.approx(3 * tckd + 5 * nckd, rel=1e-5)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.7, 20), alpha=st.floats(0, 4), beta=st.floats(0, 10))
def test_it_is_the_papers_formula(seed: int, temperature: float, alpha: float, beta: float) -> None:
    student, teacher = logits(seed), logits(seed + 5000)
    labels = torch.randint(5, (6,), generator=torch.Generator().manual_seed(seed))
    expected = plain_dkd(student, teacher, labels, temperature, alpha, beta)[0]
    assert dkd_loss(student, teacher, labels, temperature, alpha, beta).item() == pytest.approx(expected, rel=1e-8)
    single = dkd_loss(student.float(), teacher.float(), labels, temperature, alpha, beta)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.7, 20))
def test_kd_is_its_parts_with_the_weight_1_minus_the_teachers_share(seed: int, temperature: float) -> None:
    student, teacher = logits(seed, rows=1), logits(seed + 5000, rows=1)
    label = torch.tensor([seed % 5])
    share = (teacher / temperature).softmax(1)[0, seed % 5].item()
    parts = dkd_loss(student, teacher, label, temperature, alpha=1.0, beta=1 - share)
    assert parts.item() == pytest.approx(kd_loss(student, teacher, temperature).item(), rel=1e-8)


def test_it_is_zero_with_zero_gradient_where_both_agree_up_to_a_constant() -> None:
    student, labels = logits(0).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    loss = dkd_loss(student, student.detach() + 7.0, labels, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    assert student.grad.abs().max() < 1e-9
    assert dkd_loss(student, logits(1), labels, 4.0).item() > 0


def test_a_right_class_of_probability_1_stays_finite() -> None:
    # In float32 1 - softmax is 0 for both.
    student = torch.tensor([[60.0, 0.0, -1.0]], requires_grad=True)
    loss = dkd_loss(student, torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([0]), 1.0)
    loss.backward()
    q = 1 / (1 + math.exp(-1))  # of the two others by the student, 1/2 each by the teacher
    assert loss.item() == pytest.approx(8 * -(0.5 * math.log(2 * q) + 0.5 * math.log(2 * (1 - q))), rel=1e-5)
    assert student.grad.isfinite().all()


def test_of_two_classes_only_the_first_part_is_left() -> None:
    student, teacher, labels = logits(0, classes=2), logits(1, classes=2), torch.tensor([0, 1, 0, 1, 0, 1])
    assert dkd_loss(student, teacher, labels, 2.0, 1.0, 100.0).item() == pytest.approx(
        kd_loss(student, teacher, 2.0).item(), rel=1e-9
    )


def test_bfloat16_logits_are_compared_in_float32() -> None:
    student, teacher, labels = logits(0).bfloat16(), logits(1).bfloat16(), torch.zeros(6, dtype=torch.int64)
    assert dkd_loss(student, teacher, labels, 4.0) == dkd_loss(student.float(), teacher.float(), labels, 4.0)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 20), count=st.integers(2, 4))
def test_several_teachers_speak_with_the_mean_of_their_softened_probabilities(
    seed: int, temperature: float, count: int
) -> None:
    answers = [logits(seed + 100 * place) for place in range(count)]
    mean = sum((each / temperature).softmax(1) for each in answers) / count
    assert torch.allclose((mean_logits(answers, temperature) / temperature).softmax(1), mean, rtol=1e-9)


def test_their_mean_has_the_gradient_of_the_mean_of_their_losses() -> None:
    answers, gradients = [logits(1), logits(2), logits(3)], []
    for loss in (
        lambda student: kd_loss(student, mean_logits(answers, 3.0), 3.0),
        lambda student: sum(kd_loss(student, each, 3.0) for each in answers) / 3,
    ):
        student = logits(0).requires_grad_()
        loss(student).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, rtol=1e-9)


def test_one_teacher_is_taken_at_its_word() -> None:
    answer = logits(0)
    assert mean_logits([answer], 4.0) is answer
