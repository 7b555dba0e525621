"""What the training loop and the methods know of a task, and what tasks on logits share."""

from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split
from edgewise.errors import ModelError


def same_class(found: Tensor, expected: Tensor) -> float:
    """Compute the share of rows of logits [N, classes] whose largest is at the same place.

    >>> same_class(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[0.1, 0.0], [0.1, 0.0]]))
    0.5
    """
    return (found.argmax(1) == expected.argmax(1)).double().mean().item()


def check_logits(outputs: Tensor, targets: Tensor, classes: int) -> None:
    """Refuse outputs that are not logits [N, classes] for as many targets.

    Raises:
        ModelError: outputs of another shape.
    """
    if outputs.shape != (len(targets), classes):
        expected = [len(targets), classes]
        raise ModelError(f"the network's output is {list(outputs.shape)}; it must be {expected}, [N, classes]")


def check_finite(answers: Tensor, what: str) -> None:
    """Refuse answers that no figure can be found of.

    Raises:
        ModelError: NaN or infinity in them.
    """
    if not bool(answers.isfinite().all()):
        raise ModelError(f"the network's outputs hold NaN or infinity; they have no {what}")


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Compute the mean cross entropy of logits [N, classes] with labels [N] or shares [N, classes], in float32."""
    # In float32 also under autocast: a log-softmax in bfloat16 has two decimal digits.
    return F.cross_entropy(outputs.float(), targets, label_smoothing=label_smoothing)


class Task(Protocol):
    """What the training loop and the methods know of a task; they never ask which it is.

    A network returns one tensor of ``outputs``, which the loss takes. What is made of them on the device, such as the
    boxes that a detector found, are the ``answers``, which the metric takes. What is written out here is what holds for
    logits, which are answers already; a task inherits this and writes the rest.
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
        return outputs

    def metric(self, answers: Tensor, targets: Tensor) -> float:
        """Compute how good the answers of a whole split are, a fraction; higher is better."""
        ...

    def agreement(self, found: Tensor, expected: Tensor, *, exactly: bool = False) -> float:
        """Compute the share of the expected answers that were found too; either may be outputs still.

        Args:
            found: of the network that is looked at.
            expected: of the one that it is held against.
            exactly: both compute the same in floats, so that answers must be next to equal; else one may be quantised.
        """
        return same_class(found, expected)

    def check_network(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        """Refuse a network whose outputs the loss cannot take.

        Raises:
            ModelError: the forward raised, or returned something else.
        """
        ...

    def tail(self) -> nn.Module | None:
        """Return the module that makes answers of outputs, to be appended to the file that is shipped; if any."""
        return None
