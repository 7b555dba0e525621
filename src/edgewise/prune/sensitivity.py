"""How sensitive each group of channels is: the accuracy without a share of its least important channels, rate by rate.

Only the group's own channels are missing, and BatchNorm is recalibrated. A scan judges groups times rates networks,
and most of what they compute is the same: everything before the group's channels are summed over is the dense
network's, some channels left out. It is computed once, and each candidate starts from there.

Where that is, is found by comparing, not by what layers are called: the network and the pruned one run on a few inputs
with random weights, operator by operator, and the first result that is neither the dense one nor a part of it is where
the candidate begins. Random weights, since trained ones may hold channels that are dead and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.graph.groups import Graph, Group, Member
from edgewise.graph.surgery import shrink
from edgewise.graph.trace import Atoms
from edgewise.progress import Progress
from edgewise.prune.allocate import top
from edgewise.prune.judge import Judge, one_pass, prepared
from edgewise.prune.memory import kept_memory
from edgewise.prune.resume import Key, OtherOperators, Recording, State, advance, finish

IMAGES = 4  # that are compared; half of them calibrate
SAME = 1e-8  # relative error in float64; results that differ at all differ by some 0.1


Keep = Mapping[str, Atoms]


def removed(rate: float, size: int) -> int:
    """Count the channels that a rate removes of a group: rounded down, and never all.

    >>> removed(0.3, 16), removed(0.3, 10), removed(0.99, 4), removed(1.0, 4)
    (4, 3, 3, 3)
    """
    return min(int(rate * size + 1e-9), size - 1)


def without(graph: Graph, scores: Mapping[str, Tensor], name: str, rate: float) -> Atoms:
    """Return the channels that a group keeps without a share of its least important ones."""
    size = graph.by_name[name].size
    return top(scores[name], size - removed(rate, size))


def scan(
    graph: Graph,
    judge: Judge,
    *,
    scores: Mapping[str, Tensor],
    rates: Sequence[float],
    groups: Sequence[str],
    base: Keep | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Measure how sensitive groups are, each by itself.

    Args:
        graph: the traced network.
        judge: measures accuracies.
        scores: importance ``[C]`` of each group's channels.
        rates: ``[n]``, shares of channels to remove, in [0, 1).
        groups: names of those to scan.
        base: channels that other groups keep meanwhile; by default all.
        progress: is told (what, done, total).

    Returns:
        For each group, the accuracies ``[n]`` at the rates, fractions.

    Raises:
        ModelError: a forward that raises, outputs not finite.
    """
    base = base or {}
    candidates = {name: [without(graph, scores, name, rate) for rate in rates] for name in groups}
    starts = _starts(graph, [graph.by_name[name] for name in groups], base) if judge.at_once else {}
    scanned = _Scan(graph, judge, base, sum(map(len, candidates.values())), progress)
    with kept_memory():
        try:
            return scanned.run(candidates, starts)
        except OtherOperators:  # which ones run depends on the type or number of the inputs
            return scanned.run(candidates, {})


@dataclass(frozen=True)
class Cut:
    """How a tensor of a candidate follows from the dense network's: the positions along `dim` that `member` lost."""

    member: Member
    dim: int
    size: int

    def kept(self, lost: Atoms) -> Atoms:
        """Return the positions along the dimension that are left without some channels."""
        return np.setdiff1d(np.arange(self.size), self.member.index[lost])


@dataclass(frozen=True)
class Start:
    """Where the candidates of a group begin.

    Args:
        step: the first operator that they run.
        names: of the operators before.
        live: who made what they read from there on.
        cuts: how the results before follow from the unpruned network's; those that are not named are the same.
    """

    step: int
    names: list[str]
    live: frozenset[Key]
    cuts: Mapping[Key, Cut]


@dataclass
class _Scan:
    """Goes through the candidates in the order of their starts, and takes the unpruned network along."""

    graph: Graph
    judge: Judge
    base: Keep
    total: int
    progress: Progress | None

    def run(self, candidates: Mapping[str, Sequence[Atoms]], starts: Mapping[str, Start]) -> dict[str, list[float]]:
        """Return the accuracies of all candidates."""
        model = shrink(self.graph.model, self.graph, self.base)
        passing = self.judge.passing(model) if starts else None
        state, done = State(), 0
        found: dict[str, dict[int, float]] = {}  # by group and how many channels it keeps
        for name in sorted(candidates, key=lambda name: starts[name].step if name in starts else 0):
            group, start = self.graph.by_name[name], starts.get(name)
            if passing and start:
                state = advance(passing, state, start.step, start.live)
                if list(state.names) != start.names:
                    raise OtherOperators
            found[name] = {}
            for keep in candidates[name]:
                if len(keep) < group.size and len(keep) not in found[name]:
                    found[name][len(keep)] = self._accuracy(group, keep, start, state)
                done += 1
                if self.progress:
                    self.progress("sensitivity", done, self.total)
        whole = self.judge.metric(finish(passing, state)) if passing else self.judge.accuracy(model)
        return {name: [found[name].get(len(keep), whole) for keep in keeps] for name, keeps in candidates.items()}

    def _accuracy(self, group: Group, keep: Atoms, start: Start | None, state: State) -> float:
        small = shrink(self.graph.model, self.graph, {**self.base, group.name: keep})
        if start is None:
            return self.judge.accuracy(small)
        return self.judge.metric(finish(self.judge.passing(small), _cut(state, start, group, keep)))


