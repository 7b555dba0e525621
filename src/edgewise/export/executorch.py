"""An ONNX file as an ExecuTorch program for XNNPACK, for one image."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from edgewise.devices.runtimes import ROUNDING_KERNELS, RUNTIMES, open_session
from edgewise.errors import MeasurementFailed, ModelError, one_line
from edgewise.export.lowering import lower
from edgewise.export.quiet import quietly
from edgewise.export.read import read
from edgewise.files import write_bytes


def to_executorch(source: Path, out: Path, images: Tensor) -> Path:
    """Write an ONNX file as a program, float or quantised as it is; whole or not at all.

    Args:
        source: with QuantizeLinear and DequantizeLinear where it is quantised.
        out: the ``.pte`` file.
        images: ``[N, C, H, W]`` float32; the program takes one, and no other shape.

    Raises:
        MissingExtra: ExecuTorch is not installed.
        ModelError: it cannot be written so; the message holds the exporter's own, in one line.
    """
    RUNTIMES["executorch"].imported()
    importlib.import_module(ROUNDING_KERNELS)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    network = lower(read(source), "executorch")
    try:
        with quietly():
            # A program takes its input in the memory order of this one, whose axes lie as they are written.
            program = torch.export.export(network, (torch.zeros(1, *images.shape[1:]),))
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            content = edge.to_executorch().buffer
    except Exception as error:  # whatever the passes make of operators that XNNPACK does not take
        raise ModelError(f"{source}: it cannot be written for ExecuTorch: {one_line(error)}") from error
    write_bytes(out, content)
    try:
        open_session(out, "executorch")  # XNNPACK refuses some kernels only there
    except MeasurementFailed as error:
        out.unlink()
        raise ModelError(f"{source}: what was written for ExecuTorch does not load: {one_line(error)}") from error
    return out
