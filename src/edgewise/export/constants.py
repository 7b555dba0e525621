"""Constants added to a feature map, one number a channel: what removed branches leave behind.

Runtimes add them slowly: in ONNX Runtime's int8 kernels such an addition took as long as a convolution (ResNet-20, 16
channels of 32x32). Nearly all of them are one with their surroundings: a convolution before them takes them into its
bias, and what is left of a run of removed blocks is one constant, which a convolution of one weight a channel adds as
fast as a runtime can. The function stays the same, up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise.export.edit import constant, known, only_reader, readers, replace

if TYPE_CHECKING:
    import onnx_ir as ir

Values = NDArray[np.float32]
SPACE = {2, 3}


def absorb_constants_(graph: ir.Graph) -> None:
    """Take constants that are added channel by channel into the operators around them, in place."""
    for add in list(graph):
        _broadcast(add)
    while any(rule(graph, add) for add in list(graph) if _added(add) is not None for rule in RULES):
        pass
    for add in list(graph):
        if _added(add) is not None:
            _convolve(graph, add)


def _broadcast(add: ir.Node) -> None:
    """Let an addition read a constant as it is, where its other operand has the size it was expanded to."""
    for place, other in ((0, 1), (1, 0)) if add.op_type == "Add" else ():
        expand, whole = add.inputs[place], add.inputs[other]
        node = None if expand is None else expand.producer()
        same = whole is not None and whole.shape is not None and whole.shape == add.outputs[0].shape
        if node is not None and node.op_type == "Expand" and known(node.inputs[0]) is not None and same:
            add.replace_input_with(place, node.inputs[0])
            return


# -- the rules: each takes an addition away or brings it nearer to its end, and says whether it did -------------------


def _backward(graph: ir.Graph, add: ir.Node) -> bool:
    """``(conv(y) + z) + c``: into the convolution's bias."""
    x, c = _added_now(add)
    if not _absorb(graph, x, c):
        return False
    replace(graph, add, x)
    return True


def _through_relu(graph: ir.Graph, add: ir.Node) -> bool:
    """``relu(relu(z) + c)``, which is ``relu(z + min(c, 0)) + max(c, 0)``: one rectifier less."""
    x, c = _added_now(add)
    inner, outer = x.producer(), only_reader(add.outputs[0])
    if inner is None or outer is None or inner.op_type != "Relu" or outer.op_type != "Relu" or only_reader(x) is None:
        return False
    below, above = np.minimum(c, 0), np.maximum(c, 0)
    z = inner.inputs[0]
    if z is None or (below.any() and not _absorb(graph, z, below)):
        return False
    if above.any():
        outer.outputs[0].shape = add.outputs[0].shape
        _set_constant(graph, add, above)
        replace(graph, outer, add.outputs[0])
    else:
        replace(graph, outer, x)
        replace(graph, add, x)
    return True


def _forward(graph: ir.Graph, add: ir.Node) -> bool:
    """Behind whatever reads the sum, where every reader lets a constant pass."""
    x, c = _added_now(add)
    behind_it = readers(add.outputs[0])
    if add.outputs[0].is_graph_output() or all(reader.op_type == "Add" for reader in behind_it):  # nothing is won
        return False
    behind = [PASSES[reader.op_type](reader, c) if reader.op_type in PASSES else None for reader in behind_it]
    if any(made is None for made in behind) or any(_gives_out(reader) for reader in behind_it):
        return False
    for reader, made in zip(behind_it, behind, strict=True):
        _move_behind(graph, reader, made)
    replace(graph, add, x)
    return True


RULES: tuple[Callable[[Any, Any], bool], ...] = (_backward, _through_relu, _forward)


def _convolve(graph: ir.Graph, add: ir.Node) -> None:
    """Add the constant by a depthwise convolution with weights of 1, which runtimes fuse with what is around it."""
    import onnx_ir as ir

    x, c = _added_now(add)
    weight, bias = constant(graph, np.ones((len(c), 1, 1, 1), np.float32)), constant(graph, c)
    conv = ir.node("Conv", [x, weight, bias], attributes={"group": len(c), "kernel_shape": [1, 1]})
    conv.outputs[0].shape, conv.outputs[0].type = add.outputs[0].shape, add.outputs[0].type
    graph.insert_before(add, conv)
    replace(graph, add, conv.outputs[0])


# -- where a constant goes --------------------------------------------------------------------------------------------


def _absorb(graph: ir.Graph, value: ir.Value, c: Values) -> bool:
    """Add a constant to a value by changing the only convolution, or constant, whose sum it is; False where none is."""
    node = value.producer()
    if node is None or only_reader(value) is None:
        return False
    if node.op_type == "Conv" and known(node.inputs[1]) is not None and _has_known_bias(node):
        _set_bias(graph, node, _bias(node) + c)
        return True
    if _added(node) is not None:
        _set_constant(graph, node, _added_now(node)[1] + c)
        return True
    return node.op_type == "Add" and any(
        operand is not None and operand.shape == value.shape and _absorb(graph, operand, c) for operand in node.inputs
    )


