"""The loss against the published code's formulas, the decoding against a loop, the metric on cases made by hand."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.errors import DataError, MissingExtra, ModelError
from edgewise.export.onnx import export
from edgewise.export.verify import outputs
from edgewise.models import build
from edgewise.tasks import Detection, Task, mean_average_precision, overlapping_boxes, same_boxes
from edgewise.tasks.detection import (
    Decode,
    box_losses,
    decode,
    draw,
    focal_loss,
    gaussian_radius,
    split_outputs,
)
from edgewise.tasks.precision import intersection_over_union

TASK = Detection(mean=(0.25, 0.5), std=(0.5, 0.25), classes=2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(images: int, most: int, classes: int, side: int, seed: int = 0) -> Tensor:
    """Boxes of all sizes, some rows of none in between."""
    rng = np.random.default_rng(seed)
    boxes = torch.full((images, most, 5), 0.0)
    for rows in boxes:
        for row in rows:
            (x1, x2), (y1, y2) = (sorted(rng.uniform(0, side, 2)) for _ in range(2))
            kept = rng.random() < 0.7
            row[:] = torch.tensor([rng.integers(classes), x1, y1, x2, y2] if kept else [-1, 0, 0, 0, 0])
    return boxes


def split(side: int = 16) -> Split:
    images = torch.randint(256, (3, 2, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Split(images, some_boxes(3, 4, 2, side))


def test_it_is_a_task() -> None:
    task: Task = TASK
    assert task.metric_name == "mAP@0.5"
    assert isinstance(task.tail(), nn.Module)


# -- the loss -------------------------------------------------------------------------------------------------------


def published_focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """CenterNet's, step by step."""
    pred = torch.clamp(torch.sigmoid(logits), min=1e-4, max=1 - 1e-4)
    pos_inds, neg_inds = heatmap.eq(1).to(pred), heatmap.lt(1).to(pred)
    pos_loss = (torch.log(pred) * torch.pow(1 - pred, 2) * pos_inds).sum()
    neg_loss = (torch.log(1 - pred) * torch.pow(pred, 2) * torch.pow(1 - heatmap, 4) * neg_inds).sum()
    count = pos_inds.sum()
    return -neg_loss if count == 0 else -(pos_loss + neg_loss) / count