def _cut(state: State, start: Start, group: Group, keep: Atoms) -> State:
    """Return the state of a candidate that keeps some channels of a group, in memory of its own."""
    lost = np.setdiff1d(np.arange(group.size), keep)
    held = {key: _part(tensor, start.cuts.get(key), lost) for key, tensor in state.held.items()}
    results = list(state.results)
    for (step, place), cut in start.cuts.items():
        leaves, structure = results[step]
        resized = leaves[place].resized(cut.dim, len(cut.kept(lost)))
        results[step] = ([*leaves[:place], resized, *leaves[place + 1 :]], structure)
    return State(state.step, state.names, results, held)


@torch.inference_mode()
def _part(tensor: Tensor, cut: Cut | None, lost: Atoms) -> Tensor:
    """Copy a tensor without the positions that a candidate lost."""
    if cut is None:
        return tensor.clone()
    kept = torch.from_numpy(cut.kept(lost)).to(tensor.device)
    return tensor.movedim(cut.dim, -1)[..., kept].movedim(-1, cut.dim)  # so feature maps stay channels_last


# -- where candidates begin -----------------------------------------------------------------------------------------


def _starts(graph: Graph, groups: Sequence[Group], base: Keep) -> dict[str, Start]:
    """Find where the candidates of each group begin; a group whose candidates cannot be resumed is left out."""
    model = _randomized(graph.model)
    inputs = torch.randn(IMAGES, *graph.example.shape[1:], dtype=torch.float64, generator=_generator())
    dense, passing = Recording(), _passing(shrink(model, graph, base), inputs)
    dense.run(passing)
    found = {}
    for group in groups:
        keep = np.sort(torch.randperm(group.size, generator=_generator())[: (group.size + 1) // 2].numpy())
        small, candidate = Recording(), _passing(shrink(model, graph, {**base, group.name: keep}), inputs)
        wanted = small.run(candidate)
        start = _start(graph, group, keep, dense, small)
        with suppress(OtherOperators):
            state = advance(passing, State(), start.step, start.live)
            if _same(finish(candidate, _cut(state, start, group, keep)), wanted):
                found[group.name] = start
    return found


def _passing(network: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    return lambda: one_pass(network, inputs, len(inputs) // 2)


def _start(graph: Graph, group: Group, keep: Atoms, dense: Recording, small: Recording) -> Start:
    """Compare two forwards up to the first operator whose result the dense network's does not hold."""
    sizes = {(d.tensor, d.dim): d.size for d in graph.tracer.dimensions}
    members = [(member, sizes[member.tensor, member.dim]) for member in group.members if member.kind != "padding"]
    lost = np.setdiff1d(np.arange(group.size), keep)
    cuts: dict[Key, Cut] = {}
    step = 0
    while step < min(len(dense.names), len(small.names)) and dense.names[step] == small.names[step]:
        for place, (whole, part) in enumerate(zip(dense.made[step], small.made[step], strict=True)):
            if not isinstance(whole, Tensor):
                continue
            ways = [
                None,
                *(Cut(m, d, size) for m, size in members for d in range(whole.dim()) if whole.shape[d] == size),
            ]
            way = next((way for way in ways if _same(_part(whole, way, lost), part)), ways)
            if isinstance(way, list):
                return Start(step, dense.names[:step], frozenset(dense.live(step)), cuts)
            if way is not None:
                cuts[step, place] = way
        step += 1
    return Start(step, dense.names[:step], frozenset(dense.live(step)), cuts)


def _same(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors agree but for rounding; where a number is not finite they do not."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return not a.numel() or bool((a - b).abs().max() <= SAME * a.abs().max())


def _randomized(model: nn.Module) -> nn.Module:
    """Copy a network with random float64 weights of the same magnitude."""
    network = prepared(model, torch.device("cpu"), torch.float64).double()
    generator = _generator()
    for weight in network.parameters():
        magnitude = weight.detach().square().mean().sqrt()
        noise = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
        weight.data = noise * torch.where(magnitude > 0, magnitude, 1.0)
    return network


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
