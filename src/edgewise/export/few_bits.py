"""Weights of few values kept as codes of 2 or 4 bits in the ONNX file itself, which the runtime turns into floats.

A layer's weights fit where for each of its outputs they are whole multiples of one step: ternary ones (codes -1, 0, 1
in 2 bits), and powers of two and others of up to 16 neighbouring multiples (4 bits). No weight changes, but that a
zero has no sign. What it costs is time: runtimes turn the codes into floats again at every run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgewise.export.edit import constant, known, operand
from edgewise.export.read import allow_codes_

if TYPE_CHECKING:
    import onnx_ir as ir

LEAST = 256  # weights of a layer, below which a step for each output takes what the codes save
RANGES = {2: (-2, 1), 4: (-8, 7)}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def on_grid(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32], int] | None:
    """Return a weight as whole multiples of one step for each output: the codes, the steps, and the bits of a code.

    The step is an output's least magnitude, so a layer of which an output lacks the code 1 may not fit.

    Args:
        weight: of any shape, finite.
        axis: of the outputs.

    Returns:
        Codes in the weight's shape, steps ``[outputs]``, 2 or 4; None where a weight would change or take more.

    >>> codes, steps, bits = on_grid(np.float32([[0.5, 0.0, -0.5], [0.25, -1.0, 1.0]]), 0)
    >>> codes.tolist(), steps.tolist(), bits
    ([[1, 0, -1], [1, -4, 4]], [0.5, 0.25], 4)
    >>> on_grid(np.float32([[0.1, 0.25]]), 0)
    """
    others = tuple(place for place in range(weight.ndim) if place != axis)
    least = np.where(weight != 0, np.abs(weight), np.inf).min(axis=others)
    steps = np.where(np.isfinite(least), least, 1).astype(np.float32)
    spread = np.expand_dims(steps, others)
    with np.errstate(over="ignore"):
        codes = np.rint(weight / spread)
    for bits, (low, high) in RANGES.items():
        if codes.min() >= low and codes.max() <= high and np.array_equal(codes * spread, weight):
            return codes.astype(np.int8), steps, bits
    return None


def few_bits_(network: ir.Model) -> None:
    """Keep the weights of an ONNX model that fit as codes, in place; `stored_codes` says of the file which those are.

    Args:
        network: float32, as `edgewise.export.onnx` makes it.

    Raises:
        ModelError: an operator means something else in the opset that has such codes.
    """
    import ml_dtypes
    import onnx_ir as ir

    graph, types = network.graph, {2: ml_dtypes.int2, 4: ml_dtypes.int4}
    for node in list(graph):
        value = operand(node, 1) if node.op_type in WEIGHTED else None
        weight = known(value)
        if value is None or weight is None or weight.dtype != np.float32 or weight.ndim < 2 or weight.size < LEAST:
            continue
        fits = next(((axis, grid) for axis in (0, 1) if (grid := on_grid(weight, axis)) is not None), None)
        if fits is None:
            continue
        axis, (codes, steps, bits) = fits
        stored = constant(graph, codes.astype(types[bits]), f"{value.name}_codes")
        scale = constant(graph, steps, f"{value.name}_steps")
        floats = ir.node("DequantizeLinear", [stored, scale], {"axis": axis})
        graph.insert_before(node, floats)
        node.replace_input_with(1, floats.outputs[0])
        allow_codes_(graph, bits)


def stored_codes(path: Path) -> dict[int, int]:
    """Return how many numbers an ONNX file holds in codes of how many bits."""
    import onnx

    types, found = {onnx.TensorProto.INT2: 2, onnx.TensorProto.INT4: 4}, dict.fromkeys(RANGES, 0)
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if (bits := types.get(tensor.data_type)) is not None:
            found[bits] += math.prod(tensor.dims)
    return {bits: count for bits, count in found.items() if count}
