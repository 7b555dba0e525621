"""Keep-lists in, a new and smaller network out; and the record that rebuilds it without the original.

Removing channels slices every tensor that owns them and mends the attributes of the modules that state a width.
*Silencing* them is the other side of the proof: zero every weight that reads a channel, and the network computes,
at its full size, exactly what the shrunk one computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.graph.branches import Constant, Nothing, replace, without
from edgewise.graph.groups import Graph, Group, Member
from edgewise.graph.trace import Atoms, like_stored, restoring

Keep = Mapping[str, Sequence[int] | Atoms]
Attributes = dict[str, dict[str, Any]]  # module path -> attribute -> value

# -- shrinking ------------------------------------------------------------------------------------------------------


def shrink(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Remove channels for good and return the smaller network; the original is left as it was.

    Args:
        model: the network the graph was traced from, or a copy with the same tensors.
        graph: its channel groups.
        keep: the indices of the channels to keep, by group name; groups that are not named stay whole. None of the
            inner channels of a branch (see `graph.branches`) takes the branch out.

    Raises:
        ValueError: a group that does not exist, an index out of range or given twice, nothing kept.

    >>> from edgewise.graph.groups import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> graph = trace(net, torch.zeros(1, 3, 8, 8))
    >>> shrink(net, graph, {"0": [0, 5]})[2].weight.shape
    torch.Size([4, 2, 1, 1])
    """
    gone = {name: graph.branches[name] for name, kept in keep.items() if graph.takes_branch(name, kept)}
    emptied = {group for branch in gone.values() for group in branch.groups}
    cuts, paddings = _cuts(graph, {name: kept for name, kept in keep.items() if name not in emptied})
    if gone:
        model = without(model, gone.values())
        for branch in gone.values():
            cuts |= {f"{end}.value": cuts.get(f"{layer}.weight", {}) for end, layer in branch.ends.items()}
    tensors = {name: _cut(tensor, cuts.get(name, {})) for name, tensor in _stored(model)}
    return rebuild(model, tensors, _paddings(graph, paddings))


def silence(model: nn.Module, graph: Graph, keep: Keep) -> nn.Module:
    """Zero every weight that reads a removed channel: what `shrink` must equal, at the original's size.

    Exact whatever the activations do to zero, since nothing that such a channel holds is read.
    """
    return silenced(model, _lost(graph, keep))


def silenced(model: nn.Module, lost_channels: Iterable[tuple[Group, Atoms]]) -> nn.Module:
    """Zero every weight that reads these channels of groups, in a copy."""
    silent = copy.deepcopy(model)
    tensors = dict(_stored(silent))
    for group, lost in lost_channels:
        for member in group.members:
            if member.reads and member.kind != "padding":
                index = torch.from_numpy(member.index[lost].reshape(-1))
                tensors[member.tensor].data.index_fill_(member.dim, index.to(tensors[member.tensor].device), 0)
    return silent


@contextmanager
def shrunk_shapes(graph: Graph, keep: Keep) -> Iterator[nn.Module]:
    """Lend the network with its tensors cut, on the meta device: the shrunk network's structure without its numbers."""
    cuts, paddings = _cuts(graph, keep)
    cut: dict[int, Tensor] = {}
    with restoring(graph.modules):
        for path, module in graph.modules.items():
            before = _shapes(module)
            for own in (module._parameters, module._buffers):
                for key, tensor in own.items():
                    if tensor is not None and id(tensor) not in cut:  # else it is shared, and cut under its first name
                        dims = cuts.get(f"{path}.{key}" if path else key, {})
                        shape = [len(dims[d]) if d in dims else size for d, size in enumerate(tensor.shape)]
                        cut[id(tensor)] = like_stored(tensor, shape, own is module._parameters)
                    if tensor is not None:
                        own[key] = cut[id(tensor)]  # type: ignore[assignment]
            if _shapes(module) != before:
                _mend(module)
        if paddings:
            set_attributes(graph.model, _paddings(graph, paddings))
        yield graph.model


