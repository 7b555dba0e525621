"""Pruning to what an artifact costs: against a made-up machine, and once on the real one."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.cost import Budget, CostModel, cost_of
from edgewise.cost.budget import Limit
from edgewise.errors import BudgetError
from edgewise.graph import shrink, silence, trace
from edgewise.models import build
from edgewise.prune import Prune, Pruned, allocate, prune, score
from edgewise.prune.candidates import Candidates, _flexible, _uniform, within
from edgewise.prune.knapsack import Choice, _Search

EXAMPLE = torch.zeros(1, 3, 32, 32)


class MadeUp(Candidates):
    """A machine whose latency is a function, and whose model of it is wrong until it has learned."""

    def __init__(self, graph, truth, guess) -> None:
        self.graph, self.truth, self.guess, self.branches = graph, truth, guess, {}
        self.made = []
        self._foretold = {"latency_s": lambda widths: guess(np.asarray(widths, float))}

    def measure(self, candidates: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, float]]:
        found = [{"latency_s": float(self.truth(self.graph.widths(keep).astype(float)))} for keep in candidates]
        self.made += found
        return found


def chooser(graph):
    scores = score(graph, "l2")
    return lambda model, limits: allocate(
        graph, scores=scores, budget=Budget(**limits), allocation="knapsack", round_to=8, cost_model=model
    )


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)),
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
    keep, trials = within(machine, {"latency_s": limit}, graph.prunable(), chooser(graph))
    assert 0.9 * limit <= trials[-1].measured["latency_s"] <= limit
    assert trials[-1].measured == machine.measure([keep])[0]
    assert len(trials) <= 3
    seconds = [figures["latency_s"] for figures in machine.made]
    assert seconds[:3] == sorted(seconds[:3], reverse=True)  # the shares that are measured first


class Moody(MadeUp):
    """A machine that runs every network 10 % slower in every third process."""

    processes = 0

    def measure(self, candidates: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, float]]:
        self.processes += 1
        slower = 1.1 if self.processes % 3 == 0 else 1.0
        return [{"latency_s": slower * figures["latency_s"]} for figures in super().measure(candidates)]


def test_a_latency_holds_in_the_slowest_of_three_processes(graph) -> None:
    cost = CostModel(graph)

    def truth(widths):
        return cost.quantity("macs", widths) * 1e-11

    for started in range(3):
        machine = Moody(graph, truth, truth)
        machine.processes = started
        limit = 0.5 * float(truth(graph.sizes))
        keep, trials = within(machine, {"latency_s": limit}, graph.prunable(), chooser(graph))
        assert 1.1 * truth(graph.widths(keep)) <= limit
        assert max(trial.measured["latency_s"] for trial in trials) >= 1.1 * truth(graph.widths(keep))


def test_a_latency_that_no_candidate_reaches_says_what_was_measured(graph) -> None:
    machine = MadeUp(graph, lambda widths: 1.0, lambda widths: CostModel(graph).quantity("macs", widths) * 1e-11)
    with pytest.raises(
        BudgetError, match=r"latency_s cannot go down to 0\.2 ms: the least that was measured is 1000 ms, of 1 cand"
    ):
        within(machine, {"latency_s": 2e-4}, graph.prunable(), chooser(graph))


def test_what_is_measured_first_has_widths_that_the_forward_takes() -> None:
    """Of 32 channels it takes 16, as half of them was tried, but not the 24 that are measured first."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if x.shape[1] % 16:
                raise RuntimeError("a multiple of 16")
            return self.b(x)

    net = Halves()
    halves = trace(net, EXAMPLE)
    groups = [group for group in halves.groups if group.name == "a"]
    assert not halves.rigid
    assert len(_uniform(groups, 0.75)["a"]) == 24
    assert _flexible(halves, _uniform(groups, 0.75)) == {}
    assert len(_flexible(halves, _uniform(groups, 0.5))["a"]) == 16


def test_limits_that_were_never_held_together_are_named_together(graph) -> None:
    machine = MadeUp(graph, lambda widths: 1.0, lambda widths: CostModel(graph).quantity("macs", widths) * 1e-11)
    machine.measure = lambda keeps: [  # the file is small or the network fast, by turns
        {"latency_s": 2.0, "file_bytes": 90.0} if len(machine.made) % 2 else {"latency_s": 0.9, "file_bytes": 200.0}
        for keep in keeps
        if machine.made.append(keep) is None
    ]
    machine.foretold = lambda keep: {"latency_s": 1.0, "file_bytes": 100.0}
    with pytest.raises(BudgetError, match=r"each was held, but none of \d+ candidates that were measured held"):
        within(machine, {"latency_s": 1.0, "file_bytes": 100.0}, graph.prunable(), lambda model, limits: {})


def test_a_limit_that_only_the_narrowest_meets_is_met(graph) -> None:
    """Room for errors of measuring is asked for only where there is some."""
    cost = CostModel(graph)

    def truth(widths):
        return cost.quantity("macs", widths) * 1e-11

    def kept_within(limit: float) -> dict[str, np.ndarray]:
        return within(MadeUp(graph, truth, truth), {"latency_s": limit}, graph.prunable(), chooser(graph))[0]

    narrowest = float(truth(np.array([0 if group.beside_others else 8 for group in graph.groups])))
    assert truth(graph.widths(kept_within(narrowest / 0.975))) == pytest.approx(narrowest)
    with pytest.raises(BudgetError, match="the least that was measured is"):
        kept_within(narrowest / 0.99)  # it would hold, and the next measurement might not
    asked = f"cannot go down to {narrowest / 1.01 * 1e3:.4g} ms: the least possible is {narrowest * 1e3:.4g} ms"
    with pytest.raises(BudgetError, match=re.escape(asked)):
        kept_within(narrowest / 1.01)


