"""What an ONNX file takes in memory, counted from its tensors' types and shapes.

Activations are counted as `edgewise.cost` counts them: batch 1, operators in their order, weights apart; element-wise
operators and normalisations work in place where they can, and what only reshapes, reorders or selects is a view. So a
float file has its network's figures (more where the exporter took an operator apart, such as SiLU), and those of a
quantised file can be held against them.

In a quantised file (QDQ) an operator between DequantizeLinear and QuantizeLinear runs on codes, and the floats around
it are never stored. One that knows no codes, such as LayerNormalization, has its floats stored beside the codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgewise.errors import ModelError
from edgewise.export.read import read
from edgewise.quantize.prepare import with_shapes
from edgewise.quantize.sites import ARITHMETIC, MOVES, TO_FLOAT

if TYPE_CHECKING:
    import onnx_ir as ir

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
INTEGER_OPS = ("Conv", "Gemm", *ARITHMETIC, *MOVES)
VIEWS = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
    *("Transpose", "Slice", "Split", "Expand"),
)
IN_PLACE = (
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Gelu", "Mish", "HardSwish"),
    *("Tanh", "Sigmoid", "HardSigmoid", "Softplus", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"),
    *("BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization"),
)


@dataclass(frozen=True)
class ActivationCost:
    """The memory of a file's activations, as `edgewise.cost.Cost` has it of a network's.

    Args:
        peak_activation_bytes: the largest sum of tensors that are alive at once.
        activation_bytes: the sum over the operators' outputs, views and what is computed in place not counted.
    """

    peak_activation_bytes: int
    activation_bytes: int


class _Step(NamedTuple):
    """An operator as it runs: what it reads and writes in memory; a view writes nothing."""

    op_type: str
    reads: list[ir.Value]
    writes: list[ir.Value]


def activation_cost(path: Path) -> ActivationCost:
    """Count the bytes of an ONNX file's activations at batch 1.

    Raises:
        UserError: there is no such file.
        ModelError: it is no ONNX file, or the shape of a tensor does not follow from its input's.
    """
    graph = with_shapes(read(path), batch=1).graph
    steps = list(_steps(graph))
    last = {value: place for place, (_, reads, writes) in enumerate(steps) for value in (*reads, *writes)}
    home = {value: value for value in last}  # in whose memory a tensor lies
    for place, (op_type, reads, writes) in enumerate(steps):
        if op_type in IN_PLACE:
            (result,) = writes
            free = (v for v in reads if last[v] == place and _bytes(v, path) == _bytes(result, path))
            home[result] = home[next(free, result)]
    born, dies = dict.fromkeys(graph.inputs, 0), dict.fromkeys(graph.inputs, 0)
    for place, (_, reads, writes) in enumerate(steps):
        for value in (*reads, *writes):
            born.setdefault(home[value], place)
            dies[home[value]] = place
    size = {value: _bytes(value, path) for value in born}
    alive = [sum(size[value] for value in born if born[value] <= at <= dies[value]) for at in range(len(steps))]
    computed = sum(size[value] for value in born if value not in graph.inputs)
    return ActivationCost(max(alive, default=0), computed)


def weight_bytes(path: Path) -> int:
    """Count the bytes of a file's constants as stored: codes, scales, zero points and biases, or float weights.

    Raises:
        UserError: there is no such file.
        ModelError: it is no ONNX file.
    """
    constants = read(path).graph.initializers.values()
    return sum(value.const_value.nbytes for value in constants if value.const_value is not None)


def _bytes(value: ir.Value, path: Path) -> int:
    lengths = None if value.shape is None else [length for length in value.shape if isinstance(length, int)]
    if value.dtype is None or lengths is None or len(lengths) != len(value.shape or ()):
        producer = value.producer()
        what = "an input" if producer is None else f"the output of {producer.op_type}"
        raise ModelError(f"{path}: the shape of {what} does not follow from the input's; its memory is unknown")
    return int(np.ceil(np.prod(lengths) * value.dtype.itemsize))


# -- what runs ------------------------------------------------------------------------------------------------------


def _steps(graph: ir.Graph) -> Iterator[_Step]:
    """Yield the operators as a runtime that fuses QDQ runs them; those on constants alone are computed beforehand."""
    varying = set(graph.inputs)
    for node in graph:
        if not varying.isdisjoint(node.inputs):
            varying.update(node.outputs)
    operands = {node: [value for value in node.inputs if value in varying] for node in graph}
    on_codes = {node for node, reads in operands.items() if _runs_on_codes(node, reads)}
    base: dict[ir.Value, ir.Value] = {}  # what a view is a view of
    for node, reads in operands.items():
        if not reads or _is_fused(node, on_codes):
            continue
        writes = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        if node in on_codes:
            reads = [_codes(value) for value in reads]
            writes = [stored for value in writes for stored in _quantized(value) or [value]]
        reads = [base.get(value, value) for value in reads]
        if node.op_type in VIEWS:
            base.update(dict.fromkeys(writes, reads[0]))
            writes = []
        yield _Step(node.op_type, reads, writes)


def _runs_on_codes(node: ir.Node, operands: list[ir.Value]) -> bool:
    """Whether all that an operator reads comes from codes, and all that it gives becomes codes, or may stay float."""
    if node.op_type not in INTEGER_OPS or _interpolates(node) or not operands:
        return False
    to_codes = node.op_type in TO_FLOAT or all(_quantized(value) for value in node.outputs)
    return to_codes and all(_codes(value) is not value for value in operands)


def _interpolates(node: ir.Node) -> bool:
    """Whether it is a Resize that computes new numbers, for which there is no integer kernel."""
    mode = node.attributes.get("mode")
    return node.op_type == "Resize" and mode is not None and mode.as_string() != "nearest"


def _is_fused(node: ir.Node, on_codes: set[ir.Node]) -> bool:
    """Whether a conversion is part of the operators beside it, which run on codes."""
    if node.op_type == DEQUANTIZE:
        floats = node.outputs[0]
        return not floats.is_graph_output() and all(use.node in on_codes for use in floats.uses())
    source = node.inputs[0] if node.op_type == QUANTIZE else None
    return source is not None and source.producer() in on_codes and bool(_quantized(source))


def _codes(value: ir.Value) -> ir.Value:
    """Return the codes that a float tensor was made of; itself, if it was not."""
    producer = value.producer()
    codes = producer.inputs[0] if producer is not None and producer.op_type == DEQUANTIZE else None
    return value if codes is None else codes


def _quantized(value: ir.Value) -> list[ir.Value]:
    """Return the codes that a tensor becomes; none where somebody reads its floats too."""
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or any(node.op_type != QUANTIZE for node in readers):
        return []
    return [node.outputs[0] for node in readers]
