"""Boxes around objects, found as peaks of heatmaps: CenterNet's loss, its decoding, and average precision.

A network returns one tensor [B, classes + 4, H / 4, W / 4] for images [B, C, H, W]: a heatmap of logits for each class,
whose peaks are the centres of objects; the offset (x, y) of the centre inside its place on the grid; and the size
(width, height) of the box, in places of the grid. True boxes are float32 [B, M, 5] with rows (class, x1, y1, x2, y2) in
pixels of the image, filled up by rows of class -1. Answers are [B, K, 6] with rows (x1, y1, x2, y2, score, class).

Reference: Zhou, Wang, Krähenbühl, "Objects as Points", 2019, arXiv 1904.07850.
"""

import math
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split, flip_boxes, jitter, normalize, zoom_boxes
from edgewise.errors import DataError, ModelError, nearest
from edgewise.tasks.precision import intersection_over_union, mean_average_precision
from edgewise.tasks.task import Task

AUGMENTATIONS = ("crop", "flip")

STRIDE = 4  # pixels of the image for one place of the grid
BOX = 4  # maps that say where a box lies: offset x, y and width, height
PEAKS = 100  # boxes answered for each image: as many as COCO's protocol counts
SIZE_WEIGHT = 0.1  # of the loss of the sizes, which are many times larger than offsets (the paper, section 4)
FLOOR = 1e-4  # probabilities are kept within [FLOOR, 1 - FLOOR] in the loss, as in the authors' code
NO_PEAK = -100.0  # the logit of a place that is no peak; float32 takes its sigmoid for 0 next to any real score's

LEAST_SCORE = 0.3  # from which a box counts where two lists of boxes are compared


