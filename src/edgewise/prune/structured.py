"""The prune step: score the channels, choose the widths, remove what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from edgewise.cost.budget import Budget
from edgewise.cost.latency import FINEST
from edgewise.cost.static import CostModel
from edgewise.graph.groups import Graph, trace
from edgewise.graph.rigid import rigid_groups
from edgewise.graph.surgery import shrink
from edgewise.graph.trace import Atoms
from edgewise.progress import Progress
from edgewise.prune.allocate import Allocation, Widths, allocate, top
from edgewise.prune.importance import IMPORTANCES, score
from edgewise.prune.judge import Judge
from edgewise.prune.knee import Knee
from edgewise.prune.latency import CandidateLatency, Trial, within_latency
from edgewise.prune.rates import Sensitivity, at_rates, scaled_rates, sensitivities
from edgewise.prune.search import RandomSearch, Search

JUDGED = {"knee": Knee, "search": Search}  # allocations that judge candidates by their accuracy, and their settings


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove whole channels until the network is within a budget.

    Args:
        importance: how channels are ranked.
        reduce: how the scores of a channel's several tensors become one.
        normalize: whether scores are divided by their group's mean before groups are compared.
        allocate: how the budget is shared among the groups. "knee" measures how sensitive each group is and needs no
            budget; given one, it fills it in the knees' proportions. "search" judges random widths.
        keep_macs: the share of the MACs to keep, in (0, 1].
        keep_params: the share of the parameters to keep, in (0, 1].
        keep_latency: the share of the dense network's latency to keep, in (0, 1], measured on this machine in ONNX
            Runtime, both as artifacts of `precision`.
        precision: of what `keep_latency` is measured on.
        threads: that ONNX Runtime may use for it.
        round_to: widths become multiples of this; 8 or 16 is what the runtimes' kernels are made for.
        floor: the least share of its channels that a group keeps, 0 to 1.
        branches: the knapsack may take whole branches out that a residual path runs beside.
        inexact: also prune groups whose removal changes a normalisation's statistics.
        calibration: training images whose gradients rank the channels, where the importance needs them.
        recalibrate: images for the BatchNorm statistics of the pruned network; 0 leaves them as they are.
        knee: settings of ``allocate = "knee"``.
        search: settings of ``allocate = "search"``.
    """

    kind: Literal["prune"] = "prune"
    importance: Literal["l1", "l2", "bn_scale", "taylor", "fpgm", "lamp", "random"] = "l2"
    reduce: Literal["mean", "max", "first"] = "mean"
    normalize: Literal["mean", "none"] = "mean"
    allocate: Literal["uniform", "global", "isomorphic", "knapsack", "knee", "search"] = "global"
    keep_macs: float | None = None
    keep_params: float | None = None
    keep_latency: float | None = None
    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    round_to: int = 8
    floor: float = 0.0
    branches: bool = True
    inexact: bool = False
    calibration: int = 512
    recalibrate: int = 2048
    knee: Knee | None = None
    search: Search | None = None

    def __post_init__(self) -> None:
        keeps = ("keep_macs", "keep_params", "keep_latency")
        for name in keeps:
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} = {value}: a share to keep lies in (0, 1]")
        for name, settings in JUDGED.items():
            if self.allocate == name and getattr(self, name) is None:
                object.__setattr__(self, name, settings())
            if self.allocate != name and getattr(self, name) is not None:
                raise ValueError(f'settings of {name} have no use with allocate = "{self.allocate}"')
        if self.allocate == "search" and self.keep_latency is not None:
            raise ValueError("keep_latency: random search counts what candidates cost; give keep_macs or keep_params")
        if self.allocate != "knee" and all(getattr(self, name) is None for name in keeps):
            raise ValueError(f"say how much to keep: {', '.join(keeps)}, each in (0, 1]")
        if self.keep_latency is not None and self.round_to % FINEST:
            raise ValueError(f"round_to = {self.round_to}: latency is known at multiples of {FINEST} channels")
        if self.threads < 1:
            raise ValueError(f"threads = {self.threads}: at least 1")
        if self.round_to < 1:
            raise ValueError(f"round_to = {self.round_to}: a width is a multiple of at least 1")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor = {self.floor}: a share of the channels, 0 to 1")
        if self.recalibrate < 0 or self.recalibrate == 1:  # one image has no variance
            raise ValueError(f"recalibrate = {self.recalibrate}: a number of images, 0 or at least 2")
        if self.calibration < 1:
            raise ValueError(f"calibration = {self.calibration}: a number of images, 1 or more")

    @property
    def needs_gradients(self) -> bool:
        """Whether `prune` must be given gradients."""
        return IMPORTANCES[self.importance].gradients

    @property
    def judged(self) -> Knee | Search | None:
        """The settings by which candidates are judged, where `prune` must be given a judge."""
        return self.knee or self.search

    @property
    def limited(self) -> bool:
        """Whether there is a budget."""
        return any(keep is not None for keep in (self.keep_macs, self.keep_params, self.keep_latency))

    def budget(self, latency_s: float | None = None) -> Budget:
        """Return what the pruned network may cost; the seconds are those of `keep_latency`."""
        if not self.limited:
            return Budget(macs=1.0)
        return Budget(macs=self.keep_macs, params=self.keep_params, latency_s=latency_s)