def _lost(graph: Graph, keep: Keep) -> list[tuple[Group, Atoms]]:
    """Return the channels each group loses ``[lost]``, having checked the keep-lists."""
    lost = []
    for name, kept in keep.items():
        group = graph.by_name.get(name)
        if group is None:
            raise ValueError(f'no group is called "{name}"; the network has {", ".join(graph.by_name) or "none"}')
        index = np.asarray(kept, np.int64)
        mask = np.ones(group.size, bool)
        if (index.size and (index.min() < 0 or index.max() >= group.size)) or len(np.unique(index)) != index.size:
            raise ValueError(f'group "{name}" keeps {kept!r}: different channels of 0..{group.size - 1}')
        if not index.size and not group.beside_others and name not in graph.branches:
            raise ValueError(
                f'group "{name}" keeps {kept!r}: at least one channel, no others lie beside it and no path around it'
            )
        mask[index] = False
        if mask.any():
            lost.append((group, np.flatnonzero(mask)))
    return lost


def _cuts(graph: Graph, keep: Keep) -> tuple[dict[str, dict[int, Tensor]], list[tuple[Member, Atoms]]]:
    """Return the indices to keep of each tensor's dimensions, and the channels lost by each padding."""
    gone: dict[tuple[str, int], list[Atoms]] = {}
    paddings = []
    for group, lost in _lost(graph, keep):
        for member in group.members:
            index = member.index[lost].reshape(-1)
            if member.kind == "padding":
                paddings.append((member, index))
            else:
                gone.setdefault((member.tensor, member.dim), []).append(index)
    sizes = {(d.tensor, d.dim): d.size for d in graph.tracer.dimensions}
    cuts: dict[str, dict[int, Tensor]] = {}
    for (tensor, dim), indices in gone.items():
        mask = np.ones(sizes[tensor, dim], bool)
        mask[np.concatenate(indices)] = False
        if not mask.any():
            raise ValueError(f'"{tensor}" would lose every channel of its dimension {dim}')
        cuts.setdefault(tensor, {})[dim] = torch.from_numpy(np.flatnonzero(mask))
    return cuts, paddings


def _cut(tensor: Tensor, cuts: dict[int, Tensor]) -> Tensor:
    """Slice a tensor along some dimensions; the result shares no memory with it."""
    data = tensor.detach()
    if not cuts:
        return data.clone()
    for dim, index in cuts.items():
        data = data.index_select(dim, index.to(data.device))
    return data


def _stored(model: nn.Module) -> list[tuple[str, Tensor]]:
    """List the parameters and buffers of a network, a shared one once."""
    return [*model.named_parameters(), *model.named_buffers()]


# -- rebuilding -----------------------------------------------------------------------------------------------------


def rebuild(model: nn.Module, tensors: Mapping[str, Tensor], paddings: Attributes | None = None) -> nn.Module:
    """Copy a network with other tensors in the place of its own, and mend what its modules say of their widths.

    Args:
        tensors: parameters and buffers by name; one not given is copied.
        paddings: the attributes of padding modules, which no tensor tells.
    """
    memo: dict[int, Any] = {}
    for name, tensor in _stored(model):
        new = tensors[name] if name in tensors else tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = new
    small = copy.deepcopy(model, memo)  # the memo takes the new tensors where it meets the old ones
    for before, after in zip(model.modules(), small.modules(), strict=True):
        if _shapes(before) != _shapes(after):
            _mend(after)
    set_attributes(small, paddings or {})
    return small


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [t.shape for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _mend(module: nn.Module) -> None:
    """Make a module's stated widths agree with its tensors."""
    for kind, mend in MENDS.items():
        if isinstance(module, kind):
            mend(module)


def _mend_convolution(conv: Any) -> None:
    shape = conv.weight.shape
    if conv.transposed:
        if conv.groups > 1 and conv.in_channels == conv.out_channels == conv.groups:  # depthwise
            conv.groups = shape[0]
        conv.in_channels, conv.out_channels = shape[0], shape[1] * conv.groups
    else:
        if conv.groups > 1 and conv.in_channels == conv.groups:  # depthwise: as many groups as channels that are left
            conv.groups = shape[0] // max(1, conv.out_channels // conv.groups)
        conv.in_channels, conv.out_channels = shape[1] * conv.groups, shape[0]


def _mend_linear(linear: Any) -> None:
    linear.out_features, linear.in_features = linear.weight.shape


def _mend_batch_norm(norm: Any) -> None:
    stored = norm.weight if norm.weight is not None else norm.running_mean
    if stored is not None:
        norm.num_features = stored.shape[0]


def _mend_layer_norm(norm: Any) -> None:
    if norm.weight is not None:
        norm.normalized_shape = tuple(norm.weight.shape)


def _mend_group_norm(norm: Any) -> None:
    if norm.weight is not None:
        if norm.num_groups == norm.num_channels:  # each channel by itself
            norm.num_groups = norm.weight.shape[0]
        norm.num_channels = norm.weight.shape[0]


def _mend_prelu(prelu: Any) -> None:
    prelu.num_parameters = prelu.weight.shape[0]


MENDS: dict[Any, Callable[[Any], None]] = {
    nn.modules.conv._ConvNd: _mend_convolution,
    nn.Linear: _mend_linear,
    nn.modules.batchnorm._NormBase: _mend_batch_norm,
    nn.LayerNorm: _mend_layer_norm,
    nn.GroupNorm: _mend_group_norm,
    nn.PReLU: _mend_prelu,
}

PADDINGS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)

