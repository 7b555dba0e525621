"""Augmentation as pure functions of a batch: each image gets its own random choice, no loop runs over images.

They take uint8 or float batches [N, C, H, W] on any device and keep type, device and memory format (contiguous or
channels_last). Random numbers are drawn where the generator lives, so a CPU generator gives the same choices on every
device; without one they come from torch's global generator of the images' device.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Border = Literal["reflect", "zero"]


def crop(
    images: Tensor, padding: int, generator: torch.Generator | None = None, *, border: Border = "reflect"
) -> Tensor:
    """Pad every image on all sides, then cut its original size out of it at a random place.

    Args:
        images: [N, C, H, W].
        padding: pixels on each side; each of the (2 padding + 1)² places is equally likely.
        generator: where the places come from.
        border: what the padding shows: the image mirrored at its outermost pixels, or zeros.

    Raises:
        ValueError: negative padding, or a mirror wider than the image has pixels.

    >>> image = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    >>> crop(image, 1, torch.Generator().manual_seed(5)).tolist()
    [[[[5, 4, 5], [8, 7, 8], [5, 4, 5]]]]
    """
    n, channels, height, width = images.shape
    if padding < 0 or (border == "reflect" and padding >= min(height, width)):
        raise ValueError(f"padding is {padding}; it must be in [0, {min(height, width)}) for images {height}x{width}")
    top, left = (_integers(2 * padding + 1, n, images, generator) for _ in range(2))
    padded = _pad(images, padding, border)
    # A row of the result is a run of consecutive numbers in the padded images: W of them in one channel's plane, or
    # W C where the channels of a pixel lie side by side. So the result is one selection among all such runs, which
    # overlap in memory and are never written out.
    interleaved = channels > 1 and padded.is_contiguous(memory_format=torch.channels_last)
    padded = padded if interleaved else padded.contiguous()
    planes, pixel = (1, channels) if interleaved else (channels, 1)
    run, padded_height, padded_run = width * pixel, height + 2 * padding, (width + 2 * padding) * pixel
    plane = torch.arange(n * planes, device=images.device).view(n, planes, 1)
    row = plane * padded_height + top.view(-1, 1, 1) + torch.arange(height, device=images.device)
    start = row * padded_run + left.view(-1, 1, 1) * pixel
    runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))
    cropped = runs.index_select(0, start.flatten())
    return cropped.view(n, height, width, channels).permute(0, 3, 1, 2) if interleaved else cropped.view(images.shape)


def flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror every image left to right with probability 1/2."""
    chosen = _integers(2, len(images), images, generator).bool()
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def cutout(images: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Set a square of every image to 0, at a random place that lies wholly inside the image.

    Args:
        images: [N, C, H, W].
        size: the square's side in pixels.
        generator: where the places come from.

    Raises:
        ValueError: a square that does not fit into the image.

    Reference: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
    arXiv 1708.04552, section 3. There the centre is uniform and the square may leave the image, so that pixels near
    the border are hidden less; here every image loses exactly size² pixels.
    """
    n, _, height, width = images.shape
    if not 0 <= size <= min(height, width):
        raise ValueError(f"size is {size}; it must be in [0, {min(height, width)}] for images {height}x{width}")
    rows = _inside(_integers(height - size + 1, n, images, generator), size, height)
    columns = _inside(_integers(width - size + 1, n, images, generator), size, width)
    return torch.where((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0, images)


def mixup(
    images: Tensor, targets: Tensor, classes: int, alpha: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Blend every image with another of the batch, and their targets alike.

    x = s x_i + (1 - s) x_j,  y = s y_i + (1 - s) y_j,  s ~ Beta(alpha, alpha), j a random permutation of the batch.

    Args:
        images: [N, C, H, W]; bytes are blended as numbers and rounded.
        targets: int64 [N], labels in [0, classes).
        classes: how many.
        alpha: near 0 leaves most images almost alone, 1 blends evenly often in every proportion.
        generator: where s and j come from.

    Returns:
        The images, and soft targets, float32 [N, classes], whose rows sum to 1.

    Raises:
        ValueError: alpha not above 0.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412, eq. (1). As in
    its section 3 the partner comes from the same batch; s is drawn for each image rather than once for the batch.
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0")
    n = len(images)
    device = generator.device if generator is not None else images.device
    # Beta(a, a) is G / (G + G') of two Gamma(a). torch.distributions takes no generator, the function below it does.
    # In float64, since for a small alpha both may be smaller than any float32.
    concentration = torch.full((2, n), alpha, dtype=torch.float64, device=device)
    first, second = torch._standard_gamma(concentration, generator=generator)
    share = (first / (first + second)).to(images.device, torch.float32)
    partner = torch.randperm(n, generator=generator, device=device).to(images.device)
    weight = share.view(-1, 1, 1, 1)
    values = images if images.is_floating_point() else images.float()
    blended = torch.lerp(values[partner], values, weight.to(values.dtype))
    blended = blended if images.is_floating_point() else blended.round().to(images.dtype)
    hot = F.one_hot(targets, classes).float()
    return blended, torch.lerp(hot[partner], hot, share.view(-1, 1))


def _pad(images: Tensor, padding: int, border: Border) -> Tensor:
    if border == "zero" or padding == 0:
        return F.pad(images, (padding,) * 4)
    # torch's reflection padding knows no bytes.
    for dim in (2, 3):
        start = images.narrow(dim, 1, padding).flip(dim)
        end = images.narrow(dim, images.shape[dim] - padding - 1, padding).flip(dim)
        images = torch.cat([start, images, end], dim)
    return images


def _integers(high: int, count: int, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw integers in [0, high), int64 [count], on the images' device."""
    device = generator.device if generator is not None else images.device
    return torch.randint(high, (count,), generator=generator, device=device).to(images.device)


def _inside(start: Tensor, length: int, extent: int) -> Tensor:
    """Mark, for each start [N], the positions start to start + length - 1: bool [N, extent]."""
    position = torch.arange(extent, device=start.device)
    return (position >= start[:, None]) & (position < start[:, None] + length)
