"""This machine: what it is, and how artifacts are run on it in processes of their own."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import edgewise
from edgewise.devices.base import Job, Samples
from edgewise.errors import EdgewiseError, MeasurementFailed, MissingExtra, UserError
from edgewise.progress import Progress

PACKAGES = ("torch", "numpy", "onnx", "onnxruntime")
# Flags of processors that decide how fast 8-bit and 16-bit numbers are multiplied.
NOTABLE_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
MACHINE_ID, BOARD = Path("/etc/machine-id"), Path("/proc/device-tree/model")
CPU_MARKS = ("model name", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
ERRORS: dict[str, type[EdgewiseError]] = {
    error.__name__: error for error in (UserError, MissingExtra, MeasurementFailed)
}


class LocalDevice:
    """This machine's processor; every job runs in fresh processes, so that nothing of this one is measured."""

    def run(self, job: Job, progress: Progress | None = None) -> list[Samples]:
        """Run a job: all artifacts in turn in one process for the latencies, then each in its own for the memory.

        Raises:
            UserError: more threads than cores, or an input whose shape is not known.
            MissingExtra: a runtime is not installed.
            MeasurementFailed: a runtime cannot load or run an artifact.
        """
        cores = available_cores()
        if not 1 <= job.threads <= cores:
            raise UserError(f"threads = {job.threads}: this machine has {cores} cores to use; give 1 to {cores}")
        timed = ask_worker(_request("latency", job), job.seconds, progress)
        alone = [
            replace(job, artifacts=(path,), runtimes=(runtime,))
            for path, runtime in zip(job.artifacts, job.runtimes, strict=True)
        ]
        held = [ask_worker(_request("memory", each))["resident_bytes"] for each in alone]
        return [
            Samples(tuple(samples), resident, version, cpu_name())
            for samples, resident, version in zip(timed["samples_s"], held, timed["versions"], strict=True)
        ]


def ask_worker(request: dict[str, Any], seconds: float = 0.0, progress: Progress | None = None) -> dict[str, Any]:
    """Start the worker, hand it a request, and return its answer.

    Args:
        request: as `edgewise.devices.worker` reads it.
        seconds: how long it will take, for the progress.
        progress: is told ("measure", milliseconds passed, milliseconds in all).

    Raises:
        UserError: what the worker found wrong with the request; MissingExtra is one.
        MeasurementFailed: the runtime failed, or the process ended without an answer.
    """
    command = [sys.executable, "-P", "-m", "edgewise.devices.worker"]  # -P: no module of the working folder is meant
    total = round(seconds * 1000)
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as errors:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        with subprocess.Popen(
            command,
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            encoding="utf-8",
            errors="replace",  # what is no message says nothing
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    last = _message(line) or last
                    if "passed_s" in last and progress is not None:
                        progress("measure", min(round(last["passed_s"] * 1000), total), total)
            except BaseException:
                process.kill()
                raise
        if "error" in last:
            raise ERRORS[last["error"]](last["message"])
        if "answer" not in last:
            errors.seek(0)
            stderr = errors.read().decode(errors="replace")
            raise MeasurementFailed(_ended(request["artifacts"], process.returncode, stderr))
    if progress is not None:
        progress("measure", total, total)
    answer: dict[str, Any] = last["answer"]
    return answer


def available_cores() -> int:
    """Count the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe this machine and the software on it, for a manifest: plain JSON, nothing that names its owner."""
    import psutil

    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_flags": [flag for flag in NOTABLE_FLAGS if flag in _cpu_flags()],
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def sums_saturate() -> bool:
    """Say whether integer kernels may cut sums off: on x86 without VNNI two products are added in 16 bits."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "i386", "x86")
    return x86 and not {"avx_vnni", "avx512_vnni"} & _cpu_flags()


@cache
def cpu_name() -> str:
    """Return the processor's name as the system knows it, or the board's: ARM processors do not say theirs."""
    return _cpuinfo().get("model name") or _first_line(BOARD) or platform.processor() or platform.machine()


@cache
def machine_key() -> str:
    """Return what tells this machine from others, as a digest: the system's own number, processor, cores, memory."""
    import psutil

    facts = _cpuinfo()
    parts = [_first_line(path) for path in (MACHINE_ID, BOARD)] + [facts.get(name, "") for name in CPU_MARKS]
    parts += [str(psutil.cpu_count()), str(psutil.virtual_memory().total >> 30)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _first_line(path: Path) -> str:
    """Read what the system says of itself in a file; nothing where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _cpu_flags() -> set[str]:
    facts = _cpuinfo()
    return set(facts.get("flags", facts.get("Features", "")).split())


def _cpuinfo() -> dict[str, str]:
    """Read what Linux says of the first core; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _request(task: str, job: Job) -> dict[str, Any]:
    return {**asdict(job), "task": task, "artifacts": [str(path) for path in job.artifacts]}


def _message(line: str) -> dict[str, Any]:
    """Read a line of the worker's; one that a kill cut short, or that something else printed, says nothing."""
    try:
        message = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}


def _environment() -> dict[str, str]:
    """Let the worker find the package that is running here, installed or not."""
    source = str(Path(edgewise.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": source + (os.pathsep + inherited if inherited else "")}


def _ended(artifacts: list[str], code: int, errors: str) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return f"{', '.join(artifacts)}: the measuring process {how}" + (f": {lines[-1]}" if lines else "")