# What the record keeps of a module, by its type: everything surgery may change.
WIDTHS: dict[Any, tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.LayerNorm: ("normalized_shape",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.PReLU: ("num_parameters",),
    **dict.fromkeys(PADDINGS, ("padding",)),
    Nothing: ("replaced",),
    Constant: ("replaced", "channels", "dim", "size"),
}


def _paddings(graph: Graph, lost: list[tuple[Member, Atoms]]) -> Attributes:
    """Return the attributes of the padding modules that lost channels."""
    modules = graph.modules
    found: Attributes = {}
    for member, index in lost:
        old = found.get(member.tensor, {}).get("padding", modules[member.tensor].padding)
        before, after = (member.dim * 2, member.dim * 2 + 1)
        # Indices count the channels put before, then those put after, as the module had them when it was traced.
        first = _tuple(modules[member.tensor].padding)[before]
        new = list(_tuple(old))
        new[before] -= int((index < first).sum())
        new[after] -= int((index >= first).sum())
        found[member.tensor] = {"padding": tuple(new)}
    return found


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value)


# -- the record -----------------------------------------------------------------------------------------------------


def widths(model: nn.Module) -> Attributes:
    """Return what every module says of its width: the part of a network's structure that surgery changes."""
    found: Attributes = {}
    for path, module in model.named_modules():
        for kind, names in WIDTHS.items():
            if isinstance(module, kind):
                values = {name: getattr(module, name) for name in names}
                found[path] = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
    return found


def record(model: nn.Module, original: nn.Module) -> Attributes:
    """Return the attributes in which a shrunk network differs from its original, for JSON.

    Together with the original's builder and the tensors this is the network again: see `restore`.
    """
    before = widths(original)
    return {path: after for path, after in widths(model).items() if after != before.get(path)}


def restore(original: nn.Module, attributes: Attributes, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a shrunk network from its original's structure, its record and its tensors.

    Args:
        original: what the builder makes; left as it is.
        attributes: what `record` found.
        tensors: all parameters and buffers by name, also the buffers that no state dict holds.

    Raises:
        ModelError: tensors are missing or left over, or the record names a module that does not exist.
    """
    replaced = {path: values for path, values in attributes.items() if "replaced" in values}
    if replaced:
        original = copy.deepcopy(original)
        for path, values in replaced.items():
            module: nn.Module = Nothing()
            if values["replaced"] == Constant.replaced:
                module = Constant(torch.zeros(values["channels"]), values["dim"], values.get("size"))
            replace(original, path, module)
    names = {name for name, _ in _stored(original)}
    if missing := sorted(names - set(tensors)):
        raise ModelError(f"the weights lack {len(missing)} tensors of the network, the first {missing[0]!r}")
    if unknown := sorted(set(tensors) - names):
        raise ModelError(f"the weights hold {len(unknown)} tensors the network lacks, the first {unknown[0]!r}")
    small = rebuild(original, tensors)
    set_attributes(small, {path: values for path, values in attributes.items() if path not in replaced})
    return small


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Set attributes of modules by their paths; lists become tuples."""
    modules = dict(model.named_modules())
    for path, values in attributes.items():
        if path not in modules:
            raise ModelError(f'the record names a module "{path}" that the network does not have')
        for name, value in values.items():
            setattr(modules[path], name, tuple(value) if isinstance(value, list) else value)
