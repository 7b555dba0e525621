"""How good a network is on a split."""

import copy

import torch
from torch import nn

from edgewise.data import Split
from edgewise.graph.trace import evaluating
from edgewise.tasks import Task
from edgewise.train.config import Precision
from edgewise.train.forward import autocast, forward, home, image_layout, resolve_device


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    batch: int = 512,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> float:
    """Compute the task's metric on a whole split, in eval mode and without augmentation.

    Args:
        model: is left as it is, its modes included.
        task: gives the metric.
        split: every image counts, the last incomplete batch too.
        batch: images per forward; changes speed and memory only.
        device: where to compute; the network is copied there if it lies elsewhere.
        precision: ``bfloat16`` runs the forward under autocast.

    Raises:
        ValueError: a batch below 1.
        UnknownName: a device that is not here.
        DataError: a split the task cannot measure.
        ModelError: a forward that raises, outputs of a wrong shape or not finite.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    device = resolve_device(device)
    task.check(split)
    split = split.to(device)
    if home(model) != device:
        model = copy.deepcopy(model).to(device)
    answers, targets = [], []
    with torch.no_grad(), evaluating(model), autocast(device, precision):
        for index in torch.split(torch.arange(len(split), device=device), batch):
            inputs, wanted = task.batch(split, index, augment=False)
            answers.append(task.answers(forward(model, image_layout(inputs)).float()))
            targets.append(wanted)
    return task.metric(torch.cat(answers), torch.cat(targets))
