"""An ONNX file as OpenVINO's own two files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import ModelError, one_line


def to_openvino(source: Path, out: Path, example: Tensor) -> Path:
    """Write an ONNX file for OpenVINO, float or quantised as it is: ``NAME.xml``, and ``NAME.bin`` beside it.

    Args:
        source: the ONNX file.
        out: the ``.xml`` file.
        example: ``[N, C, H, W]``; the files take as many images as there are here, and no other shape.

    Raises:
        MissingExtra: OpenVINO is not installed.
        ModelError: it cannot be written so; the message holds OpenVINO's own, in one line.
    """
    package = RUNTIMES["openvino"].imported()
    try:
        network = package.Core().read_model(str(source))
        network.reshape(list(example.shape))
        package.save_model(network, str(out), compress_to_fp16=False)
    except Exception as error:  # OpenVINO's classes have only Exception in common
        raise ModelError(f"{source}: it cannot be written for OpenVINO: {one_line(error)}") from error
    return out
