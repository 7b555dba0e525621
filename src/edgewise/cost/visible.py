"""What a module counter sees: a count that quantisation can hide from, beside the true one of `edgewise.cost.static`.

Counters for PyTorch add up `parameters()` and hook the modules they know. ``torch.ao.quantization.quantize_dynamic``
replaces every ``nn.Linear`` by a module of its own kind, whose packed weights are no parameters, and which no hook was
made for. Both counts then fall by all that lies in linear layers, though every weight is stored, in 8 bits, and every
product is computed. Of a ConvNeXt that is most of the network: its 1x1 convolutions are linear layers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.graph.trace import evaluating

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Visible:
    """What a counter of modules reports: elements of `parameters()`, and MACs of the modules it hooks at batch 1."""

    params: int
    macs: int


def visible(model: nn.Module, example: Tensor, *, packed: bool = False) -> Visible:
    """Count a network as a module counter does, on shapes alone.

    Args:
        model: a float network, left as it is.
        example: an input of its shape ``[1, C, H, W]``.
        packed: as it would be after ``quantize_dynamic(model, {nn.Linear})``, which takes nn.Linear itself and no class
            made of it.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, 10))
    >>> visible(net, torch.zeros(1, 3, 1, 1)), visible(net, torch.zeros(1, 3, 1, 1), packed=True)
    (Visible(params=122, macs=104), Visible(params=32, macs=24))
    """
    shapes = copy.deepcopy(model).to("meta")
    seen = [module for module in shapes.modules() if not (packed and type(module) is nn.Linear)]
    parameters = {id(p): p for module in seen for p in module.parameters(recurse=False)}
    macs = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, COUNTED)
        macs += output.numel() * math.prod(module.weight.shape[1:])  # each output is a sum of so many products

    for module in seen:
        if isinstance(module, COUNTED):
            module.register_forward_hook(count)
    with torch.no_grad(), evaluating(shapes):
        shapes(example.to("meta"))
    return Visible(sum(p.numel() for p in parameters.values()), macs)
