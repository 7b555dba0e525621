"""Artifacts side by side: latency, memory and size, all measured in the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgewise.devices.base import Device, Job, Measurement
from edgewise.devices.local import LocalDevice
from edgewise.devices.runtimes import files_of, runtime_of
from edgewise.errors import UserError
from edgewise.progress import Progress

TRIES = 3  # of a measurement that is noisy


def measure(
    artifacts: Sequence[Path],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    seconds: float = 3.0,
    rounds: int = 20,
    input_shape: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
    device: Device | None = None,
) -> list[Measurement]:
    """Run artifacts in turn in one fresh process, on random inputs, and keep every sample.

    Ratios of latencies taken together hold; absolute times move from day to day and machine to machine. The memory is
    found in further processes, one for each artifact. Batch 1 where a file leaves its batch axis open.

    Args:
        artifacts: their files; the first is the reference.
        runtime: a name of `edgewise list runtimes`; a file that it does not take, but only one other does, runs there.
        threads: how many threads a runtime may use; its process is held to as many cores where the system can.
        seconds: for how long at least, all artifacts together; at most 5000 samples each are taken.
        rounds: how many turns of 5 runs each has at least, within ten times `seconds`.
        input_shape: ``(C, H, W)`` for axes that a file leaves open.
        progress: is told (what, done, total).
        device: where; this machine by default.

    Returns:
        One measurement an artifact, in their order.

    Raises:
        UnknownName: there is no such runtime.
        UserError: a file is missing, none of the runtimes takes it, its input's shape is not known, or there are fewer
            cores than threads.
        MissingExtra: a runtime is not installed.
        MeasurementFailed: a runtime cannot load or run an artifact.
    """
    if not artifacts:
        raise ValueError("artifacts is empty; give at least one file")
    if not seconds > 0 or rounds < 1:
        raise ValueError(f"seconds = {seconds}, rounds = {rounds}: both must be positive")
    paths = tuple(Path(path) for path in artifacts)
    runtimes = tuple(runtime_of(path, runtime) for path in paths)
    for path in (file for whole in paths for file in files_of(whole)):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    job = Job(paths, runtimes, threads, seconds, rounds, input_shape)
    answers = (device or LocalDevice()).run(job, progress)
    return [
        Measurement(
            artifact=str(path),
            runtime=name,
            version=samples.version,
            threads=threads,
            cpu=samples.cpu,
            samples_s=samples.latencies_s,
            resident_bytes=samples.resident_bytes,
            file_bytes=sum(file.stat().st_size for file in files_of(path)),
        )
        for path, name, samples in zip(paths, runtimes, answers, strict=True)
    ]


def measure_until_quiet(once: Callable[[], list[Measurement]], tries: int = TRIES) -> list[list[Measurement]]:
    """Measure again as long as a latency is noisy: other work on a machine comes and goes.

    Which measurement counts is decided by its noise, never by its latency.

    Args:
        once: measures some artifacts.
        tries: how often at most.

    Returns:
        All measurements, the one with the least spread first.
    """
    found = [once()]
    while len(found) < tries and any(one.noisy for one in found[-1]):
        found.append(once())
    return sorted(found, key=lambda each: max(one.spread for one in each))
