"""Small networks that learn from large ones."""

from edgewise.distill.logits import Distill, LogitDistillation, kd_loss

__all__ = ["Distill", "LogitDistillation", "kd_loss"]
