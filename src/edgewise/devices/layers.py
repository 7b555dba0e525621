"""Layers on their own in ONNX Runtime: many in one file, each timed by the runtime's own profile.

The layers of a file have nothing to do with each other, so ONNX Runtime optimises each as it does inside a network; its
profile tells how long each kernel took. Reorderings of memory between the layers, which a network of such layers does
not have, are left out.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import MeasurementFailed

OPSET = 17
MOVING = ("ReorderInput", "ReorderOutput", "Transpose", "QuantizeLinear", "DequantizeLinear")
RUNS = (8, 80)  # at least, at most
BUDGET_S = 0.4  # of the runs of one file


def time_layers(layers: Sequence[dict[str, Any]], precision: str, threads: int) -> list[float]:
    """Return the seconds of each layer.

    Args:
        layers: the fields of `edgewise.graph.trace.LayerShape`, one dict each.
        precision: "float32", or "int8": U8 activations and S8 weights with a scale for each output channel.
        threads: that the runtime may use.

    Raises:
        MeasurementFailed: the profile has no kernel of a layer.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(_model(layers, precision), options, providers=["CPUExecutionProvider"])
        feed = {i.name: _values(i.shape, precision) for i in session.get_inputs()}
        _run(session, feed)
        profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seconds = _seconds(profile, len(layers))
    if absent := [layer for layer, found in zip(layers, seconds, strict=True) if not found]:
        raise MeasurementFailed(f"the runtime's profile has no kernel of this layer in {precision}: {absent[0]}")
    return seconds


def _run(session: Any, feed: dict[str, Any]) -> None:
    """Run for a while, at least and at most so often."""
    import time

    least, most = RUNS
    started = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - started > BUDGET_S:
            return
        session.run(None, feed)


def _seconds(profile: list[dict[str, Any]], count: int) -> list[float]:
    """Sum each layer's kernels, by the median over the runs; the first quarter of the runs warms up."""
    found: dict[str, list[float]] = defaultdict(list)
    owner = {}
    for event in profile:
        named = re.match(r"(?:fused )?L(\d+)\..*_kernel_time$", event["name"]) if event.get("cat") == "Node" else None
        if named and event["args"]["op_name"] not in MOVING:
            found[event["name"]].append(event["dur"] * 1e-6)
            owner[event["name"]] = int(named[1])
    seconds = [0.0] * count
    for name, samples in found.items():
        seconds[owner[name]] += float(np.median(samples[len(samples) // 4 :]))
    return seconds


def _values(shape: Sequence[int], precision: str) -> Any:
    generator = np.random.default_rng(0)
    if precision == "int8":
        return generator.integers(0, 256, shape).astype(np.uint8)
    return generator.standard_normal(shape).astype(np.float32)


def _model(layers: Sequence[dict[str, Any]], precision: str) -> bytes:
    """Write a file of layers beside each other, each followed by a ReLU, on inputs that layers of one shape share."""
    from onnx import TensorProto, helper

    kind = TensorProto.UINT8 if precision == "int8" else TensorProto.FLOAT
    graph = _Nodes()
    inputs, outputs = {}, []
    for number, layer in enumerate(layers):
        convolves = layer["kind"] != "linear"
        shape = [1, layer["inputs"], *layer["size"]] if convolves else [*layer["size"], layer["inputs"]]
        name = "x" + "_".join(map(str, shape))
        inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        made = graph.quantized(number, layer, name) if precision == "int8" else graph.floating(number, layer, name)
        outputs.append(helper.make_tensor_value_info(made, kind, None))
    body = helper.make_graph(graph.nodes, "layers", list(inputs.values()), outputs, graph.constants)
    return bytes(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8).SerializeToString()
    )


class _Nodes:
    """The nodes and constants of a file, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.generator = np.random.default_rng(0)

    def floating(self, number: int, layer: dict[str, Any], x: str) -> str:
        """Add a float layer and its ReLU; return what it makes."""
        weight, bias = self._weights(layer)
        names = [x, self.constant(f"w{number}", weight), self.constant(f"b{number}", bias)]
        self._layer(number, layer, names)
        return self.node("Relu", [f"L{number}.y"], f"L{number}.r")

    def quantized(self, number: int, layer: dict[str, Any], x: str) -> str:
        """Add a layer between conversions (QDQ), which ONNX Runtime fuses into one that computes on codes."""
        weight, bias = self._weights(layer)
        axis = 1 if layer["kind"] in ("transposed", "linear") else 0
        channels = weight.shape[axis]
        codes = np.clip(np.rint(weight * 127), -127, 127).astype(np.int8)
        names = [
            self._dequantize(f"x{number}", x, np.float32(0.02), np.uint8(128), 0),
            self._dequantize(
                f"w{number}",
                self.constant(f"w{number}", codes),
                np.full(channels, 1 / 127, np.float32),
                np.zeros(channels, np.int8),
                axis,
            ),
            self._dequantize(
                f"b{number}",
                self.constant(f"b{number}", np.rint(bias * 100).astype(np.int32)),
                np.full(len(bias), 0.02 / 127, np.float32),
                np.zeros(len(bias), np.int32),
                0,
            ),
        ]
        self._layer(number, layer, names)
        y = self.node("Relu", [f"L{number}.y"], f"L{number}.r")
        scale = [self.constant(f"ys{number}", np.float32(0.05)), self.constant(f"yz{number}", np.uint8(0))]
        return self.node("QuantizeLinear", [y, *scale], f"L{number}.q")

    def node(self, kind: str, names: list[str], out: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, names, [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _dequantize(self, name: str, x: str, scale: Any, zero: Any, axis: int) -> str:
        constants = [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero", zero)]
        attributes = {"axis": axis} if np.ndim(scale) else {}
        return self.node("DequantizeLinear", [x, *constants], f"{name}.float", **attributes)

    def _weights(self, layer: dict[str, Any]) -> tuple[Any, Any]:
        inputs, outputs, groups = layer["inputs"], layer["outputs"], layer["groups"] or layer["inputs"]
        if layer["kind"] == "linear":
            shape: tuple[int, ...] = (inputs, outputs)
        elif layer["kind"] == "transposed":
            shape = (inputs, outputs // groups, *layer["kernel"])
        else:
            shape = (outputs, inputs // groups, *layer["kernel"])
        return (self.generator.standard_normal(s).astype(np.float32) for s in (shape, (outputs,)))  # type: ignore

    def _layer(self, number: int, layer: dict[str, Any], names: list[str]) -> None:
        if layer["kind"] == "linear":
            self.node("Gemm", names, f"L{number}.y")
            return
        self.node(
            "ConvTranspose" if layer["kind"] == "transposed" else "Conv",
            names,
            f"L{number}.y",
            kernel_shape=list(layer["kernel"]),
            strides=list(layer["stride"]),
            pads=[*layer["padding"], *layer["padding"]],
            dilations=list(layer["dilation"]),
            group=layer["groups"] or layer["inputs"],
        )
