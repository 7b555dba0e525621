"""The search against every possible choice, on networks small enough to try them all."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.cost import CostModel
from edgewise.graph import Graph, trace
from edgewise.models import build
from edgewise.prune.knapsack import Choice, search

EXAMPLE = torch.zeros(1, 3, 8, 8)


def chain() -> Graph:
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)]
    return trace(nn.Sequential(*layers), EXAMPLE)


def choices_of(graph: Graph, seed: int) -> list[Choice]:
    """Draw scores for each group's channels; widths are multiples of 4."""
    rng = np.random.default_rng(seed)
    found = []
    for index, group in enumerate(graph.groups):
        levels = np.arange(4, group.size + 1, 4)
        total = np.cumsum(np.sort(rng.random(group.size) ** 3)[::-1])
        found.append(Choice(index, levels, total[levels - 1]))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.7, 0.4, 0.25])
def test_it_keeps_nearly_as_much_as_the_best_of_all_choices(seed: int, share: float) -> None:
    graph = chain()
    model, choices = CostModel(graph), choices_of(graph, seed)
    limits = {"macs": share * model.macs(graph.sizes), "params": 1.2 * share * model.params(graph.sizes)}
    best = 0.0
    for levels in product(*(range(len(choice.levels)) for choice in choices)):
        widths = [choice.levels[level] for choice, level in zip(choices, levels, strict=True)]
        if all(model.quantity(name, widths) <= limit for name, limit in limits.items()):
            best = max(best, sum(choice.value[level] for choice, level in zip(choices, levels, strict=True)))
    found = search(model, choices, limits)
    assert all(model.quantity(name, found) <= limit for name, limit in limits.items())
    value = sum(c.value[list(c.levels).index(w)] for c, w in zip(choices, found, strict=True))
    assert value >= 0.95 * best


def test_where_nothing_fits_the_nearest_is_returned() -> None:
    graph = chain()
    assert search(CostModel(graph), choices_of(graph, 0), {"macs": 100.0}).tolist() == [4, 4, 4, 4]


def test_a_jump_over_a_width_that_saves_nothing_is_made() -> None:
    """Where 12 is as slow as 16, and 8 is fast, the way down does not stop at 12."""
    graph = trace(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)), EXAMPLE)

    def slow(widths) -> np.ndarray:
        return np.where(np.asarray(widths, np.float64)[..., 0] > 8, 2.0, 1.0)

    model = CostModel(graph, {"latency_s": slow})
    levels = np.array([4, 8, 12, 16])
    found = search(model, [Choice(0, levels, levels / 16)], {"latency_s": 1.5})
    assert found.tolist() == [8]


def test_groups_without_a_choice_stay_whole() -> None:
    graph = trace(build("resnet20", classes=10, size=32), torch.zeros(1, 3, 32, 32))
    model = CostModel(graph)
    levels = np.array([8, 16])
    found = search(model, [Choice(3, levels, levels / 16)], {"macs": 0.99 * model.macs(graph.sizes)})
    changed = np.flatnonzero(found != graph.sizes)
    assert changed.tolist() == [3]
