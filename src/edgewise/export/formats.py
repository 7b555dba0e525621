"""The formats that an ONNX file can be written in for other runtimes, by the runtimes' names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import MissingExtra
from edgewise.export.executorch import to_executorch
from edgewise.export.litert import to_litert
from edgewise.export.openvino import to_openvino


class Format(NamedTuple):
    """A way to write an ONNX file.

    Args:
        write: ``(ONNX file, new file, images [N, C, H, W]) -> new file``, for one image.
        package: that writes it; a runtime's extra installs both.
    """

    write: Callable[[Path, Path, Tensor], Path]
    package: str


WHOLE = ("onnx", "openvino")  # formats that hold what makes answers of outputs too; in others it is the application's
FORMATS: dict[str, Format] = {
    "openvino": Format(to_openvino, "openvino"),
    "executorch": Format(to_executorch, "executorch"),
    "litert": Format(to_litert, "litert_torch"),
}


def shipped_as(kind: str, path: Path, images: Tensor, folder: Path) -> Path:
    """Return what is shipped of an ONNX file: itself, or what a format makes of it in a folder, if it is not there."""
    if kind == "onnx":
        return path
    out = folder / f"{path.stem}{RUNTIMES[kind].suffixes[0]}"
    return out if out.exists() else FORMATS[kind].write(path, out, images)


def check_installed(kind: str) -> None:
    """Make sure that what writes and what runs a format are there; nothing is imported.

    Raises:
        MissingExtra: names the line that installs them.
    """
    runtime = RUNTIMES[kind]
    if not runtime.installed or importlib.util.find_spec(FORMATS[kind].package) is None:
        raise MissingExtra(f"{runtime.title}, or what writes its files, is not installed: {runtime.install}")
