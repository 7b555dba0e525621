"""Boxes stay around what they surround, whatever is done to the image."""

import pytest
import torch
from torch import Tensor

from edgewise.data import flip_boxes, jitter, zoom_boxes
from edgewise.data.augment_boxes import area


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def painted(boxes: Tensor, height: int = 32, width: int = 48) -> Tensor:
    """Images of 0 with 1 inside their boxes."""
    images = torch.zeros(len(boxes), 1, height, width)
    for image, rows in zip(images, boxes, strict=True):
        for label, x1, y1, x2, y2 in rows.tolist():
            if label >= 0:
                image[:, round(y1) : round(y2), round(x1) : round(x2)] = 1
    return images


def around(image: Tensor) -> list[float]:
    """The edges of what is brighter than half."""
    bright = (image[0] > 0.5).nonzero()
    (y1, x1), (y2, x2) = bright.amin(0).tolist(), bright.amax(0).tolist()
    return [x1, y1, x2 + 1, y2 + 1]


def one_box(count: int) -> Tensor:
    """For each image a box of whole pixels, then a row of none."""
    low = torch.randint(0, 16, (count, 2), generator=generator())
    high = low + torch.randint(8, 16, (count, 2), generator=generator(1))
    boxes = torch.zeros(count, 2, 5)
    boxes[:, 0] = torch.cat([torch.full((count, 1), 3), low, high], 1)
    boxes[:, 1, 0] = -1
    return boxes


def test_flipped_by_hand() -> None:
    images = torch.tensor([[[[1, 2, 3, 4]]]], dtype=torch.uint8).expand(64, 1, 1, 4)
    boxes = torch.tensor([[[2.0, 0, 0, 1, 1], [-1, 0, 0, 0, 0]]]).expand(64, 2, 5)
    flipped, moved = flip_boxes(images, boxes, generator())
    chosen = flipped[:, 0, 0, 0] == 4
    assert 20 < int(chosen.sum()) < 44
    assert flipped[chosen].unique(dim=0).tolist() == [[[[4, 3, 2, 1]]]]
    assert flipped[~chosen].unique(dim=0).tolist() == [[[[1, 2, 3, 4]]]]
    assert moved[chosen].unique(dim=0).tolist() == [[[2, 3, 0, 4, 1], [-1, 0, 0, 0, 0]]]
    assert torch.equal(moved[~chosen], boxes[~chosen])


def test_a_flipped_box_still_surrounds_its_object() -> None:
    boxes = one_box(20)
    images, moved = flip_boxes(painted(boxes), boxes, generator())
    assert all(around(image) == rows[0, 1:].tolist() for image, rows in zip(images, moved, strict=True))


@pytest.mark.parametrize("scale", [(0.5, 0.7), (0.7, 1.4), (1.4, 2.0)])
def test_a_zoomed_box_still_surrounds_its_object(scale: tuple[float, float]) -> None:
    boxes = one_box(60)
    images, moved = zoom_boxes(painted(boxes), boxes, scale=scale, generator=generator())
    kept = moved[:, 0, 0] >= 0
    assert int(kept.sum()) > 30
    assert moved[kept, 0, 0].unique().tolist() == [3]
    for image, rows in zip(images[kept], moved[kept], strict=True):
        assert around(image) == pytest.approx(rows[0, 1:].tolist(), abs=1.01)
    assert (moved[:, 1] == torch.tensor([-1.0, 0, 0, 0, 0])).all()


