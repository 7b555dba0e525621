"""The prune step: score the channels, choose the widths, remove what is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from edgewise.prune.allocate import allocate
from edgewise.prune.complexity import KEEP, Complexity, memory_model
from edgewise.prune.importance import IMPORTANCES, score
from edgewise.prune.latency import CandidateLatency, Trial, within_latency

KEEPS = ("keep_macs", "keep_params", "keep_latency", "keep_memory")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove whole channels until the network is within a budget.

    Args:
        importance: how channels are ranked.
        reduce: how the scores of a channel's several tensors become one.
        normalize: whether scores are divided by their group's mean before groups are compared.
        allocate: how the budget is shared among the groups.
        keep_macs: the share of the MACs to keep, in (0, 1].
        keep_params: the share of the parameters to keep, in (0, 1].
        keep_latency: the share of the dense network's latency to keep, in (0, 1], measured on this machine in ONNX
            Runtime, both as artifacts of `precision`.
        keep_memory: the share of the memory to keep, in (0, 1], as `complexity.memory` counts it.
        precision: of what `keep_latency` is measured on.
        threads: that ONNX Runtime may use for it.
        round_to: widths become multiples of this; 8 or 16 is what the runtimes' kernels are made for.
        floor: the least share of its channels that a group keeps, 0 to 1.
        branches: the knapsack may take whole branches out that a residual path runs beside.
        inexact: also prune groups whose removal changes a normalisation's statistics.
        calibration: training images whose gradients rank the channels, where the importance needs them.
        recalibrate: images for the BatchNorm statistics of the pruned network; 0 leaves them as they are.
        complexity: settings of the allocation "complexity", whose mode says which single keep_... is the target.
    """

    kind: Literal["prune"] = "prune"
    importance: Literal["l1", "l2", "bn_scale", "taylor", "fpgm", "lamp", "random"] = "l2"
    reduce: Literal["mean", "max", "first"] = "mean"
    normalize: Literal["mean", "none"] = "mean"
    allocate: Literal["uniform", "global", "isomorphic", "knapsack", "complexity"] = "global"
    keep_macs: float | None = None
    keep_params: float | None = None
    keep_latency: float | None = None
    keep_memory: float | None = None
    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    round_to: int = 8
    floor: float = 0.0
    branches: bool = True
    inexact: bool = False
    calibration: int = 512
    recalibrate: int = 2048
    complexity: Complexity | None = None

    def __post_init__(self) -> None:
        for name in self.keeps:
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} = {value}: a share to keep lies in (0, 1]")
        if not self.keeps:
            raise ValueError(f"say how much to keep: {', '.join(KEEPS)}, each in (0, 1]")
        self._check_complexity()
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

    def _check_complexity(self) -> None:
        """Fill in the allocation's settings where they are needed, and refuse what they do not go with."""
        if self.allocate == "complexity":
            settings = self.complexity or Complexity()
            object.__setattr__(self, "complexity", settings)
            if self.keeps != [KEEP[settings.mode]]:
                wanted, given = KEEP[settings.mode], ", ".join(self.keeps)
                raise ValueError(f'complexity.mode = "{settings.mode}" takes {wanted} alone, not {given}')
        elif self.complexity is not None:
            raise ValueError(f'complexity goes with allocate = "complexity", not "{self.allocate}"')
        elif self.keep_memory is not None:
            raise ValueError('keep_memory goes with allocate = "complexity" and complexity.mode = "memory"')

    @property
    def keeps(self) -> list[str]:
        """The names of the shares to keep that are given."""
        return [name for name in KEEPS if getattr(self, name) is not None]

    @property
    def ranking(self) -> str:
        """The importance by which channels are ranked."""
        return self.complexity.filters if self.complexity else self.importance

    @property
    def needs_gradients(self) -> bool:
        """Whether `prune` must be given gradients."""
        return IMPORTANCES[self.ranking].gradients

    def budget(self, latency_s: float | None = None) -> Budget:
        """Return what the pruned network may cost; the seconds are those of `keep_latency`."""
        return Budget(macs=self.keep_macs, params=self.keep_params, memory_bytes=self.keep_memory, latency_s=latency_s)


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
    """

    model: nn.Module
    graph: Graph
    keep: dict[str, Atoms]
    rigid: tuple[str, ...]
    latency_s: float | None = None
    trials: tuple[Trial, ...] = ()


def prune(
    model: nn.Module,
    example: Tensor,
    config: Prune,
    *,
    gradients: Iterable[Mapping[str, Tensor]] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a network's channels to a budget; the network is left as it was.

    Args:
        model: the network, with the weights that are to be ranked.
        example: an input of the right shape ``[N, C, H, W]``.
        config: what to remove.
        gradients: of the loss by parameter name, one mapping for each batch, where the importance needs them.
        seed: of random criteria.
        progress: is told (what, done, total) while latencies are measured.

    Raises:
        UnsupportedOp: the network has an operator the channel graph cannot follow.
        BudgetError: no allowed widths meet the budget.
        UserError: more threads than this machine has cores.
    """
    graph = trace(model, example)
    scores = score(graph, config.ranking, gradients=gradients, reduce=config.reduce, seed=seed)
    rigid = list(graph.rigid)
    branches = config.branches and config.allocate == "knapsack"

    def choose(cost_model: CostModel | None, latency_s: float | None) -> dict[str, Atoms]:
        while True:
            keep = allocate(
                graph,
                scores=scores,
                budget=config.budget(latency_s),
                allocation=config.allocate,
                normalize=config.normalize,
                round_to=config.round_to,
                floor=config.floor,
                groups=[g.name for g in allowed if g.name not in rigid],
                branches=branches,
                cost_model=cost_model,
                complexity=config.complexity,
            )
            narrowed = {name: kept for name, kept in keep.items() if not graph.takes_branch(name, kept)}
            stuck = rigid_groups(graph, narrowed)  # at these widths, where half of each was tried before
            if not stuck:
                return keep
            rigid.extend(stuck)

    allowed = graph.prunable(inexact=config.inexact)
    if config.keep_latency is None:
        keep = choose(memory_model(graph, config.complexity.memory) if config.complexity else None, None)
        return Pruned(shrink(model, graph, keep), graph, keep, tuple(rigid))
    latency = CandidateLatency(
        graph, precision=config.precision, threads=config.threads, branches=branches, progress=progress
    )
    limit_s = config.keep_latency * latency.dense_s
    keep, trials = within_latency(latency, limit_s, allowed, choose)
    return Pruned(shrink(model, graph, keep), graph, keep, tuple(rigid), limit_s, tuple(trials))
