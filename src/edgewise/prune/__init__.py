"""Structured pruning: which channels matter, how many each group keeps, and their removal."""

from edgewise.prune.allocate import ALLOCATIONS, allocate
from edgewise.prune.channels import zero_channels
from edgewise.prune.complexity import Complexity
from edgewise.prune.config import SETTINGS, Prune
from edgewise.prune.dhspg import Dhspg, DhspgPruning
from edgewise.prune.hesso import Hesso, HessoPruning
from edgewise.prune.importance import IMPORTANCES, Importance, score
from edgewise.prune.judge import Judge, make_judge
from edgewise.prune.knee import Knee, knee
from edgewise.prune.search import Search
from edgewise.prune.structured import Pruned, prune

__all__ = [
    "ALLOCATIONS",
    "IMPORTANCES",
    "SETTINGS",
    "Complexity",
    "Dhspg",
    "DhspgPruning",
    "Hesso",
    "HessoPruning",
    "Importance",
    "Judge",
    "Knee",
    "Prune",
    "Pruned",
    "Search",
    "allocate",
    "knee",
    "make_judge",
    "prune",
    "score",
    "zero_channels",
]
