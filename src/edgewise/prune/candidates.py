"""Pruning to what a device charges: candidates are foretold by the thousand, the chosen ones are made and measured."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from edgewise.cost.artifact import FileModel, MemoryModel
from edgewise.cost.latency import LatencyModel, shapes_of
from edgewise.cost.static import CostModel
from edgewise.data.download import cache_folder
from edgewise.devices.measure import measure
from edgewise.devices.table import measure_layers
from edgewise.errors import BudgetError
from edgewise.export.onnx import export
from edgewise.export.tail import append_tail
from edgewise.graph.groups import Graph, Group
from edgewise.graph.rigid import rigid_groups
from edgewise.graph.surgery import shrink
from edgewise.graph.trace import Atoms
from edgewise.progress import Progress
from edgewise.quantize import Quantize, activation_cost, quantize_static
from edgewise.units import format_exact

Precision = Literal["float32", "int8"]
Keep = Mapping[str, Sequence[int] | Atoms]
Figures = dict[str, float]
KNOWN_SHARES = (0.75, 0.5, 0.25)  # of every group's channels: networks that are measured before any is chosen
TRIES, MOST_TRIES = 5, 10  # for a candidate that uses its limits well, for one that is within them at all
SECONDS = 1.5  # of measuring, for each candidate
CONFIRMED = 2  # measurements more, in processes of their own, that a latency must hold in
ROUND_TO = 8


@dataclass(frozen=True)
class Care:
    """How near to a limit a candidate may come, as shares of it.

    Args:
        aim: what is asked of the foretold amount.
        holds: up to what a measured amount is taken, so that the next measurement holds as well.
        used: with less than this the limit is not used, and the next candidate may take more.
    """

    aim: float
    holds: float
    used: float


# A latency that is measured once scatters by a percent or two; bytes hardly do.
CARE = {
    "latency_s": Care(aim=0.96, holds=0.985, used=0.9),
    "file_bytes": Care(aim=0.995, holds=0.999, used=0.98),  # scales compress a little better or worse
    "peak_activation_bytes": Care(aim=1.0, holds=1.0, used=0.98),
}


COUNTED: dict[str, Callable[[Path], int]] = {
    "file_bytes": lambda path: path.stat().st_size,
    "peak_activation_bytes": lambda path: activation_cost(path).peak_activation_bytes,
}


@dataclass(frozen=True)
class Trial:
    """A candidate as it was foretold and measured: amounts by the quantity's name, bytes and seconds."""

    foretold: Figures
    measured: Figures


class Foreteller(Protocol):
    """Foretells a quantity of artifacts, and learns from those that were made."""

    def __call__(self, widths: ArrayLike) -> float | NDArray[np.float64]:
        """Return the amount at widths ``[G]``, or of each candidate at ``[n, G]``."""
        ...

    def corrected(self, widths: ArrayLike, amount: float, /) -> Foreteller:
        """Return one that knows the artifact at these widths."""
        ...


