"""Reading and changing an ONNX graph: the few words that every rewriting of one is made of."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


def known(value: ir.Value | None) -> Any:
    """Return the array that a value always holds; None where it depends on the input, or there is no value."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def operand(node: ir.Node, place: int) -> ir.Value | None:
    """Return what an operator reads at a place; None where it is left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return an operator's setting."""
    return node.attributes[name].value if name in node.attributes else default


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the operator that computes a value, if it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def readers(value: ir.Value) -> list[ir.Node]:
    """Return the operators that read a value, one that reads it twice twice."""
    return [use.node for use in value.uses()]


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the operator that reads a value, if there is one and nobody else does."""
    found = readers(value)
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def constant(graph: ir.Graph, array: Array, name: str = "constant") -> ir.Value:
    """Add an array to a graph, under a name like the one given."""
    import onnx_ir as ir

    names = (f"{name}_{i}" if i else name for i in count())
    free = next(each for each in names if each not in graph.initializers)
    array = np.asarray(array, order="C")
    value = ir.Value(name=free, shape=ir.Shape(array.shape), const_value=ir.Tensor(array, name=free))
    assert value.const_value is not None
    value.type = ir.TensorType(value.const_value.dtype)
    graph.initializers.add(value)
    return value


def replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let whatever reads a node's output read another value, and take the node away."""
    import onnx_ir as ir

    old = node.outputs[0]
    if old in graph.outputs:
        graph.outputs[:] = [value if output is old else output for output in graph.outputs]
        value.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, value)
    graph.remove(node, safe=True)


def like(value: ir.Value, other: ir.Value) -> ir.Value:
    """Give a value the shape and the type of another, and return it."""
    value.shape, value.type = other.shape, other.type
    return value
