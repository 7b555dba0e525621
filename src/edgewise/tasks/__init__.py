"""What a network learns: its loss, its metric, and how a batch is made."""

from collections.abc import Callable

from edgewise.data import Dataset, Kind
from edgewise.tasks.classification import Classification
from edgewise.tasks.detection import Detection, overlapping_boxes, same_boxes
from edgewise.tasks.precision import AveragePrecision, mean_average_precision
from edgewise.tasks.steganalysis import Steganalysis, detection_error
from edgewise.tasks.task import Task, same_class

__all__ = [
    "AveragePrecision",
    "Classification",
    "Detection",
    "Steganalysis",
    "Task",
    "detection_error",
    "mean_average_precision",
    "overlapping_boxes",
    "same_boxes",
    "same_class",
    "task_of",
]


def task_of(data: Dataset) -> Task:
    """Return what the networks of a data set learn."""
    return TASKS[data.kind](data)


TASKS: dict[Kind, Callable[[Dataset], Task]] = {
    "classification": lambda data: Classification(data.mean, data.std, len(data.classes)),
    "detection": lambda data: Detection(data.mean, data.std, len(data.classes)),
    "steganalysis": lambda data: Steganalysis(data.mean, data.std),
}
