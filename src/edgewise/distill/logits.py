"""Knowledge distillation on logits: the student learns the teacher's softened answers."""

import copy
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.errors import ModelError
from edgewise.train.config import TrainConfig
from edgewise.train.forward import forward, home, weight_layout
from edgewise.train.method import TrainingMethod


@dataclass(frozen=True, kw_only=True)
class Distill:
    """How much the student listens to the teacher.

    Args:
        temperature: what both networks' logits are divided by; higher shows more of the small probabilities.
        alpha: share of the distillation loss; the task's loss has 1 - alpha.

    Raises:
        ValueError: a value out of range, by name.
    """

    kind: Literal["distill"] = "distill"
    temperature: float = 4.0
    alpha: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; it must be in [0, 1]")


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    The factor T^2 keeps the gradient's size while T changes: each softmax contributes 1/T to it.

    Args:
        student: logits [N, classes].
        teacher: logits [N, classes].
        temperature: T, above 0.

    Returns:
        A float32 scalar (float64 for float64 logits), 0 where both agree up to a constant per row.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531,
    section 2. It writes the cross entropy, which differs by the teacher's entropy: a constant for the student.

    >>> round(kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0).item(), 4)
    0.4438
    """
    # Both in log-space: a probability that underflows to 0 would give 0 * -inf. In float32 also under autocast.
    precision = torch.promote_types(student.dtype, torch.float32)
    log_student = F.log_softmax(student.to(precision) / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.to(precision) / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


@final
class LogitDistillation(TrainingMethod):
    """Trains the student on (1 - alpha) loss + alpha kd_loss, where `loss` is that of the methods before this one.

    So a penalty that should keep its full weight stands after the distillation in the recipe.

    Args:
        teacher: gives as many classes as the student. A frozen copy of it answers, in eval mode, under the training's
            autocast; the network itself is left as it is.
        config: temperature and alpha.
    """

    config: Distill

    def __init__(self, teacher: nn.Module, config: Distill) -> None:
        self.config = config
        self._given = teacher
        self._teacher = teacher

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Copy the teacher to the student's device and freeze the copy."""
        copied = copy.deepcopy(self._given).to(home(model)).eval().requires_grad_(False)
        self._teacher = weight_layout(copied, torch.channels_last)

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Mix the loss so far with the distillation loss on the same, augmented inputs.

        Raises:
            ModelError: teacher and student give different shapes, such as numbers of classes.
        """
        with torch.no_grad():
            answers = forward(self._teacher, inputs)
        if answers.shape != outputs.shape:
            raise ModelError(f"the teacher's output is {list(answers.shape)}, the student's {list(outputs.shape)}")
        alpha = self.config.alpha
        return (1 - alpha) * loss + alpha * kd_loss(outputs, answers, self.config.temperature)

    def finish(self, model: nn.Module) -> nn.Module:
        """Let go of the copy; the student needs no change."""
        self._teacher = self._given
        return model
