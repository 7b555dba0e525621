"""Structured pruning: which channels matter, how many each group keeps, and their removal."""

from edgewise.prune.allocate import ALLOCATIONS, allocate
from edgewise.prune.complexity import Complexity
from edgewise.prune.importance import IMPORTANCES, Importance, score
from edgewise.prune.structured import Prune, Pruned, prune

__all__ = ["ALLOCATIONS", "IMPORTANCES", "Complexity", "Importance", "Prune", "Pruned", "allocate", "prune", "score"]
