"""How long a network takes on a runtime, foretold for any widths from a table of layers measured one by one.

A convolution's or a product's time depends on its input and output channels in steps that no formula knows, so it is
looked up, between measured widths in straight lines. What lies between the layers (additions, pooling, the runtime's
own time) is found by fitting whole networks that were measured.

Reference: the latency table is that of Shen et al., Structural Pruning via Latency-Saliency Knapsack (HALP), NeurIPS
2022, arXiv 2210.06659.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        self._lookup = _Lookup(cost, _layers(cost.graph), table)
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
        each = self._lookup(self.cost.extended(widths))
        found: dict[str, float] = {}
        modules = (op.module for op in self.cost.graph.ops if op.layer is not None)
        for module, seconds in zip(modules, each.tolist(), strict=True):
            found[module] = found.get(module, 0.0) + seconds
        return found

    def _features(self, widths: ArrayLike) -> Floats:
        """Return ``[..., 4]``: the layers' seconds, the bytes that operators write, the number of layers, and 1."""
        each = self._lookup(self.cost.extended(widths))
        written = self.cost.quantity("activation_bytes", widths)
        return np.stack(np.broadcast_arrays(each.sum(axis=-1), written, (each > 0).sum(axis=-1), 1.0), axis=-1)


class _Lookup:
    """The seconds of every layer by its input and output channels."""

    def __init__(self, cost: CostModel, layers: Sequence[Layer], table: Mapping[LayerShape, float]) -> None:
        self.inputs = _stacked([cost.length(layer.reads) for layer in layers], len(cost.graph.groups) + 1)
        self.outputs = _stacked([cost.length(layer.makes) for layer in layers], len(cost.graph.groups) + 1)
        grids = [_points(cost.graph, layer) for layer in layers]
        self.rows, self.columns = (_Axis([grid[side] for grid in grids]) for side in (0, 1))
        self.seconds = np.zeros((len(layers), self.rows.points.shape[1], self.columns.points.shape[1]))
        for index, (layer, (inputs, outputs)) in enumerate(zip(layers, grids, strict=True)):
            alike = layer.shape.groups == 0  # what has as many outputs as inputs
            for row, i in enumerate(inputs):
                for column, o in enumerate(outputs):
                    self.seconds[index, row, column] = table[layer.shape.at(i, i if alike else o)]

    def __call__(self, extended: Floats) -> Floats:
        """Return the seconds of each layer ``[..., L]`` at widths ``[..., G + 1]``; without channels there is none."""
        inputs, outputs = extended @ self.inputs.T, extended @ self.outputs.T
        layer = np.arange(len(self.seconds))
        found: Floats = np.zeros(inputs.shape)
        for row, a in self.rows.around(inputs):
            for column, b in self.columns.around(outputs):
                found += a * b * self.seconds[layer, row, column]
        return np.where((inputs > 0) & (outputs > 0), found, 0.0)


class _Axis:
    """The widths at which each layer was measured ``[L, P]``, ascending; behind its own come infinite ones."""

    def __init__(self, points: Sequence[Sequence[int]]) -> None:
        self.last = np.array([len(each) - 1 for each in points], np.int64)
        self.points = np.full((len(points), max((len(each) for each in points), default=0)), np.inf)
        for row, each in zip(self.points, points, strict=True):
            row[: len(each)] = each

    def around(self, values: Floats) -> list[tuple[NDArray[np.int64], Floats]]:
        """Return two neighbouring points for each value ``[..., L]`` and their shares; beyond the ends, the end."""
        layer = np.arange(len(self.points))
        low = np.clip((values[..., None] >= self.points).sum(axis=-1) - 1, 0, self.last)
        high = np.minimum(low + 1, self.last)
        before, behind = self.points[layer, low], self.points[layer, high]
        share = np.clip((values - before) / np.where(behind > before, behind - before, 1.0), 0.0, 1.0)
        return [(low, 1.0 - share), (high, share)]


def _stacked(rows: Sequence[Floats], length: int) -> Floats:
    return np.array(rows, np.float64).reshape(len(rows), length)


def _points(graph: Graph, layer: Layer) -> tuple[list[int], list[int]]:
    """Return the input and the output channels that span a layer's part of the table."""
    inputs, outputs = (sorted(set(side)) for side in zip(*_grid(graph, layer), strict=True))
    return inputs, outputs[-1:] if layer.shape.groups == 0 else outputs


def _layers(graph: Graph) -> list[Layer]:
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