def test_boxes_are_cut_off_and_little_that_is_left_is_none() -> None:
    side = 40
    boxes = torch.tensor([[[0.0, x, y, x + 8, y + 8] for x in range(0, 32, 2) for y in range(0, 32, 2)]])
    boxes = boxes.expand(30, -1, -1)
    images = torch.zeros(30, 1, side, side)
    _, moved = zoom_boxes(images, boxes, scale=(1.5, 2.0), shift=0.3, generator=generator(3))
    kept = moved[:, :, 0] >= 0
    edges = moved[:, :, 1:][kept]
    assert (edges >= 0).all()
    assert (edges <= side).all()
    assert (edges[:, 2:] > edges[:, :2]).all()
    assert (moved[~kept] == torch.tensor([-1.0, 0, 0, 0, 0])).all()
    # Magnified by at least 1.5 a whole box has at least 144 pixels, and what is kept 30 % of them.
    assert area(edges).min() >= 0.3 * (8 * 1.5) ** 2
    assert 0.2 < kept.float().mean() < 0.9
    # Those just inside of the limit are there: the share left of the smallest is near 30 %.
    whole = (area(edges).view(-1) / area(edges).max()).min()
    assert whole < 0.35


def test_without_a_zoom_nothing_changes() -> None:
    boxes = one_box(4)
    images = torch.randn(4, 3, 32, 48, generator=generator())
    zoomed, moved = zoom_boxes(images, boxes, scale=(1, 1), shift=0)
    torch.testing.assert_close(zoomed, images, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved, boxes, atol=1e-4, rtol=0)


def test_outside_of_the_image_is_the_mean() -> None:
    zoomed, _ = zoom_boxes(torch.ones(50, 1, 32, 32), torch.zeros(50, 0, 5), scale=(0.5, 0.5), generator=generator())
    assert ((zoomed > -1e-6) & (zoomed < 1 + 1e-6)).all()
    # Half the side, and never further out than 0.1 sides over the edge.
    assert 0.16 <= zoomed.mean((1, 2, 3)).min() <= zoomed.mean((1, 2, 3)).max() == pytest.approx(0.25, abs=1e-3)


def test_every_magnification_is_drawn_as_often_in_its_logarithm() -> None:
    boxes = torch.tensor([[[0.0, 30, 30, 34, 34]]]).expand(2000, 1, 5)
    _, moved = zoom_boxes(torch.zeros(2000, 1, 64, 64), boxes, scale=(0.5, 2.0), shift=0, generator=generator())
    factor = ((moved[:, 0, 3] - moved[:, 0, 1]) / 4)[moved[:, 0, 0] >= 0]
    assert factor.min() == pytest.approx(0.5, abs=0.01)
    assert 0.4 < (factor < 1).float().mean() < 0.6


def test_jitter_by_hand() -> None:
    images = torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 1, 3).expand(200, 1, 1, 3)
    first, second, third = jitter(images, 0.2, generator())[:, 0, 0].unbind(1)
    contrast = second - first
    torch.testing.assert_close(third - first, 3 * contrast)
    for drawn in (contrast - 1, first):
        assert -0.2 <= drawn.min() < -0.18
        assert 0.18 < drawn.max() <= 0.2
    assert torch.equal(jitter(images, 0.0), images)


def test_the_generator_decides() -> None:
    boxes = one_box(5)
    results = []
    for _ in range(2):
        drawn = generator(7)
        images, moved = zoom_boxes(*flip_boxes(painted(boxes), boxes, drawn), generator=drawn)
        results.append((jitter(images, 0.5, drawn), moved))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.manual_seed(0)
    first = zoom_boxes(painted(boxes), boxes)[1]
    torch.manual_seed(0)
    assert torch.equal(zoom_boxes(painted(boxes), boxes)[1], first)


@pytest.mark.parametrize("wrong", [{"scale": (0, 1)}, {"scale": (1.2, 0.8)}, {"shift": -0.1}])
def test_ranges_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="scale must rise from above 0, shift be at least 0"):
        zoom_boxes(torch.zeros(1, 1, 4, 4), torch.zeros(1, 0, 5), **wrong)


@pytest.mark.parametrize("strength", [-0.1, 1.0])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"it must be in \[0, 1\)"):
        jitter(torch.zeros(1, 1, 4, 4), strength)
