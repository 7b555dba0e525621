"""Losses on features against slow loops over the published formulas, and what must hold of them."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgewise.distill import attention_loss, hint_loss, relational_loss, similarity_loss
from edgewise.distill.features import pooled

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "hint": hint_loss,
    "attention": attention_loss,
    "similarity": similarity_loss,
    "relational": relational_loss,
}


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (4, 3, 2, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_hint(student: Tensor, teacher: Tensor) -> float:
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return sum((ours - theirs) ** 2 for ours, theirs in pairs) / len(pairs)


def plain_attention(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        flat = []
        for image in (ours, theirs):
            height, width = image.shape[1:]
            seen = [sum(float(c[y, x]) ** 2 for c in image) for y in range(height) for x in range(width)]
            length = math.sqrt(sum(value**2 for value in seen))
            flat.append([value / length for value in seen])
        total += sum((a - b) ** 2 for a, b in zip(*flat, strict=True))
    return total / len(student)


def plain_similarity(student: Tensor, teacher: Tensor) -> float:
    n, matrices = len(student), []
    for features in (student, teacher):
        rows = [image.flatten().tolist() for image in features]
        products = [[sum(a * b for a, b in zip(one, two, strict=True)) for two in rows] for one in rows]
        matrices.append([[value / math.hypot(*row) for value in row] for row in products])
    return sum((matrices[0][i][j] - matrices[1][i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) <= 1 else abs(difference) - 0.5


def plain_relational(student: Tensor, teacher: Tensor) -> float:
    """Loops over the pairs and the triples of distinct images (Park et al., section 3.2)."""
    n, distances, cosines = len(student), [], []
    for features in (student, teacher):
        points = [(image.mean((1, 2)) if image.dim() == 3 else image.flatten()).tolist() for image in features]
        pairs = {(i, j): math.dist(points[i], points[j]) for i in range(n) for j in range(n) if i != j}
        mean = sum(pairs.values()) / len(pairs)
        distances.append({key: value / mean for key, value in pairs.items()})
        cosines.append(
            {
                (i, j, k): sum((a - c) * (b - c) for a, b, c in zip(points[i], points[k], points[j], strict=True))
                / (pairs[i, j] * pairs[k, j])
                for i in range(n)
                for j in range(n)
                for k in range(n)
                if len({i, j, k}) == 3
            }
        )
    distance, angle = (
        sum(huber(ours[key] - theirs[key]) for key in ours) / len(ours) for ours, theirs in (distances, cosines)
    )
    return distance + 2 * angle


PLAIN = {
    "hint": plain_hint,
    "attention": plain_attention,
    "similarity": plain_similarity,
    "relational": plain_relational,
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_it_is_the_published_formula(name: str, seed: int) -> None:
    student, teacher = maps(seed), maps(seed + 5000)
    expected = PLAIN[name](student, teacher)
    assert LOSSES[name](student, teacher).item() == pytest.approx(expected, rel=1e-9)
    single = LOSSES[name](student.float(), teacher.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["attention", "similarity", "relational"])
def test_widths_may_differ(name: str) -> None:
    student, teacher = maps(0, 4, 3, 2, 5), maps(1, 4, 7, 2, 5)
    assert LOSSES[name](student, teacher).item() == pytest.approx(PLAIN[name](student, teacher), rel=1e-9)


@pytest.mark.parametrize("name", ["hint", "similarity", "relational"])
def test_vectors_are_features_too(name: str) -> None:
    student, teacher = maps(0, 5, 6), maps(1, 5, 6)
    assert LOSSES[name](student, teacher).item() == pytest.approx(PLAIN[name](student, teacher), rel=1e-9)


def test_attention_by_hand() -> None:
    # Squares summed over two channels: (1, 1) and (9 + 16, 0); of length 1: (1, 1) / sqrt(2) and (1, 0).
    student = torch.tensor([[[[1.0, 0.0]], [[0.0, -1.0]]]])
    teacher = torch.tensor([[[[3.0, 0.0]], [[-4.0, 0.0]]]])
    half = 1 / math.sqrt(2)
    assert attention_loss(student, teacher).item() == pytest.approx((1 - half) ** 2 + half**2, rel=1e-6)


def test_similarity_by_hand() -> None:
    # Three images: all alike, beside the first two alike and the third at a right angle.
    student, teacher = torch.ones(3, 1), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    third, half = 1 / math.sqrt(3), 1 / math.sqrt(2)  # rows of ones, and rows (1, 1, 0), of length 1
    expected = (2 * (2 * (third - half) ** 2 + third**2) + 2 * third**2 + (third - 1) ** 2) / 9
    assert similarity_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_relations_by_hand() -> None:
    # A right angle with sides 3, 4, 5 (mean 4) beside three points on a line, 1 and 1 apart (mean 4/3).
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0], [1.0], [-1.0]])
    distance = (huber(3 / 4 - 3 / 4) + huber(4 / 4 - 3 / 4) + huber(5 / 4 - 6 / 4)) / 3
    angle = (huber(0 - -1) + huber(3 / 5 - 1) + huber(4 / 5 - 1)) / 3
    assert relational_loss(student, teacher).item() == pytest.approx(distance + 2 * angle, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_zero_with_zero_gradient_where_both_agree(name: str) -> None:
    student = maps(0).requires_grad_()
    loss = LOSSES[name](student, student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert student.grad.abs().max() < 1e-9
    assert LOSSES[name](student, maps(1)).item() > 1e-3


def test_what_does_not_count() -> None:
    student, teacher = maps(0), maps(1)
    # Attention asks for no channel's sign or place, nor for an image's scale.
    changed = -3.0 * student[:, [2, 0, 1]]
    assert attention_loss(changed, teacher).item() == pytest.approx(attention_loss(student, teacher).item(), rel=1e-9)
    # Relations stay under shifts, rotations and scales of the embedding.
    points = maps(2, 6, 4)
    turned, _ = torch.linalg.qr(maps(3, 4, 4))
    assert relational_loss(5 * points @ turned + 100, points).item() == pytest.approx(0.0, abs=1e-12)
    # Similarities stay under rotations, and when all features are scaled alike.
    assert similarity_loss(5 * points @ turned, points).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("other", [0.0, 1.0])
def test_silent_features_and_equal_images_give_finite_gradients(name: str, other: float) -> None:
    student = torch.full((4, 3, 2, 5), 0.0)
    student[2:] = other
    student.requires_grad_()
    loss = LOSSES[name](student, maps(0).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("images", [1, 2])
def test_a_batch_of_one_or_two_images(name: str, images: int) -> None:
    assert LOSSES[name](maps(0, images, 3, 2, 2), maps(1, images, 3, 2, 2)).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_it_is_computed_in_float32(name: str) -> None:
    student, teacher = maps(0).bfloat16(), maps(1).bfloat16()
    expected = LOSSES[name](student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOSSES[name](student, teacher), LOSSES[name](student.float(), teacher.float())
    assert all(each.dtype == torch.float32 and each == expected for each in found)


def test_the_larger_map_is_averaged() -> None:
    large, small = maps(0, 2, 3, 8, 4), maps(1, 2, 5, 4, 4)
    ours, theirs = pooled(large, small)
    assert theirs is small
    assert torch.allclose(ours, (large[:, :, ::2] + large[:, :, 1::2]) / 2)
    ours, theirs = pooled(small, large)
    assert ours is small
    assert torch.allclose(theirs, (large[:, :, ::2] + large[:, :, 1::2]) / 2)
    # Taller there, wider here: both are averaged.
    ours, theirs = pooled(maps(0, 2, 3, 2, 6), maps(1, 2, 3, 4, 3))
    assert ours.shape == theirs.shape == (2, 3, 2, 3)
    vectors = maps(0, 2, 3), maps(1, 2, 4)
    assert pooled(*vectors) == vectors
