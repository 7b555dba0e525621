"""Structured pruning: which channels matter, how many each group keeps, and their removal."""

from edgewise.prune.allocate import ALLOCATIONS, allocate
from edgewise.prune.channels import zero_channels
from edgewise.prune.dhspg import Dhspg, DhspgPruning
from edgewise.prune.hesso import Hesso, HessoPruning
from edgewise.prune.importance import IMPORTANCES, Importance, score
from edgewise.prune.structured import Prune, Pruned, prune

__all__ = [
    "ALLOCATIONS",
    "IMPORTANCES",
    "Dhspg",
    "DhspgPruning",
    "Hesso",
    "HessoPruning",
    "Importance",
    "Prune",
    "Pruned",
    "allocate",
    "prune",
    "score",
    "zero_channels",
]