@pytest.mark.parametrize("size", [1.0, 20.0], ids=["inside", "clamped"])
@pytest.mark.parametrize("centres", [0, 1, 7])
def test_focal_loss_is_the_published_one(size: float, centres: int) -> None:
    heatmap = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    heatmap.view(-1)[torch.arange(centres) * 31] = 1
    ours, theirs = ((size * random(2, 3, 8, 8)).double().requires_grad_() for _ in range(2))
    found, expected = focal_loss(ours, heatmap), published_focal_loss(theirs, heatmap.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_losses_are_float32_and_finite_also_of_bfloat16() -> None:
    outputs = 50 * random(2, 6, 8, 8).bfloat16()
    boxes = some_boxes(2, 4, 2, 32)
    loss = TASK.loss(outputs, boxes)
    assert loss.dtype == torch.float32
    assert loss == TASK.loss(outputs.float(), boxes)
    assert loss.isfinite()


def overlap_of(width: float, height: float, near: tuple[float, float], far: tuple[float, float]) -> float:
    """The IoU of (0, 0, width, height) and a box whose corners are off by these distances along both axes."""
    other = torch.tensor([near[0], near[1], width + far[0], height + far[1]])
    return intersection_over_union(torch.tensor([0.0, 0.0, width, height]), other).item()


@pytest.mark.parametrize(("width", "height"), [(10.0, 10.0), (40.0, 4.0), (3.0, 90.0), (1.0, 1.0)])
def test_the_radius_keeps_the_overlap_and_no_more(width: float, height: float) -> None:
    r = gaussian_radius(torch.tensor(width), torch.tensor(height)).item()
    worst = min(
        overlap_of(width, height, (a * r, a * r), (b * r, b * r)) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    )
    assert worst == pytest.approx(0.7, abs=1e-5)


def test_the_radius_by_hand() -> None:
    # Both corners in is the strictest of a square: (10 - 2 r)^2 = 70.
    assert gaussian_radius(torch.tensor(10.0), torch.tensor(10.0)).item() == pytest.approx((10 - math.sqrt(70)) / 2)


def drawn_slowly(boxes: Tensor, classes: int, height: int, width: int) -> Tensor:
    """Place by place, object by object."""
    heatmap = np.zeros((len(boxes), classes, height, width), np.float32)
    for image, rows in enumerate(boxes.tolist()):
        for label, x1, y1, x2, y2 in rows:
            if label < 0:
                continue
            w, h = math.ceil((x2 - x1) / 4), math.ceil((y2 - y1) / 4)
            radius = max(0, int(gaussian_radius(torch.tensor(float(w)), torch.tensor(float(h)))))
            sigma = (2 * radius + 1) / 6
            column, line = int((x1 + x2) / 8), int((y1 + y2) / 8)
            for y in range(height):
                for x in range(width):
                    if abs(x - column) <= radius and abs(y - line) <= radius:
                        value = math.exp(-((x - column) ** 2 + (y - line) ** 2) / (2 * sigma**2))
                        old = heatmap[image, int(label), y, x]
                        heatmap[image, int(label), y, x] = max(old, value)
    return torch.from_numpy(heatmap)


@pytest.mark.parametrize("seed", range(3))
def test_heatmaps_are_those_of_a_loop(seed: int) -> None:
    boxes = some_boxes(3, 6, 3, 64, seed)
    heatmap = draw(boxes, 3, 16, 16)
    torch.testing.assert_close(heatmap, drawn_slowly(boxes, 3, 16, 16), rtol=1e-5, atol=1e-6)
    centres = {(i, *row[:1].long().tolist(), *((row[[2, 1]] + row[[4, 3]]) // 8).long().tolist())
               for i, rows in enumerate(boxes) for row in rows if row[0] >= 0}  # fmt: skip
    assert {tuple(place) for place in (heatmap == 1).nonzero().tolist()} == centres


def test_a_heatmap_by_hand() -> None:
    # 40x40 pixels are 10x10 places: r = 0.8, so the centre alone. 160x160: r = 3.27, sigma = 7 / 6.
    boxes = torch.tensor([[[0.0, 20, 0, 60, 40], [1, 0, 0, 160, 160], [-1, 0, 0, 8, 8]]])
    heatmap = draw(boxes, 2, 40, 40)[0]
    assert heatmap[0].nonzero().tolist() == [[5, 10]]
    assert heatmap[1].nonzero().amin(0).tolist() == [17, 17]
    assert heatmap[1].nonzero().amax(0).tolist() == [23, 23]
    assert heatmap[1, 20, 22].item() == pytest.approx(math.exp(-4 / (2 * (7 / 6) ** 2)))


def test_no_boxes_give_empty_heatmaps_and_no_box_losses() -> None:
    none = torch.full((2, 3, 5), -1.0)
    assert not draw(none, 2, 4, 4).any()
    assert [loss.item() for loss in box_losses(random(2, 2, 4, 4), random(2, 2, 4, 4), none)] == [0, 0]
    assert not draw(torch.zeros(2, 0, 5), 2, 4, 4).any()


def test_box_losses_by_hand() -> None:
    # Centres (10, 6) and (14, 14) pixels: places (2, 1) + (0.5, 0.5) and (3, 3) + (0.5, 0.5); sizes (2, 1) and (1, 1).
    boxes = torch.tensor([[[0.0, 6, 4, 14, 8], [-1, 0, 0, 0, 0], [1, 12, 12, 16, 16]]])
    offset, size = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    offset[0, :, 1, 2], size[0, :, 1, 2] = torch.tensor([0.5, 0.25]), torch.tensor([2.0, 4.0])
    assert [loss.item() for loss in box_losses(offset, size, boxes)] == [(0.25 + 1) / 2, (3 + 2) / 2]


def test_the_loss_is_the_sum_of_its_parts() -> None:
    outputs, boxes = random(3, 6, 4, 4), some_boxes(3, 4, 2, 16)
    heatmap, offset, size = split_outputs(outputs)
    assert (heatmap.shape[1], offset.shape[1], size.shape[1]) == (2, 2, 2)
    offset_loss, size_loss = box_losses(offset, size, boxes)
    expected = focal_loss(heatmap, draw(boxes, 2, 4, 4)) + offset_loss + 0.1 * size_loss
    assert TASK.loss(outputs, boxes).item() == pytest.approx(expected.item())


# -- the answers ----------------------------------------------------------------------------------------------------


def perfect_outputs(boxes: Tensor, classes: int, height: int, width: int) -> Tensor:
    """What a network would return that knew the boxes."""
    heatmap = draw(boxes, classes, height, width).clamp(1e-3, 1 - 1e-3).logit()
    offset, size = torch.zeros(len(boxes), 2, height, width), torch.zeros(len(boxes), 2, height, width)
    for image, rows in enumerate(boxes):
        for row in rows[rows[:, 0] >= 0]:
            centre = (row[1:3] + row[3:]) / 8
            x, y = centre.long().tolist()
            offset[image, :, y, x], size[image, :, y, x] = centre - centre.floor(), (row[3:] - row[1:3]) / 4
    return torch.cat([heatmap, offset, size], 1)


def test_outputs_that_know_the_boxes_give_them_back() -> None:
    boxes = torch.tensor([[[0.0, 3, 5, 21, 11], [1, 20, 20, 63, 64]], [[1, 40, 2, 47, 30], [-1, 0, 0, 0, 0]]])
    found = decode(perfect_outputs(boxes, 2, 16, 16), peaks=3)
    for rows, expected in zip(found, boxes, strict=True):
        sure = rows[rows[:, 4] > 0.9]
        wanted = expected[expected[:, 0] >= 0]
        assert sorted(sure[:, 5].tolist()) == sorted(wanted[:, 0].tolist())
        for row in sure:
            torch.testing.assert_close(row[:4], wanted[wanted[:, 0] == row[5]][0, 1:], atol=1e-4, rtol=0)
    assert TASK.metric(found, boxes) == pytest.approx(1.0)


def decoded_slowly(outputs: Tensor, peaks: int) -> list[list[list[float]]]:
    classes, height, width = outputs.shape[1] - 4, *outputs.shape[2:]
    images = []
    for maps in outputs.tolist():
        found = []
        for label in range(classes):
            for y in range(height):
                for x in range(width):
                    around = [
                        maps[label][j][i]
                        for j in range(max(0, y - 1), min(height, y + 2))
                        for i in range(max(0, x - 1), min(width, x + 2))
                    ]
                    if maps[label][y][x] == max(around):
                        ox, oy, w, h = (maps[classes + place][y][x] for place in range(4))
                        cx, cy, w, h = 4 * (x + ox), 4 * (y + oy), 4 * max(w, 0), 4 * max(h, 0)
                        score = 1 / (1 + math.exp(-maps[label][y][x]))
                        found.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score, label])
        images.append(sorted(found, key=lambda row: -row[4])[:peaks])
    return images


def test_decoding_is_that_of_a_loop() -> None:
    outputs = random(3, 7, 6, 9)
    found, expected = decode(outputs, 20), decoded_slowly(outputs, 20)
    assert found.shape == (3, 20, 6)
    for rows, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(rows[: len(wanted)], torch.tensor(wanted), rtol=1e-5, atol=1e-5)
        assert (rows[len(wanted) :, 4] == 0).all()
        assert (rows[: len(wanted), 4] > 0).all()


def test_a_small_grid_gives_fewer_boxes_and_answers_stay_as_they_are() -> None:
    answers = TASK.answers(random(2, 6, 3, 3))
    assert answers.shape == (2, 18, 6)
    assert TASK.answers(answers) is answers


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A detector whose heatmap has peaks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("centernet_tiny", classes=2, size=64, width=0.5).eval()
        for layer in (model.heatmap, model.offset, model.size):
            nn.init.normal_(layer.weight, std=0.3)
    return model


def test_the_tail_is_exported_and_gives_the_same_boxes(network: nn.Module, tmp_path: Path) -> None:
    path = export(nn.Sequential(network, TASK.tail()), torch.zeros(1, 3, 64, 64), tmp_path / "net.onnx")
    for images in (1, 2, 5):
        inputs = random(images, 3, 64, 64)
        with torch.no_grad():
            expected = TASK.answers(network(inputs))
        found = outputs(path, inputs, threads=1, batch=images)
        assert found.shape == (images, 100, 6)
        assert expected[:, 9, 4].min() > 0.05
        assert same_boxes(found, expected, within_px=1e-2, least_score=0.05) == 1.0
        assert same_boxes(expected, found, within_px=1e-2, least_score=0.05) == 1.0
        torch.testing.assert_close(found[:, :, 4], expected[:, :, 4], rtol=1e-4, atol=1e-5)


def test_the_tail_is_the_decoding() -> None:
    maps = random(2, 6, 8, 8)
    assert torch.equal(Decode(7)(maps), decode(maps, 7))


# -- the metric -----------------------------------------------------------------------------------------------------

TRUE = torch.tensor(
    [[[0.0, 0, 0, 10, 10], [0, 20, 20, 30, 30], [1, 0, 0, 30, 30]], [[0, 5, 5, 15, 25], *[[-1.0] * 5] * 2]]
)


def answered(*rows: tuple[int, float, float, float, float, float, int]) -> Tensor:
    """Answers of the two images of `TRUE`, rows (image, x1, y1, x2, y2, score, class)."""
    answers = torch.zeros(2, len(rows), 6)
    for place, (image, *row) in enumerate(rows):
        answers[image, place] = torch.tensor(row)
    return answers


RIGHT = (
    (0, 0, 0, 10, 10, 0.9, 0),
    (0, 20, 20, 30, 30, 0.8, 0),
    (0, 0, 0, 30, 30, 0.7, 1),
    (1, 5, 5, 15, 25, 0.6, 0),
)


def test_finding_everything_is_1() -> None:
    found = mean_average_precision(answered(*RIGHT), TRUE, 2)
    assert [found.map_50, found.map_50_95, *found.of_class] == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(
    ("rows", "of_class"),
    [
        pytest.param(RIGHT[1:], (67 / 101, 1.0), id="one of three missed"),
        # One wrong above all: precision 1/2, 2/3, 3/4 at recall 1/3, 2/3, 1, and the highest from there on is 3/4.
        pytest.param(((0, 30, 0, 40, 10, 0.95, 0), *RIGHT), (0.75, 1.0), id="a false one above"),
        pytest.param((*RIGHT, (0, 30, 0, 40, 10, 0.1, 0)), (1.0, 1.0), id="a false one below"),
        # Found twice: the second counts as false. Precision 1, 2/3, 3/4: 1 up to recall 1/3, then 3/4.
        pytest.param(
            ((0, 0, 0, 10, 10, 0.85, 0), *RIGHT), ((34 + 67 * 0.75) / 101, 1.0), id="found twice"
        ),
        pytest.param((RIGHT[2],), (0.0, 1.0), id="a class never found"),
        pytest.param(tuple((1 - row[0], *row[1:]) for row in RIGHT), (0.0, 0.0), id="of the other image"),
        pytest.param(tuple((*row[:6], 1 - row[6]) for row in RIGHT), (0.0, 0.0), id="of the other class"),
        # IoU 6 / 14 and 7 / 13. The first is false, above two right ones: precision 2 / 3 up to recall 2 / 3.
        pytest.param(((0, 4, 0, 14, 10, 0.9, 0), *RIGHT[1:]), (67 * 2 / 3 / 101, 1.0), id="overlaps too little"),
        pytest.param(((0, 3, 0, 13, 10, 0.9, 0), *RIGHT[1:]), (1.0, 1.0), id="overlaps enough"),
        pytest.param((), (0.0, 0.0), id="nothing"),
    ],
)  # fmt: skip
def test_average_precision_by_hand(rows: tuple[tuple[float, ...], ...], of_class: tuple[float, float]) -> None:
    answers = answered(*rows)
    found = mean_average_precision(answers, TRUE, 2)
    assert found.of_class == pytest.approx(of_class)
    assert found.map_50 == pytest.approx(sum(of_class) / 2)
    assert TASK.metric(answers, TRUE) == found.map_50
    assert found.map_50_95 <= found.map_50 + 1e-12


def test_stricter_overlaps_are_averaged() -> None:
    # An IoU of 7.01 / 10 is enough for five of the ten limits, 0.5 to 0.7.
    answers = torch.tensor([[[0.0, 0, 7.01, 10, 0.9, 0]]])
    found = mean_average_precision(answers, torch.tensor([[[0.0, 0, 0, 10, 10]]]), 1)
    assert (found.map_50, found.map_50_95) == pytest.approx((1.0, 0.5))


def test_a_class_that_no_true_box_has_does_not_count() -> None:
    found = mean_average_precision(answered(*RIGHT, (0, 0, 0, 5, 5, 0.9, 2)), TRUE, 4)
    assert found.map_50 == pytest.approx(1.0)
    assert math.isnan(found.of_class[2])
    assert math.isnan(found.of_class[3])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    mean_average_precision(answered(*RIGHT), TRUE, 2)
    assert capfd.readouterr() == ("", "")


def test_without_pycocotools_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pycocotools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtra, match=r'pip install "edgewise\[detection\]"'):
        TASK.metric(answered(*RIGHT), TRUE)


