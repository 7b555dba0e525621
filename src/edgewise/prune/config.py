"""What a prune step is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise.cost.latency import FINEST
from edgewise.prune.complexity import KEEP, Complexity
from edgewise.prune.importance import IMPORTANCES
from edgewise.prune.knee import Knee
from edgewise.prune.search import Search

KEEPS = ("keep_macs", "keep_params", "keep_latency", "keep_memory")
SETTINGS = {"knee": Knee, "search": Search, "complexity": Complexity}  # of the allocations that have some
UNLIMITED = ("zero", "knee")  # allocations that need no budget


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove whole channels until the network is within a budget.

    Args:
        importance: how channels are ranked.
        reduce: how the scores of a channel's several tensors become one.
        normalize: whether scores are divided by their group's mean before groups are compared.
        allocate: how the budget is shared among the groups. "zero" removes exactly the channels that are zero, as
            `Hesso` and `Dhspg` leave them, and looks at nothing else here but `branches`. "knee" measures how
            sensitive each group is and needs no budget; given one, it fills it in the knees' proportions. "search"
            judges random widths. "complexity" takes the more of a layer the more it costs, and ranks no weights.
        keep_macs: the share of the MACs to keep, in (0, 1]; these shares are of the network before the step.
        keep_params: the share of the parameters to keep, in (0, 1].
        keep_latency: the share of the latency to keep, in (0, 1], measured on this machine in ONNX Runtime, before and
            after as artifacts of `precision`.
        keep_memory: the share of the memory to keep, in (0, 1], as `complexity.memory` counts it.
        budget: keep within the recipe's [budget] too: size, latency, memory, MACs and parameters, the first three as
            measured on artifacts of `precision`.
        budget_share: the share of the budget's size, latency and memory that pruning may use; less than 1 leaves room.
        precision: of the artifact that will be made of the network, on which latency, size and memory are measured; by
            default that of the recipe's.
        threads: that ONNX Runtime may use; by default those of the recipe's measure step.
        round_to: widths become multiples of this; 8 or 16 is what the runtimes' kernels are made for.
        floor: the least share of its channels that a group keeps, 0 to 1.
        branches: "knapsack" and "zero" may take whole branches out that a residual path runs beside.
        whole: names of groups that stay whole, as `edgewise profile` lists them.
        inexact: also prune groups whose removal changes a normalisation's statistics.
        calibration: training images whose gradients rank the channels, where the importance needs them.
        recalibrate: images for the BatchNorm statistics of the pruned network; 0 leaves them as they are.
        knee: settings of the allocation "knee".
        search: settings of the allocation "search".
        complexity: settings of the allocation "complexity", whose mode says which single keep_... is the target.
    """

    kind: Literal["prune"] = "prune"
    importance: Literal["l1", "l2", "bn_scale", "taylor", "fpgm", "lamp", "random"] = "l2"
    reduce: Literal["mean", "sum", "max", "first"] = "mean"
    normalize: Literal["mean", "none"] = "mean"
    allocate: Literal["uniform", "global", "isomorphic", "knapsack", "zero", "knee", "search", "complexity"] = "global"
    keep_macs: float | None = None
    keep_params: float | None = None
    keep_latency: float | None = None
    keep_memory: float | None = None
    budget: bool = False
    budget_share: float = 1.0
    precision: Literal["float32", "int8"] | None = None
    threads: int | None = None
    round_to: int = 8
    floor: float = 0.0
    branches: bool = True
    whole: tuple[str, ...] = ()
    inexact: bool = False
    calibration: int = 512
    recalibrate: int = 2048
    knee: Knee | None = None
    search: Search | None = None
    complexity: Complexity | None = None

    def __post_init__(self) -> None:
        for name in self.keeps:
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} = {value}: a share to keep lies in (0, 1]")
        self._check_allocation()
        if self.keep_latency is not None and self.round_to % FINEST:
            raise ValueError(f"round_to = {self.round_to}: latency is known at multiples of {FINEST} channels")
        if not 0 < self.budget_share <= 1:
            raise ValueError(f"budget_share = {self.budget_share}: a share lies in (0, 1]")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads = {self.threads}: at least 1")
        if self.round_to < 1:
            raise ValueError(f"round_to = {self.round_to}: a width is a multiple of at least 1")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor = {self.floor}: a share of the channels, 0 to 1")
        if self.recalibrate < 0 or self.recalibrate == 1:  # one image has no variance
            raise ValueError(f"recalibrate = {self.recalibrate}: a number of images, 0 or at least 2")
        if self.calibration < 1:
            raise ValueError(f"calibration = {self.calibration}: a number of images, 1 or more")

    def _check_allocation(self) -> None:
        """Fill in the allocation's settings where it has some, and refuse what it does not go with."""
        for name, settings in SETTINGS.items():
            if self.allocate == name and getattr(self, name) is None:
                object.__setattr__(self, name, settings())
            if self.allocate != name and getattr(self, name) is not None:
                raise ValueError(f'{name} goes with allocate = "{name}", not "{self.allocate}"')
        if self.complexity and [*self.keeps, *["budget"] * self.budget] != [wanted := KEEP[self.complexity.mode]]:
            given = ", ".join([*self.keeps, *["budget"] * self.budget]) or "nothing"
            raise ValueError(f'complexity.mode = "{self.complexity.mode}" takes {wanted} alone, not {given}')
        if self.keep_memory is not None and not self.complexity:
            raise ValueError('keep_memory goes with allocate = "complexity" and complexity.mode = "memory"')
        if self.allocate == "zero" and self.limited:
            name = [*self.keeps, "budget"][0]
            raise ValueError(f'{name} = {getattr(self, name)}: allocate = "zero" asks for no budget')
        if self.allocate == "search" and (self.keep_latency is not None or self.budget):
            raise ValueError(
                "keep_latency, budget: random search counts what candidates cost: give it keep_macs or keep_params"
            )
        if self.allocate not in UNLIMITED and not self.limited:
            raise ValueError(f"say how much to keep: {', '.join(KEEPS)}, each in (0, 1], or budget = true")

    @property
    def keeps(self) -> list[str]:
        """The names of the shares to keep that are given."""
        return [name for name in KEEPS if getattr(self, name) is not None]

    @property
    def limited(self) -> bool:
        """Whether there is a budget."""
        return bool(self.keeps) or self.budget

    @property
    def needs_gradients(self) -> bool:
        """Whether `prune` must be given gradients."""
        return IMPORTANCES[self.ranking].gradients

    @property
    def ranking(self) -> str:
        """The importance by which channels are ranked."""
        return self.complexity.filters if self.complexity else self.importance

    @property
    def judged(self) -> Knee | Search | None:
        """The settings by which candidates are judged, where `prune` must be given a judge."""
        return self.knee or self.search