def split_outputs(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the heatmap logits [B, classes, H, W], offsets [B, 2, H, W] and sizes [B, 2, H, W] of outputs."""
    heatmap, offset, size = torch.split(outputs, [outputs.shape[1] - BOX, 2, 2], dim=1)
    return heatmap, offset, size


def gaussian_radius(width: Tensor, height: Tensor, overlap: float = 0.7) -> Tensor:
    """Compute how far both corners of a box may be off, at most, for it to keep an IoU with the true one.

    The smallest of three: one corner out and one in, both in, both out. With r the distance along each axis::

        one of each: (w - r) (h - r)   = overlap (2 w h - (w - r) (h - r))
        both in:     (w - 2r) (h - 2r) = overlap w h
        both out:    w h               = overlap (w + 2r) (h + 2r)

    Args:
        width: of any shape, above 0.
        height: likewise.
        overlap: the IoU to keep, in (0, 1).

    Returns:
        Distances, in the unit of width and height.

    Reference: Law, Deng, "CornerNet", ECCV 2018, arXiv 1808.01244, section 3.2.

    >>> round(gaussian_radius(torch.tensor(10.0), torch.tensor(10.0)).item(), 4)  # both in: (10 - 2r)^2 = 70
    0.8167
    """
    total, product = width + height, width * height

    def smaller_root(a: float, b: Tensor, c: Tensor) -> Tensor:
        """Solve a r^2 - b r + c = 0."""
        return (b - (b * b - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)

    one_of_each = smaller_root(1, total, product * (1 - overlap) / (1 + overlap))
    both_in = smaller_root(4, 2 * total, product * (1 - overlap))
    both_out = -smaller_root(4 * overlap, 2 * overlap * total, product * (overlap - 1))
    return torch.minimum(torch.minimum(one_of_each, both_in), both_out)


def draw(boxes: Tensor, classes: int, height: int, width: int) -> Tensor:
    """Draw the heatmap that is to be learned: a Gaussian of height 1 around the centre of each box.

    exp(-(dx^2 + dy^2) / (2 sigma^2)) within the radius r of `gaussian_radius`, rounded down, along both axes; 0
    outside; sigma = (2 r + 1) / 6. Where Gaussians of one class overlap, the larger value counts.

    Args:
        boxes: [B, M, 5], in pixels of the image.
        classes: how many.
        height: of the grid.
        width: of the grid.

    Returns:
        float32 [B, classes, height, width] in [0, 1]; exactly 1 at the centres.
    """
    image, row = (boxes[:, :, 0] >= 0).nonzero(as_tuple=True)
    objects = boxes[image, row].float()
    heatmap = torch.zeros(len(boxes) * classes * height * width, device=boxes.device)
    if len(objects):
        label, (x, y) = objects[:, 0].long(), _places(objects, height, width)
        extent = ((objects[:, 3:] - objects[:, 1:3]) / STRIDE).ceil()
        radius = gaussian_radius(extent[:, 0], extent[:, 1]).clamp(min=0).floor()
        most = int(radius.max())
        steps = torch.arange(-most, most + 1, device=boxes.device)
        dx, dy = steps.view(1, 1, -1), steps.view(1, -1, 1)
        sigma, radius = ((2 * radius + 1) / 6).view(-1, 1, 1), radius.view(-1, 1, 1)
        value = torch.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma))
        column, line = x.view(-1, 1, 1) + dx, y.view(-1, 1, 1) + dy
        inside = (dx.abs() <= radius) & (dy.abs() <= radius)
        inside = inside & (column >= 0) & (column < width) & (line >= 0) & (line < height)
        plane = (image * classes + label).view(-1, 1, 1) * height
        index = ((plane + line) * width + column).masked_fill(~inside, 0)
        heatmap.scatter_reduce_(0, index.flatten(), value.masked_fill(~inside, 0).flatten(), "amax")
    return heatmap.view(len(boxes), classes, height, width)


def focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Compute how far a heatmap is from the drawn one, hard places counting most.

    -1/N sum of (1 - p)^2 log p where the drawn value Y is 1, of (1 - Y)^4 p^2 log(1 - p) elsewhere; p = sigmoid(logit),
    kept within [1e-4, 1 - 1e-4]; N the number of places with Y = 1, at least 1.

    Args:
        logits: [B, classes, H, W].
        heatmap: likewise, Y in [0, 1].

    Returns:
        A float32 scalar.

    Reference: Zhou et al., arXiv 1904.07850, eq. (1).

    >>> heatmap = torch.tensor([[[[1.0, 0.5]]]])
    >>> round(focal_loss(torch.zeros(1, 1, 1, 2), heatmap).item(), 4)  # log 2 (1/4 + 1/16 1/4)
    0.1841
    """
    # Bounds on the logit are the same bounds on p, and log-sigmoid keeps the digits that log(1 - p) would lose.
    bound = math.log((1 - FLOOR) / FLOOR)
    z = logits.float().clamp(-bound, bound)
    p = z.sigmoid()
    centre = heatmap == 1
    positive = (1 - p).square() * F.logsigmoid(z)
    negative = (1 - heatmap).pow(4) * p.square() * F.logsigmoid(-z)
    return -torch.where(centre, positive, negative).sum() / centre.sum().clamp(min=1)


def box_losses(offset: Tensor, size: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute how far offsets and sizes are off at the centres of the true boxes.

    1/N sum of |x - x'| + |y - y'| over the N boxes; only the centres' own places count.

    Args:
        offset: [B, 2, H, W], the part of the centre (x, y) that the grid rounds off, in [0, 1).
        size: [B, 2, H, W], (width, height) in places of the grid.
        boxes: [B, M, 5], in pixels of the image.

    Returns:
        The losses of the offsets and of the sizes, float32 scalars; 0 where there are no boxes.

    Reference: Zhou et al., arXiv 1904.07850, eq. (2) and (3). The authors' code divides by the 2 N numbers instead.
    """
    image, row = (boxes[:, :, 0] >= 0).nonzero(as_tuple=True)
    objects = boxes[image, row].float()
    x, y = _places(objects, *offset.shape[2:])
    centre = (objects[:, 1:3] + objects[:, 3:]) / (2 * STRIDE)
    wanted_offset, wanted_size = centre - torch.stack([x, y], 1), (objects[:, 3:] - objects[:, 1:3]) / STRIDE
    count = max(1, len(objects))
    return (
        (offset[image, :, y, x].float() - wanted_offset).abs().sum() / count,
        (size[image, :, y, x].float() - wanted_size).abs().sum() / count,
    )


def decode(outputs: Tensor, peaks: int = PEAKS) -> Tensor:
    """Read the boxes off a network's outputs: at each place that is the largest of its 3x3 neighbours in its class.

    Args:
        outputs: [B, classes + 4, H, W].
        peaks: how many to return for each image, at most; never more than the heatmap has places.

    Returns:
        [B, K, 6], rows (x1, y1, x2, y2, score, class) in pixels of the image, the largest score first. Where there are
        fewer peaks than K, the last rows have the score 0. Boxes are not cut off at the image's edge.

    Reference: Zhou et al., arXiv 1904.07850, section 4.1.
    """
    heatmap, offset, size = split_outputs(outputs)
    classes, height, width = heatmap.shape[1:]
    # Logits have the order of probabilities and are equal less often, so the sigmoid comes last, and only for K.
    # Both comparisons are such that NaN stays NaN, and no metric is made of it.
    lower = heatmap < F.max_pool2d(heatmap, 3, stride=1, padding=1)
    logits = torch.where(lower, NO_PEAK, heatmap).flatten(1)
    best, index = logits.topk(min(peaks, classes * height * width), dim=1)
    label, place = index // (height * width), index % (height * width)
    at = place.unsqueeze(1).expand(-1, BOX, -1)
    x, y, w, h = torch.cat([offset, size], 1).flatten(2).gather(2, at).unbind(1)
    x, y, w, h = x + place % width, y + place // width, w.clamp(min=0), h.clamp(min=0)
    score = torch.where(best <= NO_PEAK, 0, best.sigmoid())
    edges = [STRIDE * (x - w / 2), STRIDE * (y - h / 2), STRIDE * (x + w / 2), STRIDE * (y + h / 2)]
    return torch.stack([*edges, score, label.to(score.dtype)], 2)


@final
class Decode(nn.Module):
    """`decode` as a module, for the end of a file that is shipped: the batch may have any length."""

    def __init__(self, peaks: int = PEAKS) -> None:
        super().__init__()
        self.peaks = peaks

    def forward(self, outputs: Tensor) -> Tensor:
        """Map outputs [B, classes + 4, H, W] to answers [B, K, 6]."""
        return decode(outputs, self.peaks)


def same_boxes(found: Tensor, expected: Tensor, within_px: float = 0.5, least_score: float = LEAST_SCORE) -> float:
    """Compute the share of expected boxes that were found at the same place.

    Args:
        found: answers [N, K, 6]; a box with half of `least_score` serves.
        expected: answers [N, K', 6]; those with `least_score` count.
        within_px: how far each of the four edges may be off, in pixels.
        least_score: in [0, 1].

    Returns:
        In [0, 1]; 1 where no box is expected.
    """
    near = (found[:, None, :, :4] - expected[:, :, None, :4]).abs().amax(3) <= within_px
    return _share_found(near, found, expected, least_score)


def overlapping_boxes(found: Tensor, expected: Tensor, overlap: float = 0.5, least_score: float = LEAST_SCORE) -> float:
    """Compute the share of expected boxes that were found with an IoU of `overlap`; else as `same_boxes`."""
    near = intersection_over_union(expected[:, :, None, :4], found[:, None, :, :4]) >= overlap
    return _share_found(near, found, expected, least_score)


@final
@dataclass(frozen=True)
class Detection(Task):
    """Where the objects of an image are, and of which class.

    Args:
        mean: per channel, of images in [0, 1]; inputs are (image / 255 - mean) / std.
        std: per channel, likewise.
        classes: how many; those of boxes run from 0 to classes - 1.
        augment: of ``crop`` (a random magnification and shift, with light changes of brightness and contrast) and
            ``flip`` (left and right). `fit` sets it to what its `TrainConfig` says.
        scale: the least and the largest magnification of ``crop``.
        shift: the largest move of ``crop`` beyond the frame, as a share of the side.
        jitter: the strength of the changes of brightness and contrast, in standard deviations of the data.

    Raises:
        ValueError: a value out of range, by name.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    augment: tuple[str, ...] = ("crop", "flip")
    scale: tuple[float, float] = (0.7, 1.4)
    shift: float = 0.1
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} need one number per channel, and each std above 0")
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; it must be at least 1")
        for name in self.augment:
            if name in ("cutout", "mixup"):
                raise ValueError(f'augment holds "{name}", which boxes do not survive; take of "crop" and "flip"')
            if name not in AUGMENTATIONS:
                raise ValueError(f'augment holds "{name}"; {nearest(name, AUGMENTATIONS)}')
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; it must be two numbers above 0 that do not fall")
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift is {self.shift}; it must be in [0, 1), a fraction of the image's side")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is {self.jitter}; it must be in [0, 1)")

    def trained_with(
        self, *, label_smoothing: float, augment: tuple[str, ...], cutout_size: float, mixup_alpha: float
    ) -> Self:
        """Return this task with the training choices of a `TrainConfig`; boxes take neither cutout nor mixup.

        Raises:
            ValueError: label smoothing, which a heatmap has none of; an augmentation that boxes do not survive.
        """
        if label_smoothing != 0:
            raise ValueError(f"label_smoothing is {label_smoothing}; heatmaps of centres take none, so it must be 0")
        return replace(self, augment=tuple(augment))

    def check(self, split: Split) -> None:
        """Refuse a split that cannot be learned or measured.

        Raises:
            DataError: no images or boxes, not uint8 [N, C, H, W] and float32 [N, M, 5], sides that are no multiples of
                4, a class out of range or a box outside its image (which).
        """
        images, boxes = split.images, split.labels
        if len(split) == 0:
            raise DataError("the split holds no images")
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != len(self.mean):
            raise DataError(f"images are {_shape(images)}; they must be uint8 [N, C, H, W] with C = {len(self.mean)}")
        if boxes.dtype != torch.float32 or boxes.dim() != 3 or boxes.shape[::2] != (len(images), 5):
            raise DataError(f"boxes are {_shape(boxes)}; they must be float32 [{len(images)}, M, 5]")
        height, width = images.shape[2:]
        if height % STRIDE or width % STRIDE:
            raise DataError(f"images are {height}x{width}; both sides must be multiples of {STRIDE}")
        label, edges = boxes[:, :, 0], boxes[:, :, 1:]
        extent = torch.tensor([width, height] * 2, device=boxes.device)
        wrong = (label >= self.classes) | (label != label.floor()) | label.isnan()
        outside = ((edges < 0) | (edges > extent)).any(2) | ~(edges[:, :, 2:] > edges[:, :, :2]).all(2)
        bad = (wrong | (outside & (label >= 0))).nonzero()
        if len(bad):
            image, row = (int(number) for number in bad[0])
            raise DataError(
                f"box {row} of image {image} is {boxes[image, row].tolist()}; it must be a class in "
                f"[0, {self.classes}) and edges x1 < x2, y1 < y2 inside {height}x{width}"
            )
        if not bool((label >= 0).any()):
            raise DataError("the split holds no boxes")

    def batch(
        self, split: Split, index: Tensor, *, augment: bool, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gather images with their boxes, normalise them, and augment both.

        Returns:
            Inputs, float32 [B, C, H, W], and boxes, float32 [B, M, 5].
        """
        images, boxes = split.images[index], split.labels[index]
        chosen = self.augment if augment else ()
        if "flip" in chosen:
            images, boxes = flip_boxes(images, boxes, generator)
        inputs = normalize(images, self.mean, self.std)
        if "crop" in chosen:
            inputs = jitter(inputs, self.jitter, generator)
            inputs, boxes = zoom_boxes(inputs, boxes, scale=self.scale, shift=self.shift, generator=generator)
        return inputs, boxes

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the focal loss of the heatmaps + the offsets' + 0.1 times the sizes', per object.

        Raises:
            ModelError: outputs of another shape.
        """
        self._check_outputs(outputs, targets)
        heatmap, offset, size = split_outputs(outputs.float())  # also under autocast: losses need the digits
        offset_loss, size_loss = box_losses(offset, size, targets)
        drawn = draw(targets, self.classes, *heatmap.shape[2:])
        return focal_loss(heatmap, drawn) + offset_loss + SIZE_WEIGHT * size_loss

    @property
    def metric_name(self) -> str:
        """What the metric is called."""
        return "mAP@0.5"

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the boxes [B, 100, 6] of outputs [B, classes + 4, H, W]; boxes stay as they are."""
        return outputs if outputs.dim() == 3 else decode(outputs)

    def metric(self, answers: Tensor, targets: Tensor) -> float:
        """Compute the mean average precision at an IoU of 0.5; see `mean_average_precision`.

        Raises:
            ModelError: answers of another shape, or with NaN or infinity in them.
            MissingExtra: pycocotools is not installed.
        """
        if answers.dim() != 3 or answers.shape[::2] != (len(targets), 6):
            raise ModelError(f"the network's answers are {list(answers.shape)}; they must be [{len(targets)}, K, 6]")
        if not bool(answers.isfinite().all()):
            raise ModelError("the network's outputs hold NaN or infinity; they have no average precision")
        return mean_average_precision(answers, targets, self.classes).map_50

    def agreement(self, found: Tensor, expected: Tensor, *, exactly: bool = False) -> float:
        """Compute the share of expected boxes found with their class: overlapping by half; exactly: within 0.5 px."""
        alike = same_boxes if exactly else overlapping_boxes
        return alike(self.answers(found), self.answers(expected))

    def check_network(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Refuse a network that does not return maps [N, classes + 4, H / 4, W / 4]."""
        from edgewise.models import check_maps  # it imports what trains, which imports tasks

        check_maps(model, input_shape, self.classes + BOX, STRIDE)

    def tail(self) -> nn.Module | None:
        """Return the module that reads boxes off the outputs."""
        return Decode()

    def _check_outputs(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.dim() != 4 or outputs.shape[:2] != (len(targets), self.classes + BOX):
            expected = f"[{len(targets)}, {self.classes + BOX}, H / {STRIDE}, W / {STRIDE}]"
            raise ModelError(
                f"the network's output is {list(outputs.shape)}; it must be {expected}, classes + {BOX} maps"
            )


def _places(objects: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the column and the line of the grid, int64 [n] each, that the centres of boxes [n, 5] fall into."""
    x, y = ((objects[:, 1:3] + objects[:, 3:]) / (2 * STRIDE)).floor().long().unbind(1)
    return x.clamp(0, width - 1), y.clamp(0, height - 1)


def _share_found(near: Tensor, found: Tensor, expected: Tensor, least_score: float) -> float:
    """Compute the share of expected boxes that any box near [N, K', K], of their class and with a score, serves."""
    counts = expected[:, :, 4] >= least_score
    serves = near & (found[:, None, :, 5] == expected[:, :, None, 5]) & (found[:, None, :, 4] >= least_score / 2)
    return serves.any(2)[counts].double().mean().item() if bool(counts.any()) else 1.0


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
