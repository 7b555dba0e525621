"""Pruning to a latency: against a made-up machine, and once on the real one."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.cost import Budget, CostModel
from edgewise.errors import BudgetError
from edgewise.graph import shrink, trace
from edgewise.models import build
from edgewise.prune import Prune, allocate, prune, score
from edgewise.prune.latency import CandidateLatency, within_latency

EXAMPLE = torch.zeros(1, 3, 32, 32)


class MadeUp(CandidateLatency):
    """A machine whose latency is a function, and whose model of it is wrong until it has learned."""

    def __init__(self, graph, truth, guess) -> None:
        self.graph, self.truth, self.guess, self.branches = graph, truth, guess, {}
        self.factor, self.measured = 1.0, []

    @property
    def cost_model(self) -> CostModel:
        return CostModel(self.graph, {"latency_s": lambda widths: self.factor * self.guess(np.asarray(widths, float))})

    def foretold_s(self, keep: Mapping[str, Sequence[int]]) -> float:
        return float(self.cost_model.quantity("latency_s", self._widths(keep)))

    def measure(self, candidates: Sequence[Mapping[str, Sequence[int]]]) -> list[float]:
        seconds = [float(self.truth(self._widths(keep).astype(float))) for keep in candidates]
        self.measured += seconds
        return seconds


def chooser(graph):
    scores = score(graph, "l2")
    return lambda model, seconds: allocate(
        graph, scores=scores, budget=Budget(latency_s=seconds), allocation="knapsack", round_to=8, cost_model=model
    )


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return trace(build("resnet20", classes=10, size=32), EXAMPLE)


@pytest.mark.parametrize("error", [0.6, 0.97, 1.4])
def test_a_wrong_model_is_corrected_until_the_measured_latency_holds_and_is_used(graph, error: float) -> None:
    cost = CostModel(graph)

    def truth(widths):
        return cost.quantity("macs", widths) * 1e-11

    machine = MadeUp(graph, truth, lambda widths: error * truth(widths))
    limit = 0.5 * float(truth(graph.sizes))
    keep, trials = within_latency(machine, limit, graph.prunable(), chooser(graph))
    assert 0.9 * limit <= trials[-1].measured_s <= limit
    assert trials[-1].measured_s == machine.measure([keep])[0]
    assert len(trials) <= 3
    assert machine.measured[:3] == sorted(machine.measured[:3], reverse=True)  # the shares that are measured first


def test_a_latency_that_no_candidate_reaches_says_what_was_measured(graph) -> None:
    machine = MadeUp(graph, lambda widths: 1.0, lambda widths: CostModel(graph).quantity("macs", widths) * 1e-11)
    with pytest.raises(BudgetError, match=r"latency_s = 0\.200 ms was not reached: 1000\.000 ms were measured"):
        within_latency(machine, 2e-4, graph.prunable(), chooser(graph))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)),
    )
    graph = trace(net, torch.zeros(1, 3, 16, 16))
    latency = CandidateLatency(graph, precision=precision)
    keep = {"0": np.arange(16), "2": np.arange(24)}
    (seconds,) = latency.measure([keep])
    assert latency.dense_s > 0
    assert latency.foretold_s(keep) == pytest.approx(seconds, rel=0.05)  # it has learned from the two it measured
    assert latency.foretold_s({}) == pytest.approx(latency.dense_s, rel=0.05)
    assert list((tmp_path / "latency").iterdir())

    config = Prune(keep_latency=0.7, precision=precision, allocate="knapsack")
    with suppress(BudgetError):  # while other work keeps the machine busy no limit may be found to hold
        pruned = prune(net, torch.zeros(1, 3, 16, 16), config)
        assert 0 < min(t.measured_s for t in pruned.trials) <= pruned.latency_s
        assert all(len(index) % 8 == 0 for index in pruned.keep.values())


def test_widths_between_the_measured_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="round_to = 4: latency is known at multiples of 8 channels"):
        Prune(keep_latency=0.5, round_to=4)


def test_a_whole_branch_goes_where_narrowing_saves_nothing() -> None:
    """On a machine that charges for operators and not for channels, only depth can be paid with."""
    torch.manual_seed(0)
    net = build("resnet20", classes=10, size=32)
    graph = trace(net, EXAMPLE)

    def per_operator(widths) -> np.ndarray:
        return (np.asarray(widths) > 0).sum(axis=-1) * 1e-5

    limit = 0.7 * float(per_operator(graph.sizes))
    keep = allocate(
        graph,
        scores=score(graph, "l2"),
        budget=Budget(latency_s=limit),
        allocation="knapsack",
        round_to=8,
        branches=True,
        cost_model=CostModel(graph, {"latency_s": per_operator}),
    )
    gone = [name for name, kept in keep.items() if graph.takes_branch(name, kept)]
    assert len(graph.groups) == 12
    assert [len(kept) for kept in keep.values()] == [0] * 4  # what a shortcut adds can go as well, and costs nothing
    assert gone
    small = shrink(net, graph, keep)
    assert sum(isinstance(module, nn.Conv2d) for module in small.modules()) == 19 - 2 * len(gone)
    assert small(EXAMPLE).shape == (1, 10)
    with pytest.raises(BudgetError, match="latency_s cannot go down"):
        chooser(graph)(CostModel(graph, {"latency_s": per_operator}), limit)
