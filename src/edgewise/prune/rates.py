"""Pruning rates from the knees of sensitivity curves, and the widths that follow from them.

Reference: Wang et al., Combine-Net: An Improved Filter Pruning Algorithm, Information 12(7):264, 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from edgewise.graph.groups import Graph
from edgewise.graph.rigid import rigid_groups
from edgewise.progress import Progress
from edgewise.prune.allocate import Allocation, Problem, Ranked, Widths, allowed_width, by_knob, top
from edgewise.prune.judge import Judge
from edgewise.prune.knee import Floats, Knee, knee_rate
from edgewise.prune.sensitivity import removed, scan, without


@dataclass(frozen=True)
class Sensitivity:
    """What the channels of a group are worth, and the rate that was read from it.

    Args:
        rate: shares of its channels removed, ascending from 0.
        accuracy: of the network without them and with recalibrated BatchNorm, a fraction.
        knee: the rate that was chosen.
        found: it is a knee; else the largest rate within the tolerance.
    """

    rate: tuple[float, ...]
    accuracy: tuple[float, ...]
    knee: float
    found: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def sensitivities(
    graph: Graph,
    judge: Judge,
    config: Knee,
    *,
    scores: Mapping[str, Tensor],
    groups: Sequence[str],
    round_to: int = 1,
    floor: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, Sensitivity]:
    """Measure the curves of groups and choose their rates.

    Args:
        graph: the traced network.
        judge: measures accuracies.
        config: the grid, and what counts as a knee.
        scores: importance ``[C]`` of each group's channels.
        groups: names of those that may shrink. One whose width the forward states at a rate of the grid is left out.
        round_to: of the widths, as in `allocate`; what comes later sees them where rates are chosen one by one.
        floor: likewise.
        progress: is told (what, done, total).

    Raises:
        ModelError: a forward that raises, outputs not finite.
    """
    free = [name for name in groups if name in scores]
    for rate in config.rates:
        stuck = rigid_groups(graph, {name: without(graph, scores, name, rate) for name in free})
        free = [name for name in free if name not in stuck]
    rates = (0.0, *config.rates)
    found: dict[str, Sensitivity] = {}
    base: dict[str, Any] = {}
    for part in [free] if config.order == "at_once" else [[name] for name in free]:
        curves = scan(graph, judge, scores=scores, rates=rates, groups=part, base=base, progress=progress)
        for name, curve in curves.items():
            found[name] = Sensitivity(rates, tuple(curve), *knee_rate(rates, curve, config))
            if config.order == "one_by_one":
                group, left = graph.by_name[name], len(without(graph, scores, name, found[name].knee))
                base[name] = top(scores[name], allowed_width(group, left, round_to, floor))
    return found


def at_rates(rates: Mapping[str, float]) -> Allocation:
    """Return the allocation that removes these shares of the groups, whatever the budget says."""

    def allocation(problem: Problem) -> Widths:
        chosen, widths = list(problem.groups), problem.model.graph.sizes
        names = [problem.model.graph.groups[g].name for g in chosen]
        left = [size - removed(rates.get(name, 0.0), size) for name, size in zip(names, widths[chosen], strict=True)]
        widths[chosen] = problem.aligned(np.array(left, np.float64))
        return widths

    return allocation


def scaled_rates(rates: Mapping[str, float]) -> Allocation:
    """Return the allocation that raises what these rates keep of each group to one power, to fill the budget.

    A group keeps ``(1 - rate) ** power``: with a power of 1 the rates as they are, with 0 everything, and with any
    power sensitive groups keep more than others. A group whose rate is 0 stays whole, unless nothing else holds the
    budget.
    """

    def allocation(problem: Problem) -> Widths:
        names = [problem.model.graph.groups[g].name for g in problem.groups]
        kept = np.array([1 - rates.get(name, 0.0) for name in names])

        def family(groups: Sequence[Ranked], knob: float) -> Floats:
            shares: Floats = kept ** (1 / max(knob, 1e-9) - 1)
            return shares * [len(group.scores) for group in groups]

        return by_knob(family)(problem)

    return allocation
