import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.errors import DataError, ModelError
from edgewise.models import build
from edgewise.tasks import Steganalysis, Task, detection_error
from edgewise.tasks.steganalysis import turn
from edgewise.train import TrainConfig, evaluate, fit

TASK = Steganalysis()
GENERATOR = torch.Generator()


def split(pairs: int = 6, side: int = 8) -> Split:
    covers = 255 * torch.rand(pairs, 1, 1, side, side, generator=torch.Generator().manual_seed(0))
    return Split(torch.cat([covers, covers + 1000], 1), torch.arange(pairs))


def everything(split: Split) -> Tensor:
    return torch.arange(len(split))


def brute_force(covers: list[float], stegos: list[float]) -> float:
    """Try a threshold between every two scores, and beyond both ends."""
    scores = sorted({*covers, *stegos})
    thresholds = [scores[0] - 1, *((a + b) / 2 for a, b in pairwise(scores)), scores[-1] + 1]
    errors = []
    for threshold in thresholds:
        false_alarms = sum(score > threshold for score in covers) / len(covers)
        missed = sum(score < threshold for score in stegos) / len(stegos)
        errors.append((false_alarms + missed) / 2)
    return min(errors)


# -- the detection error


@pytest.mark.parametrize(
    ("covers", "stegos", "error"),
    [
        ([0, 1, 2], [3, 4, 5], 0.0),
        ([3, 4, 5], [0, 1, 2], 0.5),  # no worse than calling all of them one
        ([1, 1, 1], [1, 1, 1], 0.5),
        ([0, 1, 2, 9], [3, 4, 5, 6], 0.125),  # t = 2: one false alarm in four
        ([0, 1, 2, 3], [0.5, 4, 5, 6], 0.125),  # t = 3: one of four missed
        ([0, 1, 2, 4], [3, 5, 6, 7], 0.125),
        ([0, 0, 0, 1], [1, 1, 2, 2], 0.125),  # t = 0: ties lie on one side
        ([0], [1, -1], 0.25),  # other numbers of both
    ],
)
def test_the_error_by_hand(covers: list[float], stegos: list[float], error: float) -> None:
    assert detection_error(torch.tensor(covers).float(), torch.tensor(stegos).float()) == error


SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=12)


@settings(max_examples=200)
@given(SCORES, SCORES)
def test_the_error_is_the_least_of_all_thresholds(covers: list[float], stegos: list[float]) -> None:
    found = detection_error(torch.tensor(covers), torch.tensor(stegos))
    assert found == pytest.approx(brute_force(covers, stegos), abs=1e-12)
    assert 0 <= found <= 0.5


@settings(max_examples=50)
@given(SCORES, SCORES)
def test_only_the_order_of_scores_counts(covers: list[float], stegos: list[float]) -> None:
    plain = detection_error(torch.tensor(covers), torch.tensor(stegos))
    assert detection_error(torch.tensor(covers).exp(), torch.tensor(stegos).exp()) == plain
    mirrored = detection_error(-torch.tensor(stegos), -torch.tensor(covers))
    assert mirrored == pytest.approx(plain, abs=1e-12)


def test_the_metric_is_one_minus_the_error_of_the_difference_of_logits() -> None:
    covers, stegos = torch.randn(9, generator=GENERATOR.manual_seed(0)), torch.randn(9) + 1
    scores = torch.stack([covers, stegos], 1).flatten()
    logits = torch.stack([5 - scores / 2, 5 + scores / 2], 1)
    expected = 1 - brute_force(covers.tolist(), stegos.tolist())
    assert TASK.metric(logits, torch.tensor([0, 1] * 9)) == pytest.approx(expected)
    assert TASK.metric(logits.flip(1), torch.tensor([1, 0] * 9)) == pytest.approx(expected)
    assert TASK.metric_name == "1 - P_E"


