"""ONNX files made by hand, to be run."""

from pathlib import Path

import numpy as np
import onnx
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
