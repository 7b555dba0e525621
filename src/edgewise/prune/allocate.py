"""How many channels each group keeps: widths under a budget, aligned to what runtimes like.

Most allocations are a family of widths with one knob: turning it down removes channels everywhere. The knob is set by
bisection on the cost of the *aligned* widths, so budget and alignment hold together; what alignment left over is then
given back, channel block by channel block, where it matters most. "knapsack" chooses each width by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgewise.cost.budget import Budget, exceeded
from edgewise.cost.static import CostModel
from edgewise.errors import AlignmentError, BudgetError
from edgewise.graph.branches import Branch
from edgewise.graph.groups import Graph, Group
from edgewise.graph.trace import Atoms
from edgewise.prune.knapsack import Choice, search
from edgewise.units import format_exact

Normalize = Literal["mean", "none"]
Widths = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """A group as an allocation sees it: its channels' scores ``[C]``, descending, and what kind of group it is."""

    scores: Floats
    kind: str = ""


def uniform(groups: Sequence[Ranked], knob: float) -> Floats:
    """Keep the same share of every group: ``knob`` of its channels ``[G]``."""
    return np.array([knob * len(group.scores) for group in groups])


def global_ranking(groups: Sequence[Ranked], knob: float) -> Floats:
    """Rank all channels of all groups together and keep the best ``knob`` of them ``[G]``.

    Of equal ones those stay that come first in their group, so that groups without a difference shrink alike.
    """
    if not groups:
        return np.empty(0)
    scores = np.concatenate([group.scores for group in groups])
    place = np.concatenate([np.arange(len(group.scores)) / len(group.scores) for group in groups])
    owner = np.repeat(np.arange(len(groups)), [len(group.scores) for group in groups])
    best = np.lexsort((place, -scores))[: round(knob * len(scores))]
    return np.bincount(owner[best], minlength=len(groups)).astype(np.float64)


def isomorphic(groups: Sequence[Ranked], knob: float) -> Floats:
    """Rank the channels of groups of one kind together and keep the best ``knob`` of each kind ``[G]``.

    Reference: Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024, arXiv 2407.04616: only channels owned by
    the same layers in the same roles are comparable.
    """
    widths = np.zeros(len(groups))
    for kind in {group.kind for group in groups}:
        alike = [g for g, group in enumerate(groups) if group.kind == kind]
        widths[alike] = global_ranking([groups[g] for g in alike], knob)
    return widths