def test_a_branch_that_goes_takes_the_worth_of_its_groups_as_they_are() -> None:
    """Of a bottleneck's two inner groups one was narrowed before: only what is left of it is lost with the branch."""
    graph = trace(build("resnet50", classes=10, size=32), EXAMPLE)
    name, branch = next((name, branch) for name, branch in graph.branches.items() if len(branch.groups) == 2)
    first = graph.places[name]
    (second,) = (graph.places[other] for other in branch.groups if other != name)
    choices = [
        Choice(first, np.array([0, graph.sizes[first]]), np.array([0.0, 5.0]), (second,)),
        Choice(second, np.array([8, graph.sizes[second]]), np.array([2.0, 5.0])),
    ]
    found = _Search(CostModel(graph, branches=graph.branches), choices, {"macs": 1.0})
    assert found.value(np.array([[1, 1], [1, 0], [0, 1], [0, 0]])).tolist() == [10.0, 7.0, 0.0, 0.0]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    net = plain_net()
    graph = trace(net, torch.zeros(1, 3, 16, 16))
    every = ("latency_s", "file_bytes", "peak_activation_bytes")
    candidates = Candidates(graph, every, precision=precision)
    keep = {"0": np.arange(16), "2": np.arange(24)}
    (found,) = candidates.measure([keep])
    assert set(candidates.dense) == set(candidates.reference) == set(found) == set(every)
    assert min(candidates.dense.values()) > 0
    for figures, of in ((found, keep), (candidates.dense, {})):  # it has learned from the two it measured
        for name, near in (("latency_s", 0.05), ("file_bytes", 0.02), ("peak_activation_bytes", 0.1)):
            assert candidates.foretold(of)[name] == pytest.approx(figures[name], rel=near)
    share = candidates.dense["file_bytes"] / candidates.reference["file_bytes"]
    assert 0.2 < share < 0.5 if precision == "int8" else share == 1.0
    assert list((tmp_path / "latency").iterdir())

    # What was measured in another process at another time is no measure: a candidate's share is of its own process.
    pruned = prune(net, torch.zeros(1, 3, 16, 16), Prune(keep_latency=0.8, precision=precision, allocate="knapsack"))
    assert all(len(index) % 8 == 0 for index in pruned.keep.values())
    assert 0 < pruned.trials[-1].measured["latency_s"] <= pruned.limits["latency_s"]
    assert CostModel(graph).macs(graph.widths(pruned.keep)) < CostModel(graph).macs(graph.sizes)


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
        chooser(graph)(CostModel(graph, {"latency_s": per_operator}), {"latency_s": limit})


class Bottleneck(nn.Module):
    """A branch of two inner groups, neither of which can be narrower than it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.c(torch.relu(self.b(torch.relu(self.a(x))))))


def test_a_branch_of_several_groups_goes_whole() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Bottleneck(), Bottleneck(), Bottleneck()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).double()
    example = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    pruned = prune(net, example, Prune(allocate="knapsack", keep_macs=0.75, whole=("0",)))
    assert [len(kept) for kept in pruned.keep.values()] == [0]
    widths = dict(zip((group.name for group in pruned.graph.groups), pruned.graph.widths(pruned.keep), strict=True))
    assert sorted(widths.values()) == [0, 0, 8, 8, 8, 8, 16]
    assert cost_of(trace(pruned.model, example)).macs <= 0.75 * cost_of(pruned.graph).macs
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = silence(net, pruned.graph, pruned.keep)(x)
    assert torch.allclose(pruned.model(x), expected, rtol=1e-9)
    assert not torch.allclose(net(x), expected, rtol=1e-3)


def amount(pruned: Pruned, name: str, precision: str) -> float:
    """What the returned network's own artifact takes."""
    return Candidates(pruned.graph, (name,), precision=precision).measure([pruned.keep])[0][name]


@pytest.mark.parametrize(("precision", "memory"), [("float32", 60_000), ("int8", 15_000)])
def test_bytes_on_disk_and_in_memory_are_met_from_below(precision: str, memory: float) -> None:
    """Nothing is timed here, so the figures are the same on every machine."""
    limits = {"file_bytes": Limit(0.2, of_dense=True), "peak_activation_bytes": Limit(memory)}
    config = Prune(budget=True, precision=precision, allocate="knapsack", round_to=1)
    net, example = plain_net(), torch.zeros(1, 3, 16, 16)
    for name, limit in limits.items():
        pruned = prune(net, example, config, limits={name: limit})
        most = pruned.limits[name]
        best = amount(pruned, name, precision)
        assert best <= most
        channel = {"peak_activation_bytes": 16 * 16, "file_bytes": 64 * 9}[name]  # what one more takes, in elements
        assert best >= 0.98 * most - channel * (4 if precision == "float32" else 1)
    both = prune(net, example, config, limits=limits)
    assert all(amount(both, name, precision) <= most for name, most in both.limits.items())


def test_limits_of_widths_and_of_artifacts_hold_together() -> None:
    limits = {"macs": Limit(0.6, of_dense=True), "file_bytes": Limit(40_000)}
    net, example = plain_net(), torch.zeros(1, 3, 16, 16)
    pruned = prune(net, example, Prune(budget=True, keep_params=0.9, allocate="knapsack"), limits=limits)
    found, dense = cost_of(trace(pruned.model, example)), cost_of(trace(net, example))
    assert found.macs <= 0.6 * dense.macs
    assert found.params <= 0.9 * dense.params
    assert amount(pruned, "file_bytes", "float32") <= 40_000
