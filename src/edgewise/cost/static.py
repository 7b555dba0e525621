"""What a network costs, counted: params, MACs, weight bytes, activation bytes, as a function of the kept channels.

Every quantity is a sum of *terms*: products of lengths, each linear in the widths of the groups. A convolution's MACs
are its output's elements times its filter's taps; both lengths follow from the trace. So the cost of a candidate is
three small matrix products, some microseconds, with no network built.

MACs are multiply-accumulates of convolutions and matrix products. Torch's flop counter prints twice as many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edgewise.graph.branches import Branch
from edgewise.graph.groups import Graph
from edgewise.graph.trace import Extent

Floats = NDArray[np.float64]
QUANTITIES = ("params", "weight_bytes", "macs", "peak_activation_bytes", "activation_bytes")


@dataclass(frozen=True)
class Cost:
    """The static cost of a network at batch 1.

    Args:
        params: stored elements of its parameters (buffers such as BatchNorm's running statistics not counted).
        nonzero: those that are not 0.
        macs: multiply-accumulates of one forward.
        effective_macs: those of them whose weight is not 0: what is left for a machine that skips the others, as few
            runtimes do. Where an operator has no weight of its own (attention as one module) all count.
        weight_bytes: the parameters as stored.
        peak_activation_bytes: the largest sum of tensors that are alive at once, over the operators in order. An
            element-wise operator or normalisation whose operand is not needed afterwards works in place, as it does in
            every inference runtime.
        activation_bytes: the sum over the operators' outputs, in-place ones not counted.
    """

    params: int
    nonzero: int
    macs: int
    effective_macs: int
    weight_bytes: int
    peak_activation_bytes: int
    activation_bytes: int

    def to_dict(self) -> dict[str, int]:
        """Return the quantities by name."""
        return asdict(self)


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs; `kind` is the operator that computes it."""

    name: str
    kind: str
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Terms:
    """Products of lengths: ``constant[n] * prod_f (lengths[f, n] @ [widths, 1])``."""

    constant: Floats  # [n]
    lengths: Floats  # [F, n, G + 1]

    def __call__(self, widths: Floats) -> Floats:
        """Evaluate every term ``[..., n]`` for widths ``[..., G + 1]``, the last of which is 1."""
        lengths = np.tensordot(widths, self.lengths, axes=(-1, 2))  # [..., F, n]
        value: Floats = self.constant * np.prod(lengths, axis=-2)
        return value


class CostModel:
    """The cost of any candidate, from how many channels each group keeps.

    Args:
        graph: the traced network. Its dense widths are `graph.sizes`.
        foretold: further quantities by name, functions of widths ``[G]`` or ``[n, G]`` such as a `LatencyModel`.
        branches: those that go whole where their group's width is 0, such as `graph.branches`. Without one, a peak of
            activations is counted as if its last layer still wrote its part of the sum: a little too high.

    >>> import torch
    >>> from edgewise.graph import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.Conv2d(8, 4, 1, bias=False))
    >>> model = CostModel(trace(net, torch.zeros(1, 3, 6, 6)))
    >>> model.macs([8]), model.macs([4]), model.params([4])
    (3968, 1984, 124)
    """

    def __init__(
        self,
        graph: Graph,
        foretold: Mapping[str, Callable[[ArrayLike], float | Floats]] | None = None,
        branches: Mapping[str, Branch] | None = None,
    ) -> None:
        self.graph, self.foretold = graph, dict(foretold or {})
        self._gone = [_Gone(graph, name, branch) for name, branch in (branches or {}).items()]
        sizes = np.append(graph.sizes, 1).astype(np.float64)
        self._per_width = 1.0 / sizes
        self._lengths: dict[int, Floats] = {}
        tracer = graph.tracer
        self._params = self._terms([[extent] for extent in tracer.parameters.values()])
        self._bytes = np.array([t.element_size() for t in self.parameters], np.float64)
        self._macs = self._terms([op.macs for op in tracer.ops if op.macs])
        self._buffers = self._terms([[extent] for extent in tracer.buffers])
        self._alive, self._outputs = _lifetimes(graph)
        self._element_bytes = np.array(tracer.element_bytes, np.float64)
        self._quantities: dict[str, Callable[[Floats], Floats]] = {
            "params": lambda extended: self._stored(extended).sum(axis=-1),
            "weight_bytes": lambda extended: self._stored(extended) @ self._bytes,
            "macs": lambda extended: self._macs(extended).sum(axis=-1),
            "peak_activation_bytes": lambda extended: (self._buffer_bytes(extended) @ self._alive.T).max(axis=-1),
            "activation_bytes": lambda extended: self._written(extended) @ self._outputs,
        }

    def quantity(self, name: str, widths: ArrayLike) -> Floats:
        """Return what candidates cost: one of `QUANTITIES` or of `foretold`, at batch 1.

        Args:
            name: which quantity; bytes, seconds or a count.
            widths: ``[G]``, or several candidates' ``[n, G]``.

        Returns:
            A number ``[]``, or one for each candidate ``[n]``; whole but for what is foretold.
        """
        if name in self.foretold:
            return np.asarray(self.foretold[name](widths), np.float64)
        return np.rint(self._quantities[name](self.extended(widths)))

    def params(self, widths: ArrayLike) -> int:
        """Count the stored elements at these widths ``[G]``."""
        return round(float(self.quantity("params", widths)))

    def weight_bytes(self, widths: ArrayLike) -> int:
        """Count the bytes of the parameters at these widths ``[G]``."""
        return round(float(self.quantity("weight_bytes", widths)))

    def macs(self, widths: ArrayLike) -> int:
        """Count the multiply-accumulates of one image at these widths ``[G]``."""
        return round(float(self.quantity("macs", widths)))

    def peak_activation_bytes(self, widths: ArrayLike) -> int:
        """Return the largest sum of live activations at these widths ``[G]``, at batch 1."""
        return round(float(self.quantity("peak_activation_bytes", widths)))

    def activation_bytes(self, widths: ArrayLike) -> int:
        """Return the sum of all operators' outputs at these widths ``[G]``, at batch 1."""
        return round(float(self.quantity("activation_bytes", widths)))

    def cost(self, widths: ArrayLike, nonzero: int | None = None, effective_macs: int | None = None) -> Cost:
        """Return all quantities; `nonzero` is `params`, and `effective_macs` is `macs`, unless they were counted."""
        params, macs = self.params(widths), self.macs(widths)
        return Cost(
            params=params,
            nonzero=params if nonzero is None else nonzero,
            macs=macs,
            effective_macs=macs if effective_macs is None else effective_macs,
            weight_bytes=self.weight_bytes(widths),
            peak_activation_bytes=self.peak_activation_bytes(widths),
            activation_bytes=self.activation_bytes(widths),
        )

    def layers(self, widths: ArrayLike) -> list[LayerCost]:
        """Return the cost of every layer that has parameters or MACs, in the order they run."""
        extended = self.extended(widths)
        rows: dict[str, dict[str, float]] = {}
        kinds: dict[str, str] = {}
        macs = iter(self._macs(extended))
        buffers = self._buffer_bytes(extended)
        for op in self.graph.ops:
            row = rows.setdefault(op.module, dict.fromkeys(("params", "macs", "weight_bytes", "activation_bytes"), 0.0))
            if op.macs:
                row["macs"] += next(macs)
                kinds[op.module] = op.name
            kinds.setdefault(op.module, op.name)
            row["activation_bytes"] += sum(buffers[b] for b in op.writes if self._outputs[b])
        params = self._params(extended)
        for name, elements, size in zip(self.graph.tracer.parameters, params, self._bytes, strict=True):
            layer = name.rpartition(".")[0]
            row = rows.setdefault(layer, dict.fromkeys(("params", "macs", "weight_bytes", "activation_bytes"), 0.0))
            row["params"] += elements
            row["weight_bytes"] += elements * size
            kinds.setdefault(layer, "parameter")
        return [
            LayerCost(layer, kinds[layer], **{key: round(value) for key, value in row.items()})
            for layer, row in rows.items()
            if row["params"] or row["macs"]
        ]

    # -- how lengths follow from widths -----------------------------------------------------------------------------

    def extended(self, widths: ArrayLike) -> Floats:
        """Append the constant 1 to widths ``[..., G]``."""
        given = np.asarray(widths, np.float64)
        if given.ndim == 0 or given.shape[-1] != (groups := len(self._per_width) - 1):
            raise ValueError(f"widths of shape {given.shape}: one for each of the {groups} groups")
        return np.concatenate([given, np.ones((*given.shape[:-1], 1))], axis=-1)

    def stored(self, widths: ArrayLike) -> Floats:
        """Return the elements of each of `parameters` ``[..., P]`` at widths ``[..., G]``."""
        return self._stored(self.extended(widths))

    def _stored(self, extended: Floats) -> Floats:
        """Return the elements of each parameter ``[..., P]``; those of branches that are gone are none."""
        found = self._params(extended)
        for gone in self._gone:
            found[..., gone.parameters] *= extended[..., gone.group, None] > 0
        return found

    def _written(self, extended: Floats) -> Floats:
        """Return the bytes of each buffer ``[..., B]``; branches that are gone write none."""
        found = self._buffer_bytes(extended)
        for gone in self._gone:
            found[..., gone.buffers] *= extended[..., gone.group, None] > 0
        return found

    def _buffer_bytes(self, extended: Floats) -> Floats:
        return self._buffers(extended) * self._element_bytes

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are counted."""
        named = dict(self.graph.model.named_parameters())
        return [named[name] for name in self.graph.tracer.parameters]

    def _terms(self, products: Iterable[Sequence[Extent]]) -> Terms:
        """Turn products of extents into arrays."""
        constants: list[float] = []
        factors: list[list[Floats]] = []
        for product in products:
            constant, lengths = 1.0, []
            for extent in product:
                free = list(extent.shape)
                for ids in extent.ids:
                    lengths.append(self.length(ids))
                    for d in range(-ids.ndim, 0):
                        if ids.shape[d] > 1:
                            free[d] = 1
                constant *= float(np.prod(free, dtype=np.float64))
            constants.append(constant)
            factors.append(lengths)
        depth = max((len(lengths) for lengths in factors), default=0)
        one = np.zeros(len(self._per_width))
        one[-1] = 1.0
        stacked = [[lengths[f] if f < len(lengths) else one for lengths in factors] for f in range(depth)]
        shape = (depth, len(factors), len(one))
        return Terms(np.array(constants), np.array(stacked, np.float64).reshape(shape))

    def length(self, ids: NDArray[np.int64]) -> Floats:
        """Return how many of these atoms live, as a linear function of the widths ``[G + 1]``."""
        if id(ids) not in self._lengths:  # most operators pass the very array on; the trace keeps it alive
            counts = np.bincount(self.graph.group_of[ids.reshape(-1)], minlength=len(self._per_width))
            self._lengths[id(ids)] = counts * self._per_width
        return self._lengths[id(ids)]


class _Gone:
    """What is not there any more, by its number, where a group has no channels left."""

    def __init__(self, graph: Graph, name: str, branch: Branch) -> None:
        self.group = graph.places[name]
        modules = {*branch.gone, *branch.ends}
        kept = {f"{end}.bias" for end in branch.ends}  # as many numbers as the constant that stands there
        names = list(graph.tracer.parameters)
        self.parameters = [p for p, n in enumerate(names) if n.rpartition(".")[0] in modules and n not in kept]
        self.buffers = sorted({buffer for op in graph.ops if op.module in modules for buffer in op.writes})


def cost_of(graph: Graph) -> Cost:
    """Count what a traced network costs as it stands.

    >>> import torch
    >>> from edgewise.graph import trace
    >>> net = torch.nn.Conv2d(1, 2, 3, bias=False)
    >>> net.weight.data[0] = 0
    >>> cost = cost_of(trace(net, torch.zeros(1, 1, 4, 4)))
    >>> cost.macs, cost.effective_macs
    (72, 36)
    """
    parameters = {id(p): p for p in graph.model.parameters()}.values()
    model, left = CostModel(graph), dict(graph.model.named_parameters(remove_duplicate=False))
    effective = 0.0
    for layer in model.layers(graph.sizes):
        weight = left.get(f"{layer.name}.weight".removeprefix("."))
        share = 1.0 if weight is None else int(weight.count_nonzero()) / weight.numel()
        effective += layer.macs * share
    return model.cost(graph.sizes, sum(int(p.count_nonzero()) for p in parameters), round(effective))


def _lifetimes(graph: Graph) -> tuple[Floats, Floats]:
    """Find which buffers are alive while each operator runs ``[T, B]``, and which are outputs of their own ``[B]``.

    An operator that can overwrite an operand of the same extent which nobody reads later takes over its memory.
    """
    ops, extents = graph.ops, graph.tracer.buffers
    last: dict[int, int] = {}
    for step, op in enumerate(ops):
        for buffer in (*op.reads, *op.writes):
            last[buffer] = step
    home = list(range(len(extents)))  # the buffer whose memory each buffer lies in
    for step, op in enumerate(ops):
        if not op.overwrites or not op.writes:
            continue
        for operand in op.reads:
            if last[operand] == step and prod(extents[operand].shape) == prod(extents[op.writes[0]].shape):
                home[op.writes[0]] = home[operand]
                break
    alive = np.zeros((len(ops), len(extents)))
    outputs = np.zeros(len(extents))
    born: dict[int, int] = {0: 0}
    dies: dict[int, int] = {0: last.get(0, 0)}
    for step, op in enumerate(ops):
        for buffer in op.writes:
            born.setdefault(home[buffer], step)
            dies[home[buffer]] = max(dies.get(home[buffer], 0), last[buffer])
            outputs[buffer] = home[buffer] == buffer
    for buffer, start in born.items():
        alive[start : dies[buffer] + 1, buffer] = 1.0
    return alive, outputs
