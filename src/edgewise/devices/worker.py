"""The fresh process that runs artifacts: ``python -m edgewise.devices.worker``, one JSON request in, JSON lines out.

A request says what is wanted: "latency", the seconds of many runs of all artifacts in turn, "memory", the bytes that
loading and running one of them takes, or "layers", the seconds of single layers.
Lines out are ``{"passed_s": ...}`` now and then, and at the end ``{"answer": ...}`` or ``{"error": class,
"message": ...}``. It imports no torch, so that little else is in its memory.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgewise.devices.schedule import interleave
from edgewise.devices.session import open_session
from edgewise.errors import EdgewiseError, MeasurementFailed, UserError, one_line

REPORT_EVERY_S = 0.2
MEMORY_RUNS = 3
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


class Runtime(NamedTuple):
    """How an artifact becomes something to call."""

    version: Callable[[], str]
    load: Callable[[Path, int, Sequence[int] | None], Callable[[], object]]


def onnxruntime_version() -> str:
    """Return ONNX Runtime's version."""
    import onnxruntime

    return str(onnxruntime.__version__)


def load_onnxruntime(path: Path, threads: int, input_shape: Sequence[int] | None) -> Callable[[], object]:
    """Load an ONNX file, run it once, and return what runs it again on the same random input."""
    session = open_session(path, threads)
    feed = {i.name: random_input(i.shape, i.type, input_shape, path) for i in session.get_inputs()}

    def run() -> object:
        return session.run(None, feed)

    try:
        run()
    except Exception as error:
        raise MeasurementFailed(f"{path}: ONNX Runtime cannot run it: {one_line(error)}") from error
    return run


LOADERS: dict[str, Runtime] = {"onnxruntime": Runtime(onnxruntime_version, load_onnxruntime)}


def random_input(
    dims: Sequence[int | str | None], kind: str, input_shape: Sequence[int] | None, path: Path
) -> np.ndarray[Any, Any]:
    """Draw an input of the shape and type that a file asks for, always the same: normal, integers from 0 to 127.

    Raises:
        UserError: the shape is not known, or the type is none that images have.
    """
    if kind not in DTYPES:
        raise UserError(f"{path}: an input is {kind}, measuring knows {', '.join(DTYPES)}")
    shape, dtype, generator = resolve_shape(dims, input_shape, path), DTYPES[kind], np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        return generator.integers(0, 128, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def resolve_shape(
    dims: Sequence[int | str | None], input_shape: Sequence[int] | None, path: Path | str
) -> tuple[int, ...]:
    """Fill in the axes that a file leaves open: 1 for the batch, the rest from the shape of an image.

    Raises:
        UserError: an axis is open and no shape was given, or the shape is not the file's.

    >>> resolve_shape(["batch", 3, "height", "width"], (3, 32, 32), "net.onnx")
    (1, 3, 32, 32)
    """
    stated = "[" + ", ".join(str(dim) for dim in dims) + "]"
    image: Sequence[int | None] = input_shape or [None] * (len(dims) - 1)
    wanted = (1, *image)
    known = [dim if isinstance(dim, int) and dim > 0 else None for dim in dims]
    pairs = list(zip(known, wanted, strict=False))
    if len(wanted) != len(dims) or any(None not in pair and pair[0] != pair[1] for pair in pairs[1:]):
        given = "x".join(str(length) for length in input_shape or ())
        raise UserError(f"{path}: its input is {stated}, which {given} does not fit")
    shape = [length if length is not None else other for length, other in pairs]
    if None in shape:
        raise UserError(f"{path}: its input {stated} leaves axes open; give their lengths, as in --input 3x32x32")
    return tuple(length for length in shape if length is not None)


def pin(threads: int) -> None:
    """Hold this process to as many cores as it has threads, where the system can (macOS cannot)."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-threads:])  # the first core often serves the interrupts


def peak_resident_bytes() -> int:
    """Return the most memory this process has held; where the system does not say, what it holds now."""
    try:
        # Not getrusage: its peak is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import psutil

        return int(psutil.Process().memory_info().rss)


def latency(request: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run all artifacts in turn."""
    runtime = LOADERS[request["runtime"]]
    loaded = [runtime.load(Path(p), request["threads"], request["input_shape"]) for p in request["artifacts"]]
    said_s = 0.0

    def report(passed_s: float) -> None:
        nonlocal said_s
        if passed_s - said_s >= REPORT_EVERY_S:
            said_s = passed_s
            say({"passed_s": passed_s})

    gc.collect()
    gc.disable()
    samples = interleave(
        loaded, seconds=request["seconds"], rounds=request["rounds"], clock=time.perf_counter, report=report
    )
    nanoseconds = [[round(sample, 9) for sample in own] for own in samples]
    return {"samples_s": nanoseconds, "version": runtime.version()}


def memory(request: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load and run one artifact, and find by how much the peak of the process's memory rose."""
    runtime = LOADERS[request["runtime"]]
    runtime.version()  # the runtime's own code is loaded before
    (artifact,) = request["artifacts"]
    before = peak_resident_bytes()
    run = runtime.load(Path(artifact), request["threads"], request["input_shape"])
    for _ in range(MEMORY_RUNS):
        run()
    return {"resident_bytes": peak_resident_bytes() - before}


def layers(request: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time layers on their own, file by file."""
    from edgewise.devices.layers import time_layers

    try:
        found = [time_layers(file, request["precision"], request["threads"]) for file in request["files"]]
    except Exception as error:  # ONNX Runtime's classes have only Exception in common
        raise MeasurementFailed(f"ONNX Runtime cannot run a layer on its own: {one_line(error)}") from error
    return {"seconds": found}


TASKS = {"latency": latency, "memory": memory, "layers": layers}


def main() -> None:
    """Answer the request on stdin; whatever libraries print goes to stderr instead of between the lines."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            lines.write(json.dumps(message) + "\n")
            lines.flush()

        request = json.load(sys.stdin)
        pin(request["threads"])
        try:
            say({"answer": TASKS[request["task"]](request, say)})
        except EdgewiseError as error:
            say({"error": type(error).__name__, "message": str(error)})


if __name__ == "__main__":
    main()
