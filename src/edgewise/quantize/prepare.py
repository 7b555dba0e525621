"""A float graph made ready to be quantised: what can be part of a layer is, and each layer has constants of its own.

An integer kernel adds a bias and scales its sums on the way out, for nothing; beside it both would be passes over all
codes, with a rounding each. So scales go into weights (ConvNeXt's layer scale), and a product with a bias behind it
becomes ``Gemm``, the one matrix product in ONNX that takes a bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.errors import ModelError, one_line
from edgewise.export.edit import attribute, constant, known, like, only_reader, operand, producer, readers, replace
from edgewise.export.quiet import quietly

if TYPE_CHECKING:
    import onnx_ir as ir

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def prepare(network: ir.Model) -> ir.Model:
    """Return the network with the same outputs, with shapes, and with a name for each layer.

    Args:
        network: float operators, as an exporter wrote them. It may be changed.

    Raises:
        ModelError: its operators or shapes contradict each other.
    """
    network = with_shapes(_simplified(network))
    graph = network.graph
    for node in list(graph):
        if node.op_type == "HardSwish":
            _into_gate(graph, node)
        elif node.op_type in ("Mul", "Div"):
            _scale_into_layer(graph, node)
        elif node.op_type == "AveragePool" and not any(attribute(node, "pads", [0])):
            # Nothing is padded. ONNX Runtime's kernel on codes counts what ceil_mode reaches out to, too.
            node.attributes.pop("count_include_pad", None)
    for node in list(graph):
        if node.op_type == "Add":
            _bias_into_product(graph, node)
    for node in list(graph):
        for place, value in enumerate(node.inputs):
            if value is not None and known(value) is not None and len(readers(value)) > 1:
                node.replace_input_with(place, constant(graph, known(value), str(value.name)))
    return network


def with_shapes(network: ir.Model, *, batch: int | None = None) -> ir.Model:
    """Return a network with the type and shape of every tensor that follow from its input's.

    Args:
        network: its input may have open axes.
        batch: the length of the first; by default it stays open.
    """
    import onnx
    import onnx_ir as ir

    if batch is not None:
        for value in network.graph.inputs:
            value.shape = ir.Shape([batch, *list(value.shape or [])[1:]])
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(network), data_prop=True))


def layers(graph: ir.Graph) -> list[ir.Node]:
    """List the operators with constant weights, in the graph's order."""
    return [node for node in graph if node.op_type in LAYERS and _weight(node) is not None]


