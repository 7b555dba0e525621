"""An ONNX file as a TensorFlow Lite file for LiteRT, for one image."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import MissingExtra, ModelError, one_line
from edgewise.export.lowering import lower
from edgewise.export.quiet import quietly
from edgewise.export.read import read
from edgewise.files import write_bytes


def to_litert(source: Path, out: Path, images: Tensor) -> Path:
    """Write an ONNX file for LiteRT, float or quantised as it is; whole or not at all.

    A quantised one takes images as int8 codes of the first layer's range, and gives int8 codes of its output.

    Args:
        source: with QuantizeLinear and DequantizeLinear where it is quantised.
        out: the ``.tflite`` file.
        images: ``[N, C, H, W]`` float32, to find the range of the outputs on; of a float file one is enough.

    Raises:
        MissingExtra: LiteRT's converter is not installed.
        ModelError: it cannot be written so; the message holds the converter's own, in one line.
    """
    try:
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig
    except Exception as error:  # a library that does not load is an OSError
        install = RUNTIMES["litert"].install
        raise MissingExtra(f"LiteRT's converter cannot be imported ({one_line(error)}): {install}") from error
    network = read(source)
    quantized = any(node.op_type == "QuantizeLinear" for node in network.graph)
    lowered = lower(network, "litert", images)
    # Nothing is quantised by it: it says that the operators which round are to become kernels.
    kernels = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    config = QuantConfig(pt2e_quantizer=kernels) if quantized else None
    try:
        with TemporaryDirectory(prefix="edgewise-") as folder, quietly():
            file = Path(folder) / "network.tflite"
            litert_torch.convert(lowered, (torch.zeros(1, *images.shape[1:]),), quant_config=config).export(str(file))
            content = file.read_bytes()
    except Exception as error:  # whatever the passes make of operators that LiteRT does not take
        raise ModelError(f"{source}: it cannot be written for LiteRT: {one_line(error)}") from error
    return write_bytes(out, content)
