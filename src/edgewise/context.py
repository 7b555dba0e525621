"""What every step of a run shares, where each reads and writes, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.cost import cost_of
from edgewise.cost.budget import Limit
from edgewise.data import Dataset, Split
from edgewise.export.network import Builder
from edgewise.export.tail import append_tail
from edgewise.export.verify import Check, outputs
from edgewise.files import read_json
from edgewise.graph import trace
from edgewise.layout import RESULT
from edgewise.progress import Progress
from edgewise.prune.candidates import CARE
from edgewise.prune.config import Prune
from edgewise.recipe import Recipe
from edgewise.tasks import Task, task_of
from edgewise.train import evaluate

Result = dict[str, Any]
CHECKED_IMAGES = 256
SAME = 0.999  # of the answers: two scores that are nearly equal may change places
PART = 256  # images that are floats at one time


@dataclass(frozen=True)
class Context:
    """What every step of a run shares.

    Args:
        recipe: what is done.
        folder: the run's.
        data: the images, normalised and augmented as `task` says.
        builder: how the unpruned network is made.
        device: where training and evaluation run.
        progress: is told (what, done, total).
    """

    recipe: Recipe
    folder: Path
    data: Dataset
    builder: Builder
    device: torch.device
    progress: Progress | None = None
    notes: tuple[str, ...] = ()

    @property
    def example(self) -> Tensor:
        """An input of the right shape, zeros ``[1, C, H, W]``."""
        return torch.zeros(1, *self.data.input_shape)

    @cached_property
    def task(self) -> Task:
        """What the network learns; a training step adds its augmentation and smoothing."""
        return task_of(self.data)

    def limits(self, step: Prune, dense: Mapping[str, float]) -> dict[str, Limit]:
        """Return what a prune step may use of the recipe's budget, by column.

        Args:
            step: says how much of the limits on what only measuring shows.
            dense: the dense network's row; of what measuring does not show, shares become amounts.
        """
        share = step.budget_share
        return {
            name: Limit(share * limit.value, limit.of_dense) if name in CARE else Limit(limit.amount(dense[name]))
            for name, limit in self.recipe.limits(step).items()
        }

    def batch(self, split: Split, index: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return images of a split as the network sees them, float32 ``[N, C, H, W]``, and targets, on the CPU."""
        part = split.part(index).to("cpu")
        return self.task.batch(part, torch.arange(len(part)), augment=False)

    def checked(self) -> Tensor:
        """Return held-out images to prove equalities on, drawn evenly: some data sets are ordered by class."""
        held = self.data.held
        chosen = torch.linspace(0, len(held) - 1, min(CHECKED_IMAGES, len(held))).long()
        return self.batch(held, chosen)[0][:CHECKED_IMAGES]

    def accuracy(self, model: nn.Module) -> float:
        """Return the task's metric on the test split, a fraction. It is reported and decides nothing."""
        return evaluate(model, self.task, self.data.test, device=self.device)

    def artifact_accuracy(self, path: Path, split: Split) -> float:
        """Return the task's metric of an ONNX file on a split, a fraction."""
        answers, targets = [], []
        for start in range(0, len(split), PART):
            inputs, wanted = self.batch(split, slice(start, start + PART))
            answers.append(self.task.answers(outputs(path, inputs)))
            targets.append(wanted)
        return self.task.metric(torch.cat(answers), torch.cat(targets))

    def with_answers(self, artifact: Path) -> list[Check]:
        """Append to an artifact what makes answers of its outputs, if the task has such, and prove that it does."""
        if (tail := self.task.tail()) is None:
            return []
        images = self.checked()
        before = outputs(artifact, images)
        same = self.task.agreement(outputs(append_tail(artifact, tail), images), before, exactly=True)
        return [Check("answers are those of the outputs", same >= SAME, same, SAME, "of them", f"{len(images)} images")]

    def calibration(self, images: int, seed: int) -> Tensor:
        """Return training images as the network sees them, drawn at random; all of them where there are no more."""
        train = self.data.train
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:images]
        return self.batch(train, chosen)[0][:images]


@dataclass(frozen=True)
class Place:
    """Where a step reads and writes.

    Args:
        index: the step's, counted from 0.
        before: the folder with the network as it is.
        after: the folder the step fills.
        dense: the folder of this run's dense network; None while it is being trained.
    """

    index: int
    before: Path
    after: Path
    dense: Path | None


def row(context: Context, model: nn.Module, accuracy: float | None = None, **figures: Any) -> dict[str, Any]:
    """Return a row of results.json: the network's accuracy unless it is known, its static cost, what else was found."""
    cost = cost_of(trace(model, context.example)).to_dict()
    unknown: dict[str, Any] = dict.fromkeys(("file_bytes", "latency_s", "resident_bytes"))
    return {"accuracy": context.accuracy(model) if accuracy is None else accuracy, **cost, **unknown, **figures}


def dicts(checks: list[Check]) -> list[dict[str, Any]]:
    """Return checks as result.json holds them."""
    return [asdict(check) for check in checks]


def read_result(folder: Path) -> Result:
    """Read what a step left behind."""
    result: Result = read_json(folder / RESULT)
    return result
