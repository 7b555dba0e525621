"""Small networks that learn from large ones."""

from edgewise.distill.data_free import (
    DataFree,
    DataFreeDistillation,
    Imitation,
    balance_loss,
    discrepancy,
    ensemble_logits,
    generator_loss,
    leading_loss,
    moment_loss,
)
from edgewise.distill.detector import DetectorDistillation, DistillDetector, retained_heatmap_loss
from edgewise.distill.distillation import Distill, Distillation
from edgewise.distill.features import attention_loss, hint_loss, relational_loss, similarity_loss
from edgewise.distill.generator import Generator
from edgewise.distill.logits import dkd_loss, kd_loss, mean_logits

__all__ = [
    "DataFree",
    "DataFreeDistillation",
    "DetectorDistillation",
    "Distill",
    "DistillDetector",
    "Distillation",
    "Generator",
    "Imitation",
    "attention_loss",
    "balance_loss",
    "discrepancy",
    "dkd_loss",
    "ensemble_logits",
    "generator_loss",
    "hint_loss",
    "kd_loss",
    "leading_loss",
    "mean_logits",
    "moment_loss",
    "relational_loss",
    "retained_heatmap_loss",
    "similarity_loss",
]
