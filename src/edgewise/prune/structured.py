"""The prune step: score the channels, choose the widths, remove what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from edgewise.cost.budget import Budget, Limit
from edgewise.cost.static import CostModel
from edgewise.errors import UnknownName, nearest
from edgewise.graph.groups import Graph, Group, trace
from edgewise.graph.rigid import rigid_groups
from edgewise.graph.surgery import shrink
from edgewise.graph.trace import Atoms
from edgewise.progress import Progress
from edgewise.prune.allocate import ALLOCATIONS, Allocation, Widths, allocate, top
from edgewise.prune.candidates import CARE, Candidates, Trial, within
from edgewise.prune.channels import zero_channels
from edgewise.prune.complexity import ByContribution, memory_model
from edgewise.prune.config import Prune
from edgewise.prune.importance import score
from edgewise.prune.judge import Judge
from edgewise.prune.rates import Sensitivity, at_rates, scaled_rates, sensitivities
from edgewise.prune.search import RandomSearch


@dataclass(frozen=True)
class Pruned:
    """A pruned network and how it came about.

    Args:
        model: the smaller network.
        graph: of the network before.
        keep: the channels that were kept, by group; groups that are not named stayed whole.
        rigid: groups that could not shrink, since their width is written into the forward.
        limits: upper limits by quantity, amounts.
        trials: what was foretold and measured on the way to it.
        sensitivity: the curves that the widths come from, by group.
        search: the random candidates that were judged.
    """

    model: nn.Module
    graph: Graph
    keep: dict[str, Atoms]
    rigid: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    sensitivity: Mapping[str, Sensitivity] = field(default_factory=dict)
    search: RandomSearch | None = None


def prune(
    model: nn.Module,
    example: Tensor,
    config: Prune,
    *,
    gradients: Iterable[Mapping[str, Tensor]] = (),
    judge: Judge | None = None,
    limits: Mapping[str, Limit] | None = None,
    reference: Path | None = None,
    tail: nn.Module | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a network's channels to a budget; the network is left as it was.

    Args:
        model: the network, with the weights that are to be ranked.
        example: an input of the right shape ``[N, C, H, W]``.
        config: what to remove.
        gradients: of the loss by parameter name, one mapping for each batch, where the importance needs them.
        judge: of candidates, where the allocation needs one.
        limits: that hold besides the config's: macs, params, latency_s, file_bytes or peak_activation_bytes, the last
            three of the artifact.
        reference: the float artifact that limits as shares refer to; by default the network's own.
        tail: what artifacts make of the network's outputs, appended to them (`edgewise.export.tail`).
        seed: of random criteria and candidates.
        progress: is told (what, done, total) while candidates are measured or judged.

    Raises:
        UnsupportedOp: the network has an operator the channel graph cannot follow.
        BudgetError: no allowed widths meet the budget.
        ValueError: there is no judge, and the allocation needs one.
        UserError: more threads than this machine has cores, a group that does not exist.
    """
    graph = trace(model, example)
    if config.allocate == "zero":
        keep = zero_channels(graph, branches=config.branches)
        return Pruned(shrink(model, graph, keep), graph, keep, graph.rigid)
    scores = score(graph, config.ranking, gradients=gradients, reduce=config.reduce, seed=seed)
    rigid = list(graph.rigid)
    branches = config.branches and config.allocate == "knapsack"
    limits = limits or {}
    static_model = memory_model(graph, config.complexity.memory) if config.complexity else None
    static = _static_limits(config, limits, static_model or CostModel(graph))
    allowed = _allowed(graph, config)
    curves = _curves(graph, config, judge, scores, progress)
    if config.knee:
        rigid += [group.name for group in allowed if group.name in scores and group.name not in curves]
    allocation = _allocation(graph, config, judge, scores, curves, seed, progress)

    def choose(cost_model: CostModel | None, measured: dict[str, float]) -> dict[str, Atoms]:
        amounts = static | measured
        while True:
            keep = allocate(
                graph,
                scores=scores,
                budget=Budget(**{name: Limit(amount) for name, amount in amounts.items()}) if amounts else None,
                allocation=allocation,
                normalize=config.normalize,
                round_to=config.round_to,
                floor=config.floor,
                groups=[g.name for g in allowed if g.name not in rigid],
                branches=branches,
                cost_model=cost_model,
            )
            narrowed = {name: kept for name, kept in keep.items() if not graph.takes_branch(name, kept)}
            stuck = rigid_groups(graph, narrowed)  # at these widths, where half of each was tried before
            if not stuck:
                return keep
            rigid.extend(stuck)

    trials: list[Trial] = []
    if charged := _charged(config, limits):
        candidates = Candidates(
            graph,
            charged,
            precision=config.precision or "float32",
            threads=config.threads or 1,
            branches=branches,
            reference=reference,
            tail=tail,
            progress=progress,
        )
        measured = _measured_limits(config, limits, candidates)
        keep, trials = within(candidates, measured, allowed, choose)
        static |= measured
    else:
        keep = choose(static_model, {})
    tried = allocation if isinstance(allocation, RandomSearch) else None
    return Pruned(shrink(model, graph, keep), graph, keep, tuple(rigid), static, tuple(trials), curves, tried)