def test_answers_that_have_no_metric_are_refused() -> None:
    with pytest.raises(ModelError, match=r"answers are \[2, 6, 4, 4\]; they must be \[2, K, 6\]"):
        TASK.metric(random(2, 6, 4, 4), TRUE)
    with pytest.raises(ModelError, match="hold NaN or infinity"):
        TASK.metric(answered(*RIGHT) * float("nan"), TRUE)


# -- agreement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "same", "overlapping"),
    [
        pytest.param(RIGHT, 1.0, 1.0, id="the same"),
        pytest.param(RIGHT[:2], 0.5, 0.5, id="half of them"),
        pytest.param(tuple((*row[:4], row[4] + 0.5, *row[5:]) for row in RIGHT), 1.0, 1.0, id="half a pixel off"),
        pytest.param(tuple((*row[:4], row[4] + 0.6, *row[5:]) for row in RIGHT), 0.0, 1.0, id="more than that off"),
        pytest.param(tuple((*row[:6], 1 - row[6]) for row in RIGHT), 0.0, 0.0, id="other classes"),
        pytest.param(tuple((*row[:5], 0.14, row[6]) for row in RIGHT), 0.0, 0.0, id="hardly a score"),
        pytest.param(tuple((*row[:5], 0.16, row[6]) for row in RIGHT), 1.0, 1.0, id="half of the score"),
        pytest.param(tuple((row[0], 0, 0, 60, 60, *row[5:]) for row in RIGHT), 0.0, 0.0, id="everywhere"),
    ],
)
def test_agreement_by_hand(found: tuple[tuple[float, ...], ...], same: float, overlapping: float) -> None:
    expected = answered(*RIGHT, (1, 50, 50, 60, 60, 0.29, 0))  # the last is too unsure to be expected
    assert same_boxes(answered(*found), expected) == same
    assert overlapping_boxes(answered(*found), expected) == TASK.agreement(answered(*found), expected) == overlapping


