"""Which single weights stay: scores, masks of an exact size, and the network with the others at zero.

A mask is a bool tensor of its weight's shape, true where the weight stays. Masks and scores go by parameter names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Criterion = Literal["l1", "random"]
Scope = Literal["local", "global"]
Tensors = Mapping[str, Tensor]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of the convolutions and linear layers by name; one that layers share, once.

    Biases and what normalisations hold are left out: they are few, and a channel without its shift is another channel.
    """
    weights = {id(module.weight) for module in model.modules() if isinstance(module, LAYERS)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights}


def score(weights: Tensors, criterion: Criterion, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Score every weight, the more the better: its magnitude, or a random number that ranks it; 0 for one that is 0.

    Args:
        weights: of any shapes, finite.
        criterion: "l1", ``|w|``; "random", uniform in (0, 1].
        generator: of the random numbers, on the CPU.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: its weights cannot be ranked")
    if criterion == "random":
        drawn = {name: 1 - torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
        return {name: drawn[name].to(weight.device) * (weight.detach() != 0) for name, weight in weights.items()}
    return {name: weight.detach().abs() for name, weight in weights.items()}


def keep_masks(scores: Tensors, sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Choose the weights that stay; exactly ``round(sparsity * weights)`` go, those of equal score by their place.

    Args:
        scores: what is lowest goes.
        sparsity: the share of the weights that goes, in [0, 1].
        scope: "local", of every tensor that share; "global", of all of them together.

    >>> keep_masks({"w": torch.tensor([[3.0, 1.0], [1.0, 1.0]])}, 0.5, "local")["w"].tolist()
    [[True, False], [False, True]]
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity = {sparsity}: a share of the weights lies in [0, 1]")
    if scope == "local":
        return {name: _kept(scored, sparsity) for name, scored in scores.items()}
    if not scores:
        return {}
    together = _kept(torch.cat([scored.reshape(-1) for scored in scores.values()]), sparsity)
    parts = torch.split(together, [scored.numel() for scored in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _kept(scores: Tensor, sparsity: float) -> Tensor:
    """Return the mask of one ranking. By rank, not by a threshold: ties would make it more or fewer."""
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[scores.reshape(-1).argsort(stable=True)[: round(sparsity * scores.numel())]] = False
    return keep.reshape(scores.shape)


def masked(model: nn.Module, keep: Tensors) -> nn.Module:
    """Return a copy of a network in which the weights outside the masks are 0."""
    copied = copy.deepcopy(model)
    apply_(dict(copied.named_parameters()), keep)
    return copied


@torch.no_grad()
def apply_(weights: Tensors, keep: Tensors) -> None:
    """Set the weights outside their masks to 0, in place."""
    for name, mask in keep.items():
        weights[name].masked_fill_(~mask, 0)
