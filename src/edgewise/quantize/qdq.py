"""A quantised network as an ONNX file: QuantizeLinear and DequantizeLinear around the operators that compute on codes.

Runtimes fuse these pairs with the operators between them (QDQ). Weights and biases are stored as their codes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgewise.export.edit import constant, known, like, operand
from edgewise.export.read import allow_codes_
from edgewise.quantize.rewrite import gate_codes_, keep_floats_, pad_codes_, round_before_additions_
from edgewise.quantize.simulate import FEW_BITS, FakeQuantize, FakeQuantizeBias

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.models.onnx import OnnxNetwork
    from edgewise.quantize.sites import Layer, Sites


def to_qdq(network: ir.Model, sites: Sites, simulated: OnnxNetwork, bit_exact: bool = False) -> ir.Model:
    """Turn the float graph, in place, into one that computes what the simulation does, and return it.

    Args:
        network: the prepared float network.
        sites: that were found in it.
        simulated: it holds the weights, and the scales of all that becomes codes.
        bit_exact: whether additions shall be kept out of the kernels of convolutions.
    """
    graph = network.graph
    _take_weights(graph, simulated)
    values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    values |= {str(value.name): value for node in graph for value in node.outputs}
    for layer in (*sites.layers.values(), *sites.stored.values()):
        _store_weights(graph, layer, values, simulated)
    clamps = {clamp.outputs[0]: clamp for clamp in sites.clamps}
    for name, source in sites.scales.items():
        tap = simulated.tapped(source)
        assert isinstance(tap, FakeQuantize)
        clamp = clamps.get(values[name])
        unclamped = clamp.inputs[0] if clamp is not None and _does_nothing(clamp, tap) else None
        _as_codes(graph, values[name], unclamped or values[name], tap)
    pad_codes_(graph)
    gate_codes_(graph)
    keep_floats_(graph)
    if bit_exact:
        round_before_additions_(graph)
    return network


def _take_weights(graph: ir.Graph, simulated: OnnxNetwork) -> None:
    """Give the graph's constants the values that they have in the simulation."""
    import onnx_ir as ir

    for name, value in graph.initializers.items():
        if name in simulated.floats:
            value.const_value = ir.Tensor(simulated.weight(name).detach().cpu().numpy(), name=name)


def _store_weights(graph: ir.Graph, layer: Layer, values: dict[str, ir.Value], simulated: OnnxNetwork) -> None:
    """Put the codes of a layer's weights and of its bias in their place."""
    for name, axis in ((layer.weight, layer.axis), (layer.bias, 0)):
        tap = simulated.tapped(name) if name else None
        if tap is None:
            continue
        assert isinstance(tap, FakeQuantize | FakeQuantizeBias)
        codes = tap.codes(simulated.weight(name).detach()).cpu().numpy()
        scale = tap.scale.detach().float().reshape(-1).cpu().numpy()
        kind = np.int8 if isinstance(tap, FakeQuantize) else np.int32
        (reader,) = {use.node for use in values[name].uses()}
        few = isinstance(tap, FakeQuantize) and tap.spec.bits <= FEW_BITS
        held = _widened(graph, reader, codes) if few else constant(graph, codes.astype(kind))
        stored = [held, constant(graph, scale), constant(graph, np.zeros(scale.shape, kind))]
        place = list(reader.inputs).index(values[name])
        reader.replace_input_with(place, _dequantize(graph, reader, stored, values[name], axis))


def _widened(graph: ir.Graph, reader: ir.Node, codes: Any) -> ir.Value:
    """Store 4-bit codes, and make 8-bit ones of them: runtimes do that once, and find the integer kernels."""
    import onnx_ir as ir

    allow_codes_(graph, 4)
    stored = constant(graph, codes.astype(ir.DataType.INT4.numpy()))
    cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.INT8.value})
    graph.insert_before(reader, cast)
    return cast.outputs[0]


def _as_codes(graph: ir.Graph, value: ir.Value, made: ir.Value, tap: FakeQuantize) -> None:
    """Let whatever reads a value read its codes.

    Args:
        graph: is changed.
        value: what is read.
        made: what becomes the codes: the value, or what it was before it was clamped.
        tap: how.
    """
    import onnx_ir as ir

    scale = np.float32(tap.scale.detach().item())
    params = [constant(graph, np.asarray(scale)), constant(graph, np.asarray(tap.zero_point.item(), np.uint8))]
    if (held := known(value)) is not None:
        codes = tap.codes(torch.from_numpy(held)).numpy().astype(np.uint8)
        (reader,) = {use.node for use in value.uses()}
        dequantized = _dequantize(graph, reader, [constant(graph, codes), *params], value, None)
        ir.convenience.replace_all_uses_with(value, dequantized)
        return
    users = [(use.node, use.idx) for use in value.uses()]
    first = graph[0]
    quantize = ir.node("QuantizeLinear", [made, *params])
    producer = value.producer()
    if producer is None:
        graph.insert_before(first, quantize)
    else:
        graph.insert_after(producer, quantize)
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *params])
    graph.insert_after(quantize, dequantize)
    floats = like(dequantize.outputs[0], value)
    for node, place in users:
        node.replace_input_with(place, floats)
    if value in graph.outputs:
        graph.outputs[graph.outputs.index(value)] = floats
        floats.name, value.name = value.name, None


def _dequantize(
    graph: ir.Graph, reader: ir.Node, stored: list[ir.Value], floats: ir.Value, axis: int | None
) -> ir.Value:
    """Add the operator that turns stored codes into floats before the one that reads them."""
    import onnx_ir as ir

    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    node = ir.node("DequantizeLinear", stored, attributes=attributes)
    graph.insert_before(reader, node)
    return like(node.outputs[0], floats)


def _does_nothing(clamp: ir.Node, tap: FakeQuantize) -> bool:
    """Say whether the codes end where an operator clamps, so that rounding to them does its work."""
    low, high = tap.spec.codes
    bounds = [known(operand(clamp, place)) for place in (1, 2)] if clamp.op_type == "Clip" else [np.float32(0), None]
    scale, zero = np.float32(tap.scale.detach().item()), int(tap.zero_point.item())
    lowest, highest = (None if bound is None else float(np.rint(bound / scale)) + zero for bound in bounds)
    return (lowest is None or lowest <= low) and (highest is None or highest >= high)
