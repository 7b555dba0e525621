"""Artifacts: a network written as a file, and the proof that the file computes the same."""

from edgewise.export.onnx import export
from edgewise.export.verify import Check, compare_float, compare_networks, compare_quantized, outputs, require

__all__ = ["Check", "compare_float", "compare_networks", "compare_quantized", "export", "outputs", "require"]
