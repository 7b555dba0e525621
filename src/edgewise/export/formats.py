"""The formats that an ONNX file can be written in for other runtimes, by the runtimes' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from edgewise.export.executorch import to_executorch
from edgewise.export.litert import to_litert
from edgewise.export.openvino import to_openvino

# (ONNX file, the new file, images [N, C, H, W]) -> the new file; for one image
FORMATS: dict[str, Callable[[Path, Path, Tensor], Path]] = {
    "openvino": to_openvino,
    "executorch": to_executorch,
    "litert": to_litert,
}
