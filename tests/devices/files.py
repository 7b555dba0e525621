"""ONNX files made by hand, to be run."""

from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper


def dense_file(path: Path, width: int, *, dims: tuple[int | str, ...] = ("batch", 3, 8, 8)) -> Path:
    """Write images -> mean over space -> `width` -> `width` numbers, with about 4 width^2 bytes of weights."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "second"], ["logits"]),
        ],
        "dense",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [dims[0], width])],
        [
            numpy_helper.from_array(rng.standard_normal((3, width), dtype=np.float32), "first"),
            numpy_helper.from_array(rng.standard_normal((width, width), dtype=np.float32), "second"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def coded_file(path: Path) -> Path:
    """Write an int8 network: 4 numbers as codes, times a 4 x 2 matrix of codes, between conversions (QDQ).

    Activations are multiples of 0.5 from -64 to 63.5; the matrix is ``[[1, 0], [0, 2], [-1, 0.25], [1, 1]]``.
    """
    codes = np.array([[4, 0], [0, 8], [-4, 1], [4, 4]], np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["floats"]),
            helper.make_node("Flatten", ["floats"], ["flat"]),
            helper.make_node("DequantizeLinear", ["weight", "weight step"], ["matrix"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        "coded",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(codes, "weight"),
            numpy_helper.from_array(np.float32(0.25), "weight step"),
            numpy_helper.from_array(np.float32(0.5), "step"),
            numpy_helper.from_array(np.uint8(128), "zero"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def flat_file(path: Path, dims: tuple[int | str, ...], kind: int = TensorProto.FLOAT) -> Path:
    """Write a network that only lays its input out in a row, in the order in which it is given."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["row"])],
        "flat",
        [helper.make_tensor_value_info("input", kind, dims)],
        [helper.make_tensor_value_info("row", kind, [dims[0], "length"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def openvino_file(source: Path) -> Path:
    """Write an ONNX file's network as OpenVINO's own, .xml and .bin, beside it."""
    path = source.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)
    return path
