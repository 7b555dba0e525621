"""One forward on meta tensors, followed operator by operator, with an identity for every channel.

The network is run once under a dispatch mode: no arithmetic, no copy, only shapes. Beside each tensor runs its
*identity*: which channels its elements belong to. What arrives at the dispatcher is a small canonical vocabulary
of ATen operators, and parameters are ordinary tensors in it, so a view of a weight follows the same rule as a view
of an activation.

Atoms
    Every index of every parameter dimension is an integer, its *atom*. Atom 0 is ``FROZEN``: what is tied to it
    can never be removed.
Identity
    ``Ids``, a tuple of *factors*. A factor is an integer array that broadcasts to the tensor's shape, of size 1
    where a dimension has no identity (batch, space). An element is alive while its atoms in all factors are alive:
    a feature map has one factor ``[1, C, 1, 1]``, a convolution's weight two, ``[O, 1, 1, 1]`` and ``[1, I, 1, 1]``.

The rules of the operators are in `edgewise.graph.rules`; what they tie is solved in `edgewise.graph.groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from edgewise.errors import ModelError, UnsupportedOp, one_line

Atoms = NDArray[np.int64]
Ids = tuple[Atoms, ...]

FROZEN = 0


@dataclass(frozen=True)
class Extent:
    """How many elements a tensor has, as a function of which atoms live: its shape and its identity."""

    shape: tuple[int, ...]
    ids: Ids = ()


@dataclass(frozen=True)
class Dimension:
    """One dimension of a parameter, a buffer or a padding whose indices are atoms ``start .. start + size``.

    A padding module counts as a dimension too: the channels it puts before and after are its indices.
    """

    tensor: str
    dim: int
    start: int
    size: int
    kind: str  # "parameter", "buffer" or "padding"


@dataclass(frozen=True, order=True)
class LayerShape:
    """A convolution or matrix product as a runtime sees it: what decides its time.

    Args:
        kind: "convolution", "transposed", or "linear" (a product with a stored matrix).
        size: the input's spatial shape; for a product, how many rows it has.
        kernel: the filter's spatial shape, empty for a product; so are the next three.
        groups: 1, the number of groups, or 0 for a depthwise convolution: as many as it has channels.
        inputs: how many channels it reads.
        outputs: how many it makes.
    """

    kind: str
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int

    def at(self, inputs: int, outputs: int) -> LayerShape:
        """Return the same layer with other widths."""
        return replace(self, inputs=inputs, outputs=outputs)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, roughly: strides are counted, padding is not."""
        places = prod(self.size) / prod(self.stride) if self.kind == "convolution" else prod(self.size)
        return int(places * prod(self.kernel) * self.inputs * self.outputs / (self.groups or self.inputs))


@dataclass(frozen=True)
class Layer:
    """A layer of the network: its shape as it stands, and the atoms ``[C]`` of the channels it reads and makes."""

    shape: LayerShape
    reads: Atoms
    makes: Atoms


@dataclass(frozen=True)
class Op:
    """One operator as it ran: its name, the module it belongs to, the buffers it read and wrote."""

    name: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    overwrites: bool  # may an inference runtime compute it in place of an operand?
    macs: tuple[Extent, ...] = ()  # multiply-accumulates, as the product of these extents
    layer: Layer | None = None


@dataclass
class Value:
    """What is known of a tensor while the network runs."""

    tensor: Tensor  # kept alive: tensors are told apart by their address
    ids: Ids
    buffer: int | None  # the activation buffer it lies in; None for parameters and what is derived from them
    zero: bool = False  # derived from parameters so that it is 0 wherever they are
    first_use: int | None = None  # the step of the programme that read it first


