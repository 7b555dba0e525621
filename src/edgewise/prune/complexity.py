"""Widths by how much each layer contributes to the network's complexity: the heavier a layer, the more of it goes.

Nothing is ranked and no weights are needed, so a network can be pruned before it is trained: modes PA (parameters), FA
(MACs), MA (memory) and our own LA (latency measured on this machine).

Reference: Zawish, Davy, Abraham, Complexity-Driven Model Compression for Resource-Constrained Deep Learning on Edge,
IEEE Trans. AI 5(8), 2024; as Complexity-Driven CNN Compression, arXiv 2208.12816. Both say that layers are chosen by
their contribution; how a contribution becomes a rate is not public, so the rule is ours and its numbers are settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from edgewise.cost.budget import exceeded
from edgewise.cost.latency import LatencyModel
from edgewise.cost.static import CostModel
from edgewise.graph.groups import Graph
from edgewise.prune.allocate import Floats, Problem, Widths, align

Memory = Literal["activations", "activations+params", "training"]

KEEP = {"params": "keep_params", "macs": "keep_macs", "memory": "keep_memory", "latency": "keep_latency"}
# Bytes of weights and bytes of operators' outputs at batch 1 in each memory. "training" is what the tool torchscope
# counts, 4 (3 params + 2 outputs), where the outputs are those of a batch of 2.
MEMORY: dict[Memory, tuple[float, float]] = {
    "activations": (0, 1),
    "activations+params": (1, 1),
    "training": (3, 4),
}


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """How contributions become widths.

    Args:
        mode: what a layer contributes to: "params" (PA), "macs" (FA), "memory" (MA) or "latency" (LA). The step's
            `keep_params`, `keep_macs`, `keep_memory` or `keep_latency` is the target.
        memory: what MA counts, in bytes at batch 1: the operators' outputs, those and the weights, or three times the
            weights and four times the outputs ("training"). With the weights in it, MA is nearly PA on a VGG-16.
        rule: "bisection" takes from each group the share ``min(r_max, k * contribution / largest contribution)``, with
            the least k that meets the target; "greedy" narrows the group that contributes most, by a fraction at a
            time, and counts again.
        fraction: of its channels that "greedy" takes from a group at a time.
        r_max: the largest share of its channels a group may lose.
        min_channels: that every group keeps, where it has as many; what lies beside other channels may go.
        shared: what a width that several layers share (a residual stream, an expansion and its depthwise convolution)
            contributes: the "sum" of its layers, or their "mean".
        filters: which channels stay, in place of the step's `importance`: those with the largest weights ("l1"),
            "random" ones, or the "first". With weights drawn alike the choice means nothing.
    """

    mode: Literal["params", "macs", "memory", "latency"] = "macs"
    memory: Memory = "activations"
    rule: Literal["bisection", "greedy"] = "bisection"
    fraction: float = 0.1
    r_max: float = 0.9
    min_channels: int = 8
    shared: Literal["sum", "mean"] = "sum"
    filters: Literal["l1", "random", "first"] = "first"

    def __post_init__(self) -> None:
        for name in ("fraction", "r_max"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: a share of a group's channels, between 0 and 1")
        if self.min_channels < 1:
            raise ValueError(f"min_channels = {self.min_channels}: at least 1")


def memory_model(graph: Graph, memory: Memory) -> CostModel:
    """Return the network's cost model, with `memory_bytes` counted as `memory` says.

    >>> import torch
    >>> from edgewise.graph import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.Conv2d(8, 4, 1, bias=False))
    >>> graph = trace(net, torch.zeros(1, 3, 6, 6))  # 248 weights, 8 * 16 + 4 * 16 outputs, each of 4 bytes
    >>> [int(memory_model(graph, m).quantity("memory_bytes", [8])) for m in MEMORY]
    [768, 1760, 6048]
    """
    static = CostModel(graph)
    of_weights, of_outputs = MEMORY[memory]

    def memory_bytes(widths: ArrayLike) -> Floats:
        weights, outputs = (static.quantity(name, widths) for name in ("weight_bytes", "activation_bytes"))
        return of_weights * weights + of_outputs * outputs

    return CostModel(graph, {"memory_bytes": memory_bytes})


def contributions(model: CostModel, settings: Complexity, widths: ArrayLike) -> Floats:
    """Return what each group's layers contribute to the complexity of the network ``[G]``, as shares of all layers'.

    A layer counts for the group of the channels that it makes; one whose channels lie in several groups counts for
    each by its share of them.

    Args:
        model: the network's cost model; for the latency one that foretells it.
        settings: what is counted.
        widths: ``[G]``, at which it is counted.
    """
    graph = model.graph
    amounts = _amounts(model, settings, widths)
    makers = {op.module: op.layer.makes for op in graph.ops if op.layer is not None}
    total = sum(amounts[module] for module in makers)
    found, layers = np.zeros(len(graph.groups) + 1), np.zeros(len(graph.groups) + 1)
    for module, channels in makers.items():
        owned = np.bincount(graph.group_of[channels], minlength=len(found)) / len(channels)
        found += owned * amounts[module] / total
        layers += owned
    return (found if settings.shared == "sum" else found / np.maximum(layers, 1e-30))[:-1]


def _amounts(model: CostModel, settings: Complexity, widths: ArrayLike) -> dict[str, float]:
    """Return what each layer costs by its path: a count, bytes or seconds."""
    if settings.mode == "latency":
        latency = model.foretold["latency_s"]
        assert isinstance(latency, LatencyModel)
        return latency.layers(widths)
    rows = model.layers(widths)
    if settings.mode == "memory":
        of_weights, of_outputs = MEMORY[settings.memory]
        return {row.name: of_weights * row.weight_bytes + of_outputs * row.activation_bytes for row in rows}
    return {row.name: getattr(row, settings.mode) for row in rows}


@dataclass(frozen=True)
class ByContribution:
    """The allocation that chooses widths ``[G]`` by what the groups contribute, with these settings.

    Where the limits cannot be held, the widths are the narrowest that the settings allow.
    """

    settings: Complexity

    @property
    def rule(self) -> str:
        """What keeps widths from getting narrower, in words."""
        return f"complexity.r_max = {self.settings.r_max} and min_channels = {self.settings.min_channels}"

    def __call__(self, problem: Problem) -> Widths:
        """Solve it."""
        settings = self.settings
        sizes, groups = problem.model.graph.sizes, np.array(list(problem.groups), np.int64)
        if not exceeded(problem.model, sizes, problem.limits) or not len(groups):
            return sizes
        kept = np.maximum(settings.min_channels, np.ceil((1 - settings.r_max) * sizes))
        aligned = -(-kept // problem.blocks) * problem.blocks
        floors = np.maximum(problem.least, np.minimum(sizes, aligned).astype(np.int64))
        least = np.where(problem.least > 0, floors, 0)  # what a padded shortcut adds lies beside others, and may go
        return RULES[settings.rule](problem, settings, groups, least)


def _bisection(problem: Problem, settings: Complexity, groups: Widths, least: Widths) -> Widths:
    """Take from each group in proportion to what it contributes to the dense network, as little as holds the limits."""
    model, sizes = problem.model, problem.model.graph.sizes
    share = contributions(model, settings, sizes)[groups]
    if not share.any():
        return least
    relative = share / share.max()

    def wanted(factor: float) -> Floats:
        widths = sizes.astype(np.float64)
        widths[groups] *= 1 - np.minimum(settings.r_max, factor * relative)
        return widths

    def aligned(factor: float) -> Widths:
        exact = wanted(factor)
        return np.where(exact < sizes, align(exact, sizes, least, problem.blocks), sizes)

    low, high = 0.0, settings.r_max / relative[relative > 0].min()  # at the highest every group has lost r_max
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeded(model, aligned(middle), problem.limits) else (low, middle)
    widths = aligned(high)
    return _given_back(problem, widths, np.argsort(widths - wanted(high), kind="stable"))


def _greedy(problem: Problem, settings: Complexity, groups: Widths, least: Widths) -> Widths:
    """Narrow the group that contributes most to the network as it is now, until the limits hold."""
    model, sizes = problem.model, problem.model.graph.sizes
    widths = sizes
    while exceeded(model, widths, problem.limits):
        share = contributions(model, settings, widths)
        narrower = [int(g) for g in groups if widths[g] > least[g]]
        if not narrower:
            return widths
        heaviest = max(narrower, key=lambda g: (share[g], -g))
        block = problem.blocks[heaviest]
        left = int((1 - settings.fraction) * widths[heaviest]) // block * block
        widths = widths.copy()
        widths[heaviest] = max(least[heaviest], left)
    return _given_back(problem, widths, np.argsort(widths / sizes, kind="stable"))


def _given_back(problem: Problem, widths: Widths, order: Widths) -> Widths:
    """Widen groups by one block each, in this order and again, as long as the limits hold."""
    sizes, blocks = problem.model.graph.sizes, problem.blocks
    while True:
        before = widths
        for group in order:
            wider = widths.copy()
            wider[group] = min(sizes[group], (widths[group] // blocks[group] + 1) * blocks[group])
            widths = widths if exceeded(problem.model, wider, problem.limits) else wider
        if (widths == before).all():
            return widths


RULES: dict[str, Callable[[Problem, Complexity, Widths, Widths], Widths]] = {
    "bisection": _bisection,
    "greedy": _greedy,
}
