"""Limits on the static cost."""

import pytest
import torch
from torch import nn

from edgewise.cost import Budget, CostModel
from edgewise.cost.budget import exceeded
from edgewise.graph import trace


def test_fractions_are_of_the_dense_network_and_amounts_are_amounts() -> None:
    model = CostModel(trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), torch.zeros(1, 3, 4, 4)))
    dense = model.params([8])
    limits = Budget(params=0.5, macs=100).limits(model)
    assert limits == {"params": 0.5 * dense, "macs": 100}
    assert exceeded(model, [8], limits) == ["macs", "params"]
    assert exceeded(model, [1], limits) == []


@pytest.mark.parametrize("limits", [{}, {"macs": 0.0}, {"params": -1.0}, {"macs": float("nan")}])
def test_a_budget_without_a_positive_limit_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**limits)
