"""The fresh process that runs artifacts: ``python -m edgewise.devices.worker``, one JSON request in, JSON lines out.

A request says what is wanted: "latency", the seconds of many runs of all artifacts in turn, "memory", the bytes that
loading and running one of them takes, or "layers", the seconds of single layers.
Lines out are ``{"passed_s": ...}`` now and then, and at the end ``{"answer": ...}`` or ``{"error": class,
"message": ...}``. It imports no torch, so that little else is in its memory; ExecuTorch's runtime does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.devices.runtimes import RUNTIMES, Array, TensorSpec, channels_last, fits, open_session, shown
from edgewise.devices.schedule import interleave
from edgewise.errors import EdgewiseError, MeasurementFailed, UserError, one_line

REPORT_EVERY_S = 0.2
MEMORY_RUNS = 3
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16")


def load(path: Path, runtime: str, threads: int, input_shape: Sequence[int] | None) -> Callable[[], object]:
    """Load an artifact, run it once, and return what runs it again on the same random input.

    Raises:
        UserError: an input's shape is not known, or its type is none that images have.
        MissingExtra: the runtime is not installed.
        MeasurementFailed: it cannot load or run the file.
    """
    session = open_session(path, runtime, threads)
    arrays = [random_input(spec, input_shape, path) for spec in session.inputs]

    def run() -> object:
        return session(*arrays)

    try:
        run()
    except Exception as error:
        raise MeasurementFailed(f"{path}: {RUNTIMES[runtime].title} cannot run it: {one_line(error)}") from error
    return run


def random_input(spec: TensorSpec, input_shape: Sequence[int] | None, path: Path) -> Array:
    """Draw an input of the shape and type that a file asks for, always the same: normal, integers from 0 to 127.

    Raises:
        UserError: the shape is not known, or the type is none that images have.
    """
    if spec.dtype not in DTYPES:
        raise UserError(f"{path}: an input is {spec.dtype}, measuring knows {', '.join(DTYPES)}")
    shape, generator = resolve_shape(spec.dims, input_shape, path), np.random.default_rng(0)
    if np.issubdtype(spec.dtype, np.integer):
        return generator.integers(0, 128, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)


def resolve_shape(
    dims: Sequence[int | str | None], input_shape: Sequence[int] | None, path: Path | str
) -> tuple[int, ...]:
    """Fill in the axes that a file leaves open: 1 for the batch, the rest from the shape ``(C, H, W)`` of an image.

    A file that such an image fits only with its channels last is given them last.

    Raises:
        UserError: an axis is open and no shape was given, or the shape is not the file's.

    >>> resolve_shape(["batch", 3, "height", "width"], (3, 32, 32), "net.onnx")
    (1, 3, 32, 32)
    """
    image = tuple(input_shape or ())
    if image and channels_last(dims, image):
        image = (*image[1:], image[0])
    if image and not fits(dims[1:], image):
        given = "x".join(str(length) for length in input_shape or ())
        raise UserError(f"{path}: its input is {shown(dims)}, which {given} does not fit")
    wanted = (1, *(image or [None] * len(dims)))[: len(dims)]
    shape = [dim if isinstance(dim, int) and dim > 0 else length for dim, length in zip(dims, wanted, strict=True)]
    if None in shape:
        raise UserError(f"{path}: its input {shown(dims)} leaves axes open; give their lengths, as in --input 3x32x32")
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
    loaded = [
        load(Path(path), runtime, request["threads"], request["input_shape"])
        for path, runtime in zip(request["artifacts"], request["runtimes"], strict=True)
    ]
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
    return {"samples_s": nanoseconds, "versions": [RUNTIMES[runtime].version() for runtime in request["runtimes"]]}


def memory(request: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load and run one artifact, and find by how much the peak of the process's memory rose."""
    ((artifact, runtime),) = zip(request["artifacts"], request["runtimes"], strict=True)
    RUNTIMES[runtime].imported()  # its own code is in memory before
    before = peak_resident_bytes()
    run = load(Path(artifact), runtime, request["threads"], request["input_shape"])
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
        pin(request["threads"])  # before a runtime is loaded: their pools count the cores
        try:
            say({"answer": TASKS[request["task"]](request, say)})
        except EdgewiseError as error:
            say({"error": type(error).__name__, "message": str(error)})


if __name__ == "__main__":
    main()
