"""Which layers hold weights that methods act on, and the parameter behind each one's weight."""

from __future__ import annotations

from typing import Literal, cast

from torch import nn
from torch.nn.utils import parametrize

from edgewise.sparse.masks import LAYERS

Ends = Literal["first_last", "first", "last", "none"]


def layers(model: nn.Module, without: Ends = "none") -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name; of those that share one weight, the first.

    Args:
        model: layers count in the order in which the network holds them, which for nearly all is that of its forward.
        without: which ends are left out. Published ternary networks often leave the first and the last layer float.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> list(layers(net)), list(layers(net, "first")), list(layers(net, "first_last"))
    (['0', '2', '4'], ['2', '4'], ['2'])
    """
    first: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            first.setdefault(id(shadow(module)), name)
    names = list(first.values())
    names = names[without in ("first", "first_last") : len(names) - (without in ("last", "first_last"))]
    return {name: model.get_submodule(name) for name in names}


def shadow(layer: nn.Module) -> nn.Parameter:
    """Return the parameter that the optimizer moves: behind a parametrised weight the full-precision one."""
    if parametrize.is_parametrized(layer, "weight"):
        behind = cast(nn.ModuleDict, layer.parametrizations)["weight"]
        return cast(nn.Parameter, behind.original)
    return cast(nn.Parameter, layer.weight)
