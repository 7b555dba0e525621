"""Widths under a budget: exact, aligned, from below."""

import contextlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.cost import Budget, CostModel, cost_of
from edgewise.errors import AlignmentError, BudgetError
from edgewise.graph import shrink, trace
from edgewise.models import build
from edgewise.prune import ALLOCATIONS, Prune, allocate, prune, score
from edgewise.prune.allocate import Ranked, _ranked, global_ranking, isomorphic

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet20", classes=10, size=32)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize(
    ("quantity", "round_to"),
    [
        *((quantity, round_to) for quantity in ("macs", "params", "weight_bytes") for round_to in (1, 8, 16)),
        ("peak_activation_bytes", 1),
        ("peak_activation_bytes", 8),  # at 16 the first stage, where the peak lies, cannot get narrower
    ],
)
def test_the_budget_is_met_from_below_by_the_network_itself(
    resnet: nn.Module, allocation: str, quantity: str, round_to: int
) -> None:
    graph = trace(resnet, EXAMPLE)
    budget = Budget(**{quantity: 0.5})
    keep = allocate(graph, scores=score(graph, "l2"), budget=budget, allocation=allocation, round_to=round_to)
    small = cost_of(trace(shrink(resnet, graph, keep), EXAMPLE))
    assert 0 < getattr(small, quantity) <= 0.5 * getattr(cost_of(graph), quantity)
    assert all(len(index) % round_to == 0 for index in keep.values())
    if round_to == 1 and quantity != "peak_activation_bytes":
        assert getattr(small, quantity) >= 0.49 * getattr(cost_of(graph), quantity)


def test_budget_and_alignment_are_solved_together(resnet: nn.Module) -> None:
    """Where a ratio rounded afterwards stays far above half of the MACs, the search still meets it."""
    graph = trace(resnet, EXAMPLE)
    model = CostModel(graph)
    keep = allocate(graph, scores=score(graph, "l2"), budget=Budget(macs=0.5), round_to=16)
    widths = np.array([len(keep.get(g.name, range(g.size))) for g in graph.groups])
    assert model.macs(widths) <= 0.5 * model.macs(graph.sizes)
    for g, group in enumerate(graph.groups):  # nothing more could have been given back
        wider = widths.copy()
        wider[g] = min(group.size, widths[g] + 16)
        assert wider[g] == widths[g] or model.macs(wider) > 0.5 * model.macs(graph.sizes)