def test_where_nothing_is_expected_all_agrees() -> None:
    assert same_boxes(answered(*RIGHT), answered((0, 0, 0, 10, 10, 0.2, 0))) == 1.0


def test_overlap_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 1, 1]])
    b = torch.tensor([[2.0, 2, 6, 6], [4, 0, 8, 4], [1, 1, 3, 3], [1, 1, 1, 1]])
    assert intersection_over_union(a, b).tolist() == pytest.approx([4 / 28, 0, 4 / 16, 0])


# -- batches and checks ---------------------------------------------------------------------------------------------


def test_a_batch_is_normalised_and_augmented_with_its_boxes() -> None:
    data, everything = split(), torch.tensor([2, 0])
    inputs, boxes = TASK.batch(data, everything, augment=False)
    assert torch.equal(boxes, data.labels[everything])
    assert inputs[0, 1, 0, 0].item() == pytest.approx((data.images[2, 1, 0, 0].item() / 255 - 0.5) / 0.25, abs=1e-5)
    results = [
        replace(TASK, augment=augment).batch(data, everything, augment=True, generator=torch.Generator().manual_seed(3))
        for augment in ((), ("flip",), ("crop",), ("crop", "flip"))
    ]
    assert torch.equal(results[0][0], inputs)
    for place, (x, moved) in enumerate(results):
        assert (x.shape, moved.shape) == (inputs.shape, boxes.shape)
        assert all(not torch.equal(x, other) for other, _ in results[:place])
    for row, old in zip(results[1][1][:, 0], boxes[:, 0], strict=True):
        assert row.tolist() in (old.tolist(), [old[0], 16 - old[3], old[2], 16 - old[1], old[4]])


