"""How much each channel matters: pure functions of a matrix ``weight[C, K]``, C channels by K numbers each.

Scores are comparable within a group. A channel usually owns rows of several tensors (a residual stream is made by
many layers): its score is the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgewise.graph.groups import Graph, Group


def l1(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Mean absolute value of each channel's weights ``[C, K] -> [C]``.

    Reference: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv 1608.08710.

    >>> l1(torch.tensor([[1.0, -3.0], [0.0, 0.5]]), torch.Generator())
    tensor([2.0000, 0.2500])
    """
    return weight.abs().mean(1)


def l2(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Root mean square of each channel's weights ``[C, K] -> [C]``.

    >>> l2(torch.tensor([[3.0, -4.0], [0.0, 2.0]]), torch.Generator())
    tensor([3.5355, 1.4142])
    """
    return weight.square().mean(1).sqrt()


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random numbers ``[C]``: the baseline every criterion must beat."""
    return torch.rand(weight.shape[0], generator=generator)


@dataclass(frozen=True)
class Importance:
    """A criterion and the tensors it looks at.

    Args:
        function: ``(weight[C, K], generator) -> [C]``.
        of: "weights" (the filters and rows that make a channel), "bn_scales", or "nothing" (a channel's number).
    """

    function: Callable[[Tensor, torch.Generator], Tensor]
    of: Literal["weights", "bn_scales", "nothing"]
    about: str


def score(graph: Graph, importance: str = "l2", *, seed: int = 0) -> dict[str, Tensor]:
    """Score every channel of every group; higher is more important.

    Args:
        graph: the traced network, with its weights.
        importance: a name of `IMPORTANCES`.
        seed: of random criteria.

    Returns:
        For each group, scores ``[C]``, float32. A group in which the criterion finds nothing to look at (no
        BatchNorm, say) is left out: it cannot be ranked, so it stays whole.

    Raises:
        ValueError: an unknown criterion, or a weight that is not finite.
    """
    if importance not in IMPORTANCES:
        raise ValueError(f'importance "{importance}" is none of {", ".join(IMPORTANCES)}')
    criterion = IMPORTANCES[importance]
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: p.detach() for name, p in graph.model.named_parameters()}
    norms = {
        f"{path}.weight"
        for path, module in graph.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
    }
    scores = {}
    for group in graph.groups:
        matrices = group.matrices({name: parameters[name] for name in _looked_at(group, criterion, parameters, norms)})
        made = [m for key, m in matrices.items() if key not in _read(group)]
        if not made:
            continue
        if criterion.of == "nothing":
            made = made[:1]  # a mean of draws would favour groups of many members
        values = torch.stack([criterion.function(m.float(), generator) for m in made]).mean(0)
        if not values.isfinite().all():
            raise ValueError(f'group "{group.name}" has weights that are not finite')
        scores[group.name] = values
    return scores


def _looked_at(group: Group, criterion: Importance, parameters: dict[str, Tensor], norms: set[str]) -> set[str]:
    names = {m.tensor for m in group.members if m.kind == "parameter"}
    return {n for n in names if (n in norms if criterion.of == "bn_scales" else parameters[n].dim() > 1)}


def _read(group: Group) -> set[str]:
    return {f"{m.tensor}:{m.dim}" for m in group.members if m.reads}


IMPORTANCES: dict[str, Importance] = {
    "l1": Importance(l1, "weights", "mean absolute weight of the filters that make a channel"),
    "l2": Importance(l2, "weights", "root mean square of the filters that make a channel"),
    # Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv 1708.06519.
    "bn_scale": Importance(l1, "bn_scales", "absolute BatchNorm scale of a channel"),
    "random": Importance(random, "nothing", "uniform random numbers, the baseline"),
}