def _charged(config: Prune, limits: Mapping[str, Limit]) -> list[str]:
    """Name the quantities that are limited and that only an artifact shows."""
    return [name for name in CARE if name in limits or (name == "latency_s" and config.keep_latency is not None)]


def _measured_limits(config: Prune, limits: Mapping[str, Limit], candidates: Candidates) -> dict[str, float]:
    """Return the limits on those quantities, as amounts; of two on the latency the stricter one."""
    amounts = {name: limits[name].amount(candidates.reference[name]) for name in candidates.dense if name in limits}
    if config.keep_latency is not None:
        kept_s = config.keep_latency * candidates.dense["latency_s"]
        amounts["latency_s"] = min(kept_s, amounts.get("latency_s", kept_s))
    return amounts


def _allowed(graph: Graph, config: Prune) -> list[Group]:
    """Return the groups that may shrink.

    Raises:
        UnknownName: a group that is to stay whole does not exist.
    """
    for name in config.whole:
        if name not in graph.by_name:
            raise UnknownName(f'whole: no group is called "{name}"; {nearest(name, graph.by_name)}')
    return [group for group in graph.prunable(inexact=config.inexact) if group.name not in config.whole]


def _static_limits(config: Prune, limits: Mapping[str, Limit], cost: CostModel) -> dict[str, float]:
    """Return the limits that widths alone decide, as amounts."""
    shares = {
        name: Limit(share, of_dense=True)
        for name, keep in (("macs", "keep_macs"), ("params", "keep_params"), ("memory_bytes", "keep_memory"))
        if (share := getattr(config, keep)) is not None
    }
    found = {}
    for name in ("macs", "params", "memory_bytes"):
        given = [limit for limit in (shares.get(name), limits.get(name)) if limit is not None]
        if given:
            dense = float(cost.quantity(name, cost.graph.sizes))
            found[name] = min(limit.amount(dense) for limit in given)
    return found


def _curves(
    graph: Graph, config: Prune, judge: Judge | None, scores: Mapping[str, Tensor], progress: Progress | None
) -> dict[str, Sensitivity]:
    """Measure how sensitive each group is, where the allocation asks for it."""
    if config.judged and not judge:
        raise ValueError(f'allocate = "{config.allocate}" needs a judge of candidates')
    if not config.knee or not judge:
        return {}
    return sensitivities(
        graph,
        judge,
        config.knee,
        scores=scores,
        groups=[group.name for group in _allowed(graph, config)],
        round_to=config.round_to,
        floor=config.floor,
        progress=progress,
    )


def _allocation(
    graph: Graph,
    config: Prune,
    judge: Judge | None,
    scores: Mapping[str, Tensor],
    curves: Mapping[str, Sensitivity],
    seed: int,
    progress: Progress | None,
) -> Allocation:
    """Return what chooses the widths."""
    if config.knee:
        rates = {name: curve.knee for name, curve in curves.items()}
        return scaled_rates(rates) if config.limited else at_rates(rates)
    if config.complexity:
        return ByContribution(config.complexity)
    if config.search and judge:
        return RandomSearch(config.search, accuracy_at(graph, scores, judge), seed, progress)
    return ALLOCATIONS[config.allocate]


def accuracy_at(graph: Graph, scores: Mapping[str, Tensor], judge: Judge) -> Callable[[Widths], float]:
    """Return the function that judges the network at widths ``[G]``, the best channels of each group kept."""

    def accuracy(widths: Widths) -> float:
        narrowed = [(g.name, int(w)) for g, w in zip(graph.groups, widths, strict=True) if w < g.size]
        keep = {name: top(scores[name], width) for name, width in narrowed}
        return judge.accuracy(shrink(graph.model, graph, keep))

    return accuracy