def output_axis(layer: ir.Node) -> int:
    """Return which dimension of a layer's weights its output channels are."""
    if layer.op_type == "Gemm":
        return 0 if attribute(layer, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[layer.op_type]


def _simplified(network: ir.Model) -> ir.Model:
    """Fold what is constant, and batch normalisations into the convolutions before them."""
    import onnxscript.optimizer

    try:
        with quietly():
            return onnxscript.optimizer.optimize(network)
    except Exception as error:  # whatever the optimizer makes of operators that contradict each other
        raise ModelError(f"the network's operators cannot be simplified: {one_line(error)}") from error


def _into_gate(graph: ir.Graph, node: ir.Node) -> None:
    """Say hard-swish as the product of its input and a hard sigmoid: both can be computed on codes."""
    import onnx_ir as ir

    x = node.inputs[0]
    gate = ir.node("HardSigmoid", [x], attributes={"alpha": 1 / 6, "beta": 0.5})
    product = ir.node("Mul", [x, gate.outputs[0]])
    graph.insert_before(node, [gate, product])
    like(gate.outputs[0], node.outputs[0])
    replace(graph, node, like(product.outputs[0], node.outputs[0]))


# -- scales ------------------------------------------------------------------------------------------------------


def _scale_into_layer(graph: ir.Graph, node: ir.Node) -> None:
    """Take a multiplication by constants, one a channel, into the layer whose output it scales."""
    for place, other in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        x, factor = node.inputs[place], known(node.inputs[other])
        if x is None or factor is None or x.shape is None or factor.dtype != np.float32:
            continue
        if node.op_type == "Div":
            factor = 1 / factor
        if np.isfinite(factor).all() and factor.ndim <= len(x.shape) and _scaled(graph, x, factor):
            replace(graph, node, x)
            return


def _scaled(graph: ir.Graph, value: ir.Value, factor: Any) -> bool:
    """Scale a value by scaling the weights it is made with; False, and nothing is changed, where there are none."""
    node = value.producer()
    if node is None or only_reader(value) is None or value.shape is None:
        return False
    if node.op_type == "Add":
        for x, bias in (node.inputs, reversed(node.inputs)):
            if x is not None and known(bias) is not None and producer(x, "MatMul") and _scaled(graph, x, factor):
                node.replace_input_with(list(node.inputs).index(bias), constant(graph, known(bias) * factor))
                return True
        return False
    weight = _weight(node)
    axis = 1 if node.op_type == "Conv" else len(value.shape) - 1
    by_channel = _by_channel(factor, len(value.shape), axis)
    if weight is None or by_channel is None or node.op_type == "ConvTranspose":
        return False
    shape = [1] * weight.ndim
    shape[output_axis(node)] = -1
    node.replace_input_with(1, constant(graph, weight * by_channel.reshape(shape)))
    bias = known(operand(node, 2))
    if bias is not None:
        node.replace_input_with(2, constant(graph, bias * by_channel))
    return True


def _by_channel(factor: Any, rank: int, axis: int) -> Any:
    """Return factors that broadcast to a tensor as one for each channel, or one for all; None where they are more."""
    shape = (1,) * (rank - factor.ndim) + factor.shape
    return factor.reshape(-1) if all(length == 1 for i, length in enumerate(shape) if i != axis) else None


def _weight(node: ir.Node) -> Any:
    """Return a layer's constant weights; None for what is no layer, or one that scales or turns what it reads."""
    if node.op_type not in LAYERS:
        return None
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if node.op_type == "Gemm" and any(attribute(node, name, value) != value for name, value in plain.items()):
        return None
    weight, bias = known(node.inputs[1]), operand(node, 2)
    if weight is None or known(node.inputs[0]) is not None or (bias is not None and known(bias) is None):
        return None
    return None if node.op_type == "MatMul" and weight.ndim != 2 else weight


# -- biases ------------------------------------------------------------------------------------------------------


def _bias_into_product(graph: ir.Graph, add: ir.Node) -> None:
    """Say ``Gemm`` for a product with constant weights and the addition of a bias behind it."""
    import onnx_ir as ir

    for product, bias in (add.inputs, reversed(add.inputs)):
        matmul = producer(product, "MatMul")
        if matmul is None or only_reader(matmul.outputs[0]) is not add or _weight(matmul) is None:
            continue
        x, weight = matmul.inputs[0], matmul.inputs[1]
        assert x is not None
        width, values = known(weight).shape[1], known(bias)
        if values is None or values.size != width or values.shape[-1:] != (width,) or x.shape is None:
            continue
        inner = list(x.shape)[1:-1]
        if not all(isinstance(length, int) for length in inner):
            return
        rows = x
        if inner:
            shape = constant(graph, np.array([-1, known(weight).shape[0]]), "shape")
            rows = _insert(graph, add, ir.node("Reshape", [x, shape]))
            rows.type = x.type
        gemm = ir.node("Gemm", [rows, weight, constant(graph, values.reshape(-1))], name=matmul.name)
        made = _insert(graph, add, gemm)
        made.type = x.type
        if inner:
            shape = constant(graph, np.array([-1, *inner, width]), "shape")
            made = _insert(graph, add, ir.node("Reshape", [made, shape]))
        like(made, add.outputs[0])
        replace(graph, add, made)
        graph.remove(matmul, safe=True)
        return


def _insert(graph: ir.Graph, before: ir.Node, node: ir.Node) -> ir.Value:
    graph.insert_before(before, node)
    return node.outputs[0]