def _behind_conv(conv: ir.Node, c: Values) -> Values | None:
    """Return what a convolution without padding makes of a constant, for each output channel."""
    pads, auto = conv.attributes.get("pads"), conv.attributes.get("auto_pad")
    weight = known(conv.inputs[1])
    if (
        weight is None
        or not _has_known_bias(conv)
        or (pads is not None and any(pads.as_ints()))
        or (auto and auto.as_string() != "NOTSET")
    ):
        return None
    group = conv.attributes["group"].as_int() if "group" in conv.attributes else 1
    summed = weight.reshape(group, len(weight) // group, weight.shape[1], -1).sum(-1)
    found: Values = np.einsum("goi,gi->go", summed, c.reshape(group, -1)).reshape(-1)
    return found


def _behind_slice(node: ir.Node, c: Values) -> Values | None:
    """Return the constant as it is, where only height and width are cut."""
    axes = known(node.inputs[3]) if len(node.inputs) > 3 else None
    return c if axes is not None and {int(axis) % 4 for axis in axes} <= SPACE else None


def _behind_pad(node: ir.Node, c: Values) -> Values | None:
    """Return the constant with a 0 for each channel that is padded, whatever with."""
    pads, mode = known(node.inputs[1]), node.attributes.get("mode")
    plain = (mode is None or mode.as_string() == "constant") and (len(node.inputs) < 4 or node.inputs[3] is None)
    if pads is None or len(pads) != 8 or not plain or np.delete(pads, [1, 5]).any() or pads.min() < 0:
        return None
    return np.pad(c, (int(pads[1]), int(pads[5])))


PASSES: dict[str, Callable[[Any, Values], Values | None]] = {
    "Conv": _behind_conv,
    "Slice": _behind_slice,
    "Pad": _behind_pad,
    "GlobalAveragePool": lambda _, c: c,
    "MaxPool": lambda _, c: c,
    "Add": lambda add, c: c if _added(add) is None and add.inputs[0] is not add.inputs[1] else None,
}


def _move_behind(graph: ir.Graph, reader: ir.Node, c: Any) -> None:
    """Add a constant to what a reader makes."""
    import onnx_ir as ir

    if reader.op_type == "Conv":
        _set_bias(graph, reader, _bias(reader) + c)
        return
    made = reader.outputs[0]
    if reader.op_type == "GlobalAveragePool" and (linear := _classifier(made)) is not None:
        weight, bias = (known(value) for value in linear.inputs[1:])
        transposed = "transB" in linear.attributes and linear.attributes["transB"].as_int() == 1
        linear.replace_input_with(2, constant(graph, bias + c @ (weight.T if transposed else weight)))
        return
    add = ir.node("Add", [made, constant(graph, c.reshape(1, -1, 1, 1))])
    add.outputs[0].shape, add.outputs[0].type = made.shape, made.type
    ir.convenience.replace_all_uses_with(made, add.outputs[0])
    add.replace_input_with(0, made)
    graph.insert_after(reader, add)


def _gives_out(reader: ir.Node) -> bool:
    """Say whether a reader makes the network's output, and has no bias that would take a constant."""
    return reader.op_type != "Conv" and reader.outputs[0].is_graph_output()


def _classifier(pooled: ir.Value) -> ir.Node | None:
    """Return the linear layer behind a global pooling, if it alone reads what was pooled."""
    flatten = only_reader(pooled)
    if flatten is None or flatten.op_type != "Flatten":
        return None
    axis, linear = flatten.attributes.get("axis"), only_reader(flatten.outputs[0])
    if (
        (axis is not None and axis.as_int() != 1)
        or linear is None
        or linear.op_type != "Gemm"
        or len(linear.inputs) < 3
    ):
        return None
    usual = {"alpha": 1, "beta": 1, "transA": 0}
    plain = all(name not in linear.attributes or linear.attributes[name].value == v for name, v in usual.items())
    return linear if plain and all(known(value) is not None for value in linear.inputs[1:]) else None


# -- reading and writing the graph ------------------------------------------------------------------------------------


def _added(node: ir.Node) -> tuple[ir.Value, Values] | None:
    """Return the feature map and the constant ``[C]`` that an addition adds to it; None for any other operator."""
    if node.op_type != "Add":
        return None
    for x, other in (node.inputs, reversed(node.inputs)):
        held = known(other)
        if x is None or held is None or known(x) is not None or x.shape is None or len(x.shape) != 4:
            continue
        shape = (1,) * (4 - held.ndim) + held.shape
        if held.dtype == np.float32 and held.ndim <= 4 and shape == (1, x.shape[1], 1, 1):
            return x, held.reshape(-1)
    return None


def _added_now(node: ir.Node) -> tuple[ir.Value, Values]:
    found = _added(node)
    assert found is not None
    return found


def _has_known_bias(conv: ir.Node) -> bool:
    return len(conv.inputs) < 3 or conv.inputs[2] is None or known(conv.inputs[2]) is not None


def _bias(conv: ir.Node) -> Values:
    weight, bias = known(conv.inputs[1]), known(conv.inputs[2]) if len(conv.inputs) > 2 else None
    return np.zeros(len(weight), np.float32) if bias is None else bias


def _set_bias(graph: ir.Graph, conv: ir.Node, bias: Values) -> None:
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, constant(graph, bias))


def _set_constant(graph: ir.Graph, add: ir.Node, c: Values) -> None:
    place = next(i for i, value in enumerate(add.inputs) if known(value) is not None)
    add.replace_input_with(place, constant(graph, c.reshape(1, -1, 1, 1)))
