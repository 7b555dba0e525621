"""All prunable channels of a network in one numbering, and what training methods do to them together.

A channel is zero when every parameter row that *makes* it is: filters, biases, the scale and shift of normalisations.
The weights that read it are not its own. The sums over a channel's rows are taken for all channels of all groups at
once: row by row of each tensor, then gathered.

Reference: Chen et al., Only Train Once, NeurIPS 2021, arXiv 2107.07467, section 3.1, calls the groups whose channels
vanish with these rows zero-invariant.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import RecipeError
from edgewise.graph.groups import Graph, Group, Member, trace
from edgewise.graph.surgery import silence
from edgewise.graph.trace import Atoms, evaluating
from edgewise.train.forward import forward, home

Tensors = list[Tensor] | tuple[Tensor, ...]
EXACT = 1e-9  # relative error in float64 up to which two networks compute the same


@final
class Channels:
    """The channels of some groups, numbered through from 0 to C - 1, and the parameter rows that make each.

    Args:
        model: holds the parameters, which the methods with a ``_`` change in place.
        groups: of a graph of that network, at least one; their channels are numbered in this order.

    Attributes:
        tensors: a parameter for each of its dimensions that makes channels.
        group_of: ``[C]``, the index of each channel's group.
        sizes: ``[G]``, how many channels each group has.
        groups: those given, in the order of their channels.
        count: ``[C]``, how many numbers make each channel, in the parameters' type and on their device.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        parameters = dict(model.named_parameters())
        self.groups = groups
        self.sizes = np.array([group.size for group in groups], np.int64)
        self.group_of = np.repeat(np.arange(len(groups)), self.sizes)
        channels = len(self.group_of)
        owners: dict[tuple[str, int], Atoms] = {}  # the channel of each row, or C
        for group, first in zip(groups, np.cumsum(self.sizes) - self.sizes, strict=True):
            for member in filter(makes, group.members):
                rows = parameters[member.tensor].shape[member.dim]
                owner = owners.setdefault((member.tensor, member.dim), np.full(rows, channels))
                owner[member.index] = first + np.arange(group.size)[:, None]
        device = home(model)
        self.tensors = [parameters[name].detach() for name, _ in owners]
        self._dims = [dim for _, dim in owners]
        self._rows = [len(owner) for owner in owners.values()]
        channel_of = np.concatenate(list(owners.values()))
        self._channel_of = torch.from_numpy(channel_of).to(device)
        self._rows_of = torch.from_numpy(_inverse(channel_of, channels)).to(device)
        ones = [torch.ones_like(tensor) for tensor in self.tensors]
        self.count = self.dot(ones, ones)

    def __len__(self) -> int:
        return len(self.group_of)

    def blocks(self, round_to: int) -> Atoms:
        """Return of how many channels each group's width is a multiple ``[G]``, where layers' are of `round_to`."""
        return np.array([group.block(round_to) for group in self.groups], np.int64)

    def none(self) -> Tensor:
        """Return a mask ``[C]`` of no channel."""
        return torch.zeros(len(self), dtype=torch.bool, device=self._channel_of.device)

    def copy(self, into: list[Tensor] | None = None) -> list[Tensor]:
        """Return the parameters' values as they are now, in tensors of an earlier copy where these are given."""
        if not into:
            return [tensor.clone() for tensor in self.tensors]
        torch._foreach_copy_(into, self.tensors)
        return into

    def dot(self, a: Tensors, b: Tensors) -> Tensor:
        """Sum the products of two lists of tensors, shaped as the parameters, over each channel's rows ``[C]``.

        By a gather and a sum rather than by scattered additions, whose order, and so the last bits, a GPU leaves open.
        """
        products = torch._foreach_mul(a, b)
        return self._gather([_row_sums(product, dim) for product, dim in zip(products, self._dims, strict=True)])

    def squares(self, values: Tensors) -> Tensor:
        """Sum the squares of tensors, shaped as the parameters, over each channel's rows ``[C]``.

        As `dot` with themselves, but no tensor of products is written.
        """
        return self._gather([_row_norms(value, dim) ** 2 for value, dim in zip(values, self._dims, strict=True)])

    def _gather(self, rows: list[Tensor]) -> Tensor:
        """Sum the values of each channel's rows ``[C]``."""
        sums = torch.cat([*rows, rows[0].new_zeros(1)])
        return sums[self._rows_of].sum(1)

    def scale_(self, factor: Tensor) -> None:
        """Multiply each channel's rows by its factor ``[C]``; rows of no channel stay as they are."""
        torch._foreach_mul_(self.tensors, self._spread(factor, 1.0))

    def add_(self, values: Tensors, factor: Tensor) -> None:
        """Add to each channel's rows those of other tensors times its factor ``[C]``."""
        torch._foreach_addcmul_(self.tensors, values, self._spread(factor, 0.0))

    def zero_(self, mask: Tensor) -> None:
        """Set the rows of the channels in a mask ``[C]`` to exactly 0."""
        self.scale_((~mask).to(self.count.dtype))

    def zeros(self) -> Tensor:
        """Return the mask ``[C]`` of the channels whose rows are all exactly 0."""
        nonzero = [(tensor != 0).to(tensor.dtype) for tensor in self.tensors]
        return self.dot(nonzero, nonzero) == 0

    def _spread(self, values: Tensor, rest: float) -> list[Tensor]:
        """Give every row its channel's value, shaped so that it broadcasts to the row's tensor."""
        by_row = torch.cat([values, values.new_full((1,), rest)])[self._channel_of]
        rows = torch.split(by_row, self._rows)
        return [
            row.view([-1 if d == dim else 1 for d in range(tensor.dim())])
            for row, tensor, dim in zip(rows, self.tensors, self._dims, strict=True)
        ]


