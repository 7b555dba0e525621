"""A quantised ONNX file as a network of torch's own quantised operators, which ExecuTorch and LiteRT read.

Where the file has QuantizeLinear and DequantizeLinear the network has ``quantized_decomposed``'s operators, with codes
of the same distance and all of them 128 lower: those runtimes know signed codes only. No sum changes by that.

A product whose output stays float has no kernel there that reads codes of a fixed range. ExecuTorch's rounds its input
anew on every image; LiteRT's gives out codes, so that a range for them must be found on images.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError, UserError
from edgewise.export.compact import shorten_values_
from edgewise.export.edit import Array, attribute, constant, known, like, only_reader, operand, readers, replace
from edgewise.models.onnx import OnnxNetwork

if TYPE_CHECKING:
    import onnx_ir as ir

OPERATORS = "torch.ao.quantization.fx._decomposed"  # defines them; slow to import
Q = torch.ops.quantized_decomposed
LOW, HIGH = -128, 127
SHIFT = 128  # from unsigned codes to signed ones
PRODUCTS = ("Gemm", "MatMul")
CLAMPS = ("Relu", "Clip")
SMALLEST_SCALE = 1e-8  # of what is 0 everywhere

Runtime = Literal["executorch", "litert"]


class Encode(nn.Module):
    """Rounds to int8 codes of a fixed range."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.params = (scale, zero_point, LOW, HIGH, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes."""
        codes: Tensor = Q.quantize_per_tensor.default(x, *self.params)
        return codes


class Decode(Encode):
    """Turns int8 codes of a fixed range into floats."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what they stand for."""
        floats: Tensor = Q.dequantize_per_tensor.default(x, *self.params)
        return floats


class DynamicCodes(nn.Module):
    """Rounds to codes of the range that a tensor happens to have."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest numbers that have codes."""
        scale, zero_point = Q.choose_qparams.tensor(x, LOW, HIGH, SMALLEST_SCALE, torch.int8)
        params = (scale, zero_point, LOW, HIGH, torch.int8)
        found: Tensor = Q.dequantize_per_tensor.tensor(Q.quantize_per_tensor.tensor(x, *params), *params)
        return found


class Weights(nn.Module):
    """Gives what codes of weights stand for, in place of the floats that it is given.

    Args:
        codes: int8 ``[K, ...]``.
        scale: ``[K]``.
        axis: which dimension K is.
        rounded: whether floats are kept, and turned into these codes in the network, as LiteRT's converter wants it.
    """

    def __init__(self, codes: Array, scale: Array, axis: int, *, rounded: bool) -> None:
        super().__init__()
        spread = [-1 if dim == axis else 1 for dim in range(codes.ndim)]
        held = codes * scale.reshape(spread) if rounded else codes
        self.register_buffer("held", torch.from_numpy(np.ascontiguousarray(held)))
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)))
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int64))
        self.axis, self.rounded = axis, rounded

    def forward(self, _: Tensor) -> Tensor:
        """Return the floats."""
        params = (self.scale, self.zero_point, self.axis, 1 - SHIFT, HIGH, torch.int8)
        codes = Q.quantize_per_channel.default(self.held, *params) if self.rounded else self.held
        found: Tensor = Q.dequantize_per_channel.default(codes, *params)
        return found


