"""How long a network takes on a runtime, foretold for any widths from a table of layers measured one by one.

A convolution's or a product's time depends on its input and output channels in steps that no formula knows, so it is
looked up, between measured widths in straight lines. What lies between the layers (additions, pooling, the runtime's
own time) is found by fitting whole networks that were measured.

Reference: the latency table is that of Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), NeurIPS
2022, arXiv 2210.06659.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgewise.cost.fitting import Floats, fit
from edgewise.cost.static import CostModel
from edgewise.graph.groups import Graph
from edgewise.graph.trace import Atoms, Layer, LayerShape

FINEST = 8  # channels; runtimes' kernels work in blocks of at least this many
# Factors of the layers' seconds, of bytes written, of layers, and of 1. Those behind the first may become negative: a
# kernel that is profiled takes a little longer than one that is not.
PRIOR = np.array([1.0, 0.0, 0.0, 0.0])
LEAST = 0.25  # of the layers' own seconds: no correction goes below
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of a wide layer's channels, measured beside the narrowest


def shapes_of(graph: Graph) -> set[LayerShape]:
    """Return the layers that should be measured to foretell a network's latency at any aligned widths."""
    return {layer.shape.at(i, o) for layer in _layers(graph) for i, o in _grid(graph, layer)}


def measured_widths(size: int) -> list[int]:
    """Return the widths at which a dimension of up to `size` channels is measured: multiples of 8, and `size`.

    >>> measured_widths(20), measured_widths(512)
    ([8, 16, 20], [8, 16, 64, 128, 192, 256, 320, 384, 448, 512])
    """
    multiples = list(range(FINEST, size, FINEST))
    if len(multiples) > len(SHARES) + 2:
        multiples = [FINEST, 2 * FINEST, *(round(share * size / FINEST) * FINEST for share in SHARES)]
    return sorted({*multiples, size})


class LatencyModel:
    """Foretells a network's latency from how many channels each group keeps.

    Args:
        cost: the network's cost model.
        table: seconds of each of `shapes_of(graph)`.
        measured: whole networks that were measured: the widths ``[G]`` of each, and its seconds.

    Raises:
        KeyError: the table lacks a layer.
    """

    def __init__(
        self, cost: CostModel, table: Mapping[LayerShape, float], measured: Sequence[tuple[ArrayLike, float]] = ()
    ) -> None:
        self.cost, self.table, self.measured = cost, table, tuple(measured)
        self._lookups = [_Lookup(cost, layer, table) for layer in _layers(cost.graph)]
        self._factors = PRIOR
        if measured:
            rows = np.array([self._features(widths) for widths, _ in measured])
            self._factors = fit(rows, np.array([seconds for _, seconds in measured]), PRIOR)

    def __call__(self, widths: ArrayLike) -> float | Floats:
        """Return the seconds at widths ``[G]``, or of each candidate at ``[n, G]``."""
        features = self._features(widths)
        found: Floats = np.maximum(features @ self._factors, LEAST * features[..., 0])
        return float(found) if np.ndim(widths) == 1 else found

    def corrected(self, widths: ArrayLike, seconds: float) -> LatencyModel:
        """Return a model that knows one more measured network."""
        return LatencyModel(self.cost, self.table, (*self.measured, (widths, seconds)))

    def layers(self, widths: ArrayLike) -> dict[str, float]:
        """Return the seconds of each layer alone at widths ``[G]``, by its path; what lies between them is left out."""
        extended = self.cost.extended(widths)
        found: dict[str, float] = {}
        modules = (op.module for op in self.cost.graph.ops if op.layer is not None)
        for module, lookup in zip(modules, self._lookups, strict=True):
            found[module] = found.get(module, 0.0) + float(lookup(extended))
        return found

    def _features(self, widths: ArrayLike) -> Floats:
        """Return ``[..., 4]``: the layers' seconds, the bytes that operators write, the number of layers, and 1."""
        extended = self.cost.extended(widths)
        each = [lookup(extended) for lookup in self._lookups]
        layers = sum(each, np.zeros(extended.shape[:-1]))
        count = sum(((seconds > 0) * 1.0 for seconds in each), np.zeros(extended.shape[:-1]))
        written = self.cost.quantity("activation_bytes", widths)
        return np.stack(np.broadcast_arrays(layers, written, count, 1.0), axis=-1)


class _Lookup:
    """The seconds of one layer by its input and output channels."""

    def __init__(self, cost: CostModel, layer: Layer, table: Mapping[LayerShape, float]) -> None:
        pairs = _grid(cost.graph, layer)
        self.inputs, self.outputs = cost.length(layer.reads), cost.length(layer.makes)
        self.rows, self.columns = (np.array(sorted(set(side)), np.float64) for side in zip(*pairs, strict=True))
        if layer.shape.groups == 0:
            self.columns = self.columns[-1:]
            self.seconds = np.array([[table[layer.shape.at(i, i)]] for i, _ in pairs])
        else:
            self.seconds = np.array([[table[layer.shape.at(int(i), int(o))] for o in self.columns] for i in self.rows])

    def __call__(self, extended: Floats) -> Floats:
        """Return the seconds at widths ``[..., G + 1]``."""
        inputs, outputs = extended @ self.inputs, extended @ self.outputs
        row, column = _place(self.rows, inputs), _place(self.columns, outputs)
        found: Floats = np.zeros(extended.shape[:-1])
        for i, a in row:
            for j, b in column:
                found = found + a * b * self.seconds[i, j]
        return np.where((inputs > 0) & (outputs > 0), found, 0.0)  # without channels there is no layer


def _place(points: Floats, values: Floats) -> list[tuple[NDArray[np.int64], Floats]]:
    """Return two neighbouring points and their shares for each value; beyond the ends, the end."""
    if len(points) == 1:
        return [(np.zeros(values.shape, np.int64), np.ones(values.shape))]
    low = np.clip(np.searchsorted(points, values, side="right") - 1, 0, len(points) - 2)
    share = np.clip((values - points[low]) / (points[low + 1] - points[low]), 0.0, 1.0)
    return [(low, 1.0 - share), (low + 1, share)]


def _layers(graph: Graph) -> Iterable[Layer]:
    return [op.layer for op in graph.ops if op.layer is not None]


def _grid(graph: Graph, layer: Layer) -> list[tuple[int, int]]:
    """Return the input and output channels at which a layer is measured."""
    inputs, outputs = (_widths(graph, atoms) for atoms in (layer.reads, layer.makes))
    if layer.shape.groups == 0:
        return [(width, width) for width in inputs]
    if layer.shape.groups > 1:  # every group has a whole number of channels
        inputs, outputs = ([w for w in side if w % layer.shape.groups == 0] for side in (inputs, outputs))
    return [(i, o) for i in inputs for o in outputs]


def _widths(graph: Graph, atoms: Atoms) -> list[int]:
    """Return the widths to measure of a dimension; one that no group owns a part of has its size alone."""
    prunable = (graph.group_of[atoms] < len(graph.groups)).any()
    return measured_widths(len(atoms)) if prunable else [len(atoms)]
