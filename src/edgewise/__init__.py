"""edgewise makes vision networks fit devices.

A network, its data and a budget go in; a smaller network comes out: pruned, quantised, distilled, exported, proved
equal to what was trained, and measured on the runtime it will live in.

Names are imported when they are first used, so that `import edgewise` and `edgewise --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise import cost, data, devices, distill, export, graph, models, prune, quantize, sparse, tasks, train
    from edgewise.cost.budget import Budget
    from edgewise.cost.static import Cost, CostModel, cost_of
    from edgewise.graph.groups import Graph, Group, trace
    from edgewise.graph.surgery import shrink, silence
    from edgewise.recipe import Recipe
    from edgewise.run import compress, load

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Cost",
    "CostModel",
    "Graph",
    "Group",
    "Recipe",
    "compress",
    "cost",
    "cost_of",
    "data",
    "devices",
    "distill",
    "export",
    "graph",
    "load",
    "models",
    "prune",
    "quantize",
    "shrink",
    "silence",
    "sparse",
    "tasks",
    "trace",
    "train",
]

_HOMES = {
    "Budget": "edgewise.cost.budget",
    "Cost": "edgewise.cost.static",
    "CostModel": "edgewise.cost.static",
    "cost_of": "edgewise.cost.static",
    "Graph": "edgewise.graph.groups",
    "Group": "edgewise.graph.groups",
    "trace": "edgewise.graph.groups",
    "shrink": "edgewise.graph.surgery",
    "silence": "edgewise.graph.surgery",
    "Recipe": "edgewise.recipe",
    "compress": "edgewise.run",
    "load": "edgewise.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'edgewise' has no attribute {name!r}")
    home = _HOMES.get(name)
    return getattr(import_module(home), name) if home else import_module(f"edgewise.{name}")