class Candidates:
    """What a network's candidates cost on this machine, as artifacts of one precision.

    Latencies are measured beside the network itself, and their ratio to it is taken, so that a machine that changes
    its speed changes nothing.

    Args:
        graph: the traced network.
        quantities: which of `CARE` are wanted.
        precision: of the artifacts; int8 ones are calibrated on noise, which neither latency nor size depend on.
        threads: that the runtime may use.
        branches: candidates may lack whole branches.
        reference: the float artifact that shares refer to; by default the network's own.
        tail: appended to every artifact.
        tables: the folder of the tables of layers; by default in edgewise's cache.
        progress: is told (what, done, total).
    """

    def __init__(
        self,
        graph: Graph,
        quantities: Sequence[str] = ("latency_s",),
        *,
        precision: Precision = "float32",
        threads: int = 1,
        branches: bool = False,
        reference: Path | None = None,
        tail: nn.Module | None = None,
        tables: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.graph, self.quantities, self.precision, self.threads = graph, tuple(quantities), precision, threads
        self.branches, self.progress, self._tail = graph.branches if branches else {}, progress, tail
        self._folder = tempfile.TemporaryDirectory(prefix="edgewise-")
        self._artifacts: dict[str, Path] = {}
        cost = CostModel(graph, branches=self.branches)
        self._foretold: dict[str, Foreteller] = {}
        if "file_bytes" in quantities:
            self._foretold["file_bytes"] = FileModel(cost, precision)
        if "peak_activation_bytes" in quantities:
            self._foretold["peak_activation_bytes"] = MemoryModel(cost, precision)
        if "latency_s" in quantities:
            table = measure_layers(
                shapes_of(graph),
                tables or cache_folder() / "latency",
                precision=precision,
                threads=threads,
                progress=progress,
            )
            self._foretold["latency_s"] = LatencyModel(cost, table)
        self._dense = self._artifact(graph.model)
        self.dense, self.reference = self._figures([self._dense, reference or self._whole(self._float(graph.model))])
        self._learn(graph.sizes, self.dense)

    @property
    def cost_model(self) -> CostModel:
        """The network's cost, with what its artifact is foretold to cost now."""
        return CostModel(self.graph, self._foretold, self.branches)

    def foretold(self, keep: Keep) -> Figures:
        """Return what a candidate is foretold to cost."""
        return {name: float(model(self.graph.widths(keep))) for name, model in self._foretold.items()}

    def measure(self, candidates: Sequence[Keep]) -> list[Figures]:
        """Make candidates and measure them beside the network itself, learn from them, and return what they cost."""
        files = [self._made(keep) for keep in candidates]
        now, *found = self._figures([self._dense, *files])
        if "latency_s" in now:
            for figures in found:
                figures["latency_s"] *= self.dense["latency_s"] / now["latency_s"]
        for keep, figures in zip(candidates, found, strict=True):
            self._learn(self.graph.widths(keep), figures)
        return found

    def _made(self, keep: Keep) -> Path:
        """Return a candidate's artifact, made where there is none yet."""
        key = repr(sorted((name, list(kept)) for name, kept in keep.items()))
        if key not in self._artifacts:
            self._artifacts[key] = self._artifact(shrink(self.graph.model, self.graph, keep))
        return self._artifacts[key]

    def _figures(self, files: Sequence[Path]) -> list[Figures]:
        """Return what artifacts cost; their latencies are taken in turn."""
        found = [
            {name: float(count(path)) for name, count in COUNTED.items() if name in self.quantities} for path in files
        ]
        if "latency_s" in self.quantities:
            seconds = SECONDS * len(files)
            measured = measure(files, threads=self.threads, seconds=seconds, progress=self.progress)
            for figures, one in zip(found, measured, strict=True):
                figures["latency_s"] = one.latency_s
        return found

    def _learn(self, widths: ArrayLike, figures: Figures) -> None:
        for name, amount in figures.items():
            self._foretold[name] = self._foretold[name].corrected(widths, amount)

    def _float(self, model: nn.Module) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        return export(model, torch.zeros(1, *self.graph.example.shape[1:]), folder / "model.onnx")

    def _artifact(self, model: nn.Module) -> Path:
        path = self._float(model)
        if self.precision == "float32":
            return self._whole(path)
        noise = torch.randn(8, *self.graph.example.shape[1:], generator=torch.Generator().manual_seed(0))
        return self._whole(quantize_static(path, path.with_name("int8.onnx"), noise, Quantize(calibration=len(noise))))

    def _whole(self, path: Path) -> Path:
        return append_tail(path, self._tail) if self._tail else path


def within(
    candidates: Candidates,
    limits: Mapping[str, float],
    groups: Sequence[Group],
    choose: Callable[[CostModel, Figures], dict[str, Atoms]],
) -> tuple[dict[str, Atoms], list[Trial]]:
    """Choose channels to keep whose artifact was measured within all limits and uses one of them.

    Args:
        candidates: of the network.
        limits: amounts of the candidates' quantities.
        groups: those that may shrink.
        choose: ``(cost model, limits) -> keep``, the best candidate that is foretold to be within them.

    Returns:
        The channels to keep, and what was tried.

    Raises:
        BudgetError: no candidate was measured within the limits.
    """
    names = {group.name for group in groups}
    free = [name for name, branch in candidates.branches.items() if names.issuperset(branch.groups)]
    bare: dict[str, Atoms] = {name: np.empty(0, np.int64) for name in free}
    known = [_flexible(candidates.graph, _uniform(groups, share)) for share in KNOWN_SHARES]
    candidates.measure([*known, *([bare] if bare else [])])
    aims = {name: CARE[name].aim * limit for name, limit in limits.items()}
    best: tuple[dict[str, Atoms], float] | None = None
    trials: list[Trial] = []
    while len(trials) < (TRIES if best else MOST_TRIES):
        try:
            keep = (
                choose(candidates.cost_model, aims) if trials else _first(choose, candidates.cost_model, aims, limits)
            )
        except BudgetError:
            if not trials:
                raise
            break  # what was measured says that not even the narrowest candidate is within
        foretold = candidates.foretold(keep)
        (measured,) = candidates.measure([keep])
        for _ in range(CONFIRMED if "latency_s" in limits else 0):  # a process has luck with its place in memory
            if not _holds(measured, limits):
                break
            (again,) = candidates.measure([keep])
            measured = max(measured, again, key=lambda figures: figures["latency_s"])
        trials.append(Trial(foretold, measured))
        shares = {name: measured[name] / limit for name, limit in limits.items()}
        if holds := _holds(measured, limits):
            best = max(best or (keep, 0.0), (keep, max(shares.values())), key=lambda found: found[1])
        used = any(share >= CARE[name].used for name, share in shares.items())
        bound = any(foretold[name] >= CARE[name].used * aim for name, aim in aims.items())
        if holds and (used or not bound):  # or else other limits keep it from using these
            break
        learned = candidates.foretold(keep)  # by how much it is still wrong
        aims = {name: CARE[name].aim * limit * learned[name] / measured[name] for name, limit in limits.items()}
    if best is None:
        raise BudgetError(_not_reached(limits, trials))
    return best[0], trials


def _first(
    choose: Callable[[CostModel, Figures], dict[str, Atoms]],
    model: CostModel,
    aims: Figures,
    limits: Mapping[str, float],
) -> dict[str, Atoms]:
    """Choose the first candidate: with room for errors, with less of it, and with none, where there is nothing smaller.

    Raises:
        BudgetError: none is foretold to be within the limits themselves.
    """
    for amounts in (aims, {name: CARE[name].holds * limit for name, limit in limits.items()}):
        with contextlib.suppress(BudgetError):
            return choose(model, amounts)
    return choose(model, dict(limits))


def _holds(measured: Figures, limits: Mapping[str, float]) -> bool:
    return all(measured[name] <= CARE[name].holds * limit for name, limit in limits.items())


def _not_reached(limits: Mapping[str, float], trials: Sequence[Trial]) -> str:
    """Say which limit no candidate held, or that none held all of them, and what was measured."""
    least = {name: min(trial.measured[name] for trial in trials) for name in limits}
    missed = [name for name, limit in limits.items() if least[name] > CARE[name].holds * limit]
    if not missed:
        each = ", ".join(f"{name} of at most {format_exact(name, limit)}" for name, limit in limits.items())
        return f"{each}: each was held, but none of {len(trials)} candidates that were measured held them together"
    name = missed[0]
    return (
        f"{name} cannot go down to {format_exact(name, limits[name])}: the least that was measured is "
        f"{format_exact(name, least[name])}, of {len(trials)} candidates ({CARE[name].holds:g} of it is taken)"
    )


def _flexible(graph: Graph, keep: dict[str, Atoms]) -> dict[str, Atoms]:
    """Leave whole what cannot have these widths."""
    while stuck := rigid_groups(graph, keep):
        keep = {name: kept for name, kept in keep.items() if name not in stuck}
    return keep


def _uniform(groups: Sequence[Group], share: float) -> dict[str, Atoms]:
    """Keep the first channels of each group, a share that is a multiple of 8."""
    blocks = {g.name: g.block(ROUND_TO) for g in groups}
    widths = {g.name: max(block := blocks[g.name], round(share * g.size / block) * block) for g in groups}
    return {g.name: np.arange(widths[g.name]) for g in groups if widths[g.name] < g.size}
