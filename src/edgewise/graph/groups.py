"""Channels that live and die together: from the ties of a trace to the groups a method may prune.

The ties between atoms are edges; their connected components are the prunable *channels*. Channels that own the same
dimensions of the same tensors form a *group*: one width of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.graph.rules import RULES
from edgewise.graph.trace import FROZEN, Atoms, Dimension, Op, Tracer, one_image, run

if TYPE_CHECKING:
    from edgewise.graph.branches import Branch


@dataclass(frozen=True)
class Member:
    """A dimension of a tensor that a group owns.

    Args:
        tensor: name of the parameter or buffer; for a padding, the path of its module.
        dim: which dimension (for a padding: counted from the last).
        index: ``[C, m]``, the m indices of this dimension that belong to each of the group's C channels.
        kind: "parameter", "buffer" or "padding".
        reads: the layer sums over this dimension; zeroing it silences the channel.
    """

    tensor: str
    dim: int
    index: Atoms
    kind: str
    reads: bool


@dataclass(frozen=True)
class Group:
    """Channels that go together wherever they appear: pruning keeps some of them.

    Args:
        name: the layer that makes the channels.
        size: how many channels there are.
        members: every dimension they own.
        inexact: why removing a channel is not the same as silencing it; empty where it is exact.
        beside_others: every dimension these channels lie in holds others too, so all of them can go.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    inexact: str = ""
    beside_others: bool = False

    @property
    def exact(self) -> bool:
        """Whether the shrunk network equals the original with the removed channels silenced."""
        return not self.inexact

    def block(self, round_to: int) -> int:
        """Return of how many of its channels the group's width is a multiple where layers' widths are of `round_to`.

        One of its channels is several of a grouped convolution's, the same offset of every group.
        """
        made = (m.index.shape[1] for m in self.members if m.kind == "parameter" and not m.reads)
        return round_to // gcd(round_to, *made)

    def matrices(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """View every parameter the group owns as a matrix ``[C, K]``: C channels by K numbers each.

        Args:
            tensors: the network's parameters by name, or their gradients.
        """
        found = {}
        for member in self.members:
            if member.kind == "parameter" and (tensor := tensors.get(member.tensor)) is not None:
                rows = tensor if member.dim == 0 else tensor.transpose(0, member.dim)
                if not _is_identity(member.index, rows.shape[0]):
                    rows = rows[member.index.reshape(-1)]
                found[f"{member.tensor}:{member.dim}"] = rows.reshape(self.size, -1)
        return found


def _is_identity(index: Atoms, size: int) -> bool:
    return index.size == size and bool((index.reshape(-1) == np.arange(size)).all())


@dataclass(frozen=True, eq=False)
class Graph:
    """What a network is: its operators, and which of its channels can be removed together.

    Args:
        model: the network that was traced (not a copy).
        example: one image of the input's shape, without its values (a meta tensor).
        tracer: everything the trace recorded.
        group_of: ``[atoms]``, the group of each atom, or ``len(groups)`` where it is frozen.
        groups: the prunable widths, in the order of the network's parameters.
    """

    model: nn.Module
    example: Tensor = field(repr=False)
    tracer: Tracer = field(repr=False)
    group_of: Atoms = field(repr=False)
    groups: tuple[Group, ...]

    @property
    def ops(self) -> list[Op]:
        """The operators in the order they ran."""
        return self.tracer.ops

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def places(self) -> dict[str, int]:
        """The index of each group by its name."""
        return {group.name: place for place, group in enumerate(self.groups)}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The network's modules by path."""
        return dict(self.model.named_modules())

    @property
    def sizes(self) -> Atoms:
        """The number of channels of each group ``[G]``."""
        return np.array([group.size for group in self.groups], np.int64)

    @property
    def unused(self) -> tuple[str, ...]:
        """The parameters that no operator read, by name; they stay as they are."""
        return self.tracer.unused

    @cached_property
    def rigid(self) -> tuple[str, ...]:
        """The groups whose width is written into the forward, found by running the network at half its widths.

        Once with all groups and once with the exact ones alone: a forward may tie widths to each other.
        """
        from edgewise.graph.rigid import half, rigid_groups  # which shrinks graphs, and so needs this module

        rigid = rigid_groups(self)
        exact = [group for group in self.groups if group.exact and group.name not in rigid]
        more = rigid_groups(self, half(exact)) if len(exact) + len(rigid) < len(self.groups) else ()
        return tuple(group.name for group in self.groups if group.name in (*rigid, *more))

    @cached_property
    def branches(self) -> dict[str, Branch]:
        """The groups all of whose channels can go, with what goes with them; found by running the network without."""
        from edgewise.graph.branches import branches

        return branches(self)

    def takes_branch(self, name: str, kept: Sequence[int] | Atoms) -> bool:
        """Say whether a whole branch goes with a group that keeps these channels."""
        group = self.by_name.get(name)
        return group is not None and not len(kept) and not group.beside_others and name in self.branches

    def widths(self, keep: Mapping[str, Sequence[int] | Atoms]) -> Atoms:
        """Return how many channels each group keeps ``[G]``; 0 for all groups of a branch that goes."""
        taken = [self.branches[name].groups for name, kept in keep.items() if self.takes_branch(name, kept)]
        gone = {name for groups in taken for name in groups}
        kept = [0 if g.name in gone else len(keep.get(g.name, range(g.size))) for g in self.groups]
        return np.array(kept, np.int64)

    def prunable(self, *, inexact: bool = False) -> tuple[Group, ...]:
        """Return the groups that can shrink: those that are not rigid and exact, or not exact either if asked."""
        return tuple(g for g in self.groups if (inexact or g.exact) and g.name not in self.rigid)


def trace(model: nn.Module, example: Tensor) -> Graph:
    """Find what a network is made of and which of its channels live and die together.

    Args:
        model: one tensor in, one tensor out; left as it was.
        example: an input of the right shape, ``[N, C, H, W]``; its values and N are not used (batch 1 is run).

    Raises:
        UnsupportedOp: an operator has no rule; its name and its module's.
        ModelError: the forward raised, or its output is not one tensor.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> [(group.name, group.size) for group in trace(net, torch.zeros(1, 3, 8, 8)).groups]
    [('0', 8)]
    """
    tracer = run(model, example, RULES)
    labels = _components(tracer.atoms, tracer.ties)
    group_of, groups = _collect(tracer, labels)
    return Graph(model, one_image(example), tracer, group_of, groups)


def _components(atoms: int, ties: list[tuple[Atoms, Atoms]]) -> Atoms:
    """Return the connected component of each atom ``[atoms]``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a = np.concatenate([a for a, _ in ties]) if ties else np.empty(0, np.int64)
    b = np.concatenate([b for _, b in ties]) if ties else np.empty(0, np.int64)
    edges = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(atoms, atoms))
    return np.asarray(connected_components(edges, directed=False)[1], np.int64)


def _collect(tracer: Tracer, labels: Atoms) -> tuple[Atoms, tuple[Group, ...]]:
    """Sort the components into groups: those that own the same dimensions, equally often."""
    dimensions = tracer.dimensions
    owner = np.full(tracer.atoms, -1)  # which dimension an atom is an index of
    for position, dimension in enumerate(dimensions):
        owner[dimension.start : dimension.start + dimension.size] = position
    live = np.flatnonzero((labels != labels[FROZEN]) & (owner >= 0))
    # A component's signature is the sum of a random number for each dimension it owns: equal sums, equal dimensions.
    tags = np.random.default_rng(0).integers(1, 1 << 62, len(dimensions) or 1, dtype=np.uint64)
    signature = np.zeros(labels.max() + 1, np.uint64)
    np.add.at(signature, labels[live], tags[owner[live]])

    reads = _reading(tracer)
    reasons: dict[int, str] = {}
    for atoms, reason in tracer.inexact:
        for label in np.unique(labels[atoms]):
            reasons.setdefault(int(label), reason)

    sizes = {(d.tensor, d.dim): d.size for d in dimensions}
    group_of = np.full(tracer.atoms, -1, np.int64)
    groups: list[Group] = []
    names: dict[str, int] = {}
    _, first, inverse = np.unique(signature[labels[live]], return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups in the order of their first parameter
    atoms_by_group = np.split(live[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
    for position in order if len(live) else ():
        atoms = atoms_by_group[position]
        channels, channel = np.unique(labels[atoms], return_inverse=True)
        members = _members(atoms, channel, len(channels), owner, dimensions, reads)
        if not any(member.kind == "parameter" for member in members):
            continue
        reason = next((reasons[int(c)] for c in channels if int(c) in reasons), "")
        group_of[atoms] = len(groups)
        beside = all(m.index.size < sizes[m.tensor, m.dim] for m in members if m.kind != "padding")
        groups.append(Group(_unique_name(members, names), len(channels), members, reason, beside))
    return np.where(group_of < 0, len(groups), group_of), tuple(groups)


def _reading(tracer: Tracer) -> NDArray[np.bool_]:
    """Say of each atom whether its parameter is summed over there: itself, or through a weight computed from it."""
    labels = _components(tracer.atoms, tracer.weight_ties)
    read = np.zeros(tracer.atoms, bool)
    for atoms in tracer.read:
        read[labels[atoms]] = True
    read[labels[FROZEN]] = False
    return read[labels]


def _members(
    atoms: Atoms, channel: Atoms, channels: int, owner: Atoms, dimensions: list[Dimension], reads: NDArray[np.bool_]
) -> tuple[Member, ...]:
    """List the dimensions a group's atoms belong to, each with its indices by channel ``[C, m]``.

    Channels are numbered in the order of their indices in the group's first dimension.
    """
    owners = owner[atoms]
    first = owners == owners[0]
    rank = np.empty(channels, np.int64)  # component -> its place in the first dimension
    rank[channel[first][np.sort(np.unique(channel[first], return_index=True)[1])]] = np.arange(channels)
    members = []
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    for begin, end in zip(starts, (*starts[1:], len(atoms)), strict=True):
        dimension = dimensions[owners[begin]]
        order = np.argsort(rank[channel[begin:end]], kind="stable")
        index = (atoms[begin:end] - dimension.start)[order].reshape(channels, -1)
        members.append(Member(dimension.tensor, dimension.dim, index, dimension.kind, bool(reads[atoms[begin]])))
    return tuple(members)


def _unique_name(members: tuple[Member, ...], names: dict[str, int]) -> str:
    """Name a group after the layer that makes its channels; a second group of the same layer gets a number."""
    made = [m for m in members if m.kind == "parameter" and not m.reads] or list(members)
    name = made[0].tensor.rpartition(".")[0] or made[0].tensor
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"
