"""Random widths within a budget, ranked by their accuracy with recalibrated BatchNorm: the baseline for allocations.

Reference: Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020,
arXiv 2007.02491.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import BudgetError
from edgewise.progress import Progress
from edgewise.prune.allocate import Problem, Widths
from edgewise.prune.judge import Arithmetic
from edgewise.prune.memory import kept_memory

BLOCK = 4096  # candidates that are drawn and counted together


@dataclass(frozen=True, kw_only=True)
class Search:
    """How widths are drawn, and how many are judged.

    Args:
        candidates: networks that are judged.
        least: the smallest share of a group's channels that is removed.
        most: the largest.
        tolerance: share of the budget that a candidate may leave unused; EagleEye allows half a percent to both
            sides, here a candidate never costs more than the budget.
        draws: candidates that are drawn at most.
        calibration: training images that BatchNorm's statistics are measured on.
        images: held-out images that the accuracy is measured on.
        arithmetic: "auto" is bfloat16 where the processor computes in it, which halves the time.
    """

    candidates: int = 50
    least: float = 0.0
    most: float = 0.7
    tolerance: float = 0.005
    draws: int = 1_000_000
    calibration: int = 2000
    images: int = 1000
    arithmetic: Arithmetic = "auto"

    def __post_init__(self) -> None:
        for name in ("candidates", "draws", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if self.calibration < 2:
            raise ValueError(f"calibration = {self.calibration}: a number of images, at least 2")
        if not 0 <= self.least <= self.most <= 1:
            raise ValueError(f"least = {self.least}, most = {self.most}: shares to remove, 0 <= least <= most <= 1")
        if not 0 < self.tolerance <= 1:
            raise ValueError(f"tolerance = {self.tolerance}: a share of the budget, in (0, 1]")


@dataclass(frozen=True)
class Tried:
    """A candidate that was judged: its widths by group, what it uses of each limit (shares), and its accuracy."""

    widths: dict[str, int]
    used: dict[str, float]
    accuracy: float


def draw(problem: Problem, config: Search, generator: np.random.Generator) -> tuple[Widths, int]:
    """Draw different candidates that cost at most the budget and use it but for the tolerance.

    Args:
        problem: the groups that may shrink, the least widths, the limits.
        config: how they are drawn: each group's removed share uniformly in [least, most], the width aligned.
        generator: of the draws.

    Returns:
        Widths ``[n, G]``, n at most `candidates`, and how many were drawn for them.

    Raises:
        BudgetError: no candidate that was drawn fits; the message says what the drawn ones cost.
    """
    sizes, chosen = problem.model.graph.sizes, list(problem.groups)
    found: dict[bytes, Widths] = {}
    lowest, highest = dict.fromkeys(problem.limits, np.inf), dict.fromkeys(problem.limits, 0.0)
    drawn = 0
    while len(found) < config.candidates and drawn < config.draws:
        rates = generator.uniform(config.least, config.most, (min(BLOCK, config.draws - drawn), len(chosen)))
        drawn += len(rates)
        widths = np.tile(sizes, (len(rates), 1))
        widths[:, chosen] = problem.aligned((1 - rates) * sizes[chosen])
        used = {name: problem.model.quantity(name, widths) / limit for name, limit in problem.limits.items()}
        for name, shares in used.items():
            lowest[name], highest[name] = min(lowest[name], shares.min()), max(highest[name], shares.max())
        nearest = np.max(list(used.values()), axis=0)  # of several limits the one that binds
        for candidate in widths[(nearest <= 1) & (nearest >= 1 - config.tolerance)]:
            if len(found) < config.candidates:
                found.setdefault(candidate.tobytes(), candidate)
    if not found:
        costs = ", ".join(f"{name} {lowest[name]:.3f} to {highest[name]:.3f}" for name in problem.limits)
        raise BudgetError(
            f"none of {drawn} random candidates lies within {config.tolerance:g} under the budget: of their limits "
            f"they take {costs}; change search.least, search.most, search.tolerance or round_to"
        )
    return np.array(list(found.values())), drawn


@dataclass
class RandomSearch:
    """Judges random candidates and returns the widths of the best; keeps what it tried.

    Args:
        config: how candidates are drawn.
        judge: (widths ``[G]``) -> accuracy, a fraction.
        seed: of the draws.
        progress: is told (what, done, total).
    """

    config: Search
    judge: Callable[[Widths], float]
    seed: int
    progress: Progress | None = None
    tried: list[Tried] = field(default_factory=list)
    drawn: int = 0

    def __call__(self, problem: Problem) -> Widths:
        """Return the widths ``[G]`` of the best candidate; of equal ones the first."""
        candidates, self.drawn = draw(problem, self.config, np.random.default_rng(self.seed))
        names = [group.name for group in problem.model.graph.groups]
        self.tried = []
        with kept_memory():
            for widths in candidates:
                used = {
                    name: float(problem.model.quantity(name, widths)) / limit for name, limit in problem.limits.items()
                }
                if self.progress:
                    self.progress("candidates", len(self.tried), len(candidates))
                self.tried.append(Tried(dict(zip(names, widths.tolist(), strict=True)), used, self.judge(widths)))
        best: NDArray[np.int64] = candidates[int(np.argmax([one.accuracy for one in self.tried]))]
        return best
