"""What a device is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgewise.progress import Progress

NOISY = 0.25  # a spread from which a latency is to be named noisy


@dataclass(frozen=True)
class Job:
    """Artifacts to run in turn, in one fresh process.

    Args:
        artifacts: their files; the first is the reference.
        runtimes: what runs each of them, names of `edgewise list runtimes`.
        threads: how many threads a runtime may use; its process is held to as many cores where the system can.
        seconds: for how long at least, all artifacts together.
        rounds: how often each has its turn at least.
        input_shape: ``(C, H, W)`` for axes that a file leaves open; an open batch axis is 1.
    """

    artifacts: tuple[Path, ...]
    runtimes: tuple[str, ...]
    threads: int
    seconds: float
    rounds: int
    input_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Samples:
    """What a device answers for one artifact.

    Args:
        latencies_s: seconds of each run, in their order, warm-up left out.
        resident_bytes: memory that loading and running the artifact takes in a process of its own.
        version: of its runtime.
        cpu: the processor's name.
    """

    latencies_s: tuple[float, ...]
    resident_bytes: int
    version: str
    cpu: str


class Device(Protocol):
    """A machine that runs artifacts."""

    def run(self, job: Job, progress: Progress | None = None) -> list[Samples]:
        """Run every artifact of a job; one answer each, in their order.

        Raises:
            UserError: the job asks for what the machine or an artifact does not have.
            MissingExtra: a runtime is not installed.
            MeasurementFailed: a runtime cannot load or run an artifact.
        """


@dataclass(frozen=True)
class Measurement:
    """How fast an artifact ran and what it took, with every sample.

    Args:
        artifact: its file.
        runtime: what ran it.
        version: of the runtime.
        threads: how many threads it could use.
        cpu: the processor's name.
        samples_s: seconds of each run, in their order, warm-up left out.
        resident_bytes: by how much the peak of a process's memory rose when it loaded and ran the artifact alone.
        file_bytes: the file's size, with that of the weights where a format keeps them beside it.
    """

    artifact: str
    runtime: str
    version: str
    threads: int
    cpu: str
    samples_s: tuple[float, ...]
    resident_bytes: int
    file_bytes: int

    @property
    def latency_s(self) -> float:
        """The median of the samples."""
        return float(np.median(self.samples_s))

    @property
    def spread(self) -> float:
        """The distance between the samples' quartiles, as a share of the median."""
        low, high = np.percentile(self.samples_s, (25, 75))
        return float(high - low) / self.latency_s

    @property
    def noisy(self) -> bool:
        """Whether the spread is so large that the latency should not be trusted."""
        return self.spread > NOISY

    def ratio(self, reference: Measurement) -> float:
        """Return how many times faster this is than a reference: 2 for half its latency."""
        return reference.latency_s / self.latency_s

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON, what follows from the samples too."""
        figures = {"latency_s": self.latency_s, "spread": self.spread, "noisy": self.noisy}
        return {**asdict(self), **figures, "samples_s": list(self.samples_s)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` wrote."""
        fields: dict[str, Any] = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "samples_s": tuple(fields["samples_s"])})
