"""Linear layers whose inputs become codes while the network runs, in a range found for each batch; no calibration.

It saves time only where large matrix products dominate. Convolutions keep computing on floats, from weights that are
stored as codes: ONNX's ConvInteger made every network slower that it was tried on (0.34 to 0.84 times float's speed).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgewise.export.edit import constant, known, like, operand, replace
from edgewise.quantize.affine import QSpec, choose, quantize
from edgewise.quantize.prepare import layers, output_axis
from edgewise.quantize.storage import store_weights_

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHTS = QSpec(bits=8, signed=True, symmetric=True, block=(-1, 1))  # [C, K], a scale for each output


def quantize_dynamic_(network: ir.Model, exclude: Collection[str] = ()) -> ir.Model:
    """Let linear layers compute on codes and store all other weights as such, in place, and return the network.

    Args:
        network: prepared float operators.
        exclude: the names of layers that stay as they are.
    """
    for layer in layers(network.graph):
        if layer.op_type in ("Gemm", "MatMul") and layer.name not in exclude:
            _quantize_linear(network.graph, layer)
    return store_weights_(network, "int8", exclude)


def _quantize_linear(graph: ir.Graph, layer: ir.Node) -> None:
    """Say a linear layer in integers: codes of the input, an integer product, its scale, and the bias."""
    import onnx_ir as ir

    x, weight, bias = layer.inputs[0], known(layer.inputs[1]), operand(layer, 2)
    matrix = torch.from_numpy(weight.T.copy() if output_axis(layer) == 0 else weight.copy())
    low, high = (end.reshape(1, -1) for end in matrix.aminmax(dim=0))
    params = choose(low, high, WEIGHTS)
    codes = constant(graph, quantize(matrix, params, WEIGHTS).numpy().astype(np.int8))
    dynamic = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    rounded, scale, zero_point = dynamic.outputs
    product = ir.node("MatMulInteger", [rounded, codes, zero_point])
    floats = ir.node("Cast", product.outputs, attributes={"to": ir.DataType.FLOAT.value})
    step = ir.node("Mul", [scale, constant(graph, params.scale.reshape(-1).numpy())])
    scaled = ir.node("Mul", [floats.outputs[0], step.outputs[0]])
    nodes = [dynamic, product, floats, step, scaled]
    if bias is not None:
        nodes.append(ir.node("Add", [scaled.outputs[0], bias]))
    graph.insert_before(layer, nodes)
    replace(graph, layer, like(nodes[-1].outputs[0], layer.outputs[0]))