def allocate(
    graph: Graph,
    *,
    scores: Mapping[str, Tensor],
    budget: Budget | None,
    allocation: str | Allocation = "global",
    normalize: Normalize = "mean",
    round_to: int = 1,
    floor: float = 0.0,
    groups: Collection[str] | None = None,
    branches: bool = False,
    cost_model: CostModel | None = None,
) -> dict[str, Atoms]:
    """Choose which channels to keep so that the network stays within a budget.

    Args:
        graph: the traced network.
        scores: importance ``[C]`` of each group's channels; a group without scores stays whole.
        budget: what the pruned network may cost; None where the allocation knows by itself.
        allocation: a name of `ALLOCATIONS`, or a function like theirs.
        normalize: "mean" divides scores by their group's mean before groups are compared, since layers differ in scale
            by orders of magnitude; "none" takes them as they are, for criteria in one unit (taylor, lamp).
        round_to: layers' widths are multiples of this, or the full ones. Where a channel of a group is several of a
            grouped convolution's, the group's width may be of less.
        floor: the least share of its channels a group keeps, 0 to 1; never fewer than that multiple, unless the
            channels lie beside others (what a padded shortcut adds to a stream), which can all go.
        groups: names of the groups that may shrink; by default `graph.prunable()`, those whose removal is exact and
            whose width the forward does not state.
        branches: the knapsack may take whole branches out (see `graph.branches`): their width is then 0.
        cost_model: the graph's cost model, where there is one already.

    Returns:
        For each group that shrinks, the indices it keeps, ascending; none for a branch that goes. The other groups of
        such a branch are not named: they go with it.

    Raises:
        ValueError: an unknown allocation, normalisation or group, `round_to` < 1, a floor outside [0, 1].
        BudgetError: no aligned widths at or over the floor fit; the message holds the least possible, or names limits
            of which each can be met, but not all.
        AlignmentError: widths between the multiples of `round_to` would fit.
    """
    _check(graph, allocation, normalize, round_to, floor, groups)
    choose = ALLOCATIONS[allocation] if isinstance(allocation, str) else allocation
    allowed = {group.name for group in graph.prunable()} if groups is None else set(groups)
    chosen = [g for g, group in enumerate(graph.groups) if group.name in allowed and group.name in scores]
    removable = graph.branches if branches and floor == 0 else {}
    gone = {name: branch for name, branch in removable.items() if allowed.issuperset(branch.groups)}
    model = cost_model or CostModel(graph, branches=gone)
    limits = budget.limits(model) if budget else {}
    ranked = [_ranked(graph, graph.groups[g], scores, normalize) for g in chosen]
    ranking = dict(zip(chosen, ranked, strict=True))
    sizes = graph.sizes

    def problem(limits: Mapping[str, float], round_to: int = round_to) -> Problem:
        least = sizes.copy()
        least[chosen] = [_least(graph.groups[g], round_to, floor) for g in chosen]
        blocks = np.array([group.block(round_to) for group in graph.groups], np.int64)
        return Problem(model, ranking, least, limits, blocks, gone)

    widths = _solved(problem(limits), choose)
    if exceeded(model, widths, limits):
        alone = {name: _solved(problem({name: limit}), choose) for name, limit in limits.items()}
        over = [name for name, nearest in alone.items() if exceeded(model, nearest, {name: limits[name]})]
        if not over:
            raise BudgetError(_not_together(model, limits, alone, lambda some: _solved(problem(some), choose)))
        name, limit = over[0], {over[0]: limits[over[0]]}
        rule = getattr(choose, "rule", "")  # of an allocation that has limits of its own
        why = _held_back(graph, allowed, scores)
        message = _out_of_reach(model, name, limits[name], alone[name], round_to, floor, why)
        if rule:
            raise BudgetError(f"{message}, {rule}")
        if round_to > 1 and _counts(limit) and not exceeded(model, problem(limit, 1).narrowest, limit):
            raise AlignmentError(f"{message}; widths between those multiples could meet it")
        raise BudgetError(message)
    narrowed = {graph.groups[g].name: int(widths[g]) for g in chosen if widths[g] < sizes[g]}
    along = {other for name, branch in gone.items() if not narrowed.get(name, 1) for other in branch.groups[1:]}
    return {name: top(scores[name], width) for name, width in narrowed.items() if name not in along}


def _check(
    graph: Graph,
    allocation: str | Allocation,
    normalize: str,
    round_to: int,
    floor: float,
    groups: Collection[str] | None,
) -> None:
    """Refuse what `allocate` cannot work with."""
    if isinstance(allocation, str) and allocation not in ALLOCATIONS:
        raise ValueError(f'allocation "{allocation}" is none of {", ".join(ALLOCATIONS)}')
    if normalize not in ("mean", "none"):
        raise ValueError(f'normalize "{normalize}" is none of mean, none')
    if round_to < 1:
        raise ValueError(f"round_to = {round_to}: a width is a multiple of at least 1")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor = {floor}: a share of the channels, 0 to 1")
    if groups is not None and (unknown := sorted(set(groups) - set(graph.by_name))):
        raise ValueError(f'no group is called "{unknown[0]}"; the network has {", ".join(graph.by_name) or "none"}')


def _counts(limits: Mapping[str, float]) -> dict[str, float]:
    """Return the limits on what grows with every width; a latency may be lower at other widths than the least."""
    return {name: limit for name, limit in limits.items() if name != "latency_s"}


def _solved(problem: Problem, allocation: Allocation) -> Widths:
    """Return widths within the limits, or those nearest to them where none are."""
    if exceeded(problem.model, problem.narrowest, _counts(problem.limits)):
        return problem.narrowest
    return allocation(problem)


