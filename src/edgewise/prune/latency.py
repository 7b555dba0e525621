"""Pruning to a latency: candidates are foretold by the thousand, the chosen one is measured, the model corrected."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewise.cost.latency import LatencyModel, shapes_of
from edgewise.cost.static import CostModel
from edgewise.data.download import cache_folder
from edgewise.devices.measure import measure
from edgewise.devices.table import measure_layers
from edgewise.errors import BudgetError
from edgewise.export.onnx import export
from edgewise.graph.groups import Graph, Group
from edgewise.graph.surgery import shrink
from edgewise.graph.trace import Atoms
from edgewise.progress import Progress
from edgewise.quantize import Quantize, quantize_static

Precision = Literal["float32", "int8"]
KNOWN_SHARES = (0.75, 0.5, 0.25)  # of every group's channels: networks that are measured before any is chosen
USED = 0.9  # of the latency that is allowed: less is given back
AIM = 0.96  # of the limit: what is measured once scatters by a percent or two
HOLDS = 0.985  # of the limit: so much may be measured, so that the next measurement holds as well
TRIES = 5
SECONDS = 1.5  # of measuring, for each candidate
ROUND_TO = 8


@dataclass(frozen=True)
class Trial:
    """A candidate as it was foretold and measured, in seconds."""

    foretold_s: float
    measured_s: float


class CandidateLatency:
    """The latency of a network's candidates on this machine, as artifacts of one precision.

    Candidates are measured beside the dense network, and their ratio to it is taken, so that a machine that changes
    its speed changes nothing.

    Args:
        graph: the traced network.
        precision: of the artifacts; int8 ones are calibrated on noise, which their latency does not depend on.
        threads: that the runtime may use.
        branches: candidates may lack whole branches.
        tables: the folder of the tables of layers; by default in edgewise's cache.
        progress: is told (what, done, total).
    """

    def __init__(
        self,
        graph: Graph,
        *,
        precision: Precision = "float32",
        threads: int = 1,
        branches: bool = False,
        tables: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.graph, self.precision, self.threads, self.progress = graph, precision, threads, progress
        self.branches = graph.branches if branches else {}
        table = measure_layers(
            shapes_of(graph),
            tables or cache_folder() / "latency",
            precision=precision,
            threads=threads,
            progress=progress,
        )
        self._model = LatencyModel(CostModel(graph, branches=self.branches), table)
        self._folder = tempfile.TemporaryDirectory(prefix="edgewise-")
        self._dense = self._artifact(graph.model)
        (dense,) = measure([self._dense], threads=threads, seconds=SECONDS, progress=progress)
        self.dense_s = dense.latency_s
        self._model = self._model.corrected(graph.sizes, self.dense_s)

    @property
    def cost_model(self) -> CostModel:
        """The network's cost, its latency included as it is foretold now."""
        return CostModel(self.graph, {"latency_s": self._model}, self.branches)

    def foretold_s(self, keep: Mapping[str, Sequence[int] | Atoms]) -> float:
        """Return the seconds that a candidate is foretold to take."""
        return float(self._model(self._widths(keep)))

    def measure(self, candidates: Sequence[Mapping[str, Sequence[int] | Atoms]]) -> list[float]:
        """Measure candidates beside the dense network, learn from them, and return their seconds."""
        files = [self._dense, *(self._artifact(shrink(self.graph.model, self.graph, keep)) for keep in candidates)]
        dense, *found = measure(files, threads=self.threads, seconds=SECONDS * len(files), progress=self.progress)
        seconds = [self.dense_s * one.latency_s / dense.latency_s for one in found]
        for keep, taken in zip(candidates, seconds, strict=True):
            self._model = self._model.corrected(self._widths(keep), taken)
        return seconds

    def _widths(self, keep: Mapping[str, Sequence[int] | Atoms]) -> NDArray[np.int64]:
        gone = {
            n
            for name, kept in keep.items()
            if self.graph.takes_branch(name, kept)
            for n in self.graph.branches[name].groups
        }
        return np.array(
            [0 if g.name in gone else len(keep.get(g.name, range(g.size))) for g in self.graph.groups], np.int64
        )

    def _artifact(self, model: nn.Module) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        shape = self.graph.example.shape[1:]
        path = export(model, torch.zeros(1, *shape), folder / "model.onnx")
        if self.precision == "float32":
            return path
        noise = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
        return quantize_static(path, folder / "int8.onnx", noise, Quantize(calibration=len(noise)))


def within_latency(
    latency: CandidateLatency,
    limit_s: float,
    groups: Sequence[Group],
    choose: Callable[[CostModel, float], dict[str, Atoms]],
) -> tuple[dict[str, Atoms], list[Trial]]:
    """Choose channels to keep whose measured latency is within a limit and uses at least nine tenths of it.

    Args:
        latency: of the network's candidates.
        limit_s: seconds.
        groups: those that may shrink.
        choose: ``(cost model, seconds) -> keep``, the best candidate that is foretold to take so long.

    Returns:
        The channels to keep, and what was tried.

    Raises:
        BudgetError: no candidate was measured within the limit.
    """
    names = [group.name for group in groups]
    bare: dict[str, Atoms] = {name: np.empty(0, np.int64) for name in latency.branches if name in names}
    latency.measure([*(_uniform(groups, share) for share in KNOWN_SHARES), *([bare] if bare else [])])
    aim = AIM * limit_s
    best: tuple[dict[str, Atoms], float] | None = None
    trials: list[Trial] = []
    for _ in range(TRIES):
        try:
            keep = choose(latency.cost_model, aim)
        except BudgetError:
            if not trials:
                raise
            break  # what was measured says that not even the narrowest candidate is fast enough
        foretold = latency.foretold_s(keep)
        (measured,) = latency.measure([keep])
        trials.append(Trial(foretold, measured))
        if measured <= HOLDS * limit_s and (best is None or measured > best[1]):
            best = keep, measured
        if USED * limit_s <= measured <= HOLDS * limit_s:
            break
        aim = AIM * limit_s * latency.foretold_s(keep) / measured  # by how much what is foretold is still wrong
    if best is None:
        tried = ", ".join(f"{trial.measured_s * 1e3:.3f}" for trial in trials)
        raise BudgetError(f"latency_s = {limit_s * 1e3:.3f} ms was not reached: {tried} ms were measured")
    return best[0], trials


def _uniform(groups: Sequence[Group], share: float) -> dict[str, Atoms]:
    """Keep the first channels of each group, a share that is a multiple of 8."""
    widths = {g.name: max(ROUND_TO, round(share * g.size / ROUND_TO) * ROUND_TO) for g in groups}
    return {g.name: np.arange(widths[g.name]) for g in groups if widths[g.name] < g.size}
