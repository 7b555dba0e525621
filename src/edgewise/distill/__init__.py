"""Small networks that learn from large ones."""

from edgewise.distill.data_free import (
    DataFree,
    DataFreeDistillation,
    Imitation,
    balance_loss,
    discrepancy,
    ensemble_logits,
    generator_loss,
    moment_loss,
)
from edgewise.distill.generator import Generator
from edgewise.distill.logits import Distill, LogitDistillation, kd_loss

__all__ = [
    "DataFree",
    "DataFreeDistillation",
    "Distill",
    "Generator",
    "Imitation",
    "LogitDistillation",
    "balance_loss",
    "discrepancy",
    "ensemble_logits",
    "generator_loss",
    "kd_loss",
    "moment_loss",
]
