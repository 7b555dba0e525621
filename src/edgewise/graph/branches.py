"""Branches that can go whole: beside a residual path, a branch that loses all of its inner channels adds a constant.

What reads the last inner channels then sees nothing, and gives out its bias for every image and place; the batch
normalisation behind it makes another constant of that. The branch's modules are replaced: where it ended stands the
constant, everything before makes a number that nothing reads, and so is gone from an exported file. Depth is pruned so
by the same means as width: a width may be zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.graph.groups import Graph, Group

NORMALISATIONS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")


class Nothing(nn.Module):
    """Stands for a module of a branch that is gone: makes a number that nothing reads."""

    replaced = "nothing"

    def forward(self, x: Tensor) -> Tensor:
        """Return a zero of the input's rank."""
        return x.new_zeros((1,) * x.dim())


class Constant(nn.Module):
    """Stands where a branch ended that is gone: what it adds to every image and place, whatever its input."""

    replaced = "constant"

    def __init__(self, value: Tensor, dim: int) -> None:
        super().__init__()
        self.value = nn.Parameter(value)
        self.dim = dim

    @property
    def channels(self) -> int:
        """How many channels it adds to."""
        return len(self.value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the constant ``[C]`` along dimension `dim` of a tensor of the input's rank."""
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return self.value.view(shape)


@dataclass(frozen=True)
class Branch:
    """What goes with a group that loses all its channels.

    Args:
        groups: the group and those whose channels only it could read.
        gone: paths of the modules that make a number that nothing reads.
        ends: for each path where a constant will stand, the layer whose bias it comes from.
    """

    groups: tuple[str, ...]
    gone: tuple[str, ...]
    ends: dict[str, str]


def branches(graph: Graph) -> dict[str, Branch]:
    """Return the groups all of whose channels can go, by name, because a path runs beside them."""
    found = {}
    for group in graph.groups:
        branch = _branch(graph, group)
        if branch is not None and _runs(graph, branch):
            found[group.name] = branch
    return found


def without(model: nn.Module, gone: Iterable[Branch], tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy a network with the modules of some branches replaced.

    Args:
        tensors: what takes the place of its parameters and buffers, by their `id`; by default they are shared.
    """
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())} | dict(tensors or {})
    small = copy.deepcopy(model, memo)
    for branch in gone:
        for end, layer in branch.ends.items():
            replace(small, end, _constant(model.get_submodule(layer), model.get_submodule(end)))
        for path in branch.gone:
            replace(small, path, Nothing())
    return small


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another, in place, in the mode of the other."""
    parent, _, name = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), name, module)


def _constant(layer: nn.Module, end: nn.Module) -> Constant:
    """Return what a layer gives out whose inputs are all 0, through the normalisation behind it if there is one."""
    with torch.no_grad():
        weight: Any = layer.weight
        bias: Any = layer.bias
        value: Tensor = weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
        if end is not layer:
            norm: Any = end
            scale = 1.0 if norm.weight is None else norm.weight
            shift = 0.0 if norm.bias is None else norm.bias
            value = (value - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * scale + shift
    return Constant(value, -1 if isinstance(layer, nn.Linear) else 1)


def _branch(graph: Graph, group: Group) -> Branch | None:
    """Find what goes with a group; None where it is not the inside of a branch of plain layers."""
    ran: dict[str, int] = {}
    for op in graph.ops:
        ran[op.module] = ran.get(op.module, 0) + (op.layer is not None)
    ends: dict[str, str] = {}
    for path in _modules(group, reads=True):
        layer = graph.modules[path]
        plain = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and not getattr(layer, "transposed", False)
        if not plain or ran.get(path) != 1 or getattr(layer, "groups", 1) != 1:
            return None
        ends[_end(graph, path)] = path
    emptied, gone = [group], set(_modules(group, reads=False))
    for _ in graph.groups:  # what only a branch's own modules read goes with it
        dead = gone | set(ends.values())
        more = [g for g in graph.groups if g not in emptied and (r := _modules(g, reads=True)) and set(r) <= dead]
        if not more:
            break
        emptied += more
        gone |= {path for g in more for path in _modules(g, reads=False)}
    gone |= {layer for end, layer in ends.items() if end != layer}
    if not ends or gone & ends.keys() or not all(_whole(graph, g) for g in emptied):
        return None
    return Branch(tuple(g.name for g in emptied), tuple(sorted(gone)), ends)


def _modules(group: Group, *, reads: bool) -> list[str]:
    """Return the paths of the modules that read a group's channels, or of those that own them otherwise."""
    return list(dict.fromkeys(m.tensor.rpartition(".")[0] for m in group.members if m.reads == reads))


def _whole(graph: Graph, group: Group) -> bool:
    """Say whether a group owns its dimensions alone, and nothing but parameters and buffers."""
    sizes: Mapping[tuple[str, int], int] = {(d.tensor, d.dim): d.size for d in graph.tracer.dimensions}
    return all(m.kind != "padding" and m.index.size == sizes[m.tensor, m.dim] for m in group.members)


def _end(graph: Graph, path: str) -> str:
    """Return where the constant of a layer stands: at the normalisation that alone reads it, or at the layer."""
    (made,) = next(op.writes for op in graph.ops if op.module == path and op.layer is not None)
    readers = [op for op in graph.ops if made in op.reads]
    norm = graph.modules.get(readers[0].module) if len(readers) == 1 and readers[0].name in NORMALISATIONS else None
    known = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    return readers[0].module if known else path


def _runs(graph: Graph, branch: Branch) -> bool:
    """Say whether the network runs without a branch, on shapes alone, and still looks at its input.

    Two images are run: where no other path leads on, the constant makes one output of them. In training mode as well:
    batch normalisation refuses to normalise a constant.
    """
    tensors = (*graph.model.parameters(), *graph.model.buffers())
    small = without(graph.model, [branch], {id(t): torch.empty_like(t, device="meta") for t in tensors})
    for end in branch.ends:
        small.get_submodule(end).to("meta")
    x = torch.cat([torch.empty_like(graph.example)] * 2)
    with suppress(Exception), torch.inference_mode(False), torch.no_grad():
        shapes = {tuple(small.train(mode)(x).shape) for mode in (False, True)}
        return shapes == {(2, *graph.tracer.output_shape[1:])}
    return False  # whatever the forward raised: the branch's shape was needed
