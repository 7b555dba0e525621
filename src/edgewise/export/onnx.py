"""A network as an ONNX file: float32, any batch size, one file."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.export.compact import write
from edgewise.export.constants import absorb_constants_
from edgewise.export.few_bits import few_bits_
from edgewise.export.quiet import quietly
from edgewise.export.read import OPSET
from edgewise.graph.trace import evaluating
from edgewise.train.forward import forward, home

if TYPE_CHECKING:
    import onnx_ir as ir

INPUT, OUTPUT, BATCH = "input", "logits", "batch"
SCOPES = "pkg.torch.onnx.name_scopes"  # the modules around an operator, and the operator, as a Python list


def export(model: nn.Module, example: Tensor, path: Path, *, names: bool = False, codes: bool = False) -> Path:
    """Write a network as an ONNX file, in evaluation mode.

    Batch normalisations are folded into the convolutions before them, constants are computed, and those that removed
    branches left are taken into what is around them, so that the file is what a runtime would make of the network
    anyway. Input and output are called "input" and "logits", their first axis "batch", and it takes any length. The
    network is left as it was; nothing is printed.

    Args:
        model: one tensor in, one tensor out, in float32.
        example: an input ``[N, C, H, W]`` float32; its values do not matter.
        path: where the file goes; written whole or not at all.
        names: keep the names of the layers in it, for whoever shall tell them apart; some bytes each.
        codes: keep weights of few values as 2-bit and 4-bit codes (`edgewise.export.few_bits`): smaller, and slower.

    Raises:
        ModelError: the forward raises, returns something else than a float32 tensor, mixes the images of a batch or
            takes only one batch size, or holds something that ONNX has no word for.
    """
    inputs = torch.cat([example[:1]] * 2).to(home(model))  # a batch of one would be taken for a constant
    with torch.no_grad(), evaluating(model):
        outputs = forward(model, inputs)
        if outputs.dtype != torch.float32 or outputs.dim() == 0 or len(outputs) != len(inputs):
            kind = str(outputs.dtype).removeprefix("torch.")
            raise ModelError(
                f"the network returned {kind} {list(outputs.shape)} for float32 inputs {list(inputs.shape)}; "
                f"it must return float32 [{len(inputs)}, ...]"
            )
        network = _to_onnx(model, inputs)
    name_layers_(network.graph)
    pool_globally_(network.graph)
    absorb_constants_(network.graph)
    if codes:
        few_bits_(network)
    return write(network, path, names=names)


def _to_onnx(model: nn.Module, inputs: Tensor) -> ir.Model:
    """Translate a network by running it symbolically."""
    try:
        with quietly():
            program = torch.onnx.export(
                model,
                (inputs,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        raise ModelError(f"the network cannot be written as ONNX: {_cause(error)}") from error
    assert program is not None
    network = program.model
    shapes = [value.shape for value in (*network.graph.inputs, *network.graph.outputs)]
    if any(shape is None or isinstance(shape[0], int) for shape in shapes):
        raise ModelError(
            "the network takes one batch size only: its forward has the length of the batch written into it"
        )
    return network


def _cause(error: BaseException) -> str:
    """Find what lies at the bottom of an exporter's exception, and say the first line of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line}"


def name_layers_(graph: ir.Graph) -> None:
    """Give each operator with weights the name of its module, and no name to any other, in place.

    Where a module runs twice, or equal weights of several were stored once, its name is given a number.
    """
    taken: Counter[str] = Counter()
    for node in graph:
        weight = node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        module = scopes[-2] if len(scopes) > 2 else None
        if weight is not None and weight.endswith(".weight"):
            name = weight.removesuffix(".weight")
            node.name = module if name in taken and module else name
        else:
            node.name = module if node.op_type in ("Gemm", "MatMul") else None
        if node.name:
            taken[node.name] += 1
            if (times := taken[node.name]) > 1:
                node.name += f"#{times}"


def pool_globally_(graph: ir.Graph) -> None:
    """Say "global average pooling" for a mean over height and width, in place.

    The exporter takes poolings apart into means. Runtimes have an integer kernel for the pooling and none for the
    mean, so that a quantised network would leave its integers there.
    """
    import onnx_ir as ir

    for mean in list(graph):
        if mean.op_type != "ReduceMean" or not _is_over_space(mean):
            continue
        source = mean.inputs[0]
        assert source is not None
        assert source.shape is not None
        pooled = [ir.node("GlobalAveragePool", [source])]
        pooled[0].outputs[0].shape = ir.Shape([*source.shape[:2], 1, 1])
        keepdims = mean.attributes.get("keepdims")
        if keepdims is not None and keepdims.as_int() == 0:
            pooled.append(ir.node("Flatten", pooled[0].outputs))
        old, new = mean.outputs[0], pooled[-1].outputs[0]
        new.shape, new.type = old.shape, old.type
        graph.insert_before(mean, pooled)
        if old in graph.outputs:
            graph.outputs[graph.outputs.index(old)] = new
            new.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, new)
        graph.remove(mean, safe=True)


def _is_over_space(mean: ir.Node) -> bool:
    """Say whether a mean is taken over the last two of four axes."""
    source, axes = mean.inputs[0], mean.inputs[1] if len(mean.inputs) > 1 else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None or axes.const_value is None:
        return False
    return sorted(int(axis) % 4 for axis in axes.const_value.numpy()) == [2, 3]
