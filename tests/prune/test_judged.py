"""Allocations that judge candidates: rates from knees, and random search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.cost import Budget, CostModel, cost_of
from edgewise.errors import BudgetError, ModelError
from edgewise.graph import Graph, trace
from edgewise.models import build
from edgewise.prune import Judge, Knee, Prune, Search, allocate, make_judge, prune, score
from edgewise.prune.allocate import Problem, Ranked
from edgewise.prune.rates import at_rates, scaled_rates, sensitivities
from edgewise.prune.search import RandomSearch, draw
from edgewise.prune.sensitivity import removed
from train.tiny import TASK, tiny_split

EXAMPLE = torch.zeros(1, 3, 8, 8)
FEW = {"calibration": 48, "images": 40, "arithmetic": "float32"}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet20", classes=4, size=8)


@pytest.fixture(scope="module")
def graph(resnet: nn.Module) -> Graph:
    return trace(resnet, EXAMPLE)


@pytest.fixture(scope="module")
def judge(resnet: nn.Module) -> Judge:
    return make_judge(resnet, TASK, tiny_split(60), tiny_split(50, seed=1), **FEW)


def problem(graph: Graph, macs: float, round_to: int = 1) -> Problem:
    ranked = {g: Ranked(np.ones(group.size)) for g, group in enumerate(graph.groups)}
    least = np.minimum(graph.sizes, round_to)
    model = CostModel(graph)
    blocks = np.full(len(least), round_to)
    return Problem(model, ranked, least, Budget(macs=macs).limits(model), blocks, {})


# -- knees ----------------------------------------------------------------------------------------------------------


def test_without_a_budget_the_rates_are_taken_as_they_are(graph: Graph) -> None:
    rates = {group.name: 0.25 * (g % 4) for g, group in enumerate(graph.groups)}
    keep = allocate(graph, scores=score(graph, "l1"), budget=Budget(macs=1.0), allocation=at_rates(rates))
    widths = {group.name: len(keep.get(group.name, range(group.size))) for group in graph.groups}
    assert widths == {group.name: round((1 - rates[group.name]) * group.size) for group in graph.groups}


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("round_to", [1, 8])
def test_with_a_budget_it_is_met_from_below_in_the_rates_proportions(graph: Graph, macs: float, round_to: int) -> None:
    rates = {group.name: 0.8 if "layer2" in group.name else 0.4 for group in graph.groups}
    allocation = scaled_rates(rates)
    widths = allocation(problem(graph, macs, round_to))
    used = CostModel(graph).macs(widths) / CostModel(graph).macs(graph.sizes)
    assert 0 < used <= macs
    assert (widths % round_to == 0).all()
    if round_to == 1:
        assert used > macs - 0.01
        kept = widths / graph.sizes
        sensitive = np.array([rates[group.name] == 0.4 for group in graph.groups])
        assert kept[~sensitive].mean() < kept[sensitive].mean()


def test_a_budget_that_only_groups_without_a_rate_can_hold_is_held(graph: Graph) -> None:
    widths = scaled_rates({graph.groups[0].name: 0.5})(problem(graph, 0.3))
    assert CostModel(graph).macs(widths) <= 0.3 * CostModel(graph).macs(graph.sizes)


def test_the_prune_step_measures_curves_and_prunes_to_their_knees(resnet: nn.Module, judge: Judge) -> None:
    config = Prune(importance="l1", allocate="knee", round_to=1, knee=Knee(rates=(0.25, 0.5, 0.75), **FEW))
    pruned = prune(resnet, EXAMPLE, config, judge=judge)
    assert pruned.sensitivity.keys() == {group.name for group in pruned.graph.groups}
    for group in pruned.graph.groups:
        curve = pruned.sensitivity[group.name]
        assert curve.rate == (0.0, 0.25, 0.5, 0.75)
        assert len(pruned.keep.get(group.name, range(group.size))) == group.size - removed(curve.knee, group.size)
    assert len({curve.accuracy[0] for curve in pruned.sensitivity.values()}) == 1, "all curves begin at one network"


def test_the_prune_step_holds_a_budget_with_knees(resnet: nn.Module, judge: Judge) -> None:
    config = Prune(allocate="knee", keep_macs=0.5, knee=Knee(rates=(0.3, 0.6), **FEW))
    small = prune(resnet, EXAMPLE, config, judge=judge).model
    assert cost_of(trace(small, EXAMPLE)).macs <= 0.5 * cost_of(trace(resnet, EXAMPLE)).macs


def test_one_by_one_each_group_sees_what_was_pruned_before(graph: Graph, judge: Judge) -> None:
    names = [group.name for group in graph.groups[:3]]
    found = {
        order: sensitivities(
            graph,
            judge,
            Knee(rates=(0.3, 0.6), tolerance=100.0, order=order),  # so every group loses 0.6
            scores=score(graph, "l1"),
            groups=names,
        )
        for order in ("at_once", "one_by_one")
    }
    one, other = found["at_once"], found["one_by_one"]
    assert one[names[0]] == other[names[0]]
    assert other[names[1]].accuracy[0] == other[names[0]].accuracy[-1]
    assert other[names[2]].accuracy[0] == other[names[1]].accuracy[-1]


class Fours(nn.Module):
    """Refuses widths that are no multiple of four; half of 8 is one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        if x.shape[1] % 4:
            raise RuntimeError("a multiple of four")
        return self.c(x.mean((2, 3)))


