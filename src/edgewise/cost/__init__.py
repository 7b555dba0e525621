"""What a network costs: counted from its graph for any widths, and held against a budget."""

from edgewise.cost.budget import Budget
from edgewise.cost.static import Cost, CostModel, LayerCost, cost_of

__all__ = ["Budget", "Cost", "CostModel", "LayerCost", "cost_of"]