class _Range(nn.Module):
    """Remembers the extremes of what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.low = self.high = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())
        return x


def lower(network: ir.Model, runtime: Runtime, images: Tensor | None = None) -> nn.Module:
    """Turn an ONNX network, quantised or not, into the torch network that a runtime's exporter takes.

    Args:
        network: is changed.
        runtime: which operators it is for.
        images: ``[N, C, H, W]`` float32, to find the range of what products give out, where LiteRT must know it.

    Raises:
        ModelError: the file computes on codes directly, not between QuantizeLinear and DequantizeLinear; or their
            ranges are not constant.
        UserError: images are needed, and there are none.
        UnsupportedOp: an operator is not known.
    """
    importlib.import_module(OPERATORS)
    graph = network.graph
    shorten_values_(graph, "t_")  # the exporters make Python of these names, and "as" or "in" are none
    weights = dict(_constant_codes(graph))
    _pad_floats(graph)
    _without_bounds(graph)
    if runtime == "executorch":
        _alike_in_concatenations(graph)
    taps = _codes(graph)
    for name, (codes, scale, axis) in weights.items():
        taps[name] = Weights(*_as_linear(graph, name, codes, scale, axis), rounded=runtime == "litert")
    products = list(_to_floats(graph, taps))
    if runtime == "executorch":
        taps |= dict(_rounded_anew(graph, product, taps) for product in products)
    made = OnnxNetwork(graph).eval().requires_grad_(requires_grad=False)
    for name, tap in taps.items():
        made.tap(name, tap)
    if runtime == "litert" and products:
        if images is None:
            raise UserError("images are needed: LiteRT must know the range of what a matrix product gives out")
        for name, rounding in list(_ranges(made, [str(product.outputs[0].name) for product in products], images)):
            made.tap(name, rounding)
    return made


def _constant_codes(graph: ir.Graph) -> Iterator[tuple[str, tuple[Array, Array, int]]]:
    """Replace constants that are stored as codes by floats; yield the names, codes, scales and axes of weights."""
    for node in list(graph):
        codes = _stored(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None:
            continue
        if attribute(node, "block_size", 0):
            raise ModelError("weights have scales for blocks; only one for each channel, or one for all, is known")
        scale, zero_point = known(node.inputs[1]), known(operand(node, 2))
        axis = attribute(node, "axis", 1) % max(codes.ndim, 1)
        spread = [-1 if dim == axis else 1 for dim in range(codes.ndim)] if scale.ndim else []
        shifted = codes.astype(np.int32) - (0 if zero_point is None else zero_point.astype(np.int32).reshape(spread))
        name = str(node.outputs[0].name)
        value = constant(graph, (shifted * scale.reshape(spread)).astype(np.float32), name)
        replace(graph, node, value)
        if scale.ndim and codes.ndim > 1 and np.abs(shifted).max(initial=0) <= HIGH:  # others stay floats
            yield str(value.name), (shifted.astype(np.int8), scale, axis)


def _stored(value: ir.Value | None) -> Array | None:
    """Return the constant codes that a value is, or is made of by another width."""
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    found: Array | None = known(value)
    return None if found is None else found.astype(np.int32)


def _pad_floats(graph: ir.Graph) -> None:
    """Pad floats with zeros, and round them again, where codes are padded with their zero point."""
    import onnx_ir as ir

    for pad in list(graph):
        source = pad.inputs[0].producer() if pad.op_type == "Pad" and pad.inputs[0] is not None else None
        if source is None or source.op_type != "QuantizeLinear":
            continue
        floats = ir.node("DequantizeLinear", [source.outputs[0], *source.inputs[1:]])
        padded = ir.node("Pad", [floats.outputs[0], pad.inputs[1], None, *pad.inputs[3:]])
        codes = ir.node("QuantizeLinear", [padded.outputs[0], *source.inputs[1:]])
        graph.insert_before(pad, [floats, padded, codes])
        codes.outputs[0].name = f"{pad.outputs[0].name}_codes"
        replace(graph, pad, codes.outputs[0])


def _without_bounds(graph: ir.Graph) -> None:
    """Take away poolings of one pixel, which only keep operators apart in other runtimes."""
    for node in list(graph):
        if node.op_type == "MaxPool" and math.prod(attribute(node, "kernel_shape", [])) == 1:
            source = node.inputs[0]
            if source is not None and not attribute(node, "strides", None):
                replace(graph, node, source)


def _alike_in_concatenations(graph: ir.Graph) -> None:
    """Round what is concatenated to the codes of the whole: XNNPACK's kernel moves codes, and has one scale for all."""
    import onnx_ir as ir

    for node in list(graph):
        whole = only_reader(node.outputs[0]) if node.op_type == "Concat" else None
        if whole is None or whole.op_type != "QuantizeLinear":
            continue
        for place, value in enumerate(node.inputs):
            codes = ir.node("QuantizeLinear", [value, *whole.inputs[1:]])
            floats = ir.node("DequantizeLinear", [codes.outputs[0], *whole.inputs[1:]])
            graph.insert_before(node, [codes, floats])
            codes.outputs[0].name = f"{node.outputs[0].name}_part{place}"
            node.replace_input_with(place, floats.outputs[0])


def _codes(graph: ir.Graph) -> dict[str, nn.Module]:
    """Replace what rounds activations to codes and back by nothing, and return what does it, by the tensors' names.

    Codes become floats for each reader apart: that is part of a kernel, and is found with one reader or not at all.
    """
    taps: dict[str, nn.Module] = {}
    for quantize in [node for node in graph if node.op_type == "QuantizeLinear"]:
        backs = readers(quantize.outputs[0])
        if quantize.outputs[0].is_graph_output() or any(node.op_type != "DequantizeLinear" for node in backs):
            raise ModelError("it computes on codes directly; only QuantizeLinear and DequantizeLinear may touch them")
        written = _params(quantize)
        read = {_params(back) for back in backs}
        if len(read) > 1:
            raise ModelError("it reads the same codes as different numbers")
        (params,) = read or {written}
        source = quantize.inputs[0] if written == params else _as_read(graph, quantize, written, params)
        codes = _passed_on(graph, quantize, source, f"{quantize.outputs[0].name}_codes")
        taps[str(codes.name)] = Encode(*params)
        for back in backs:
            for use in list(back.outputs[0].uses()):
                floats = _passed_on(graph, back, codes, f"{codes.name}_{len(taps)}")
                taps[str(floats.name)] = Decode(*params)
                use.node.replace_input_with(use.idx, floats)
            if back.outputs[0].is_graph_output():
                floats = _passed_on(graph, back, codes, f"{codes.name}_{len(taps)}")
                replace(graph, back, floats)  # it takes the output's name
                taps[str(floats.name)] = Decode(*params)
            else:
                graph.remove(back, safe=True)
        graph.remove(quantize, safe=True)
    return taps