def makes(member: Member) -> bool:
    """Say whether a group's member is a parameter that makes its channels, not one that reads them."""
    return member.kind == "parameter" and not member.reads


def _row_sums(tensor: Tensor, dim: int) -> Tensor:
    """Sum a tensor over all dimensions but one."""
    others = [d for d in range(tensor.dim()) if d != dim]
    return tensor.sum(others) if others else tensor


def _row_norms(tensor: Tensor, dim: int) -> Tensor:
    """Return the Euclidean norms over all dimensions but one."""
    others = [d for d in range(tensor.dim()) if d != dim]
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=others) if others else tensor.abs()
    return norms


def _inverse(channel_of: Atoms, channels: int) -> Atoms:
    """Return the rows of each channel ``[C, m]``, filled up with the number of rows.

    >>> _inverse(np.array([1, 0, 2, 1]), 2)  # the third row belongs to no channel
    array([[1, 4],
           [0, 3]])
    """
    order = np.argsort(channel_of, kind="stable")
    counts = np.bincount(channel_of, minlength=channels + 1)[:channels]
    rows = np.full((channels, counts.max(initial=0)), len(channel_of))
    rows[np.arange(rows.shape[1]) < counts[:, None]] = order[: counts.sum()]
    return rows


def zero_invariant(graph: Graph) -> tuple[Group, ...]:
    """Return the prunable groups whose channels vanish when the rows that make them are 0.

    In others a zero channel still says something, ``sigmoid(0)`` for one. They are found by running the network, on
    numbers drawn at random, with half of each group's channels zero, and again with what reads these silenced.
    """
    groups = [group for group in graph.prunable() if group.size > 1]
    if not groups or _vanish(graph, groups):
        return tuple(groups)
    return tuple(group for group in groups if _vanish(graph, [group]))


