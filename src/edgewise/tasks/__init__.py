"""What a network learns: its loss, its metric, and how a batch is made."""

from typing import Protocol, Self

import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.tasks.classification import Classification, same_class
from edgewise.tasks.detection import Detection, overlapping_boxes, same_boxes
from edgewise.tasks.precision import AveragePrecision, mean_average_precision

__all__ = [
    "AveragePrecision",
    "Classification",
    "Detection",
    "Task",
    "mean_average_precision",
    "overlapping_boxes",
    "same_boxes",
    "same_class",
]


class Task(Protocol):
    """What the training loop and the methods know of a task; they never ask which it is.

    A network returns one tensor of ``outputs``, which the loss takes. What is made of them on the device, such as the
    boxes that a detector found, are the ``answers``, which the metric takes; a classifier's are its logits.
    """

    @property
    def metric_name(self) -> str:
        """What the metric is called where people read it, such as "accuracy"."""
        ...

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
            split: the images.
            index: int64 [B], which of them.
            augment: whether to augment them.
            generator: where augmentation draws from, on the split's device; None is torch's global one.

        Returns:
            Inputs, float32 [B, C, H, W] (more than there are indices where images belong together), and targets
            [B, ...] as `loss` and `metric` take them.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a float32 scalar."""
        ...

    def answers(self, outputs: Tensor) -> Tensor:
        """Return what the device makes of outputs [B, ...]; answers, which a file may give, stay as they are."""
        ...

    def metric(self, answers: Tensor, targets: Tensor) -> float:
        """Compute how good the answers of a whole split are, a fraction; higher is better."""
        ...

    def agreement(self, found: Tensor, expected: Tensor) -> float:
        """Compute the share of the expected answers that are among those found, whatever their quality."""
        ...

    def check_network(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Refuse a network whose outputs the loss cannot take.

        Raises:
            ModelError: the forward raised, or returned something else.
        """
        ...

    def tail(self) -> nn.Module | None:
        """Return the module that makes answers of outputs, to be appended to the file that is shipped; if any."""
        ...
