"""Branches that can go whole: beside a residual path, a branch that loses all of its inner channels adds a constant.

What reads the last inner channels then sees nothing, and gives out its bias for every image and place; the batch
normalisation behind it makes another constant of that. The branch's modules are replaced: where it ended stands the
constant, everything before makes a number that nothing reads, and so is gone from an exported file. Depth is pruned so
by the same means as width: a width may be zero.

A forward that adds in place (``x += shortcut``) writes the sum into what the branch gave out, and a convolution that
pads sees how large its input is: there the constant has the size that the branch's output had.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edgewise.graph.groups import Graph, Group
from edgewise.graph.rules import RULES, pointwise
from edgewise.graph.trace import Op, carried_out, evaluating

TOLERANCE = 1e-3  # relative, in the precision of the network
NORMALISATIONS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")


class Nothing(nn.Module):
    """Stands for a module of a branch that is gone: makes a number that nothing reads."""

    replaced = "nothing"

    def forward(self, x: Tensor) -> Tensor:
        """Return a zero for each image, of the input's rank."""
        return x.new_zeros((x.shape[0], *(1,) * (x.dim() - 1)))


class Constant(nn.Module):
    """Stands where a branch ended that is gone: what it adds to every image and place, whatever its input.

    Args:
        value: ``[C]``, along dimension `dim` of the output.
        dim: of the channels.
        size: of an image's output, -1 for the channels; by default 1 wherever broadcasting will do.
    """

    replaced = "constant"

    def __init__(self, value: Tensor, dim: int, size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(value)
        self.dim = dim
        self.size = None if size is None else tuple(size)

    @property
    def channels(self) -> int:
        """How many channels it adds to."""
        return len(self.value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the constant, of the input's rank."""
        shape = [1] * x.dim()
        shape[self.dim] = -1
        value = self.value.view(shape)
        if self.size is not None:
            value = value.expand(x.shape[0], *self.size)
        return value.clone()  # what comes behind may work in place


@dataclass(frozen=True)
class Branch:
    """What goes with a group that loses all its channels.

    Args:
        groups: the group and those whose channels only it could read.
        gone: paths of the modules that make a number that nothing reads.
        ends: for each path where a constant will stand, the layer whose bias it comes from.
        sizes: of the constants at those paths, where the forward writes into them.
    """

    groups: tuple[str, ...]
    gone: tuple[str, ...]
    ends: dict[str, str]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def branches(graph: Graph) -> dict[str, Branch]:
    """Return the groups all of whose channels can go, by name, because a path runs beside them."""
    tensors = (*graph.model.parameters(), *graph.model.buffers())
    shapes = copy.deepcopy(graph.model, {id(t): torch.empty_like(t, device="meta") for t in tensors})
    outputs = cache(lambda: _output_sizes(graph, shapes))
    inside = {g.name: branch for g in graph.groups if g.name not in graph.rigid and (branch := _branch(graph, g))}
    found = {name: form for name, branch in inside.items() if (form := _form(graph, branch, shapes, outputs))}
    exact = [name for name, branch in found.items() if all(graph.by_name[group].exact for group in branch.groups)]
    if exact and not _equal(graph, found, exact):  # each alone: what the shapes do not show, the values do
        found = {name: branch for name, branch in found.items() if name not in exact or _equal(graph, found, [name])}
    return found


def _equal(graph: Graph, found: Mapping[str, Branch], names: Sequence[str]) -> bool:
    """Say whether the network without some branches is the one in which nothing reads their channels, on noise."""
    from edgewise.graph.surgery import silenced  # which takes branches out, and so needs this module

    groups = [graph.by_name[name] for name in names]
    small = without(graph.model, [found[name] for name in names])
    whole = silenced(graph.model, [(group, np.arange(group.size)) for group in groups])
    kind = next((p for p in graph.model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *graph.example.shape[1:], generator=generator).to(kind)
    with suppress(Exception), torch.inference_mode(False), torch.no_grad(), evaluating(small), evaluating(whole):
        small(x)  # what keeps a state would differ when it runs again
        expected, got = whole(x), small(x)
        error = (got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(kind.dtype).tiny)
        return got.shape == expected.shape and bool(error <= TOLERANCE)
    return False


def _form(
    graph: Graph, branch: Branch, shapes: nn.Module, outputs: Callable[[], Mapping[str, tuple[int, ...]]]
) -> Branch | None:
    """Return a branch with constants as small as they may be; None where no path runs beside it.

    Args:
        shapes: the network on the meta device; left as it was.
        outputs: return the sizes of its modules' outputs by path.
    """
    runs = _runs(graph, branch, shapes)
    if runs and _broadcasts(graph, branch):
        return branch
    if not runs and any(op.name == "add_" for op in graph.ops):
        with _OutOfPlace():
            runs = _runs(graph, branch, shapes)
    if not runs:
        return None
    if not branch.ends.keys() <= outputs().keys():
        return None  # a module that gives out more than a tensor
    sizes = {end: _size(outputs()[end], graph.modules[layer]) for end, layer in branch.ends.items()}
    branch = dataclasses.replace(branch, sizes=sizes)
    return branch if _runs(graph, branch, shapes) else None


def without(model: nn.Module, gone: Iterable[Branch]) -> nn.Module:
    """Copy a network with the modules of some branches replaced; the others' parameters and buffers are shared."""
    small = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for path, module in _replacements(model, gone).items():
        replace(small, path, module)
    return small


def _replacements(model: nn.Module, gone: Iterable[Branch]) -> dict[str, nn.Module]:
    """Return what takes the place of modules, by path; where a branch lies in another one, nothing is left of it."""
    modules: dict[str, nn.Module] = {}
    for branch in (gone := list(gone)):
        for end, layer in branch.ends.items():
            modules[end] = _constant(model.get_submodule(layer), model.get_submodule(end), branch.sizes.get(end))
    modules |= {path: Nothing() for branch in gone for path in branch.gone}
    return {path: module for path, module in modules.items() if not any(path.startswith(f"{p}.") for p in modules)}


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another, in place, in the mode of the other."""
    parent, _, name = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), name, module)


def _constant(layer: nn.Module, end: nn.Module, size: tuple[int, ...] | None) -> Constant:
    """Return what a layer gives out whose inputs are all 0, through the normalisation behind it if there is one."""
    weight: Any = layer.weight
    channels = weight.shape[1]
    places = [d * (k - 1) + 1 for d, k in zip(getattr(layer, "dilation", ()), weight.shape[2:], strict=True)]
    with torch.no_grad(), evaluating(layer), evaluating(end):
        value: Tensor = layer(weight.new_zeros(1, channels, *places))[(..., *[slice(0, 1)] * len(places))]
        value = end(value) if end is not layer else value
    return Constant(value.reshape(-1).clone(), _channels(layer), size)


def _channels(layer: nn.Module) -> int:
    """Return the dimension of a plain layer's output channels."""
    return -1 if isinstance(layer, nn.Linear) else 1


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
        if group.exact and not all(other.exact for other in more):
            return None
        emptied += more
        gone |= {path for g in more for path in _modules(g, reads=False)}
    ends = {end: layer for end, layer in ends.items() if end not in gone}  # what leads back into the branch is no end
    gone |= {layer for end, layer in ends.items() if end != layer}
    names = Counter(id(module) for _, module in graph.model.named_modules(remove_duplicate=False))
    alone = all(_inside(graph, path) for path in gone)
    alone = alone and all(names[id(graph.modules[path])] == 1 for path in (*gone, *ends))
    if not ends or not alone or not all(_whole(graph, g) for g in emptied):
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
    """Return where the constant of a layer stands: at the normalisation that alone reads it, or at the layer.

    The normalisation's module may go on to something elementwise, such as an activation.
    """
    made = _output(graph, path)
    readers = [op for op in graph.ops if made in op.reads]
    if len(readers) != 1 or readers[0].name not in NORMALISATIONS:
        return path
    norm = graph.modules[readers[0].module]
    plain = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    after = [op for op in _within(graph, readers[0].module) if op is not readers[0]]
    weight: Any = graph.modules[path].weight
    by_channel = len(graph.tracer.buffers[made].shape) == weight.dim()
    return readers[0].module if plain and by_channel and all(_elementwise(op) for op in after) else path


def _within(graph: Graph, path: str) -> list[Op]:
    """Return the operators that ran in a module or below it; all of them in the network itself."""
    return [op for op in graph.ops if not path or f"{op.module}.".startswith(f"{path}.")]


def _elementwise(op: Op) -> bool:
    """Say whether an operator maps the elements of one activation one by one, or reads none at all."""
    return not op.reads or (len(op.reads) == 1 and RULES[op.name].follow is pointwise)


def _inside(graph: Graph, path: str) -> bool:
    """Say whether nothing runs below a module but what is elementwise: it may go without taking other things along."""
    return all(op.module == path or _elementwise(op) for op in _within(graph, path))


def _by_place(op: Op) -> bool:
    """Say whether an operator is a layer that multiplies the channels at each place alone."""
    shape = None if op.layer is None else op.layer.shape
    return shape is not None and shape.kind != "transposed" and not any(shape.padding) and set(shape.kernel) <= {1}


def _meets_whole(graph: Graph, op: Op, constant: set[int]) -> bool:
    """Say whether one of an operator's operands is no constant and as large as its result."""
    shapes = [graph.tracer.buffers[buffer].shape for buffer in (*(op.writes or op.reads[:1]), *op.reads)]
    return any(shape == shapes[0] for buffer, shape in zip(op.reads, shapes[1:], strict=True) if buffer not in constant)


def _broadcasts(graph: Graph, branch: Branch) -> bool:
    """Say whether a constant of one number a channel does as well as one of the full size until it meets such a one.

    It does for whatever is elementwise, for means, for other orders of the dimensions, and for layers that look at each
    place alone; not where an operator sees how large its operand is, as a convolution that pads.
    """
    replaced = {id(op) for path in (*branch.gone, *branch.ends) for op in _within(graph, path)}
    last = {id(_within(graph, end)[-1]) for end in branch.ends}
    constant: set[int] = set()
    for op in graph.ops:
        if id(op) in last:
            constant.add((*op.writes, *op.reads)[0])
        elif id(op) not in replaced and constant.intersection(op.reads):
            elementwise = op.name in RULES and RULES[op.name].follow is pointwise
            if constant.issuperset(op.reads):
                if not (elementwise or _by_place(op) or op.name in ("mean", "permute", "transpose")):
                    return False
                constant.update(op.writes)
            elif not elementwise:
                return False
            elif not _meets_whole(graph, op, constant):
                constant.update(op.writes or op.reads[:1])
            elif not op.writes:
                constant.discard(op.reads[0])  # the sum was written into it
    return True


class _OutOfPlace(TorchFunctionMode):
    """Lets ``x += y`` make a new tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] + args[1] if func is Tensor.add_ and not kwargs else func(*args, **(kwargs or {}))


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries out every operator on meta tensors, also those that only run in training."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, RULES.get(func._schema.name.removeprefix("aten::")), args, kwargs or {})


def _output_sizes(graph: Graph, shapes: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the sizes of the modules' outputs by path, those that are tensors."""
    sizes: dict[str, tuple[int, ...]] = {}

    def hook(path: str, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes[path] = tuple(output.shape)

    modules = dict(shapes.named_modules())
    handles = [m.register_forward_hook(lambda _, __, out, path=path: hook(path, out)) for path, m in modules.items()]
    with torch.inference_mode(False), torch.no_grad(), evaluating(shapes), _Shapes():  # type: ignore[no-untyped-call]
        shapes(torch.empty_like(graph.example))
    for handle in handles:
        handle.remove()
    return sizes


def _size(output: tuple[int, ...], layer: nn.Module) -> tuple[int, ...]:
    """Return the size of an image's output, -1 for the channels."""
    size = list(output)
    size[_channels(layer)] = -1
    return tuple(size[1:])


def _output(graph: Graph, path: str) -> int:
    """Return the buffer that a layer that runs once writes."""
    (made,) = next(op.writes for op in graph.ops if op.module == path and op.layer is not None)
    return made


def _runs(graph: Graph, branch: Branch, shapes: nn.Module) -> bool:
    """Say whether the network runs without a branch, on shapes alone, and still looks at its input.

    Two images are run: where no other path leads on, the constant makes one output of them. In training mode as well:
    batch normalisation refuses to normalise a constant.

    Args:
        shapes: the network on the meta device; left as it was.
    """
    x = torch.cat([torch.empty_like(graph.example)] * 2)
    before = {path: shapes.get_submodule(path) for path in (*branch.gone, *branch.ends)}
    try:
        with suppress(Exception), torch.inference_mode(False), torch.no_grad():
            for path, module in _replacements(graph.model, [branch]).items():
                replace(shapes, path, module.to("meta"))
            with _Shapes():  # type: ignore[no-untyped-call]
                sizes = {tuple(shapes.train(mode)(x).shape) for mode in (False, True)}
            return sizes == {(2, *graph.tracer.output_shape[1:])}
    finally:
        for path, module in before.items():
            replace(shapes, path, module)
    return False  # whatever the forward raised: the branch's shape was needed
