"""Augmentation of images together with the boxes on them: each image gets its own random choice.

Boxes are float32 [N, M, 5] with rows (class, x1, y1, x2, y2) in pixels, edges from 0 to the image's width and height;
rows of class -1 are none. Random numbers are drawn where the generator lives, so a CPU generator gives the same
choices on every device; without one they come from torch's global generator of the images' device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# The least share of a box's area that must be left in the image; what shows less of an object cannot be learned.
LEAST_LEFT = 0.3


def flip_boxes(images: Tensor, boxes: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Mirror every image left to right with probability 1/2, and its boxes with it.

    Args:
        images: [N, C, H, W] of any type.
        boxes: [N, M, 5].
        generator: where the choices come from.
    """
    chosen = _uniform(0, 1, (len(images),), images, generator) < 0.5
    label, x1, y1, x2, y2 = boxes.unbind(2)
    width = images.shape[3]
    mirrored = torch.stack([label, width - x2, y1, width - x1, y2], 2)
    return (
        torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images),
        torch.where((chosen[:, None] & (label >= 0)).unsqueeze(2), mirrored, boxes),
    )


def zoom_boxes(
    images: Tensor,
    boxes: Tensor,
    *,
    scale: tuple[float, float] = (0.7, 1.4),
    shift: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Magnify every image about its centre by a random factor, move it, and cut the original size out.

    What lies outside the image becomes 0: the data's mean colour, of normalised images. Boxes are cut off at the edge;
    one of which less than 30 % of its area is left becomes a row of class -1.

    Args:
        images: float32 [N, C, H, W].
        boxes: [N, M, 5].
        scale: the least and the largest magnification; its logarithm is uniform.
        shift: the largest move, as a share of the side, beyond what keeps a magnified image filling the frame, or a
            smaller one wholly inside it.
        generator: where the choices come from.

    Raises:
        ValueError: magnifications that do not rise from above 0, a negative shift.
    """
    low, high = scale
    if not 0 < low <= high or shift < 0:
        raise ValueError(f"scale is {scale} and shift {shift}; scale must rise from above 0, shift be at least 0")
    n, _, height, width = images.shape
    factor = _uniform(math.log(low), math.log(high), (n, 1), images, generator).exp()
    # Of a magnification by s the centre may move by |s - 1| / 2 sides before an edge comes in, or goes out.
    moved = _uniform(-1, 1, (n, 2), images, generator) * ((factor - 1).abs() / 2 + shift)

    # A pixel of the result at p, in [-1, 1], shows the image at (p - 2 moved) / factor.
    theta = torch.diag_embed(torch.cat([1 / factor, 1 / factor], 1))
    theta = torch.cat([theta, (-2 * moved / factor).unsqueeze(2)], 2)
    grid = F.affine_grid(theta.to(images.dtype), [n, 1, height, width], align_corners=False)
    zoomed = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    side = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    edges = (boxes[:, :, 1:] / side - 0.5) * factor.unsqueeze(1) + moved.repeat(1, 2).unsqueeze(1) + 0.5
    cut = edges.clamp(0, 1)
    left = area(cut) >= LEAST_LEFT * area(edges)
    kept = (left & (boxes[:, :, 0] >= 0)).unsqueeze(2)
    label = torch.where(kept, boxes[:, :, :1], -1)
    return zoomed, torch.cat([label, torch.where(kept, cut * side, 0)], 2)


def jitter(images: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Change brightness and contrast of every image: c image + b, both drawn once per image.

    Args:
        images: float32 [N, C, H, W], normalised, so that contrast changes about the data's mean colour.
        strength: c is uniform in 1 +- strength and b in +- strength, in standard deviations of the data.
        generator: where the choices come from.

    Raises:
        ValueError: a strength outside [0, 1).
    """
    if not 0 <= strength < 1:
        raise ValueError(f"strength is {strength}; it must be in [0, 1)")
    drawn = _uniform(-strength, strength, (2, len(images), 1, 1, 1), images, generator)
    return images * (1 + drawn[0]) + drawn[1]


def area(edges: Tensor) -> Tensor:
    """Compute the area of boxes [..., 4], (x1, y1, x2, y2); of one that is turned inside out, 0."""
    areas: Tensor = (edges[..., 2:] - edges[..., :2]).clamp(min=0).prod(-1)
    return areas


def _uniform(
    low: float, high: float, shape: tuple[int, ...], images: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw float32 numbers in [low, high) on the images' device."""
    device = generator.device if generator is not None else images.device
    return (torch.rand(shape, generator=generator, device=device) * (high - low) + low).to(images.device)