def _params(node: ir.Node) -> tuple[float, int]:
    """Return the scale and the zero point of signed codes.

    Raises:
        ModelError: there is not one of each.
    """
    found, zero_point = known(node.inputs[1]), known(operand(node, 2))
    if zero_point is not None and zero_point.dtype not in (np.uint8, np.int8):
        raise ModelError(f"an activation has {zero_point.dtype} codes; they must have 8 bits")
    if found is None or found.size != 1 or (operand(node, 2) is not None and zero_point is None):
        raise ModelError("the codes of an activation have no constant scale, or several")
    scale = float(found)
    shift = SHIFT if zero_point is None or zero_point.dtype == np.uint8 else 0
    return scale, (0 if zero_point is None else int(zero_point)) - shift


def _as_read(graph: ir.Graph, quantize: ir.Node, written: tuple[float, int], read: tuple[float, int]) -> ir.Value:
    """Return the floats whose codes, as they are read, are those that are written: how a hard sigmoid is rounding."""
    import onnx_ir as ir

    factor = constant(graph, np.asarray(read[0] / written[0], np.float32), "factor")
    offset = constant(graph, np.asarray(read[0] * (written[1] - read[1]), np.float32), "offset")
    product = ir.node("Mul", [quantize.inputs[0], factor])
    total = ir.node("Add", [product.outputs[0], offset])
    graph.insert_before(quantize, [product, total])
    product.outputs[0].name, total.outputs[0].name = (f"{quantize.outputs[0].name}_{part}" for part in ("x", "y"))
    return total.outputs[0]


def _passed_on(graph: ir.Graph, before: ir.Node, value: ir.Value | None, name: str) -> ir.Value:
    """Add an operator that gives out what it reads, for a tap to see it, and return its output."""
    import onnx_ir as ir

    same = ir.node("Identity", [value])
    graph.insert_before(before, same)
    same.outputs[0].name = name
    return same.outputs[0]


def _as_linear(graph: ir.Graph, name: str, codes: Array, scale: Array, axis: int) -> tuple[Array, Array, int]:
    """Return a product's weights as linear layers have them, ``[K, C]``, and let it read them so."""
    import onnx_ir as ir

    value = graph.initializers[name]
    product = only_reader(value)
    if product is None or product.op_type not in PRODUCTS or codes.ndim != 2 or not _is_linear(product):
        return codes, scale, axis
    turned = product.op_type == "MatMul" or not attribute(product, "transB", 0)
    if turned:
        codes, axis = np.ascontiguousarray(codes.T), 1 - axis
        value.const_value = ir.Tensor(np.ascontiguousarray(known(value).T), name=name)
        linear = ir.node("Gemm", list(product.inputs), attributes={"transB": 1}, name=product.name)
        graph.insert_before(product, linear)
        replace(graph, product, like(linear.outputs[0], product.outputs[0]))
    return codes, scale, axis


def _is_linear(product: ir.Node) -> bool:
    """Say whether a product scales and turns nothing but its weights."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all(attribute(product, name, value) == value for name, value in plain.items())


def _to_floats(graph: ir.Graph, taps: dict[str, nn.Module]) -> Iterator[ir.Node]:
    """Yield the products with weights of codes whose output nothing rounds to codes."""
    for node in graph:
        weight = operand(node, 1)
        if node.op_type not in PRODUCTS or weight is None or weight.name not in taps:
            continue
        reader = only_reader(node.outputs[0])
        if reader is not None and reader.op_type in CLAMPS:
            reader = only_reader(reader.outputs[0])
        if reader is None or reader.outputs[0].name not in taps:
            yield node


def _rounded_anew(graph: ir.Graph, product: ir.Node, taps: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """Let a product round its input anew; where nothing else needs the codes of a fixed range, they go."""
    source = product.inputs[0]
    decode = None if source is None else source.producer()
    encode = None if decode is None or decode.inputs[0] is None else decode.inputs[0].producer()
    if encode is not None and decode is not None and isinstance(taps.get(str(source.name)), Decode):  # type: ignore[union-attr]
        made = None if encode.inputs[0] is None else encode.inputs[0].producer()
        on_codes = made is not None and any(value is not None and value.name in taps for value in made.inputs)
        if not on_codes and only_reader(encode.outputs[0]) is decode:
            for gone in (encode, decode):
                taps.pop(str(gone.outputs[0].name))
    anew = _passed_on(graph, product, source, f"{product.outputs[0].name}_input")
    product.replace_input_with(0, anew)
    return str(anew.name), DynamicCodes()


def _ranges(network: OnnxNetwork, names: list[str], images: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Find codes for tensors of a network while images pass."""
    watches = {name: _Range() for name in names}
    for name, watch in watches.items():
        network.tap(name, watch)
    with torch.no_grad():
        for part in torch.split(images, 1):
            network(part)
    for name, watch in watches.items():
        scale = max((watch.high - watch.low) / (HIGH - LOW), SMALLEST_SCALE)
        params = (scale, LOW - round(watch.low / scale))
        yield name, nn.Sequential(Encode(*params), Decode(*params))
