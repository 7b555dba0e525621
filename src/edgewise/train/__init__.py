"""How networks learn: one loop, the methods that take part in it, and what is measured afterwards."""

from edgewise.train.average import WeightAverage
from edgewise.train.config import TrainConfig
from edgewise.train.evaluate import evaluate
from edgewise.train.gradients import gradients
from edgewise.train.loop import fit
from edgewise.train.method import TrainingMethod
from edgewise.train.recalibrate import recalibrate
from edgewise.train.schedule import learning_rate
from edgewise.train.snapshots import Snapshots

__all__ = [
    "Snapshots",
    "TrainConfig",
    "TrainingMethod",
    "WeightAverage",
    "evaluate",
    "fit",
    "gradients",
    "learning_rate",
    "recalibrate",
]
