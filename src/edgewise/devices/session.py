"""An artifact in ONNX Runtime, and what went wrong when it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import MeasurementFailed, UserError, one_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ERRORS_ONLY = 3  # ONNX Runtime's severity


def open_session(path: Path, threads: int | None = None) -> InferenceSession:
    """Load an ONNX file into ONNX Runtime on the CPU, with all of its graph optimisations.

    Args:
        path: the file.
        threads: how many threads an operator may use; by default one for each core.

    Raises:
        UserError: there is no such file.
        MeasurementFailed: ONNX Runtime cannot load it; the message holds its own, in one line.
    """
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have only Exception in common
        raise MeasurementFailed(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from error