# -- the task


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert task.metric(torch.eye(2), torch.arange(2)) == 1.0
    assert task.tail() is None
    assert torch.equal(task.answers(torch.eye(2)), torch.eye(2))
    assert task.agreement(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.5


def test_the_loss_by_hand() -> None:
    outputs = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert TASK.loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(expected)
    assert TASK.loss(outputs.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32
    smoothed = replace(TASK, label_smoothing=1.0)
    assert smoothed.loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(
        (math.log(2) + math.log(1 + math.exp(-2)) + 1) / 2
    )


def test_a_batch_is_each_cover_followed_by_its_stego_as_pixels() -> None:
    data = split()
    inputs, targets = TASK.batch(data, torch.tensor([4, 1]), augment=False)
    assert inputs.dtype == torch.float32
    assert inputs.shape == (4, 1, 8, 8)
    assert targets.tolist() == [0, 1, 0, 1]
    assert targets.dtype == torch.int64
    torch.testing.assert_close(inputs, data.images[[4, 4, 1, 1], [0, 1, 0, 1]], rtol=1e-6, atol=0)


def test_inputs_are_normalised_as_images_are() -> None:
    data = split()
    inputs, _ = Steganalysis(mean=(0.5,), std=(0.25,)).batch(data, torch.tensor([3]), augment=False)
    assert inputs[0, 0, 1, 2].item() == pytest.approx((data.images[3, 0, 0, 1, 2].item() / 255 - 0.5) / 0.25, rel=1e-5)


def test_pairs_are_turned_alike() -> None:
    data = split(64)
    before = data.images.clone()
    inputs, targets = TASK.batch(data, everything(data), augment=True, generator=GENERATOR.manual_seed(0))
    covers, stegos = inputs[targets == 0], inputs[targets == 1]
    torch.testing.assert_close(covers + 1000, stegos)
    assert not torch.equal(covers, data.images[:, 0])
    assert torch.equal(data.images, before)
    again, _ = TASK.batch(data, everything(data), augment=True, generator=GENERATOR.manual_seed(0))
    assert torch.equal(inputs, again)


def test_nothing_is_turned_where_nothing_is_asked_for() -> None:
    data, plain = split(), replace(TASK, augment=())
    for task, augment in ((plain, True), (TASK, False)):
        inputs, _ = task.batch(data, everything(data), augment=augment)
        torch.testing.assert_close(inputs, data.images.flatten(0, 1), rtol=1e-6, atol=0)


def test_the_eight_ways_are_equally_likely() -> None:
    image = torch.arange(9.0).reshape(1, 1, 1, 3, 3)
    ways = [tuple(torch.rot90(x, k, (3, 4)).flatten().tolist()) for x in (image, image.flip(-1)) for k in range(4)]
    turned = turn(image.expand(4000, 1, 1, 3, 3), GENERATOR.manual_seed(0))
    counts = [sum(tuple(row) == way for row in turned.flatten(1).tolist()) for way in ways]
    assert sum(counts) == 4000
    assert all(abs(count - 500) < 5 * 21 for count in counts)  # five deviations of the binomial distribution


def test_training_choices_replace_its_own() -> None:
    asked = {"label_smoothing": 0.2, "augment": (), "cutout_size": 0.5, "mixup_alpha": 0.2}
    assert TASK.trained_with(**asked) == replace(TASK, label_smoothing=0.2, augment=())


@pytest.mark.parametrize("name", ["crop", "cutout", "mixup", "flp"])
def test_other_augmentations_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f'augment holds "{name}"; steganalysis takes "flip" alone'):
        TASK.trained_with(label_smoothing=0.0, augment=("flip", name), cutout_size=0.5, mixup_alpha=0.2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5, 0.5)}, "need one number each"),
        ({"std": (0.0,)}, "std one above 0"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TASK, **given)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(0, 2, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "no pairs of images"),
        (torch.zeros(2, 2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), r"images are uint8 \[2, 2, 1, 8, 8\]"),
        (torch.zeros(2, 1, 8, 8), torch.arange(2), r"images are float32 \[2, 1, 8, 8\]; they must be float32"),
        (torch.zeros(2, 3, 1, 8, 8), torch.arange(2), "pairs of cover and stego"),
        (torch.zeros(2, 2, 3, 8, 8), torch.arange(2), "pairs of cover and stego"),
        (torch.zeros(2, 2, 1, 8, 9), torch.arange(2), "square pairs"),
        (torch.zeros(2, 2, 1, 8, 8), torch.zeros(2), r"labels are float32 \[2\]"),
        (torch.zeros(2, 2, 1, 8, 8), torch.arange(3), r"must be int64 \[2\]"),
    ],
)
def test_a_split_that_cannot_be_learned_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TASK.check(Split(images, labels))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (3, 2), (4, 2, 1)], ids=str)
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    targets = torch.tensor([0, 1, 0, 1])
    for use in (TASK.loss, TASK.metric):
        with pytest.raises(ModelError, match=r"it must be \[4, 2\], \[N, classes\]"):
            use(torch.zeros(shape), targets)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_have_no_error(value: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        TASK.metric(torch.full((2, 2), value), torch.tensor([0, 1]))


def test_a_network_with_other_outputs_is_refused() -> None:
    TASK.check_network(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4))
    with pytest.raises(ModelError, match=r"logits \[2, 2\]"):
        TASK.check_network(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), (1, 4, 4))


def test_a_network_learns_pairs_and_is_measured_on_others() -> None:
    """Covers are smooth, stegos carry noise of one level: what the network's first layer is made for."""
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(48, 1, 1, 1, 1, generator=generator)
    covers = (128 + slopes * torch.arange(16.0).view(1, 1, 1, 16, 1)).expand(48, 1, 1, 16, 16)
    noise = torch.randn(48, 1, 1, 16, 16, generator=generator)
    data = Split(torch.cat([covers, covers + noise], 1), torch.arange(48))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("xunet_jpeg", classes=2, channels=1, size=16, width=0.1)
    config = TrainConfig(epochs=8, optimizer="adamw", lr=0.005, batch=8, augment=("flip",))
    trained = fit(model, TASK, data.part(slice(0, 32)), config)
    assert evaluate(trained, TASK, data.part(slice(32, 48)), batch=5) >= 0.95
