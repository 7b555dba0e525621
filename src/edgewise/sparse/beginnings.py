"""Which weights matter before a network is trained: SNIP, GraSP and SynFlow.

All three multiply each weight by a gradient: of the loss, of the gradient's own norm, or of what a network of positive
weights passes on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.graph.trace import evaluating
from edgewise.sparse.blocks import Tile
from edgewise.sparse.masks import Scope, apply_, keep_masks, left, prunable
from edgewise.train.forward import forward

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]  # inputs [N, C, H, W] and targets
Beginning = Literal["snip", "grasp", "synflow"]

TEMPERATURE = 200.0  # of GraSP's outputs, the authors' code: gradients of all classes instead of the nearest one's
ROUNDS = 100  # of SynFlow, the paper's: with few of them whole layers go


def snip(model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Score weights by what the loss would change without them, to first order: ``|g w|``.

    Args:
        model: stays as it is. BatchNorm normalises with each batch's own statistics: untrained networks have no others.
        loss: of outputs and targets.
        batches: of training images, on the network's device; their gradients are added up.

    Reference: Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning Based on Connection Sensitivity, ICLR 2019, arXiv
    1810.02340, eq. (5); as in its code the gradients of batches are added before their size is taken.
    """
    network, weights = _untrained(model)
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for batch in batches:
        _add(total, _gradients(network, weights, loss, batch))
    return {name: (weight.detach() * g).abs() for (name, weight), g in zip(weights.items(), total, strict=True)}


def grasp(model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Score weights by what they do for the gradient's norm: ``w (H g)``; the lowest go, negative ones first.

    Args:
        model: stays as it is; BatchNorm as in `snip`.
        loss: of outputs, which are divided by 200, and targets.
        batches: of training images, on the network's device.

    Reference: Wang, Zhang, Grosse, Picking Winning Tickets Before Training by Preserving Gradient Flow, ICLR 2020,
    arXiv 2002.07376, eq. (8), with the sign turned: there the highest go.
    """
    network, weights = _untrained(model)
    parameters = list(weights.values())
    gradient, product = ([torch.zeros_like(weight) for weight in parameters] for _ in range(2))
    for batch in batches:
        _add(gradient, _gradients(network, weights, loss, batch, TEMPERATURE))
    for batch in batches:
        found = _gradients(network, weights, loss, batch, TEMPERATURE, again=True)
        along = torch.stack([(g * fixed).sum() for g, fixed in zip(found, gradient, strict=True)]).sum()
        _add(product, torch.autograd.grad(along, parameters))
    return {name: weight.detach() * hg for (name, weight), hg in zip(weights.items(), product, strict=True)}


def synflow(
    model: nn.Module,
    shape: tuple[int, ...],
    sparsity: float,
    scope: Scope = "global",
    tile: Tile | None = None,
    exclude: Collection[str] = (),
) -> dict[str, Tensor]:
    """Score weights by how much flows through them where all are positive; the ones that go on the way have -inf.

    ``w dR/dw`` with R the sum of the outputs for an input of ones, computed with ``|w|``; in 100 rounds, each on what
    the ones before it left, so that no layer is emptied while another one is whole. No data is needed.

    Args:
        model: stays as it is. Biases are 0 and normalisations scale alone: what a layer takes in it gives out.
        shape: of an image ``(C, H, W)``.
        sparsity: the share of the weights that will go, in (0, 1).
        scope: over which weights are ranked.
        tile: whole blocks go.
        exclude: the names of weights that stay, and do not count among those of which a share goes.

    Reference: Tanaka, Kunin, Yamins, Ganguli, Pruning Neural Networks Without Any Data by Iteratively Conserving
    Synaptic Flow, NeurIPS 2020, arXiv 2006.05467, algorithm 1.
    """
    network = copy.deepcopy(model).double().requires_grad_(True)
    weights = prunable(network)
    with torch.no_grad():
        _linear_(network, weights)
    home = next(iter(weights.values())).device
    ones = torch.ones(1, *shape, dtype=torch.float64, device=home)
    keep = {name: weight.detach() != 0 for name, weight in weights.items()}
    scores: dict[str, Tensor] = {}
    with evaluating(network), torch.enable_grad():
        for done in range(ROUNDS):
            found = torch.autograd.grad(network(ones).sum(), list(weights.values()))
            scores = {name: weight.detach() * g for (name, weight), g in zip(weights.items(), found, strict=True)}
            scores = left(scores, keep, tile)
            if done < ROUNDS - 1:  # the last ranking is the caller's
                ranked = {name: found for name, found in scores.items() if name not in exclude}
                chosen = keep_masks(ranked, 1 - (1 - sparsity) ** ((done + 1) / ROUNDS), scope, tile)
                keep = {**keep, **{name: keep[name] & mask for name, mask in chosen.items()}}
                apply_(weights, keep)
    return scores


def _untrained(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a copy that asks for gradients, whose BatchNorm looks at the batch and in which nothing is random."""
    network = copy.deepcopy(model).requires_grad_(True).eval()
    for module in network.modules():
        module.training = isinstance(module, _BatchNorm)
    return network, prunable(network)


def _gradients(
    network: nn.Module,
    weights: Mapping[str, nn.Parameter],
    loss: Loss,
    batch: Batch,
    temperature: float = 1.0,
    *,
    again: bool = False,
) -> tuple[Tensor, ...]:
    """Return the loss's gradient by each weight; `again` if it will itself be derived."""
    inputs, targets = batch
    with torch.enable_grad():
        value = loss(forward(network, inputs) / temperature, targets)
        return torch.autograd.grad(value, list(weights.values()), create_graph=again)


def _add(total: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for sum_, part in zip(total, found, strict=True):
        sum_ += part.detach()


def _linear_(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make every weight positive, and let nothing be added anywhere."""
    multiplied = {id(weight) for weight in weights.values()}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            added = name == "bias" or (id(parameter) not in multiplied and name != "weight")
            parameter.zero_() if added else parameter.abs_()
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.zero_()
            assert module.running_var is not None
            module.running_var.fill_(1.0)