def test_uniform_keeps_the_same_share_everywhere(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    keep = allocate(graph, scores=score(graph, "l2"), budget=Budget(macs=0.25), allocation="uniform")
    shares = [len(keep[g.name]) / g.size for g in graph.groups if g.name in keep]
    assert len(shares) == len(graph.groups)
    assert max(shares) - min(shares) <= 2 / 16  # one channel of the narrowest group up or down


def test_the_best_channels_stay_and_ties_are_broken_by_index(resnet: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    graph = trace(net, EXAMPLE)
    scores = {"0": torch.tensor([1.0, 1, 5, 1, 1, 7, 1, 1])}
    keep = allocate(graph, scores=scores, budget=Budget(params=0.5))
    assert keep["0"].tolist() == [0, 1, 2, 5]


def test_equal_scores_shrink_all_groups_alike(resnet: nn.Module) -> None:
    """BatchNorm scales start at 1 everywhere: a threshold would take all of them or none."""
    graph = trace(resnet, EXAMPLE)
    keep = allocate(graph, scores=score(graph, "bn_scale"), budget=Budget(macs=0.5), allocation="global")
    shares = [len(keep[g.name]) / g.size for g in graph.groups if g.name in keep]
    assert len(shares) == len(graph.groups)
    assert max(shares) - min(shares) <= 2 / 16
    assert CostModel(graph).macs([len(keep[g.name]) for g in graph.groups]) >= 0.49 * cost_of(graph).macs


def test_global_ranking_by_hand() -> None:
    groups = [Ranked(np.array([2.0, 1.0, 0.0])), Ranked(np.array([1.0, 1.0])), Ranked(np.array([1.0]))]
    # In order: 2 (a), 1 (b's first, c's only, at place 0), 1 (a's second, at 1/3), 1 (b's second, at 1/2), 0 (a).
    assert [global_ranking(groups, k / 6).tolist() for k in range(7)] == [
        [0, 0, 0],
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 1],
        [2, 1, 1],
        [2, 2, 1],
        [3, 2, 1],
    ]


def test_isomorphic_ranking_by_hand() -> None:
    groups = [Ranked(np.array([9.0, 8.0]), "a"), Ranked(np.array([1.0, 0.0]), "b"), Ranked(np.array([7.0, 2.0]), "a")]
    assert isomorphic(groups, 0.5).tolist() == [2, 1, 0]  # the best half of the a's, and of the b's


def test_groups_are_of_one_kind_where_the_same_layers_own_them(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    kinds = {g.name: _ranked(graph, g, score(graph, "l2"), "mean").kind for g in graph.groups}
    assert kinds["layer1.0.conv1"] == kinds["layer3.2.conv1"] != kinds["conv1"]


def test_scores_of_one_unit_may_be_compared_as_they_are(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    names = ["layer1.0.conv1", "layer1.1.conv1"]
    scores = {names[0]: torch.full((16,), 5.0), names[1]: torch.ones(16)}
    keep = allocate(graph, scores=scores, budget=Budget(macs=0.96), groups=names, normalize="none")
    assert set(keep) == {names[1]}
    alike = allocate(graph, scores=scores, budget=Budget(macs=0.96), groups=names)
    assert {name: len(index) for name, index in alike.items()}.keys() == set(names)


def test_the_floor_holds(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    keep = allocate(graph, scores=score(graph, "random"), budget=Budget(macs=0.4), floor=0.5)
    assert all(len(keep[g.name]) >= g.size / 2 for g in graph.groups if g.name in keep)


def test_a_budget_below_the_floors_says_the_least_possible(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    with pytest.raises(
        BudgetError, match=r"macs cannot go down to .*: the least possible is \d+ \(0\.\d+ of the dense"
    ):
        allocate(graph, scores=score(graph, "l2"), budget=Budget(macs=0.1), round_to=16, floor=0.5)


def test_a_budget_that_the_alignment_alone_prevents_says_so(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    scores = score(graph, "l2")
    with pytest.raises(
        AlignmentError, match=r"peak_activation_bytes cannot .* round_to = 16 .*; widths between those multiples could"
    ) as error:
        allocate(graph, scores=scores, budget=Budget(peak_activation_bytes=0.5), round_to=16)
    assert error.value.exit_code == 3
    with pytest.raises(BudgetError, match="the least possible") as error:  # nor could any other widths
        allocate(graph, scores=scores, budget=Budget(peak_activation_bytes=0.01), round_to=16)
    assert error.value.exit_code == 2


def test_two_limits_that_cannot_both_hold_are_named(resnet: nn.Module) -> None:
    """On a machine where narrow layers are slow, as int8 kernels are, few MACs and little time exclude each other."""
    graph = trace(resnet, EXAMPLE)

    def slow_if_narrow(widths: Tensor) -> np.ndarray:
        return 1.0 + np.sum(np.asarray(widths) < graph.sizes, axis=-1)

    model = CostModel(graph, {"latency_s": slow_if_narrow})
    budget = Budget(macs=0.5, params=0.9, latency_s=1.5)
    with pytest.raises(
        BudgetError, match=r"macs of at most \d+ and latency_s of at most 1500 ms cannot both hold, .* latency_s is"
    ):
        allocate(graph, scores=score(graph, "l2"), budget=budget, allocation="knapsack", cost_model=model)


def test_the_limit_that_no_widths_hold_is_the_one_that_is_named(resnet: nn.Module) -> None:
    """Half of the MACs are easy; a latency that rises as layers get narrower is least where nothing is pruned."""
    graph = trace(resnet, EXAMPLE)
    model = CostModel(graph, {"latency_s": lambda widths: 2.0 - 0.5 * np.mean(np.asarray(widths) / graph.sizes, -1)})
    for allocation in ("knapsack", "global"):
        with pytest.raises(BudgetError, match=r"^latency_s cannot go down to 500 ms: the least possible is 1500 ms"):
            allocate(
                graph,
                scores=score(graph, "l2"),
                budget=Budget(macs=0.5, latency_s=0.5),
                allocation=allocation,
                cost_model=model,
            )


@pytest.mark.parametrize(("round_to", "least"), [(8, 8), (16, 16), (3, 12)])
def test_of_a_grouped_convolution_its_own_channels_are_aligned(round_to: int, least: int) -> None:
    """Each of the group's 6 channels is 4 of the convolution's, one of each of its groups."""
    layers = (nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, groups=4), nn.Conv2d(24, 5, 1))
    net = nn.Sequential(*layers)
    graph = trace(net, EXAMPLE)
    assert [group.size for group in graph.groups] == [6, 6]
    floors = {}
    for macs in (0.9, 0.7, 0.5, 0.35):
        with contextlib.suppress(BudgetError):
            keep = allocate(graph, scores=score(graph, "l2"), budget=Budget(macs=macs), round_to=round_to)
            small = shrink(net, graph, keep)
            widths = {small[0].out_channels, small[2].out_channels} - {24}
            assert all(width % round_to == 0 for width in widths)
            floors |= dict.fromkeys(widths)
    assert min(floors) == least


def test_only_the_named_groups_shrink(resnet: nn.Module) -> None:
    graph = trace(resnet, EXAMPLE)
    keep = allocate(
        graph, scores=score(graph, "l2"), budget=Budget(macs=0.8), groups=["layer1.0.conv1", "layer1.1.conv1"]
    )
    assert set(keep) <= {"layer1.0.conv1", "layer1.1.conv1"}
    assert keep


def test_where_nothing_can_be_pruned_the_message_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    graph = trace(net, EXAMPLE)
    with pytest.raises(BudgetError, match=r'none of its 1 groups can shrink so \("0": it has no scores\)'):
        allocate(graph, scores=score(graph, "bn_scale"), budget=Budget(macs=0.5))


class Scaled(nn.Module):
    """Breaks at a width that is neither its own nor the half."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        if x.shape[1] % 4:
            raise RuntimeError("a multiple of four")
        return self.c(x)


def test_a_width_that_breaks_the_forward_is_found_and_the_budget_met_without_it() -> None:
    pruned = prune(Scaled(), EXAMPLE, Prune(keep_macs=0.6, round_to=1, recalibrate=0))
    assert pruned.rigid == ("b",)
    assert set(pruned.keep) == {"a"}
    assert pruned.model(EXAMPLE).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allocation": "best"}, 'allocation "best" is none of uniform, global, isomorphic, knapsack'),
        ({"round_to": 0}, "round_to = 0"),
        ({"floor": 1.5}, "floor = 1.5"),
        ({"groups": ["layer1"]}, 'no group is called "layer1"; the network has conv1, '),
    ],
)
def test_wrong_settings_are_refused(resnet: nn.Module, settings: dict[str, object], message: str) -> None:
    graph = trace(resnet, EXAMPLE)
    with pytest.raises(ValueError, match=message):
        allocate(graph, scores=score(graph, "l2"), budget=Budget(macs=0.5), **settings)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, 50.0])
def test_a_share_to_keep_lies_between_0_and_1(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep_macs = .*: a share to keep lies in \(0, 1\]"):
        Prune(keep_macs=keep)


def test_a_prune_step_says_how_much() -> None:
    with pytest.raises(ValueError, match="say how much to keep"):
        Prune()


def test_inexact_groups_are_pruned_only_when_asked() -> None:
    torch.manual_seed(0)
    net = build("convnext_atto", classes=10, size=32)
    exact = prune(net, EXAMPLE, Prune(keep_macs=0.6, round_to=8))
    assert all(g.exact for g in exact.graph.groups if g.name in exact.keep)
    asked = prune(net, EXAMPLE, Prune(keep_macs=0.3, round_to=8, inexact=True))
    assert any(not g.exact for g in asked.graph.groups if g.name in asked.keep)
    assert asked.model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_keeping_everything_changes_nothing(resnet: nn.Module) -> None:
    pruned = prune(resnet, EXAMPLE, Prune(keep_macs=1.0))
    assert pruned.keep == {}
    assert all(torch.equal(a, b) for a, b in zip(resnet.parameters(), pruned.model.parameters(), strict=True))
