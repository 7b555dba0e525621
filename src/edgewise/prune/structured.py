"""The prune step: score the channels, choose the widths, remove what is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from edgewise.cost.budget import Budget, Limit
from edgewise.cost.latency import FINEST
from edgewise.cost.static import CostModel
from edgewise.graph.groups import Graph, trace
from edgewise.graph.rigid import rigid_groups
from edgewise.graph.surgery import shrink
from edgewise.graph.trace import Atoms
from edgewise.progress import Progress
from edgewise.prune.allocate import allocate
from edgewise.prune.candidates import CARE, Candidates, Trial, within
from edgewise.prune.channels import zero_channels
from edgewise.prune.importance import IMPORTANCES, score


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove whole channels until the network is within a budget.

    Args:
        importance: how channels are ranked.
        reduce: how the scores of a channel's several tensors become one.
        normalize: whether scores are divided by their group's mean before groups are compared.
        allocate: how the budget is shared among the groups; or "zero", which removes exactly the channels that are
            zero, as `Hesso` and `Dhspg` leave them, and looks at nothing else here but `branches`.
        keep_macs: the share of the MACs to keep, in (0, 1].
        keep_params: the share of the parameters to keep, in (0, 1].
        keep_latency: the share of the dense network's latency to keep, in (0, 1], measured on this machine in ONNX
            Runtime, both as artifacts of `precision`.
        budget: keep within the recipe's [budget] too: size, latency, memory, MACs and parameters, the first three as
            measured on artifacts of `precision`.
        budget_share: the share of each of those limits that pruning may use; less than 1 leaves room.
        precision: of the artifact that will be made of the network, on which latency, size and memory are measured.
        threads: that ONNX Runtime may use.
        round_to: widths become multiples of this; 8 or 16 is what the runtimes' kernels are made for.
        floor: the least share of its channels that a group keeps, 0 to 1.
        branches: "knapsack" and "zero" may take whole branches out that a residual path runs beside.
        inexact: also prune groups whose removal changes a normalisation's statistics.
        calibration: training images whose gradients rank the channels, where the importance needs them.
        recalibrate: images for the BatchNorm statistics of the pruned network; 0 leaves them as they are.
    """

    kind: Literal["prune"] = "prune"
    importance: Literal["l1", "l2", "bn_scale", "taylor", "fpgm", "lamp", "random"] = "l2"
    reduce: Literal["mean", "max", "first"] = "mean"
    normalize: Literal["mean", "none"] = "mean"
    allocate: Literal["uniform", "global", "isomorphic", "knapsack", "zero"] = "global"
    keep_macs: float | None = None
    keep_params: float | None = None
    keep_latency: float | None = None
    budget: bool = False
    budget_share: float = 1.0
    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    round_to: int = 8
    floor: float = 0.0
    branches: bool = True
    inexact: bool = False
    calibration: int = 512
    recalibrate: int = 2048

    def __post_init__(self) -> None:
        keeps = ("keep_macs", "keep_params", "keep_latency")
        for name in keeps:
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} = {value}: a share to keep lies in (0, 1]")
        given = [name for name in keeps if getattr(self, name) is not None] + ["budget"] * self.budget
        if given and self.allocate == "zero":
            raise ValueError(f'{given[0]} = {getattr(self, given[0])}: allocate = "zero" asks for no budget')
        if not given and self.allocate != "zero":
            raise ValueError(f"say how much to keep: {', '.join(keeps)}, each in (0, 1], or budget = true")
        if self.keep_latency is not None and self.round_to % FINEST:
            raise ValueError(f"round_to = {self.round_to}: latency is known at multiples of {FINEST} channels")
        if not 0 < self.budget_share <= 1:
            raise ValueError(f"budget_share = {self.budget_share}: a share lies in (0, 1]")
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
    """

    model: nn.Module
    graph: Graph
    keep: dict[str, Atoms]
    rigid: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()


def prune(
    model: nn.Module,
    example: Tensor,
    config: Prune,
    *,
    gradients: Iterable[Mapping[str, Tensor]] = (),
    limits: Mapping[str, Limit] | None = None,
    reference: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a network's channels to a budget; the network is left as it was.

    Args:
        model: the network, with the weights that are to be ranked.
        example: an input of the right shape ``[N, C, H, W]``.
        config: what to remove.
        gradients: of the loss by parameter name, one mapping for each batch, where the importance needs them.
        limits: that hold besides the config's: macs, params, latency_s, file_bytes or peak_activation_bytes, the last
            three of the artifact.
        reference: the float artifact that limits as shares refer to; by default the network's own.
        seed: of random criteria.
        progress: is told (what, done, total) while candidates are measured.

    Raises:
        UnsupportedOp: the network has an operator the channel graph cannot follow.
        BudgetError: no allowed widths meet the budget.
        UserError: more threads than this machine has cores.
    """
    graph = trace(model, example)
    if config.allocate == "zero":
        keep = zero_channels(graph, branches=config.branches)
        return Pruned(shrink(model, graph, keep), graph, keep, graph.rigid)
    scores = score(graph, config.importance, gradients=gradients, reduce=config.reduce, seed=seed)
    rigid = list(graph.rigid)
    branches = config.branches and config.allocate == "knapsack"
    limits = limits or {}
    static = _static_limits(config, limits, CostModel(graph))
    allowed = graph.prunable(inexact=config.inexact)

    def choose(cost_model: CostModel | None, measured: dict[str, float]) -> dict[str, Atoms]:
        while True:
            keep = allocate(
                graph,
                scores=scores,
                budget=Budget(**{name: Limit(amount) for name, amount in (static | measured).items()}),
                allocation=config.allocate,
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

    charged = [name for name in CARE if name in limits or (name == "latency_s" and config.keep_latency is not None)]
    if not charged:
        keep = choose(None, {})
        return Pruned(shrink(model, graph, keep), graph, keep, tuple(rigid), static)
    candidates = Candidates(
        graph,
        charged,
        precision=config.precision,
        threads=config.threads,
        branches=branches,
        reference=reference,
        progress=progress,
    )
    amounts = {name: limits[name].amount(candidates.reference[name]) for name in charged if name in limits}
    if config.keep_latency is not None:
        kept_s = config.keep_latency * candidates.dense["latency_s"]
        amounts["latency_s"] = min(kept_s, amounts.get("latency_s", kept_s))
    keep, trials = within(candidates, amounts, allowed, choose)
    return Pruned(shrink(model, graph, keep), graph, keep, tuple(rigid), static | amounts, tuple(trials))


def _static_limits(config: Prune, limits: Mapping[str, Limit], cost: CostModel) -> dict[str, float]:
    """Return the limits that widths alone decide, as amounts."""
    dense = {name: float(cost.quantity(name, cost.graph.sizes)) for name in ("macs", "params")}
    shares = {name: Limit(share, of_dense=True) for name in dense if (share := getattr(config, f"keep_{name}"))}
    asked = {name: [given[name] for given in (shares, limits) if name in given] for name in dense}
    return {name: min(limit.amount(dense[name]) for limit in found) for name, found in asked.items() if found}
