"""What a network learns: its loss, its metric, and how a batch is made."""

from typing import Protocol, Self

import torch
from torch import Tensor

from edgewise.data import Split
from edgewise.tasks.classification import Classification

__all__ = ["Classification", "Task"]


class Task(Protocol):
    """What the training loop and the methods know of a task; they never ask which it is."""

    def trained_with(
        self, *, label_smoothing: float, augment: tuple[str, ...], cutout_size: float, mixup_alpha: float
    ) -> Self:
        """Return this task with the training choices of a `TrainConfig`, which holds their meaning.

        Raises:
            ValueError: a choice that means nothing to this task.
        """
        ...

    def check(self, split: Split) -> None:
        """Refuse a split that cannot be learned or measured.

        Raises:
            DataError: no images, of another shape or type, or labels out of range.
        """
        ...

    def batch(
        self, split: Split, index: Tensor, *, augment: bool, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gather images and make them ready for the network, on the split's device.

        Args:
            split: the images, uint8 [N, C, H, W].
            index: int64 [B], which of them.
            augment: whether to augment them.
            generator: where augmentation draws from, on the split's device; None is torch's global one.

        Returns:
            Inputs, float32 [B, C, H, W], and targets as `loss` takes them.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a float32 scalar."""
        ...

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Compute how good the outputs of a whole split are; higher is better."""
        ...