def _not_together(
    model: CostModel,
    limits: Mapping[str, float],
    alone: Mapping[str, Widths],
    solve: Callable[[Mapping[str, float]], Widths],
) -> str:
    """Say which limits cannot be held together, though each can: two if there are two such."""

    def fails(pair: tuple[str, str]) -> bool:
        some = {name: limits[name] for name in pair}
        return bool(exceeded(model, solve(some), some))

    pair = next(filter(fails, combinations(limits, 2)), None)
    most = {name: f"{name} of at most {format_exact(name, limits[name])}" for name in limits}
    if pair is None:
        return f"{', '.join(most.values())} cannot all hold, though each can, and any two"
    first, second = pair
    then = format_exact(second, float(model.quantity(second, alone[first])))
    return (
        f"{most[first]} and {most[second]} cannot both hold, though each can: with the first alone {second} is {then}"
    )


@dataclass(frozen=True)
class Problem:
    """What an allocation solves.

    Args:
        model: what widths cost.
        groups: those that may shrink, by their index.
        least: ``[G]``, the least width of each group; its size where it may not shrink.
        limits: upper limits by quantity; the least widths hold them.
        blocks: ``[G]``, of what a group's width is a multiple, or else its full width.
        branches: those that may go whole, by the name of the group whose width is then 0.
    """

    model: CostModel
    groups: Mapping[int, Ranked]
    least: Widths
    limits: Mapping[str, float]
    blocks: Widths
    branches: Mapping[str, Branch]

    @property
    def narrowest(self) -> Widths:
        """The least widths, with every branch gone that may go ``[G]``."""
        widths = self.least.copy()
        for branch in self.branches.values():
            widths[[self.model.graph.places[name] for name in branch.groups]] = 0
        return widths

    def aligned(self, wanted: Floats) -> Widths:
        """Move wanted widths ``[..., groups]`` of those that may shrink to the nearest allowed ones."""
        chosen = list(self.groups)
        return align(wanted, self.model.graph.sizes[chosen], self.least[chosen], self.blocks[chosen])


Allocation = Callable[[Problem], Widths]


def by_knob(family: Callable[[Sequence[Ranked], float], Floats]) -> Allocation:
    """Make an allocation of a family of widths with one knob: as far up as fits, then widened where there is room."""

    @wraps(family)
    def allocation(problem: Problem) -> Widths:
        model, chosen, sizes = problem.model, list(problem.groups), problem.model.graph.sizes

        def widths_at(knob: float) -> Widths:
            widths = sizes.copy()
            if chosen:
                widths[chosen] = problem.aligned(family(list(problem.groups.values()), knob))
            return widths

        widths = widths_at(_largest(lambda knob: not exceeded(model, widths_at(knob), problem.limits)))
        if exceeded(model, widths, problem.limits):  # even the lowest knob is over: some aligned width jumps past it
            widths = problem.least.copy()
        return _give_back(problem, widths)

    return allocation


def knapsack(problem: Problem) -> Widths:
    """Weigh what every width of every group saves against the importance it loses.

    Reference: Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), NeurIPS 2022, arXiv 2210.06659.
    """
    choices = [_choice(problem, g) for g in problem.groups]
    return search(problem.model, choices, problem.limits)


def _out_of_reach(
    model: CostModel, name: str, limit: float, nearest: Widths, round_to: int, floor: float, held_back: str
) -> str:
    """Say that a limit cannot be held, and what the least is that was found."""
    sizes = model.graph.sizes
    dense = max(1e-30, float(model.quantity(name, sizes)))
    possible = min(dense, float(model.quantity(name, nearest)))
    none = f"; none of its {len(sizes)} groups can shrink so{held_back}" if (nearest == sizes).all() else ""
    return (
        f"{name} cannot go down to {format_exact(name, limit)}: the least possible is "
        f"{format_exact(name, possible)} ({possible / dense:.3f} of the dense network's) with round_to = {round_to} "
        f"and floor = {floor}{none}"
    )


def _held_back(graph: Graph, allowed: set[str], scores: Mapping[str, Tensor]) -> str:
    """Say why groups may not shrink, of the first three."""

    def why(group: Group) -> str:
        if group.name in graph.rigid:
            return "its width is written into the forward, or its weight is also used in another way"
        if group.inexact:
            return f"inexact: {group.inexact}"
        return "it has no scores" if group.name not in scores else "it was not named"

    held = [group for group in graph.groups if group.name not in allowed or group.name not in scores]
    named = "; ".join(f'"{group.name}": {why(group)}' for group in held[:3])
    return f" ({named}{'; ...' if len(held) > 3 else ''})" if held else ""


