import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from edgewise.data import Split, mixup, normalize
from edgewise.errors import DataError, ModelError
from edgewise.tasks import Classification, Task

TASK = Classification(mean=(0.25, 0.5), std=(0.5, 0.25), classes=3)
GENERATOR = torch.Generator()


def split(images: int = 6, side: int = 8) -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 2, side, side), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.arange(images) % 3)


def everything(split: Split) -> torch.Tensor:
    return torch.arange(len(split))


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert task.metric(torch.eye(3), torch.arange(3)) == 1.0


def test_the_loss_by_hand() -> None:
    outputs = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # -log softmax: log 3 of the first row, log(e + 1 + 1) - 0 of the second.
    expected = (math.log(3) + math.log(math.e + 2)) / 2
    assert TASK.loss(outputs, torch.tensor([2, 1])).item() == pytest.approx(expected)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_targets() -> None:
    outputs, labels = torch.randn(5, 3, generator=GENERATOR.manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    smoothed = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    expected = -(smoothed * outputs.log_softmax(dim=1)).sum(dim=1).mean()
    smoothing = replace(TASK, label_smoothing=0.1)
    assert smoothing.loss(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert TASK.loss(outputs, smoothed).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_float32_also_of_bfloat16_logits() -> None:
    outputs = torch.randn(5, 3, generator=GENERATOR.manual_seed(0)).bfloat16()
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert TASK.loss(outputs, labels).dtype == torch.float32
    assert TASK.loss(outputs, labels) == TASK.loss(outputs.float(), labels)


@pytest.mark.parametrize(("right", "accuracy"), [(0, 0.0), (1, 0.25), (4, 1.0)])
def test_the_metric_is_the_share_of_right_answers(right: int, accuracy: float) -> None:
    labels = torch.tensor([0, 1, 2, 0])
    answers = torch.where(torch.arange(4) < right, labels, (labels + 1) % 3)
    assert TASK.metric(F.one_hot(answers, 3).float(), labels) == accuracy


def test_a_batch_without_augmentation_is_the_images_normalised() -> None:
    data, index = split(), torch.tensor([4, 1])
    inputs, targets = TASK.batch(data, index, augment=False)
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [1, 1]
    assert torch.equal(inputs, normalize(data.images[index], TASK.mean, TASK.std))
    expected = (data.images[4, 1, 2, 3].item() / 255 - 0.5) / 0.25
    assert inputs[0, 1, 2, 3].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "augment", [(), ("crop",), ("flip",), ("cutout",), ("mixup",), ("crop", "flip", "cutout", "mixup")]
)
def test_augmentation_follows_the_generator_and_leaves_the_split_alone(augment: tuple[str, ...]) -> None:
    data, task = split(), replace(TASK, augment=augment)
    before = data.images.clone()
    index = everything(data)
    first, second, other = (
        task.batch(data, index, augment=True, generator=GENERATOR.manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(data.images, before)
    assert first[0].shape == (6, 2, 8, 8)
    plain = task.batch(data, index, augment=False)[0]
    assert torch.equal(first[0], plain) == (augment == ())
    assert torch.equal(first[0], other[0]) == (augment == ())


def test_cutout_blanks_a_share_of_the_side() -> None:
    white = Split(torch.full((4, 2, 8, 8), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    task = replace(TASK, augment=("cutout",), cutout_size=0.25)
    inputs, _ = task.batch(white, everything(white), augment=True, generator=GENERATOR.manual_seed(0))
    black = torch.tensor(TASK.mean).neg().div(torch.tensor(TASK.std)).view(2, 1, 1)
    assert (inputs == black).sum(dim=(1, 2, 3)).tolist() == [2 * 2 * 2] * 4


def test_mixup_blends_after_normalising_and_gives_shares() -> None:
    data, task = split(), replace(TASK, augment=("mixup",), mixup_alpha=0.7)
    inputs, targets = task.batch(data, everything(data), augment=True, generator=GENERATOR.manual_seed(3))
    plain = normalize(data.images, TASK.mean, TASK.std)
    expected, shares = mixup(plain, data.labels, 3, 0.7, GENERATOR.manual_seed(3))
    assert torch.equal(inputs, expected)
    assert torch.equal(targets, shares)
    assert targets.shape == (6, 3)
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 6)


def test_training_choices_replace_its_own() -> None:
    asked = {"label_smoothing": 0.2, "augment": ("cutout",), "cutout_size": 0.3, "mixup_alpha": 1.0}
    assert TASK.trained_with(**asked) == replace(TASK, **asked)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5,)}, "one number per channel"),
        ({"std": (0.5, 0.0)}, "each std above 0"),
        ({"classes": 1}, "classes is 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"cutout_size": 1.5}, "cutout_size is 1.5"),
        ({"mixup_alpha": 0.0}, "mixup_alpha is 0.0"),
        ({"augment": ("crop", "flp")}, 'augment holds "flp"; did you mean "flip"?'),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        replace(TASK, **given)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(0, 2, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "no images"),
        (torch.zeros(2, 2, 8, 8), torch.zeros(2, dtype=torch.int64), r"images are float32 \[2, 2, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "with C = 2"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.zeros(2), r"labels are float32 \[2\]"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"must be int64 \[2\]"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.tensor([0, 3]), r"label 3 of image 1 is not in \[0, 3\)"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.tensor([-1, 0]), r"label -1 of image 0 is not in"),
    ],
)
def test_a_split_that_cannot_be_learned_is_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TASK.check(Split(images, labels))


@pytest.mark.parametrize("shape", [(4,), (4, 2), (3, 3), (4, 3, 1)], ids=str)
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ModelError, match=r"it must be \[4, 3\], \[N, classes\]"):
        TASK.loss(torch.zeros(shape), labels)
    with pytest.raises(ModelError, match=r"it must be \[4, 3\], \[N, classes\]"):
        TASK.metric(torch.zeros(shape), labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_have_no_accuracy(value: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        TASK.metric(torch.full((2, 3), value), torch.tensor([0, 1]))
