"""Weights that become zero while a network trains, some more at every event: the schedule, the masks, and magnitude."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.errors import RecipeError
from edgewise.sparse.blocks import Tile
from edgewise.sparse.masking import Masking
from edgewise.sparse.masks import Criterion, Scope, keep_masks, left, score
from edgewise.train.config import TrainConfig

Curve = Literal["geometric", "cubic"]


@dataclass(frozen=True, kw_only=True)
class Gradual:
    """Set the weights of least score to zero while the network trains, until `sparsity` is reached.

    Args:
        sparsity: the share of the weights of convolutions and linear layers that is zero in the end, in (0, 1).
        criterion: "l1" takes the smallest magnitudes, "random" any, the baseline.
        scope: "global" ranks all layers together, "local" takes the same share of each.
        events: how often weights are taken.
        start: the share of the training before the first event, in [0, 1).
        end: the share of it that is over at the last event, in (start, 1].
        curve: "geometric" takes the same share of what is left each time; "cubic" as in Zhu and Gupta, fewer and fewer.
        tile: whole blocks of [outputs, inputs] go, with all kernel positions; -1 is all of them.

    Raises:
        ValueError: a value out of range, by name.

    Reference: Zhu and Gupta, To Prune, or Not to Prune, ICLR Workshop 2018, arXiv 1710.01878, eq. (1).
    """

    kind: Literal["gradual"] = "gradual"
    sparsity: float
    criterion: Criterion = "l1"
    scope: Scope = "global"
    events: int = 20
    start: float = 0.1
    end: float = 0.6
    curve: Curve = "cubic"
    tile: Tile | None = None

    def __post_init__(self) -> None:
        check_schedule(self.sparsity, self.events, self.start, self.end)


def check_schedule(sparsity: float, events: int, start: float, end: float) -> None:
    """Refuse a schedule that means nothing.

    Raises:
        ValueError: a value out of range, by name.
    """
    ranges = (
        ("sparsity", sparsity, 0 < sparsity < 1, "in (0, 1)"),
        ("events", events, events >= 1, "at least 1"),
        ("start", start, 0 <= start < 1, "in [0, 1), a share of the training"),
        ("end", end, start < end <= 1, "above start, at most 1, a share of the training"),
    )
    for name, value, fits, range_ in ranges:
        if not fits:
            raise ValueError(f"{name} is {value}; it must be {range_}")


def sparsity_after(event: int, events: int, sparsity: float, curve: Curve) -> float:
    """Return the share of zeros after an event, of those that are numbered from 1.

    >>> [sparsity_after(event, 4, 0.9375, "geometric") for event in (1, 2, 3, 4)]
    [0.5, 0.75, 0.875, 0.9375]
    """
    done = event / events
    return 1 - (1 - sparsity) ** done if curve == "geometric" else sparsity * (1 - (1 - done) ** 3)


def event_steps(events: int, start: float, end: float, steps: int) -> list[int]:
    """Return after how many steps each event is due, the first at `start`, the last at `end`; no two are at one step.

    Raises:
        ValueError: the training has fewer steps than that takes.

    >>> event_steps(3, 0.25, 0.75, 100)
    [25, 50, 75]
    """
    places = [start + (end - start) * event / max(1, events - 1) for event in range(events)]
    due = [max(1, round(place * steps)) for place in places]
    if len(set(due)) < events:
        raise ValueError(f"events = {events}: the training has {steps} steps, too few for so many events between")
    return due


class Sparsifying(Masking):
    """Takes weights at each event of a schedule; subclasses say how weights are ranked.

    Args:
        sparsity, events, start, end, curve, scope: as `Gradual` has them.
    """

    tile: Tile | None = None

    def __init__(self, sparsity: float, events: int, start: float, end: float, curve: Curve, scope: Scope) -> None:
        super().__init__()
        self._schedule = sparsity, events, start, end, curve
        self._scope: Scope = scope
        self._due: list[int] = []  # the steps after which there is an event

    @abstractmethod
    def scores(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Score every weight, the more the better."""

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the weights and the events.

        Raises:
            RecipeError: the training has too few steps for so many events.
        """
        super().start(model, config, steps_per_epoch)
        _, events, start, end, _ = self._schedule
        try:
            self._due = event_steps(events, start, end, config.epochs * steps_per_epoch)
        except ValueError as error:
            raise RecipeError(str(error)) from error

    def watch(self) -> None:
        """Look at the weights after a step, before any is taken; by default nothing is seen."""

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Take weights if an event is due."""
        super().after_step(model, step, lr)
        self.watch()
        if step + 1 in self._due:
            sparsity, events, _, _, curve = self._schedule
            self._take(sparsity_after(self._due.index(step + 1) + 1, events, sparsity, curve))

    def _take(self, sparsity: float) -> None:
        """Choose the weights of least score until so large a share is zero; what is zero is always among them."""
        ranked = left(self.scores(self.weights), self.keep, self.tile)
        chosen = keep_masks(ranked, sparsity, self._scope, self.tile)
        self.choose({name: keep & chosen[name] for name, keep in self.keep.items()})


@final
class GradualPruning(Sparsifying):
    """Takes the weights of least magnitude, or random ones, as `Gradual` says."""

    config: Gradual

    def __init__(self, config: Gradual) -> None:
        super().__init__(config.sparsity, config.events, config.start, config.end, config.curve, config.scope)
        self.config, self.tile = config, config.tile

    def scores(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return magnitudes or random numbers, which the training's seed rules."""
        generator = None
        if self.config.criterion == "random":
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return score(weights, self.config.criterion, generator)