@dataclass(frozen=True)
class Call:
    """An operator with its arguments and its result, as a rule sees it."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass
class Tracer:
    """What the rules write into: identities, ties, and the operators in order."""

    model: nn.Module
    values: dict[int, Value] = field(default_factory=dict)
    dimensions: list[Dimension] = field(default_factory=list)
    ties: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    weight_ties: list[tuple[Atoms, Atoms]] = field(default_factory=list)  # those made where weights are computed
    read: list[Atoms] = field(default_factory=list)
    inexact: list[tuple[Atoms, str]] = field(default_factory=list)
    buffers: list[Extent] = field(default_factory=list)
    element_bytes: list[int] = field(default_factory=list)  # of each buffer
    parameters: dict[str, Extent] = field(default_factory=dict)
    first_use: dict[str, int] = field(default_factory=dict)  # the step at which a parameter or buffer is first read
    output_shape: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()  # parameters that no operator read
    ops: list[Op] = field(default_factory=list)
    programme: Programme = field(default_factory=list)
    atoms: int = 1  # the next atom; 0 is FROZEN
    stack: list[tuple[str, nn.Module]] = field(default_factory=list)
    macs: tuple[Extent, ...] = ()  # of the operator at hand, set by its rule; so is its layer
    layer: Layer | None = None
    constant: bool = False  # the operator at hand computes with parameters and buffers alone

    # -- identities -------------------------------------------------------------------------------------------

    def new_atoms(self, tensor: str, dim: int, size: int, kind: str) -> Atoms:
        """Give the indices of a dimension atoms of their own."""
        start, self.atoms = self.atoms, self.atoms + size
        self.dimensions.append(Dimension(tensor, dim, start, size, kind))
        return np.arange(start, start + size)

    def padding_atoms(self, path: str, position: int, size: int) -> Atoms:
        """Return the atoms of the channels that a padding module puts before and after a dimension."""
        for known in self.dimensions:
            if (known.kind, known.tensor, known.dim) == ("padding", path, position):
                same = known.size == size
                return np.arange(known.start, known.start + size) if same else np.full(size, FROZEN)
        return self.new_atoms(path, position, size, "padding")

    def add_stored(self, name: str, tensor: Tensor, kind: str) -> None:
        """Enter a parameter or a buffer: one factor for each dimension longer than 1."""
        shape = tuple(tensor.shape)
        ids = tuple(
            self.new_atoms(name, dim, size, kind).reshape([-1 if d == dim else 1 for d in range(len(shape))])
            for dim, size in enumerate(shape)
            if size > 1
        )
        self.values[id(tensor)] = Value(tensor, ids, None, zero=True)
        if kind == "parameter":
            self.parameters[name] = Extent(shape, ids)

    def ids(self, tensor: Tensor) -> Ids:
        """Return the identity of a tensor; one that the forward made from nothing has none."""
        value = self.values.get(id(tensor))
        return value.ids if value else ()

    def axis(self, tensor: Tensor, dim: int) -> Atoms:
        """Return the atoms ``[size]`` along one dimension; ``FROZEN`` where it has no identity of its own.

        A factor that runs over this dimension and another one together cannot be followed here: it is frozen.
        """
        dim %= tensor.dim()
        found: Atoms | None = None
        for factor in self.ids(tensor):
            if factor.shape[dim] == 1:
                continue
            if factor.size == factor.shape[dim] and found is None:
                found = factor.reshape(-1)
            else:
                self.freeze(factor)
        return np.zeros(tensor.shape[dim], np.int64) if found is None else found

    def tie(self, a: Atoms, b: Atoms) -> None:
        """Let the channels of two arrays of one shape live and die together."""
        if a is not b:
            self.ties.append((a.reshape(-1), b.reshape(-1)))
            if self.constant:
                self.weight_ties.append(self.ties[-1])

    def freeze(self, *factors: Atoms) -> None:
        """Forbid the removal of these channels."""
        for factor in factors:
            self.ties.append((factor.reshape(-1), np.zeros(factor.size, np.int64)))

    def is_stored(self, tensor: Tensor) -> bool:
        """Say whether a tensor is a parameter, a buffer, or derived from them alone."""
        value = self.values.get(id(tensor))
        return value is not None and value.buffer is None

    def read_by(self, weight: Tensor, atoms: Atoms) -> None:
        """Enter that a weight sums over these channels, its own along one dimension.

        A weight may be computed from parameters. Where it is not 0 with them, zeroing them silences nothing.
        """
        self.read.append(atoms)
        if not self.values[id(weight)].zero:
            self.inexact.append((atoms, f'weights of "{self.module[0]}" that are computed, and not 0 where these are'))

    @property
    def module(self) -> tuple[str, nn.Module]:
        """The innermost module that is running: its path and itself."""
        return self.stack[-1] if self.stack else ("", self.model)

    def where(self) -> str:
        """Say which module is running, for messages."""
        path, module = self.module
        return f'"{path}" ({type(module).__name__})' if path else type(module).__name__

    # -- operators --------------------------------------------------------------------------------------------

    def record(self, call: Call, rule: Rule) -> None:
        """Apply an operator's rule to the identities and enter the operator."""
        self.macs, self.layer = (), None
        operands = [value for t in tensors_in((call.args, call.kwargs)) if (value := self.values.get(id(t)))]
        results = [call.out] if isinstance(call.out, Tensor) else list(tensors_in(call.out))
        for value in operands:
            if value.first_use is None:
                value.first_use = len(self.programme)
        self.constant = bool(operands) and all(value.buffer is None for value in operands)
        identities = rule.follow(self, call)
        reads = tuple(v.buffer for v in operands if v.buffer is not None) if rule.reads else ()
        writes = []
        zero = self.constant and _stays_zero(rule, call, operands, identities)
        for tensor, ids in zip(results, identities, strict=False):
            if self.constant:
                buffer = None
            elif reads and (rule.view or tensor is call.args[0]):  # a view, or truly in place
                buffer = reads[0]
            else:
                buffer = self.new_buffer(tensor, ids)
                writes.append(buffer)
            self.values[id(tensor)] = Value(tensor, ids, buffer, zero)
        enter_step(self.programme, call, rule)
        if not self.constant:
            self.ops.append(Op(call.op, self.module[0], reads, tuple(writes), rule.overwrites, self.macs, self.layer))
        self.constant = False

    def new_buffer(self, tensor: Tensor, ids: Ids) -> int:
        """Enter an activation of its own and return its number."""
        self.buffers.append(Extent(tuple(tensor.shape), ids))
        self.element_bytes.append(tensor.element_size())
        return len(self.buffers) - 1