def _vanish(graph: Graph, groups: Sequence[Group]) -> bool:
    """Say whether zeroing half of the channels of some groups is the same as silencing them."""
    generator = torch.Generator().manual_seed(0)
    zeroed = _drawn(graph.model, generator)
    keep = {group.name: np.arange(group.size // 2, group.size) for group in groups}
    silent = silence(zeroed, graph, keep)
    channels = Channels(zeroed, groups)
    places = np.concatenate([np.arange(size) for size in channels.sizes])
    channels.zero_(torch.from_numpy(places < (channels.sizes // 2)[channels.group_of]))
    x = torch.randn(graph.example.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad(), evaluating(zeroed), evaluating(silent):
        found, expected = forward(zeroed, x), forward(silent, x)
    return bool((found - expected).abs().max() <= EXACT * expected.abs().max())


def _drawn(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Copy a network to the CPU in float64 with numbers drawn at random, none of them 0.

    Running means are below 0: what a normalisation makes of a zero channel is then above 0, and passes a ReLU.
    """
    drawn = copy.deepcopy(model).to("cpu", torch.float64)
    with torch.no_grad():
        for name, tensor in (*drawn.named_parameters(), *drawn.named_buffers()):
            if name.endswith("running_mean"):
                tensor.uniform_(-1.5, -0.5, generator=generator)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, max(1, tensor[:1].numel()) ** -0.5, generator=generator)
    return drawn


def channels_to_zero(model: nn.Module, example: Tensor) -> Channels:
    """Return the channels of a network that a training method may bring to zero.

    Args:
        model: the network.
        example: an input of the right shape ``[N, C, H, W]``.

    Raises:
        UnsupportedOp: the network has an operator the channel graph cannot follow.
        RecipeError: it has no channels that vanish when they are zero.
    """
    groups = zero_invariant(trace(model, example))
    if not groups:
        raise RecipeError("the network has no channels that vanish when the rows that make them are zero")
    return Channels(model, groups)


def target(channels: Channels, sparsity: float, round_to: int = 1) -> int:
    """Return how many channels a share of them is, rounded down.

    Raises:
        RecipeError: so many cannot go while each group keeps `round_to` channels.
    """
    wanted = int(len(channels) * sparsity)
    most = int((channels.sizes - np.minimum(channels.sizes, channels.blocks(round_to))).sum())
    if wanted > most:
        raise RecipeError(
            f"sparsity = {sparsity}: {wanted} of {len(channels)} channels; at most {most} can go, since each of the "
            f"{len(channels.sizes)} groups keeps {round_to}"
        )
    return wanted


def lowest(scores: Tensor, channels: Channels, gone: Tensor, count: int, round_to: int = 1) -> Tensor:
    """Pick the channels of the lowest scores over all groups, but leave something of each group.

    Ranked by index, so that the count is exact under ties: of equal ones the first goes.

    Args:
        scores: ``[C]``.
        channels: what they are of.
        gone: mask ``[C]`` of those that were picked before; they are not ranked again.
        count: how many to pick; fewer where so many are not to be had.
        round_to: each group is left with a multiple of this, or with all: of its lowest some stay for that.

    Returns:
        A mask ``[C]`` of those picked now.

    Reference: the published code cuts an index-sorted list to the count, which lets high scores through.
    """
    group_of, taken = channels.group_of, gone.cpu().numpy()
    order = np.argsort(np.where(taken, np.inf, scores.detach().cpu().double().numpy()), kind="stable")
    order = order[: len(order) - taken.sum()]
    left = channels.sizes - np.bincount(group_of[taken], minlength=len(channels.sizes))
    rank = _rank(group_of[order])
    blocks = channels.blocks(round_to)
    order = order[rank < (left - np.minimum(left, blocks))[group_of[order]]][:count]
    picked = np.bincount(group_of[order], minlength=len(left))
    kept = np.minimum(-(-(left - picked) // blocks) * blocks, left)
    order = order[_rank(group_of[order]) < (left - kept)[group_of[order]]]
    mask = np.zeros(len(group_of), bool)
    mask[order] = True
    return torch.from_numpy(mask).to(gone.device)


def _rank(groups: Atoms) -> Atoms:
    """Return of each entry how many of its group come before it.

    >>> _rank(np.array([1, 0, 1, 1, 0]))
    array([0, 0, 1, 2, 1])
    """
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def zero_channels(graph: Graph, *, branches: bool = True) -> dict[str, Atoms]:
    """Remove exactly the channels that are zero, as HESSO and DHSPG leave them; no budget is asked for.

    Args:
        graph: the traced network, with its weights.
        branches: a group that is zero throughout takes its branch out (see `graph.branches`), where it can.

    Returns:
        For each zero-invariant group with zero channels, the indices of the others, ascending. A group that is zero
        throughout keeps its first channel, unless its branch goes.

    >>> from edgewise.graph import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> nn.init.zeros_(net[0].weight[1:3].data), nn.init.zeros_(net[0].bias[1:3].data)
    (tensor(...), tensor([0., 0.]))
    >>> zero_channels(trace(net, torch.zeros(1, 3, 8, 8)))
    {'0': array([0, 3])}
    """
    groups = zero_invariant(graph)
    if not groups:
        return {}
    channels = Channels(graph.model, groups)
    alive = ~channels.zeros().cpu().numpy()
    keep = {}
    for place, group in enumerate(groups):
        kept = np.flatnonzero(alive[channels.group_of == place])
        if not len(kept) and not (branches and graph.takes_branch(group.name, kept)):
            kept = np.arange(1)
        if len(kept) < group.size:
            keep[group.name] = kept
    return keep
