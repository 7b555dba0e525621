"""Static int8 quantisation of an ONNX file: codes for weights and activations, ranges found on calibration images.

Activations become unsigned 8-bit numbers with one scale and zero point a tensor, weights signed ones with a scale for
each output channel, biases int32, written as QuantizeLinear and DequantizeLinear around the operators (QDQ). That is
the combination ONNX Runtime has its fast x86 kernels for: with signed activations, its quantiser's default, ResNet-20
ran at 0.68 times the speed of float32, with unsigned ones at 1.9 times.

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, arXiv 1712.05877.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from edgewise.errors import DataError, ModelError, UserError, one_line
from edgewise.export.compact import write
from edgewise.export.quiet import quietly
from edgewise.progress import Progress
from edgewise.quantize.rewrite import float_outputs_, pad_codes_

if TYPE_CHECKING:
    import onnx_ir as ir

FEWEST_IMAGES = 8
BATCH = 16  # the percentile and entropy observers hold every activation of a batch at once

# Operators that ONNX Runtime's CPU kernels compute on codes, or that only move codes. A quantised operator outside
# this list, such as LayerNormalization, would be computed on floats, between conversions that cost time and accuracy.
INTEGER_OPS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice", "Gather", "Pad", "Resize"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
STORED_OPS = ("ConvTranspose",)  # has no integer kernel, but weights that are stored in a quarter of the bytes
TO_FLOAT_OPS = ("Gemm", "MatMul")  # their integer kernels can give out floats


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Turn the network into an int8 artifact, calibrated on training images.

    Args:
        scheme: "int8_static" as this module describes.
        calibration: how many images the ranges are found on.
        observer: what a tensor's range is: "minmax" all that was seen; "percentile" leaves out the share of values
            beyond `percentile`; "entropy" the range whose codes keep the most information. On ResNet-20 minmax agreed
            with the float network as often as the others, with the smallest logit error (0.035; percentile 0.037,
            entropy 0.035), in a third of the time. On MobileNetV2, whose activations have outliers, percentile had
            the smallest (0.16 against 0.20; 0.13 at 99.99).
        percentile: share of values inside the range, in percent; only "percentile" reads it.
        reduce_range: give weights 7 bits, for x86 processors without VNNI, where sums of full products saturate.
    """

    kind: Literal["quantize"] = "quantize"
    scheme: Literal["int8_static"] = "int8_static"
    calibration: int = 256
    observer: Literal["minmax", "percentile", "entropy"] = "minmax"
    percentile: float = 99.999
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.calibration < FEWEST_IMAGES:
            raise ValueError(f"calibration = {self.calibration}: at least {FEWEST_IMAGES} images")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile = {self.percentile}: more than 50, at most 100")


def quantize_static(
    float_onnx: Path, out: Path, calibration: Tensor, config: Quantize | None = None, progress: Progress | None = None
) -> Path:
    """Write the int8 version of a float ONNX file.

    The outputs of a last linear layer stay float32. Nothing is printed; `out` is written whole or not at all.

    Args:
        float_onnx: what `edgewise.export.onnx.export` wrote.
        out: where the int8 file goes.
        calibration: inputs to find the activations' ranges on, ``[N, C, H, W]`` float32, at least 8.
        config: how; by default `Quantize()`. Its `calibration` is for those who choose the images, all are used here.
        progress: is told ("calibrate", done, total).

    Raises:
        DataError: the calibration inputs are too few, do not fit the file, or hold NaN or infinity.
        ModelError: the file is no ONNX file, is quantised already, or cannot be quantised.
        UserError: there is no such file.
    """
    config = config or Quantize()
    network = read(float_onnx)
    _check_float(network, float_onnx)
    _check_images(calibration, network.graph.inputs[0], float_onnx)
    feed = _Feed(network.graph.inputs[0].name or "", calibration.detach().cpu(), progress)
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        try:
            quantized = _quantize(float_onnx, Path(folder), feed, config)
        except Exception as error:
            raise ModelError(f"{float_onnx}: it cannot be quantised: {one_line(error)}") from error
        pad_codes_(quantized.graph)
        last = network.graph.outputs[0].producer()
        if last is not None and last.op_type in TO_FLOAT_OPS:
            float_outputs_(quantized.graph)
        return write(quantized, out)


class _Feed:
    """Calibration images in batches, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, name: str, images: Tensor, progress: Progress | None) -> None:
        self.name = name
        self.batches = torch.split(images, BATCH)
        self.progress = progress
        self.stdout = sys.stdout  # the bar's, while the quantiser is kept quiet
        self.next, self.end = 0, len(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give only these batches from now on."""
        self.next, self.end = start_index, end_index

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the input's name, or None after the last."""
        if self.next >= self.end:
            return None
        batch = self.batches[self.next]
        self.next += 1
        if self.progress is not None:
            with contextlib.redirect_stdout(self.stdout):
                self.progress("calibrate", self.next, len(self))
        return {self.name: batch.numpy()}


def _quantize(source: Path, folder: Path, feed: _Feed, config: Quantize) -> ir.Model:
    """Run ONNX Runtime's quantiser on a file, in a folder of its own."""
    import onnx_ir as ir
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "minmax": ort.CalibrationMethod.MinMax,
        "percentile": ort.CalibrationMethod.Percentile,
        "entropy": ort.CalibrationMethod.Entropy,
    }
    prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
    with quietly():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        ort.quantize_static(
            prepared,
            quantized,
            feed,
            quant_format=ort.QuantFormat.QDQ,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
            reduce_range=config.reduce_range,
            op_types_to_quantize=[*INTEGER_OPS, *STORED_OPS],
            calibrate_method=methods[config.observer],
            # Ranges are merged batch by batch, so that memory does not grow with the number of images.
            extra_options={"CalibStridedMinMax": 1, "CalibPercentile": config.percentile},
        )
    return ir.load(quantized)


def read(path: Path) -> ir.Model:
    """Read an ONNX file.

    Raises:
        UserError: there is no such file.
        ModelError: it is no ONNX file.
    """
    import onnx_ir as ir

    try:
        return ir.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # whatever protobuf makes of bytes that are none of its own
        raise ModelError(f"{path}: no ONNX file: {one_line(error)}") from error


def _check_float(network: ir.Model, path: Path) -> None:
    if any("Quantize" in node.op_type or node.op_type.startswith(("QLinear", "QGemm")) for node in network.graph):
        raise ModelError(f"{path}: it is quantised already; quantise the float file that it was made from")
    if len(network.graph.inputs) != 1:
        names = ", ".join(str(value.name) for value in network.graph.inputs)
        raise ModelError(f"{path}: it has {len(network.graph.inputs)} inputs ({names}), it must have one")


def _check_images(images: Tensor, expected: ir.Value, path: Path) -> None:
    shape = list(expected.shape or [])
    found = list(images.shape)
    fits = len(shape) == len(found) and all(
        not isinstance(a, int) or a == b for a, b in zip(shape[1:], found[1:], strict=True)
    )
    if not fits or images.dtype != torch.float32:
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(f"the calibration inputs are {kind} {found}, but {path} takes float32 {_shape(shape)}")
    if len(images) < FEWEST_IMAGES:
        raise DataError(f"there are {len(images)} calibration inputs, at least {FEWEST_IMAGES} are needed")
    if not bool(torch.isfinite(images).all()):
        first = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"calibration input {first} holds NaN or infinity")


def _shape(dims: list[Any]) -> str:
    return "[" + ", ".join(str(dim) if isinstance(dim, int) else "N" for dim in dims) + "]"