@dataclass(frozen=True)
class Rule:
    """How identities pass through an operator.

    Args:
        follow: (tracer, call) -> the identity of each result, having tied what the operator ties.
        view: the result shares its operand's memory.
        overwrites: an inference runtime can compute it in place of an operand that is not needed afterwards.
        make: makes the results on the meta device from the operator's arguments. Torch computes some operators' shapes
            in Python, which took most of a trace; by default it does.
        zero: where the result is 0 when it is computed from weights: where "all" operands are, where one "factor"
            with all of the result's channels is, where the "first" operand is, or "never".
        reads: it looks at its operands' values, not at their shapes alone.
        exact_numbers: the numbers it is given are part of what it computes; they may not change with a width.
    """

    follow: Callable[[Tracer, Call], Sequence[Ids]]
    view: bool = False
    overwrites: bool = False
    make: Callable[..., Any] | None = None
    zero: Literal["all", "factor", "first", "never"] = "all"
    reads: bool = True
    exact_numbers: bool = False


Programme = list[tuple[str, tuple[float, ...]]]  # operators in order, each with the numbers that it computes with


def _stays_zero(rule: Rule, call: Call, operands: Sequence[Value], identities: Sequence[Ids]) -> bool:
    """Say whether a weight that is being computed is 0 wherever the parameters it comes from are."""
    if rule.zero == "never" or not operands:
        return False
    if rule.zero == "first":
        return operands[0].zero
    if rule.zero == "factor":
        return any(value.zero and len(value.ids) == len(identities[0]) for value in operands)
    return all(value.zero for value in operands) and not (rule.exact_numbers and any(_numbers(call)))


def enter_step(programme: Programme, call: Call, rule: Rule) -> None:
    """Enter what an operator computes, whatever the widths: its name, and its numbers where they matter."""
    if call.op not in ("alias", "detach"):  # torch makes these as it pleases
        programme.append((call.op, _numbers(call) if rule.exact_numbers else ()))


def _numbers(call: Call) -> tuple[float, ...]:
    """Return the numbers among an operator's arguments, those in tensors without dimensions included."""
    found = []
    for argument in (*call.args, *call.kwargs.values()):
        known = isinstance(argument, Tensor) and argument.dim() == 0 and argument.device.type != "meta"
        if known or (isinstance(argument, int | float) and not isinstance(argument, bool)):
            found.append(float(argument))
    return tuple(found)


# What turns a tensor's values into Python's or into shapes: an `if`, a loop's end, a mask that selects.
DATA_DEPENDENT = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")


def depends_on_values(name: str, args: Any) -> bool:
    """Say whether an operator's result, as Python or its shape sees it, depends on the values of a tensor."""
    masks = args[1] if name == "index" else ()
    return name in DATA_DEPENDENT or any(mask is not None and mask.dtype == torch.bool for mask in masks)


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries out every operator that runs, on meta tensors, and sends it with its rule to a listener."""

    def __init__(self, rules: dict[str, Rule], listen: Callable[[Call, Rule], None], where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rules, self.listen, self.where = rules, listen, where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        rule = self.rules.get(name)
        if depends_on_values(name, args):
            raise UnsupportedOp(
                f"the forward of module {self.where()} depends on the values of a tensor ({func}): what runs, or its "
                f"shapes, would differ from input to input"
            )
        if rule is None:
            raise UnsupportedOp(f"operator {func} in module {self.where()} has no rule in the channel graph")
        out = carried_out(func, rule, args, kwargs)
        self.listen(Call(name, args, kwargs, out), rule)
        return out


def carried_out(func: Any, rule: Rule | None, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry an operator out on meta tensors, as fast as its rule can."""
    if rule is None or rule.make is None or not args[0].is_floating_point():
        return func(*args, **kwargs)
    return args[0] if func._schema.name.endswith("_") else rule.make(*args, **kwargs)


