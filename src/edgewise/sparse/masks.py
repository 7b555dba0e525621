"""Which single weights stay: scores, masks of an exact size, and the network with the others at zero.

A mask is a bool tensor of its weight's shape, true where the weight stays. Masks and scores go by parameter names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from edgewise.sparse.blocks import Tile, block_sizes, block_sums, spread

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


def keep_masks(scores: Tensors, sparsity: float, scope: Scope, tile: Tile | None = None) -> dict[str, Tensor]:
    """Choose the weights that stay; exactly ``round(sparsity * weights)`` go, those of equal score by their place.

    Args:
        scores: what is lowest goes.
        sparsity: the share of the weights that goes, in [0, 1].
        scope: "local", of every tensor that share; "global", of all of them together.
        tile: whole blocks go, by the mean of their scores (`edgewise.sparse.blocks`): as many as are within the share.

    Raises:
        ValueError: a share that is none, a tile that does not fit a tensor.

    >>> keep_masks({"w": torch.tensor([[3.0, 1.0], [1.0, 1.0]])}, 0.5, "local")["w"].tolist()
    [[True, False], [False, True]]
    >>> keep_masks({"w": torch.tensor([[3.0, 1.0], [1.0, 2.0]])}, 0.5, "local", (1, -1))["w"].tolist()
    [[True, True], [False, False]]
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity = {sparsity}: a share of the weights lies in [0, 1]")
    sizes = {name: _sizes(scored, tile, name) for name, scored in scores.items()}
    ranked = {name: _means(scored, tile, sizes[name], name) for name, scored in scores.items()}
    if scope == "local":
        kept = {name: _kept(ranked[name].flatten(), sizes[name].flatten(), sparsity) for name in scores}
    elif scores:
        every = torch.cat([each.flatten() for each in ranked.values()])
        together = _kept(every, torch.cat([each.flatten() for each in sizes.values()]), sparsity)
        parts = torch.split(together, [each.numel() for each in ranked.values()])
        kept = dict(zip(scores, parts, strict=True))
    else:
        kept = {}
    masks = {name: part.reshape(ranked[name].shape) for name, part in kept.items()}
    return masks if tile is None else {name: spread(masks[name], scores[name].shape, tile) for name in scores}


def left(scores: Tensors, keep: Tensors, tile: Tile | None = None) -> dict[str, Tensor]:
    """Rank what is gone already: its scores are 0, and those of blocks in which nothing is left -inf, so that they go.

    Args:
        scores: of all weights, by name.
        keep: where one is left.
        tile: of the blocks that go as a whole; without one each weight is its own.
    """
    found = {}
    for name, scored in scores.items():
        alive = keep[name]
        if tile is not None:
            alive = spread(block_sums(alive, tile, name) > 0, tuple(scored.shape), tile)
        found[name] = scored.masked_fill(~keep[name], 0).masked_fill(~alive, -torch.inf)
    return found


def keep_n_of_m(scores: Tensors, n: int, m: int) -> dict[str, Tensor]:
    """Choose n weights of every m neighbouring inputs, at each output and kernel position: those of highest score.

    Args:
        scores: of weights ``[O, I, *kernel]`` or ``[O, I]``; of equal ones the first stays.
        n: how many stay, at least 1.
        m: of how many.

    Raises:
        ValueError: m does not divide a weight's inputs.

    >>> keep_n_of_m({"w": torch.tensor([[3.0, 1.0, 2.0, 9.0], [1.0, 1.0, 1.0, 1.0]])}, 2, 4)["w"].tolist()
    [[True, False, False, True], [True, True, False, False]]
    """
    masks = {}
    for name, scored in scores.items():
        outputs, inputs, *kernel = scored.shape
        if inputs % m:
            raise ValueError(f"{n}:{m} does not divide the {inputs} inputs of {name}; exclude it, or take another m")
        grouped = scored.reshape(outputs, inputs // m, m, *kernel)
        rank = grouped.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        masks[name] = (rank < n).reshape(scored.shape)
    return masks


def _sizes(scored: Tensor, tile: Tile | None, name: str) -> Tensor:
    """Count the weights of each block; single ones are blocks of 1."""
    if tile is None:
        return torch.ones((), dtype=torch.int64, device=scored.device).expand(scored.shape)
    return block_sizes(tuple(scored.shape), tile, name).to(scored.device)


def _means(scored: Tensor, tile: Tile | None, sizes: Tensor, name: str) -> Tensor:
    return scored if tile is None else block_sums(scored, tile, name) / sizes


def _kept(scores: Tensor, sizes: Tensor, sparsity: float) -> Tensor:
    """Return the mask ``[blocks]`` of one ranking. By rank, not by a threshold: ties would make it more or fewer."""
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    order = scores.argsort(stable=True)
    gone = sizes[order].cumsum(0) <= round(sparsity * int(sizes.sum()))
    keep[order[gone]] = False
    return keep


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
