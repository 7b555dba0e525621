"""What a data set is once it is loaded: images and what is known about them, whole in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["classification", "detection", "steganalysis"]


@dataclass(frozen=True)
class Split:
    """Images and their labels; what both mean is for the task to say.

    Args:
        images: [N, C, H, W], or [N, K, C, H, W] where K images belong together; uint8, or float32 where bytes would
            round away what is looked for.
        labels: [N, ...]: a class int64 [N], or boxes float32 [N, M, 5].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: Tensor | slice) -> "Split":
        """Return some of the images with their labels.

        Args:
            index: int64 [n], on any device; or a slice, which copies nothing.
        """
        if isinstance(index, Tensor):
            return Split(self.images[index.to(self.images.device)], self.labels[index.to(self.labels.device)])
        return Split(self.images[index], self.labels[index])

    def to(self, device: str | torch.device) -> "Split":
        """Return the split on a device; the same tensors where they lie there already."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set, split three ways.

    Args:
        name: what to call it where people read.
        classes: their names; a label, or the class of a box, is an index of this tuple.
        train: what networks learn from.
        held: taken out of the training images, for every choice that a method makes.
        test: only ever reported.
        mean: per channel, of the training images in [0, 1].
        std: per channel, likewise.
        checksum: ``sha256:`` and the hash of every image and label as decoded and resized; the share that is held
            out does not change it.
        note: what a reader of its figures must know, or empty.
        kind: of its labels, by which the task is found: `edgewise.tasks.task_of`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    held: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    note: str = ""
    kind: Kind = "classification"

    @property
    def channels(self) -> int:
        """Count the channels of an image."""
        return self.train.images.shape[-3]

    @property
    def size(self) -> int:
        """Return the side of an image in pixels; images are square."""
        return self.train.images.shape[-2]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of an image."""
        return self.channels, self.size, self.size


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (image / 255 - mean) / std.

    Args:
        images: [N, C, H, W], of 0 to 255, uint8 or float32.
        mean: one number per channel, of images in [0, 1].
        std: likewise, each above 0.

    Returns:
        float32 [N, C, H, W], on the images' device and in their memory format.

    Raises:
        ValueError: as many means or deviations as there are channels are needed.

    >>> normalize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), mean=[0.5], std=[0.25]).tolist()
    [[[[-2.0, 2.0]]]]
    """
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean {tuple(mean)} and std {tuple(std)} must have one number for each of {channels} channels"
        )
    # One multiplication and one addition per number: x (1 / 255 std) + (-mean / std).
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(-1, 1, 1)
    return (images * scale).add_(shift)