def test_the_training_choices_are_taken_over_or_refused() -> None:
    chosen = {"label_smoothing": 0.0, "augment": ("flip",), "cutout_size": 0.5, "mixup_alpha": 0.2}
    assert TASK.trained_with(**chosen) == replace(TASK, augment=("flip",))
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.1"):
        TASK.trained_with(**{**chosen, "label_smoothing": 0.1})
    for name in ("cutout", "mixup"):
        with pytest.raises(ValueError, match=f'augment holds "{name}", which boxes do not survive'):
            TASK.trained_with(**{**chosen, "augment": ("crop", name)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"std": (0.5, 0.0)}, "each std above 0"),
        ({"mean": (0.5,)}, "one number per channel"),
        ({"augment": ("flop",)}, 'did you mean "flip"'),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"scale": (1.5, 1.0)}, "scale is"),
        ({"shift": 1.0}, "shift is"),
        ({"jitter": -0.1}, "jitter is"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TASK, **wrong)


def changed(place: tuple[object, ...], value: float) -> Tensor:
    labels = torch.tensor([[[0.0, 1, 1, 5, 5], [1, 0, 0, 16, 16]], [[1, 2, 3, 4, 5], [-1, 0, 0, 0, 0]]])
    labels[place] = value
    return labels


IMAGES = torch.zeros(2, 2, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:0], torch.zeros(0, 1, 5), "holds no images"),
        (IMAGES.float(), changed((), 0), r"images are float32 \[2, 2, 16, 16\]; they must be uint8"),
        (IMAGES[:, :1], changed((0, 0, 0), 0), "with C = 2"),
        (IMAGES, torch.zeros(2, dtype=torch.int64), r"boxes are int64 \[2\]; they must be float32 \[2, M, 5\]"),
        (IMAGES, torch.zeros(2, 3, 4), r"boxes are float32 \[2, 3, 4\]"),
        (IMAGES[:, :, :, :10], changed((0, 0, 0), 0), "images are 16x10; both sides must be multiples of 4"),
        (IMAGES, changed((0, 1, 0), 2), r"box 1 of image 0 is \[2\.0, .*class in \[0, 2\)"),
        (IMAGES, changed((1, 0, 0), 0.5), "box 0 of image 1"),
        (IMAGES, changed((1, 0, 0), float("nan")), "box 0 of image 1"),
        (IMAGES, changed((1, 0, 3), 17), "box 0 of image 1"),
        (IMAGES, changed((1, 0, 3), float("nan")), "box 0 of image 1"),
        (IMAGES, changed((0, 0, 2), -1), "box 0 of image 0"),
        (IMAGES, changed((0, 0, 4), 1), "box 0 of image 0"),
        (IMAGES, changed((slice(None), slice(None), 0), -1), "the split holds no boxes"),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    TASK.check(Split(IMAGES, changed((0, 0, 0), 0)))
    with pytest.raises(DataError, match=message):
        TASK.check(Split(images, labels))


def test_networks_that_return_no_maps_are_refused(network: nn.Module) -> None:
    task = Detection(mean=(0.5,) * 3, std=(0.5,) * 3, classes=2)
    task.check_network(network, (3, 64, 64))
    with pytest.raises(
        ModelError, match=r"a tensor \[2, 6, 16, 16\] .* maps \[2, 9, 16, 16\]; take one of centernet_tiny"
    ):
        replace(task, classes=5).check_network(network, (3, 64, 64))
    with pytest.raises(ModelError, match=r"returned a tensor \[2, 2\] for inputs \[2, 3, 32, 32\]; to find boxes"):
        task.check_network(build("resnet20", classes=2, width=0.25), (3, 32, 32))
    with pytest.raises(ModelError, match=r"the network's output is \[2, 7, 4, 4\]; it must be \[2, 6, H / 4, W / 4\]"):
        task.loss(random(2, 7, 4, 4), some_boxes(2, 3, 2, 16))