def run(model: nn.Module, example: Tensor, rules: dict[str, Rule]) -> Tracer:
    """Run a network once on meta tensors, at batch 1, and return everything its operators tied.

    Args:
        model: any network of one tensor in, one tensor out; left as it was.
        example: an input of the right shape, ``[N, ...]``; only the shape behind N and the type are used.
        rules: the rule of each operator, by its ATen name without the overload.

    Raises:
        UnsupportedOp: an operator has no rule.
        ModelError: the forward raised, or its output is not one tensor.
    """
    tracer = Tracer(model)
    modules = dict(model.named_modules())
    with torch.inference_mode(False), torch.no_grad(), restoring(modules), evaluating(model), _naming(tracer, modules):
        stored = _enter_stored(tracer, modules)
        x = one_image(example)
        tracer.values[id(x)] = Value(x, (), tracer.new_buffer(x, ()))
        try:
            with Operators(rules, tracer.record, tracer.where):
                out = model(x)
        except UnsupportedOp:
            raise
        except Exception as error:
            raise ModelError(f"the network's forward raised {one_line(error)}") from error
    if not isinstance(out, Tensor):
        raise ModelError(f"the network must return one tensor, it returned {type(out).__name__}")
    tracer.output_shape = tuple(out.shape)
    tracer.freeze(*tracer.ids(out))
    if (last := tracer.values.get(id(out))) is not None and last.buffer is not None:
        tracer.ops.append(Op("output", "", (last.buffer,), (), False))
    uses = {name: tracer.values[id(tensor)].first_use for name, tensor in stored.items()}
    tracer.first_use = {name: use for name, use in uses.items() if use is not None}
    never = [name for name, use in uses.items() if use is None]
    for name in never:  # what never ran (an auxiliary head) cannot be known to be free
        tracer.freeze(*tracer.ids(stored[name]))
    tracer.unused = tuple(name for name in never if name in tracer.parameters)
    return tracer


def one_image(example: Tensor) -> Tensor:
    """Return a meta tensor of an example's type and shape, but with a batch of 1."""
    return torch.empty((1, *example.shape[1:]), dtype=example.dtype, device="meta")


def _enter_stored(tracer: Tracer, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Enter all parameters and buffers, put meta tensors in their place, and return these by name.

    A shared one is entered under its first name, and stands under each of them.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[int, Tensor] = {}
    for path, module in modules.items():
        for kind, own in (("parameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in own.items():
                if tensor is None:
                    continue
                name = f"{path}.{key}" if path else key
                if id(tensor) not in aliases:
                    aliases[id(tensor)] = like_stored(tensor, tensor.shape, kind == "parameter")
                    tracer.add_stored(name, aliases[id(tensor)], kind)
                own[key] = stored[name] = aliases[id(tensor)]  # type: ignore[assignment]
    return stored


def like_stored(tensor: Tensor, shape: Sequence[int], parameter: bool) -> Tensor:
    """Return a meta tensor in the place of a parameter or buffer; torch takes products with parameters apart by it."""
    learned = parameter and tensor.is_floating_point()
    return torch.empty(shape, dtype=tensor.dtype, device="meta", requires_grad=learned)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode and give every module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, training in modes:
        if training:  # to set an attribute of a module takes a while
            module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


@contextmanager
def restoring(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give every module its attributes back, and their dicts and lists what they held.

    Meanwhile tensors and widths can be put in the place of its own, and a forward may fill its caches.
    """
    before = [(vars(module), dict(vars(module))) for module in modules.values()]
    held = [(v, v.copy() if v else None) for _, old in before for v in old.values() if isinstance(v, dict | list)]
    try:
        yield
    finally:
        for attributes, old in before:
            for new in attributes.keys() - old.keys():
                del attributes[new]
            attributes.update(old)
        for container, content in held:
            if content or container:
                container.clear()
            if content:
                container.update(content) if isinstance(container, dict) else container.extend(content)


@contextmanager
def _naming(tracer: Tracer, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let the tracer know which module is running, for names in errors, costs and surgery."""
    names = {id(module): name for name, module in modules.items()}

    def enter(module: nn.Module, _: Any) -> None:
        tracer.stack.append((names.get(id(module), ""), module))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        tracer.stack.pop()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(tuple(tree.values()))
