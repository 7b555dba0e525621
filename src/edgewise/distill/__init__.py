"""Small networks that learn from large ones."""

from edgewise.distill.detector import DetectorDistillation, DistillDetector, retained_heatmap_loss
from edgewise.distill.distillation import Distill, Distillation
from edgewise.distill.features import attention_loss, hint_loss, relational_loss, similarity_loss
from edgewise.distill.logits import dkd_loss, kd_loss, mean_logits

__all__ = [
    "DetectorDistillation",
    "Distill",
    "DistillDetector",
    "Distillation",
    "attention_loss",
    "dkd_loss",
    "hint_loss",
    "kd_loss",
    "mean_logits",
    "relational_loss",
    "retained_heatmap_loss",
    "similarity_loss",
]
