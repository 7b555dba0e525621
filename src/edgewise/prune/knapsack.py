"""Widths for all groups together under any number of budgets: what a width saves, against what it loses.

Start whole; as long as a limit is exceeded, narrow the group that saves the most of what is still too much for the
importance it loses, by as many channels as pays best. Then widen again wherever there is room, and try to exchange:
narrow one group to widen others. Every candidate's cost is exact, or a latency as foretold; nothing is rounded after.

Reference: Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), NeurIPS 2022, arXiv 2210.06659, whose
items are channels of one layer; here a candidate is a whole network, since layers share widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.cost.static import CostModel

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # levels that a group may go down at once


@dataclass(frozen=True)
class Choice:
    """What a group may keep, and what that is worth.

    Args:
        group: its index.
        levels: allowed widths, ascending.
        value: ``[levels]``, the importance kept at each.
        also: groups that have no channels left where this one has none: they are of the branch that goes with it.
    """

    group: int
    levels: Widths
    value: Floats
    also: tuple[int, ...] = ()


def search(
    model: CostModel, choices: Sequence[Choice], limits: Mapping[str, float], *, exchange: bool = True
) -> Widths:
    """Choose widths ``[G]`` within the limits that keep as much importance as was found.

    Where the limits cannot be held, they are the nearest to them that were found.

    Args:
        model: the network's cost model.
        choices: the groups that may shrink; the others stay whole.
        limits: upper limits by quantity.
        exchange: also narrow each group in turn where that lets others widen for more.
    """
    found = _Search(model, choices, dict(limits))
    at = found.narrowed(np.array([len(choice.levels) - 1 for choice in choices], np.int64))
    if not found.fits(at):
        return found.widths(at)
    at = found.widened(at)
    for index in range(len(choices)) if exchange else ():
        if at[index] > 0:
            lower = at.copy()
            lower[index] -= 1
            other = found.widened(lower, held=index)
            if found.value(other) > found.value(at) + 1e-9:
                at = other
    return found.widths(at)


class _Search:
    """The network's widths as one level for each choice."""

    def __init__(self, model: CostModel, choices: Sequence[Choice], limits: dict[str, float]) -> None:
        self.model, self.choices, self.limits = model, choices, limits
        self.groups = np.array([choice.group for choice in choices], np.int64)
        self.top = np.array([len(choice.levels) - 1 for choice in choices], np.int64)
        self._places = np.arange(len(choices))
        self._levels = _table([choice.levels for choice in choices], np.int64)
        self._values = _table([choice.value for choice in choices], np.float64)
        place = {choice.group: index for index, choice in enumerate(choices)}
        self._gone = [  # of each choice that can take others with it: its place and theirs
            (index, [place[group] for group in choice.also if group in place])
            for index, choice in enumerate(choices)
            if choice.also
        ]

    def widths(self, at: Widths) -> Widths:
        """Return the widths ``[..., G]`` of levels ``[..., choices]``."""
        found = np.broadcast_to(self.model.graph.sizes, (*at.shape[:-1], len(self.model.graph.sizes))).copy()
        found[..., self.groups] = self._levels[self._places, at]
        for choice in self.choices:
            for other in choice.also:
                found[..., other] = np.where(found[..., choice.group] == 0, 0, found[..., other])
        return found

    def value(self, at: Widths) -> Floats:
        """Return the importance that levels ``[..., choices]`` keep; groups that go with another's branch keep none."""
        kept: Floats = self._values[self._places, at]
        for index, others in self._gone:
            kept[..., others] *= self._levels[index, at[..., index, None]] > 0
        found: Floats = kept.sum(axis=-1)
        return found

    def costs(self, at: Widths) -> dict[str, Floats]:
        """Return the limited quantities of candidates ``[n, choices]``, as shares of their limits."""
        widths = self.widths(at)
        return {name: self.model.quantity(name, widths) / limit for name, limit in self.limits.items()}

    def fits(self, at: Widths) -> bool:
        """Say whether every limit holds."""
        return all(cost <= 1.0 for cost in self.costs(at).values())

    def narrowed(self, at: Widths) -> Widths:
        """Narrow until every limit holds; where they never do, return the nearest to them on the way down."""
        nearest, least_over = at, np.inf
        while True:
            now = self.costs(at)
            over = {name: float(cost) - 1.0 for name, cost in now.items() if cost > 1.0}
            if not over:
                return at
            if max(over.values()) < least_over:
                nearest, least_over = at, max(over.values())
            moves = self._moves(at, down=True)
            if not len(moves):
                return nearest
            then = self.costs(moves)
            saved = np.sum([np.minimum((now[n] - then[n]) / excess, 1.0) for n, excess in over.items()], axis=0)
            lost = np.maximum(self.value(at) - self.value(moves), 1e-12)
            # Where no group alone saves anything (a peak that several hold up), the one that loses least goes down.
            at = moves[np.argmax(saved / lost) if (saved > 0).any() else np.argmin(lost)]

    def widened(self, at: Widths, held: int | None = None) -> Widths:
        """Widen what keeps the most importance for its cost, by as much as pays best, while every limit holds."""
        while True:
            moves = self._moves(at, down=False, held=held)
            costs = self.costs(moves) if len(moves) else {}
            fits = np.all([cost <= 1.0 for cost in costs.values()], axis=0) if len(moves) else np.zeros(0, bool)
            if not fits.any():
                return at
            now = self.costs(at)
            spent = np.max([costs[name] - now[name] for name in costs], axis=0)
            won = self.value(moves) - self.value(at)
            at = moves[int(np.argmax(np.where(fits, won / np.maximum(spent, 1e-9), -np.inf)))]

    def _moves(self, at: Widths, *, down: bool, held: int | None = None) -> Widths:
        """Return the levels ``[n, choices]`` that one group's change leads to, some steps down or up."""
        steps = np.array(STEPS if down else [-step for step in STEPS])
        index, step = (grid.reshape(-1) for grid in np.meshgrid(self._places, steps, indexing="ij"))
        level = at[index] - step
        allowed = (level >= 0) & (level <= self.top[index]) & (index != (-1 if held is None else held))
        moves = np.repeat(at[None], allowed.sum(), axis=0)
        moves[np.arange(len(moves)), index[allowed]] = level[allowed]
        return moves


def _table(rows: Sequence[NDArray[Any]], kind: type) -> NDArray[Any]:
    """Write rows of different lengths as one array ``[n, longest]``; what lies behind their ends is not read."""
    table: NDArray[Any] = np.zeros((len(rows), max((len(row) for row in rows), default=0)), kind)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table
