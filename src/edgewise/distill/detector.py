"""Distillation of detectors that find objects as peaks of heatmaps: the student learns the teacher's softened maps.

The three parts are those that Gao et al., "Revisiting knowledge distillation for light-weight visual object detection",
Transactions of the Institute of Measurement and Control 43(13), 2021, name in their abstract: positive sample
retaining, early distribution softening and hints. Its equations are not public: what the names mean here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split
from edgewise.distill.features import pooled
from edgewise.distill.taps import Pairing, check_taps
from edgewise.tasks.detection import Detection, draw, focal_loss, split_outputs
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod

FLOOR = 1e-4  # probabilities are kept within [FLOOR, 1 - FLOOR], as in CenterNet's loss (arXiv 1904.07850, its code)


def retained_heatmap_loss(
    student_logits: Tensor, teacher_logits: Tensor, heatmap: Tensor, *, retain: bool = True, soften: float = 1.0
) -> Tensor:
    """Compute how far the student's heatmaps are from the teacher's, places that differ much counting most.

    With p = sigmoid(student / tau) and q = sigmoid(teacher / tau), both kept within [1e-4, 1 - 1e-4]::

        1/N sum of  -(1 - p)^2 log p                              at true centres, if they are retained
                    |q - p|^2 (-q log p - (1 - q) log(1 - p))     elsewhere

    N is the number of true centres, at least 1. Softening comes before the sigmoid, place by place and class by class:
    scores of classes are independent, and behind the sigmoid the background is nearly 0 whatever divides it.

    Args:
        student_logits: [B, classes, H, W].
        teacher_logits: likewise, without gradient.
        heatmap: the drawn one, likewise, in [0, 1]; 1 at true centres.
        retain: whether true centres keep the hard label, so that what the teacher misses is not forgotten.
        soften: tau, at least 1; 1 softens nothing.

    Returns:
        A float32 scalar (float64 for float64 logits).

    Reference: Gao et al., see above, for the parts. Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv
    2006.04388, eq. (5) with beta = 2, for soft targets; Zhou et al., "Objects as Points", 2019, arXiv 1904.07850,
    eq. (1), for true centres.

    >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[-9.0, 0.0]]]])
    >>> drawn = torch.tensor([[[[1.0, 0.0]]]])
    >>> round(retained_heatmap_loss(student, teacher, drawn).item(), 4)  # (1/2)^2 log 2, and nothing to learn
    0.1733
    """
    precision = torch.promote_types(student_logits.dtype, torch.float32)
    # Bounds on the logit are the same bounds on the probability, and log-sigmoid keeps the digits of log(1 - p).
    bound = math.log((1 - FLOOR) / FLOOR)
    student, teacher = (
        (logits.to(precision) / soften).clamp(-bound, bound) for logits in (student_logits, teacher_logits)
    )
    p, q = student.sigmoid(), teacher.sigmoid()
    log_p, log_not_p = F.logsigmoid(student), F.logsigmoid(-student)
    centre = heatmap == 1
    hard = -(1 - p).square() * log_p
    soft = (q - p).square() * -(q * log_p + (1 - q) * log_not_p)
    kept = centre if retain else torch.zeros_like(centre)
    return torch.where(kept, hard, soft).sum() / centre.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class DistillDetector:
    """What a detector learns from its teachers' heatmaps and features, and how much.

    The loss is task + gamma (L_retained - L_focal) + hint L_hint: the share gamma of the heatmaps' part comes from the
    teachers, `retained_heatmap_loss`; offsets and sizes are learnt from the true boxes alone.

    Args:
        gamma: the teachers' share, in [0, 1]. With 0 and no hint it is the training without a teacher.
        retain: whether true centres keep the hard label.
        soften: what both networks' logits are divided by before the sigmoid, at least 1; 1 is off. Above it the many
            places of the background weigh more, and rare classes are learnt later: short trainings lose by it.
        schedule: of `soften`: "constant", or "early", which falls on a line to 1 at the end of the training.
        hint: weight of `hint_loss`, behind an adapter that is gone in the end; 0.1 to 1 are worth a try.
        taps: the student's modules whose outputs are compared with the teachers'.
        teacher_taps: their partners in the teachers, one for each; empty means the same names.
        teachers: run folders or files of weights; empty means this run's dense network.

    Raises:
        ValueError: a value out of range, by name; a weight without taps, or the reverse.

    Reference: Gao et al., "Revisiting knowledge distillation for light-weight visual object detection", Transactions
    of the Institute of Measurement and Control 43(13), 2021. "early" is the other reading of its "early distribution
    softening".
    """

    kind: Literal["distill_detector"] = "distill_detector"
    gamma: float = 0.5
    retain: bool = True
    soften: float = 1.0
    schedule: Literal["constant", "early"] = "constant"
    hint: float = 0.0
    taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it must be in [0, 1]")
        if not 1 <= self.soften < float("inf"):
            raise ValueError(f"soften is {self.soften}; it must be at least 1")
        check_taps(self.taps, self.teacher_taps, self.feature_weights)

    @property
    def feature_weights(self) -> dict[str, float]:
        """The weights of the losses on features, by name."""
        return {"hint": self.hint}


@final
class DetectorDistillation(TrainingMethod):
    """Trains the student on the loss that `DistillDetector` describes; of several teachers the mean of their losses.

    Args:
        teachers: one or more that give as many classes as the student, at its stride. Frozen copies of them answer, in
            eval mode, under the training's autocast; the networks themselves are left as they are.
        config: what is learnt from them.
        task: draws the heatmaps, and makes inputs of the split.
        split: the images that the training is given; two of them show whether all networks go together.

    Raises:
        ValueError: no teacher.
    """

    config: DistillDetector

    def __init__(self, teachers: Sequence[nn.Module], config: DistillDetector, task: Detection, split: Split) -> None:
        if not teachers:
            raise ValueError("teachers is empty; a distillation needs at least one")
        self.config = config
        self._given, self._task, self._split = tuple(teachers), task, split
        self._pairing: Pairing | None = None
        self._step, self._steps = 0, 1

    @property
    def softening(self) -> float:
        """What logits are divided by at this step."""
        left = 1 - self._step / self._steps if self.config.schedule == "early" else 1
        return 1 + (self.config.soften - 1) * left

    def networks(self) -> Sequence[nn.Module]:
        """Return the teachers."""
        return self._given

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Copy the teachers to the student's device, tap both, and add the adapters.

        Raises:
            ModelError: no module of a name, features or outputs that cannot be compared.
        """
        mine = self.config
        images = (self._task, self._split)
        self._pairing = Pairing(model, self._given, mine.taps, mine.teacher_taps, mine.feature_weights, images)
        self._step, self._steps = 0, config.epochs * steps_per_epoch

    def before_step(self, model: nn.Module, index: Tensor) -> None:
        """Forget features of any forward that was not a step's."""
        if self._pairing:
            self._pairing.taps.forget()

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Put the teachers' share in the place of as much of the heatmaps' loss, on the same, augmented inputs."""
        assert self._pairing is not None  # start was called
        config = self.config
        told = self._pairing.teachers.tell(inputs)
        self._pairing.teachers.check(told, outputs)
        ours = split_outputs(outputs)[0]
        drawn = draw(targets, self._task.classes, *ours.shape[2:])
        features = self._pairing.taps.take()
        learnt = -config.gamma * focal_loss(ours, drawn)
        for teacher, (answers, *theirs) in enumerate(told):
            heatmaps = split_outputs(answers)[0]
            soft = retained_heatmap_loss(ours, heatmaps, drawn, retain=config.retain, soften=self.softening)
            part = config.gamma * soft
            for place, pair in enumerate(zip(features, theirs, strict=True)):
                part = part + config.hint * self._pairing.hint(model, teacher, place, *pooled(*pair))
            learnt = learnt + part / len(told)
        return loss + learnt

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Count the steps."""
        self._step = step + 1

    def finish(self, model: nn.Module) -> nn.Module:
        """Take hooks and adapters away from the student, and let go of the copies."""
        if self._pairing:
            self._pairing.remove(model)
        self._pairing = None
        return model

    def state(self) -> dict[str, Tensor]:
        """Return how many steps were made."""
        return {"step": torch.tensor(self._step)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        self._step = int(state["step"])
