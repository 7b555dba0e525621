"""What a runtime makes of a file: how many of its layers compute on integers, and how many on floats.

A quantised file only says where codes are; whether a runtime has a kernel for what lies between is its own decision,
and it says nothing where it computes on floats after all. So its optimised graph is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgewise.devices.runtimes import ERRORS_ONLY, RUNTIMES
from edgewise.errors import MeasurementFailed, UserError, one_line

if TYPE_CHECKING:
    import onnx

INTEGER = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "ConvInteger",
)
FLOATING = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulNBits")
OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected")


@dataclass(frozen=True)
class Kernels:
    """How a runtime computes the layers of a file.

    Args:
        integer: how many compute on codes.
        floating: how many on floats.
    """

    integer: int
    floating: int


def kernels(path: Path, runtime: str = "onnxruntime") -> Kernels:
    """Count the layers, convolutions and products with constant weights, by what a runtime computes them on.

    Args:
        path: a file that the runtime takes.
        runtime: a name of `READERS`.

    Raises:
        UserError: the runtime does not show what it does.
        MissingExtra: it is not installed.
        MeasurementFailed: it cannot load the file.
    """
    if runtime not in READERS:
        raise UserError(f"{runtime} does not show which kernels it runs; these do: {', '.join(READERS)}")
    package = RUNTIMES[runtime].imported()
    try:
        found = list(READERS[runtime](package, path))
    except Exception as error:  # the runtimes' classes have only Exception in common
        raise MeasurementFailed(f"{path}: {RUNTIMES[runtime].title} cannot load it: {one_line(error)}") from error
    return Kernels(found.count(True), found.count(False))


def _onnx_runtime(package: Any, path: Path) -> Iterator[bool]:
    import onnx

    with TemporaryDirectory(prefix="edgewise-") as folder:
        options = package.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    stored = {tensor.name for tensor in graph.initializer}
    computed = (node for node in graph.node if node.op_type != "DequantizeLinear" or node.input[0] not in stored)
    made = {name for node in computed for name in node.output} | {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type in (*INTEGER, *FLOATING) and _has_constant_weights(node, made):
            yield node.op_type in INTEGER


def _has_constant_weights(node: onnx.NodeProto, made: set[str]) -> bool:
    """Say whether the second tensor that an operator works on, weights if it is a layer, is a constant."""
    place = 3 if node.op_type in ("QLinearConv", "QGemm", "QLinearMatMul") else 1
    return node.input[place] not in made


def _openvino(package: Any, path: Path) -> Iterator[bool]:
    core = package.Core()
    network = core.read_model(str(path))
    if network.is_dynamic():  # as it is compiled to be run: see OpenVinoSession
        network.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in network.inputs})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    for node in core.compile_model(network, "CPU", settings).get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        if str(about["layerType"].astype(str)) in OPENVINO_LAYERS:
            yield str(about["runtimePrecision"].astype(str)) in ("u8", "i8")


READERS: dict[str, Callable[[Any, Path], Iterator[bool]]] = {"onnxruntime": _onnx_runtime, "openvino": _openvino}
