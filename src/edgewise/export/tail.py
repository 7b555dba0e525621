"""What a device makes of a network's outputs, such as boxes of heat maps, appended to the ONNX file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from edgewise.export.compact import shorten_values_, write
from edgewise.export.onnx import export
from edgewise.export.read import read

ANSWERS = "answers"
PREFIX = "tail_"  # of its tensors, while two graphs are one


def has_tail(path: Path) -> bool:
    """Say whether an ONNX file gives answers instead of outputs."""
    return read(path).graph.outputs[0].name == ANSWERS


def append_tail(path: Path, tail: nn.Module, *, names: bool = False) -> Path:
    """Append a module to an ONNX file, in place: the file then gives what the module makes of its outputs.

    The network before it may be of any precision; the module computes in float32. The file's output is called
    "answers" from then on.

    Args:
        path: a file with one output ``[N, ...]``, whose other sizes are known.
        tail: takes that output, returns one tensor ``[N, ...]``.
        names: keep the names of the layers in the file.

    Raises:
        ModelError: the module cannot be written as ONNX.
    """
    import onnx
    import onnx_ir as ir

    network = read(path)
    output = network.graph.outputs[0]
    assert output.shape is not None
    sizes = [size for size in output.shape[1:] if isinstance(size, int)]
    last = ir.from_proto(onnx.load_from_string(_written(tail, tuple(sizes)))).graph
    shorten_values_(last, PREFIX)
    (given,), (made,) = last.inputs, last.outputs
    ir.convenience.replace_all_uses_with(given, output)
    constants = list(last.initializers.values())
    last.initializers.clear()
    for value in constants:
        network.graph.initializers.add(value)
    nodes = list(last)
    last.outputs.clear()
    last.remove(nodes)
    network.graph.extend(nodes)
    network.graph.outputs[0] = made
    made.name = ANSWERS
    return write(network, path, names=names)


@lru_cache(maxsize=1)  # candidates of a budget get one and the same tail, a file after the other
def _written(tail: nn.Module, sizes: tuple[int, ...]) -> bytes:
    """Write a tail for outputs of these sizes as an ONNX model; the same module must not change in between.

    As bytes, since the names of a model's constants are those of the protobuf it was read from: a shared one would be
    renamed with the first file.
    """
    with TemporaryDirectory() as folder:
        return export(tail, torch.zeros(1, *sizes), Path(folder) / "tail.onnx").read_bytes()