def test_a_group_that_cannot_have_a_width_of_the_grid_stays_whole() -> None:
    model = Fours()
    judge = make_judge(model, TASK, tiny_split(60), tiny_split(50, seed=1), **FEW)
    pruned = prune(model, EXAMPLE, Prune(allocate="knee", round_to=1, knee=Knee(rates=(0.25, 0.5))), judge=judge)
    assert pruned.rigid == ("b",)
    assert list(pruned.sensitivity) == ["a"]


# -- random search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("macs", [0.35, 0.5])
def test_every_candidate_is_allowed_and_just_within_the_budget(graph: Graph, macs: float, round_to: int) -> None:
    given = problem(graph, macs, round_to)
    config = Search(candidates=40, tolerance=0.01, most=0.8)
    candidates, drawn = draw(given, config, np.random.default_rng(0))
    assert len(np.unique(candidates, axis=0)) == len(candidates) == 40 <= drawn
    used = CostModel(graph).quantity("macs", candidates) / (macs * CostModel(graph).macs(graph.sizes))
    assert used.max() <= 1
    assert used.min() >= 0.99
    assert (candidates % round_to == 0).all()
    assert (candidates >= np.floor(0.2 * graph.sizes / round_to) * round_to).all()


def test_several_limits_hold_together_and_one_binds(graph: Graph) -> None:
    given = problem(graph, 0.5)
    both = replace(given, limits=given.limits | {"params": 0.5 * given.model.params(graph.sizes)})
    candidates, _ = draw(both, Search(candidates=20), np.random.default_rng(0))
    used = np.array([given.model.quantity(name, candidates) / limit for name, limit in both.limits.items()])
    assert used.max() <= 1
    assert used.max(axis=0).min() >= 0.995


def test_the_search_takes_the_best_and_keeps_what_it_tried(graph: Graph) -> None:
    def judged(widths: np.ndarray) -> float:
        return float(widths[0] / graph.sizes[0])

    search = RandomSearch(Search(candidates=30), judged, seed=3)
    best = search(problem(graph, 0.5))
    assert best[0] == max(one.widths[graph.groups[0].name] for one in search.tried)
    assert len(search.tried) == 30
    assert all(0.995 <= one.used["macs"] <= 1 for one in search.tried)
    assert search.drawn >= 30
    again, other = (RandomSearch(Search(candidates=30), judged, seed=seed) for seed in (3, 4))
    assert (again(problem(graph, 0.5)) == best).all()
    other(problem(graph, 0.5))
    assert [one.widths for one in other.tried] != [one.widths for one in search.tried]


def test_where_no_draw_fits_the_message_says_what_they_cost(graph: Graph) -> None:
    with pytest.raises(
        BudgetError, match=r"none of 5000 random candidates .* they take macs \d\.\d+ to \d\.\d+; change"
    ):
        draw(problem(graph, 0.5), Search(most=0.1, draws=5000), np.random.default_rng(0))


def test_the_prune_step_takes_the_candidate_of_the_best_accuracy(resnet: nn.Module, judge: Judge) -> None:
    config = Prune(allocate="search", keep_macs=0.5, round_to=4, search=Search(candidates=5, tolerance=0.02, **FEW))
    pruned = prune(resnet, EXAMPLE, config, judge=judge, seed=1)
    assert pruned.search is not None
    best = max(pruned.search.tried, key=lambda one: one.accuracy)
    widths = {g.name: len(pruned.keep.get(g.name, range(g.size))) for g in pruned.graph.groups}
    assert widths == best.widths
    assert judge.accuracy(pruned.model) == best.accuracy
    assert 0.48 <= cost_of(trace(pruned.model, EXAMPLE)).macs / cost_of(pruned.graph).macs <= 0.5


# -- settings -------------------------------------------------------------------------------------------------------


def test_settings_are_filled_where_they_are_needed_and_refused_where_not() -> None:
    assert Prune(allocate="knee").knee == Knee()
    assert Prune(allocate="search", keep_macs=0.5).search == Search()
    assert Prune(keep_macs=0.5).judged is None
    with pytest.raises(ValueError, match='knee goes with allocate = "knee", not "global"'):
        Prune(keep_macs=0.5, knee=Knee())
    with pytest.raises(ValueError, match='search goes with allocate = "search", not "knee"'):
        Prune(allocate="knee", search=Search())
    with pytest.raises(ValueError, match="say how much to keep"):
        Prune(allocate="search")
    with pytest.raises(ValueError, match="keep_latency, budget: random search"):
        Prune(allocate="search", keep_latency=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "candidates = 0: at least 1"),
        ({"draws": 0}, "draws = 0: at least 1"),
        ({"images": 0}, "images = 0: at least 1"),
        ({"calibration": 1}, "calibration = 1"),
        ({"least": 0.8}, "least = 0.8, most = 0.7: shares to remove"),
        ({"most": 1.1}, "most = 1.1"),
        ({"tolerance": 0.0}, "tolerance = 0.0: a share of the budget"),
    ],
)
def test_wrong_settings_of_a_search_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Search(**settings)


def test_a_judge_is_asked_for(resnet: nn.Module) -> None:
    with pytest.raises(ValueError, match='allocate = "knee" needs a judge of candidates'):
        prune(resnet, EXAMPLE, Prune(allocate="knee"))


def test_what_the_forward_raises_is_told(resnet: nn.Module, judge: Judge) -> None:
    with pytest.raises(ModelError, match="forward raised on inputs"):
        judge.accuracy(nn.Conv2d(5, 4, 1))
