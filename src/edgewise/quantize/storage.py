"""Weights stored in fewer bytes, and turned into floats when the file is loaded: smaller, exactly as fast.

What turns codes into floats is ``Cast`` and ``Mul`` on constants, which runtimes compute once. (ONNX Runtime would
leave DequantizeLinear in place, for integer kernels to be found, and compute it again for every image.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgewise.export.edit import constant, known, like, readers
from edgewise.export.read import allow_codes_
from edgewise.quantize.affine import WHOLE, QSpec, choose, quantize
from edgewise.quantize.prepare import layers, output_axis

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK = 32  # inputs that share a scale, in 4 bits
LEAST_NUMBERS = 64  # of a constant that is worth an operator of its own


def store_weights_(network: ir.Model, kind: str, exclude: Collection[str] = ()) -> ir.Model:
    """Store a network's weights as codes or as short floats, in place, and return it.

    Args:
        network: float operators.
        kind: "int8", a scale for each output channel; "int4", a scale for every 32 inputs of one; "float16" or
            "bfloat16", all constants.
        exclude: the names of layers whose weights stay as they are.
    """
    graph = network.graph
    whole = {layer.inputs[1] for layer in layers(graph) if layer.name in exclude}
    if kind in ("float16", "bfloat16"):
        for value in list(graph.initializers.values()):
            held = known(value)
            if value not in whole and held is not None and held.dtype == np.float32 and held.size >= LEAST_NUMBERS:
                _put(graph, value, _short(graph, held, kind))
    else:
        for layer in layers(graph):
            weight = layer.inputs[1]
            if weight is None or weight in whole or weight.const_value is None:
                continue
            if known(weight).size >= LEAST_NUMBERS:
                _put(graph, weight, STORES[kind](graph, known(weight), output_axis(layer)))
    if kind == "int4":
        allow_codes_(graph, 4)
    network.ir_version = max(network.ir_version, 10)
    return network


def _short(graph: ir.Graph, held: Any, kind: str) -> list[ir.Node]:
    """Return what makes floats of a constant stored in 16 bits."""
    import onnx_ir as ir

    stored = held.astype(np.float16 if kind == "float16" else ir.DataType.BFLOAT16.numpy())
    return [_to_float(constant(graph, stored))]


def _int8(graph: ir.Graph, held: Any, axis: int) -> list[ir.Node]:
    import onnx_ir as ir

    codes, scale = _codes(held, axis, 8)
    cast = _to_float(constant(graph, codes.astype(np.int8)))
    return [cast, ir.node("Mul", [cast.outputs[0], constant(graph, scale)])]


def _int4(graph: ir.Graph, held: Any, axis: int) -> list[ir.Node]:
    """Return what makes floats of 4-bit codes; where the inputs of a channel are no multiple of 32, they share one."""
    import onnx_ir as ir

    moved = np.moveaxis(held, axis, 0)
    rows = moved.reshape(len(moved), -1)
    block = BLOCK if rows.shape[1] % BLOCK == 0 else rows.shape[1]
    blocks = rows.reshape(len(rows), -1, block)
    codes, scale = _codes(blocks, (0, 1), 4)
    stored = constant(graph, codes.astype(ir.DataType.INT4.numpy()))
    cast = _to_float(stored)
    made = [cast, ir.node("Mul", [cast.outputs[0], constant(graph, scale)])]
    made.append(ir.node("Reshape", [made[-1].outputs[0], constant(graph, np.array(moved.shape, np.int64))]))
    if axis != 0:
        order = [*range(1, axis + 1), 0, *range(axis + 1, held.ndim)]
        made.append(ir.node("Transpose", [made[-1].outputs[0]], attributes={"perm": order}))
    return made


STORES: dict[str, Callable[[Any, Any, int], Any]] = {"int8": _int8, "int4": _int4}


def _codes(held: Any, axes: int | tuple[int, ...], bits: int) -> tuple[Any, Any]:
    """Return symmetric signed codes, and scales that broadcast to them: one for each index along the axes."""
    own = (axes,) if isinstance(axes, int) else axes
    block = tuple(1 if dim in own else WHOLE for dim in range(held.ndim))
    spec = QSpec(bits=bits, signed=True, symmetric=True, block=block)
    x = torch.tensor(held)
    low, high = (end.reshape(spec.grid(x.shape)) for end in spec.rows(x).aminmax(dim=1))
    params = choose(low, high, spec)
    return quantize(x, params, spec).numpy(), params.scale.numpy()


def _to_float(value: ir.Value) -> ir.Node:
    import onnx_ir as ir

    return ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT.value})


def _put(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Let what reads a constant read what the operators make instead."""
    users = dict.fromkeys(readers(value))
    graph.insert_before(graph[0], nodes)
    floats = like(nodes[-1].outputs[0], value)
    for user in users:
        for place, read in enumerate(user.inputs):
            if read is value:
                user.replace_input_with(place, floats)
