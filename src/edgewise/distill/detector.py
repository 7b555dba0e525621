"""Distillation of detectors that find objects as peaks of heatmaps: the student learns the teacher's softened maps.

The three parts are those that Gao et al., "Revisiting knowledge distillation for light-weight visual object detection",
Transactions of the Institute of Measurement and Control 43(13), 2021, name in their abstract: positive sample
retaining, early distribution softening and hints. Its equations are not public: what the names mean here is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

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