def align(widths: NDArray[np.float64], sizes: Widths, least: Widths, blocks: Widths) -> Widths:
    """Move widths ``[G]`` to the nearest multiples of their blocks, within their floors and sizes.

    >>> align(np.array([3.9, 21.0]), np.array([16, 20]), np.array([8, 8]), np.array([8, 8]))
    array([ 8, 20])
    """
    nearest: Widths = np.floor(widths / blocks + 0.5).astype(np.int64) * blocks
    return nearest.clip(least, sizes)


def allowed_width(group: Group, width: float, round_to: int, floor: float) -> int:
    """Return the width a group may have that is nearest to another."""
    sizes, least = np.array([group.size]), np.array([_least(group, round_to, floor)])
    return int(align(np.array([width]), sizes, least, np.array([group.block(round_to)]))[0])


def top(scores: Tensor, count: int) -> Atoms:
    """Return the indices of the `count` best channels, ascending; of equal ones the first.

    >>> import torch
    >>> top(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3)
    array([0, 1, 3])
    """
    order = np.argsort(-scores.detach().cpu().double().numpy(), kind="stable")
    return np.sort(order[:count])


def _ranked(graph: Graph, group: Group, scores: Mapping[str, Tensor], normalize: Normalize) -> Ranked:
    """Sort a group's scores, and name its kind: the layers that own its channels, and in which dimension."""
    values = np.sort(scores[group.name].detach().cpu().double().numpy())[::-1]
    layers = {m.tensor: type(graph.modules.get(m.tensor.rpartition(".")[0])).__name__ for m in group.members}
    kind = sorted(f"{layers[m.tensor]}.{m.tensor.rpartition('.')[2]}:{m.dim}" for m in group.members)
    return Ranked(_relative(values) if normalize == "mean" else values, " ".join(kind))


def _relative(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide a group's scores by their mean; all alike where there is nothing to divide by."""
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones_like(scores)


def _choice(problem: Problem, index: int) -> Choice:
    """Return the widths a group may have: multiples of its block from its least one on, its whole size, or none."""
    graph, scores = problem.model.graph, problem.groups[index].scores
    size, branch = len(scores), problem.branches.get(graph.groups[index].name)
    also = tuple(graph.places[name] for name in branch.groups if graph.places[name] != index) if branch else ()
    multiples = range(problem.least[index], size, problem.blocks[index])
    levels = np.array(sorted({*multiples, size, *([0] if branch else [])}))
    value = np.concatenate([[0.0], np.cumsum(scores)])[levels]
    return Choice(index, levels.astype(np.int64), value, also)


def _least(group: Group, round_to: int, floor: float) -> int:
    """Return the least width a group may have: its floor, rounded up to a multiple; none where others lie beside."""
    wanted, block = max(0 if group.beside_others else 1, int(np.ceil(floor * group.size))), group.block(round_to)
    return min(group.size, -(-wanted // block) * block)


def _largest(fits: Callable[[float], bool]) -> float:
    """Return the largest knob in [0, 1] that fits, to one part in a million."""
    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _give_back(problem: Problem, widths: Widths) -> Widths:
    """Widen groups by one block at a time while the budget holds.

    The most important block comes first; of equal ones, that of the group that lost the largest share.
    """
    sizes, ranked, blocks = problem.model.graph.sizes, problem.groups, problem.blocks
    open_groups = {g for g in ranked if widths[g] < sizes[g]}
    while open_groups:
        best = max(
            open_groups,
            key=lambda g: (ranked[g].scores[widths[g] : widths[g] + blocks[g]].mean(), -widths[g] / sizes[g], -g),
        )
        wider = widths.copy()
        wider[best] = min(sizes[best], (widths[best] // blocks[best] + 1) * blocks[best])
        if exceeded(problem.model, wider, problem.limits):
            open_groups.discard(best)
            continue
        widths = wider
        if widths[best] == sizes[best]:
            open_groups.discard(best)
    return widths


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": by_knob(uniform),
    "global": by_knob(global_ranking),
    "isomorphic": by_knob(isomorphic),
    "knapsack": knapsack,
}