@dataclass(frozen=True)
class Pruned:
    """A pruned network and how it came about.

    Args:
        model: the smaller network.
        graph: of the network before.
        keep: the channels that were kept, by group; groups that are not named stayed whole.
        rigid: groups that could not shrink, since their width is written into the forward.
        latency_s: the limit on the latency, where there is one.
        trials: what was foretold and measured on the way to it.
        sensitivity: the curves that the widths come from, by group.
        search: the random candidates that were judged.
    """

    model: nn.Module
    graph: Graph
    keep: dict[str, Atoms]
    rigid: tuple[str, ...]
    latency_s: float | None = None
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
        seed: of random criteria and candidates.
        progress: is told (what, done, total) while latencies or accuracies are measured.

    Raises:
        UnsupportedOp: the network has an operator the channel graph cannot follow.
        BudgetError: no allowed widths meet the budget.
        ValueError: there is no judge, and the allocation needs one.
        UserError: more threads than this machine has cores.
    """
    graph = trace(model, example)
    scores = score(graph, config.importance, gradients=gradients, reduce=config.reduce, seed=seed)
    rigid = list(graph.rigid)
    branches = config.branches and config.allocate == "knapsack"
    allowed = graph.prunable(inexact=config.inexact)
    judged = _judged(graph, config, scores, judge, seed, progress)
    rigid += judged.rigid

    def choose(cost_model: CostModel | None, latency_s: float | None) -> dict[str, Atoms]:
        while True:
            keep = allocate(
                graph,
                scores=scores,
                budget=config.budget(latency_s),
                allocation=judged.allocation,
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

    if config.keep_latency is None:
        keep = choose(None, None)
        return Pruned(
            shrink(model, graph, keep), graph, keep, tuple(rigid), sensitivity=judged.curves, search=judged.search
        )
    latency = CandidateLatency(
        graph, precision=config.precision, threads=config.threads, branches=branches, progress=progress
    )
    limit_s = config.keep_latency * latency.dense_s
    keep, trials = within_latency(latency, limit_s, allowed, choose)
    return Pruned(shrink(model, graph, keep), graph, keep, tuple(rigid), limit_s, tuple(trials), judged.curves)


@dataclass(frozen=True)
class _Judged:
    """An allocation, what was measured for it before, and the groups that turned out to be rigid."""

    allocation: str | Allocation
    curves: Mapping[str, Sensitivity] = field(default_factory=dict)
    search: RandomSearch | None = None
    rigid: tuple[str, ...] = ()


def _judged(
    graph: Graph,
    config: Prune,
    scores: Mapping[str, Tensor],
    judge: Judge | None,
    seed: int,
    progress: Progress | None,
) -> _Judged:
    """Return the allocation of a config; one that judges candidates is prepared."""
    if config.judged is None:
        return _Judged(config.allocate)
    if judge is None:
        raise ValueError(f'allocate = "{config.allocate}" needs a judge of candidates')
    if config.search:
        search = RandomSearch(config.search, accuracy_at(graph, scores, judge), seed, progress)
        return _Judged(search, search=search)
    assert config.knee is not None
    names = [group.name for group in graph.prunable(inexact=config.inexact) if group.name in scores]
    curves = sensitivities(
        graph,
        judge,
        config.knee,
        scores=scores,
        groups=names,
        round_to=config.round_to,
        floor=config.floor,
        progress=progress,
    )
    rates = {name: curve.knee for name, curve in curves.items()}
    allocation = scaled_rates(rates) if config.limited else at_rates(rates)
    return _Judged(allocation, curves, rigid=tuple(name for name in names if name not in curves))


def accuracy_at(graph: Graph, scores: Mapping[str, Tensor], judge: Judge) -> Callable[[Widths], float]:
    """Return the function that judges the network at widths ``[G]``, the best channels of each group kept."""

    def accuracy(widths: Widths) -> float:
        narrowed = [(g.name, int(w)) for g, w in zip(graph.groups, widths, strict=True) if w < g.size]
        keep = {name: top(scores[name], width) for name, width in narrowed}
        return judge.accuracy(shrink(graph.model, graph, keep))

    return accuracy
