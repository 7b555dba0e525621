"""How much each channel matters: pure functions of ``weight[C, K]`` and ``grad[C, K]``, C channels by K numbers each.

A channel usually owns rows of several tensors (a residual stream is made by many layers): its score is the mean over
them, their sum, the largest, or the first one's. Scores are comparable within a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.graph.groups import Graph, Group

Reduce = Literal["mean", "sum", "max", "first"]


def l1(weight: Tensor) -> Tensor:
    """Mean absolute value of each channel's weights ``[C, K] -> [C]``.

    Reference: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv 1608.08710.

    >>> l1(torch.tensor([[1.0, -3.0], [0.0, 0.5]]))
    tensor([2.0000, 0.2500])
    """
    return weight.abs().mean(1)


def l2(weight: Tensor) -> Tensor:
    """Root mean square of each channel's weights ``[C, K] -> [C]``.

    >>> l2(torch.tensor([[3.0, -4.0], [0.0, 2.0]]))
    tensor([3.5355, 1.4142])
    """
    return weight.square().mean(1).sqrt()


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """First-order estimate of how much the loss changes without the channel ``[C, K], [C, K] -> [C]``.

    ``|sum_k w_k g_k|``, on one batch's gradient: over a whole training set gradients cancel.

    Reference: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv 1906.10771, eq. (8),
    without its square, which does not change the order within a batch.

    >>> taylor(torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    tensor([3.0000, 1.5000])
    """
    return (weight * grad).sum(1).abs()


def fpgm(weight: Tensor) -> Tensor:
    """Mean distance of each channel's weights from the others' ``[C, K] -> [C]``: the most replaceable go first.

    Reference: He et al., Filter Pruning via Geometric Median, CVPR 2019, arXiv 1811.00250, eq. (6).

    >>> fpgm(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
    tensor([5.0000, 3.3333, 5.0000])
    """
    # The exact distances, not those by the matrix product torch takes for many rows: equal filters are 0 apart.
    distances: Tensor = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.mean(1)


def first(channels: int) -> Tensor:
    """Number the channels from the last, so that the first of them stay ``[C]``.

    >>> first(3)
    tensor([3., 2., 1.])
    """
    return torch.arange(channels, 0, -1, dtype=torch.float32)


def lamp(weight: Tensor) -> Tensor:
    """Square of each channel's norm over the sum of those that are not smaller ``[C, K] -> [C]``, the largest being 1.

    Of equal channels the first counts as the smaller. The scores are meant to be ranked across layers as they are
    (``normalize = "none"``).

    Reference: Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, arXiv 2010.07611,
    eq. (4), of whole channels in the place of single weights.

    >>> lamp(torch.tensor([[2.0], [1.0], [3.0]]))
    tensor([0.3077, 0.0714, 1.0000])
    """
    squares = weight.double().square().sum(1)
    ascending, order = squares.sort(stable=True)
    not_smaller = ascending.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(squares).index_copy_(0, order, ascending / not_smaller).float()


def random(channels: int, generator: torch.Generator) -> Tensor:
    """Uniform random numbers ``[C]``: the baseline every criterion must beat."""
    return torch.rand(channels, generator=generator)


@dataclass(frozen=True)
class Rows:
    """What a criterion is given of one tensor: ``weight[C, K]``, one batch's ``grad[C, K]``, and chance."""

    weight: Tensor
    grad: Tensor | None
    generator: torch.Generator


@dataclass(frozen=True)
class Importance:
    """A criterion and the tensors it looks at.

    Args:
        function: rows -> scores ``[C]``.
        of: "weights" (the filters and rows that make a channel), "bn_scales", or "nothing" (a channel's number).
        about: what it is, in one line.
        gradients: it needs the gradients of the loss on batches of training images.
    """

    function: Callable[[Rows], Tensor]
    of: Literal["weights", "bn_scales", "nothing"]
    about: str
    gradients: bool = False


def score(
    graph: Graph,
    importance: str = "l2",
    *,
    gradients: Iterable[Mapping[str, Tensor]] = (),
    reduce: Reduce = "mean",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score every channel of every group; higher is more important.

    Args:
        graph: the traced network, with its weights.
        importance: a name of `IMPORTANCES`.
        gradients: of the loss by parameter name, one mapping for each batch (see `edgewise.train.gradients`); the
            scores are the batches' mean.
        reduce: how the scores of a channel's several tensors become one.
        seed: of random criteria.

    Returns:
        For each group, scores ``[C]``, float32. A group in which the criterion finds nothing to look at (no
        BatchNorm, say) is left out: it cannot be ranked, so it stays whole.

    Raises:
        ValueError: an unknown criterion or reduction, no gradients where the criterion needs them.
        ModelError: a parameter without a gradient, a weight that is not finite.
    """
    if importance not in IMPORTANCES:
        raise ValueError(f'importance "{importance}" is none of {", ".join(IMPORTANCES)}')
    if reduce not in REDUCTIONS:
        raise ValueError(f'reduce "{reduce}" is none of {", ".join(REDUCTIONS)}')
    criterion = IMPORTANCES[importance]
    generator = torch.Generator().manual_seed(seed)
    looked_at = _looked_at(graph.model, criterion)
    made = {group.name: rows for group in graph.groups if (rows := _made(group, looked_at))}
    totals: dict[str, Tensor] = {}
    batches = 0
    for batch in gradients if criterion.gradients else [{}]:
        batches += 1
        for name, weights in made.items():
            grads = graph.by_name[name].matrices(batch)
            if criterion.gradients and (missing := weights.keys() - grads.keys()):
                name = min(missing).rpartition(":")[0]
                raise ModelError(
                    f'no gradient of "{name}" is known, and {importance} ranks by it: the forward may run without '
                    "gradients there; take l2"
                )
            if criterion.of == "nothing":  # a mean of draws would favour groups of many members
                weights = dict(list(weights.items())[:1])
            found = [criterion.function(Rows(w.float(), grads.get(key), generator)) for key, w in weights.items()]
            totals[name] = totals.get(name, 0) + REDUCTIONS[reduce](torch.stack(found))
    if not batches:
        raise ValueError(f'importance "{importance}" needs the gradients of the loss on some batches')
    for name, total in totals.items():
        if not total.isfinite().all():
            raise ModelError(f'group "{name}" has weights or gradients that are not finite')
    return {name: total / batches for name, total in totals.items()}


def _looked_at(model: nn.Module, criterion: Importance) -> dict[str, Tensor]:
    """Return the parameters that a criterion looks at, by name."""
    if criterion.of == "bn_scales":
        norms = ((path, m) for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        return {f"{path}.weight": norm.weight.detach() for path, norm in norms if norm.weight is not None}
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def _made(group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the matrices ``[C, K]`` of the tensors that make a group's channels, not of those that read them."""
    read = {f"{m.tensor}:{m.dim}" for m in group.members if m.reads}
    return {key: matrix for key, matrix in group.matrices(tensors).items() if key not in read}


def _taylor(rows: Rows) -> Tensor:
    assert rows.grad is not None  # `score` asked for it
    return taylor(rows.weight, rows.grad)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.mean(0),
    "sum": lambda scores: scores.sum(0),
    "max": lambda scores: scores.amax(0),
    "first": lambda scores: scores[0],
}

IMPORTANCES: dict[str, Importance] = {
    "l1": Importance(
        lambda rows: l1(rows.weight), "weights", "mean absolute weight of the filters that make a channel"
    ),
    "l2": Importance(lambda rows: l2(rows.weight), "weights", "root mean square of the filters that make a channel"),
    # Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv 1708.06519.
    "bn_scale": Importance(lambda rows: l1(rows.weight), "bn_scales", "absolute BatchNorm scale of a channel"),
    "taylor": Importance(_taylor, "weights", "change of the loss without the channel, to first order", gradients=True),
    "fpgm": Importance(lambda rows: fpgm(rows.weight), "weights", "distance from the group's other channels"),
    "lamp": Importance(lambda rows: lamp(rows.weight), "weights", "squared norm over that of all larger channels"),
    "random": Importance(
        lambda rows: random(len(rows.weight), rows.generator), "nothing", "uniform random numbers, the baseline"
    ),
    "first": Importance(lambda rows: first(len(rows.weight)), "nothing", "the first channels stay, for fresh weights"),
}
