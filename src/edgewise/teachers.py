"""The networks that a training step learns from, by what a recipe calls them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from edgewise import models
from edgewise.context import Context
from edgewise.distill import DataFree, DetectorDistillation, Distill, Distillation, DistillDetector
from edgewise.distill.inherit import inherit
from edgewise.distill.taps import Pairing
from edgewise.errors import ModelError, RecipeError
from edgewise.export import network
from edgewise.export.network import STRUCTURE, Builder
from edgewise.recipe import Train
from edgewise.tasks import Detection, Task
from edgewise.train import TrainingMethod


def load_teacher(name: str, student: Builder) -> nn.Module:
    """Load a teacher, in evaluation mode.

    Args:
        name: a run's folder; or ``MODEL:FILE``, a network of `edgewise list models` and its weights.
        student: how the student is made: a model of a name gets its classes, channels and image size.

    Raises:
        RecipeError: it is neither.
        ModelError: the network cannot be built or loaded.
    """
    if (Path(name) / STRUCTURE).exists():
        return network.load(Path(name))
    model, _, file = name.rpartition(":")
    if model and Path(file).is_file():
        return models.load_weights(replace(student, model=model, width=1.0).build(), file).eval()
    raise RecipeError(f'teacher "{name}": no run folder with a network, and no MODEL:FILE of weights')


def taught_by(
    context: Context, teachers: Sequence[nn.Module], config: Distill | DistillDetector | None = None
) -> TrainingMethod:
    """Return the training method by which a network learns from teachers, of the kind that the run's task needs.

    Args:
        context: of the run.
        teachers: one or more.
        config: what is learnt from them; by default the kind's own settings.
    """
    if isinstance(context.task, Detection):
        detector = config if isinstance(config, DistillDetector) else DistillDetector()
        return DetectorDistillation(teachers, detector, context.task, context.data.train)
    logits = config if isinstance(config, Distill) else Distill()
    return Distillation(teachers, logits, context.task, context.data.train)


def check_taught(context: Context, model: nn.Module) -> None:
    """Refuse what a training would find out only when it begins: features that are not there, wrong heirs.

    Args:
        context: of the run.
        model: its network; what later steps leave of it has the same modules.

    Raises:
        ModelError: what cannot be compared or inherited, and in which step.
    """
    images = (context.task, context.data.train)
    for index, step in enumerate(context.recipe.step):
        for config in step.method if isinstance(step, Train) else ():
            if not isinstance(config, Distill | DistillDetector | DataFree):
                continue
            teachers = [load_teacher(name, context.builder) for name in config.teachers] or [model]
            try:
                if not isinstance(config, DistillDetector) and config.inherit:
                    inherit(copy.deepcopy(model), teachers[0])
                if not isinstance(config, DataFree) and config.taps:
                    student = copy.deepcopy(model)
                    Pairing(student, teachers, config.taps, config.teacher_taps, config.feature_weights, images)
            except ModelError as error:
                raise ModelError(f"step.{index} (train): {error}") from error


def check_teacher(name: str, student: Builder, task: Task, input_shape: tuple[int, int, int]) -> None:
    """Refuse a teacher that cannot answer what the student is asked.

    Raises:
        RecipeError: no such teacher.
        ModelError: it takes other images, or tells other classes apart.
    """
    try:
        task.check_network(load_teacher(name, student), input_shape)
    except ModelError as error:
        raise ModelError(f'teacher "{name}": {error}') from error
