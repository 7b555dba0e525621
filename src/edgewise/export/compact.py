"""The smallest ONNX file with the same numbers: nothing in it that a runtime does not read.

An exported graph carries names as long as module paths, the shapes of every intermediate tensor, and often the line
of Python that each operator came from; a quantised one repeats equal zero points for every tensor. In a network of
some hundred kilobytes that is a tenth of the file. None of it changes an output by a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, product
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING

from edgewise.export.edit import attribute, constant, known, operand
from edgewise.files import write_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

PRODUCER = "edgewise"
GRAPH = "network"
LARGEST_BYTES = 2**31 - 1  # what protobuf can hold


def compact_(model: ir.Model, *, names: bool = False) -> None:
    """Take away from an ONNX model, in place, whatever does not change its outputs.

    Constants become initialisers and equal ones are stored once; operators that nothing reads go, as do metadata, doc
    strings and the shapes of intermediate tensors, which runtimes infer; tensors are named a, b, ... The names and
    shapes of inputs and outputs stay, and those of the operators where `names` says so.
    """
    import onnx_ir.passes.common as passes

    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass(size_limit=LARGEST_BYTES)(model)
    _part_zero_points_(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    shorten_values_(model.graph)
    if not names:
        for node in model.graph:
            node.name = None
    model.metadata_props.clear()
    model.graph.name = GRAPH
    model.producer_name, model.producer_version = PRODUCER, None


def write(model: ir.Model, path: Path, *, names: bool = False) -> Path:
    """Write an ONNX model to one file, compacted, and whole or not at all; the model is compacted in place."""
    import onnx_ir as ir

    compact_(model, names=names)
    return write_bytes(path, ir.to_proto(model).SerializeToString())


def _part_zero_points_(graph: ir.Graph) -> None:
    """Share zero points only between weights that they are spread over alike: by rank and axis, in place.

    OpenVINO folds the subtraction of one that it has to reshape in a single way; otherwise it computed ConvNeXt's
    layers, convolutions and products of the same number of channels, in floats.
    """
    spread: dict[ir.Value, dict[tuple[int, int], ir.Value]] = {}
    for node in list(graph):
        weight = operand(node, 0)
        zero_point = operand(node, 2)
        if node.op_type != "DequantizeLinear" or known(weight) is None or zero_point is None or not zero_point.shape:
            continue
        ways = spread.setdefault(zero_point, {})
        way = (known(weight).ndim, attribute(node, "axis", 1))
        if way not in ways:
            ways[way] = constant(graph, known(zero_point), str(zero_point.name)) if ways else zero_point
        node.replace_input_with(2, ways[way])


def shorten_values_(graph: ir.Graph, prefix: str = "") -> None:
    """Give every tensor between inputs and outputs a name as short as there is, and nothing besides it, in place."""
    public = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in public}
    names = (name for name in _names() if name not in taken)
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for value in chain(graph.inputs, constants, *(node.outputs for node in graph)):
        value.metadata_props.clear()
        if value not in public:
            value.name, value.shape, value.type = prefix + next(names), None, None
    for value in constants:
        assert value.const_value is not None
        value.const_value.name = value.name
        graph.initializers.add(value)


def _names() -> Iterator[str]:
    """Yield a, b, ... Z, aa, ab, ...: letters alone make an identifier in every language."""
    letters = ascii_lowercase + ascii_uppercase
    for length in count(1):
        yield from map("".join, product(letters, repeat=length))
