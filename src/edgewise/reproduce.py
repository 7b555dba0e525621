"""A published system beside ours: its arms are run, each into a run folder, and their figures gathered.

    OUT/ NAME.json  <arm>/ ...  <arm>/ ...

An arm that is finished is not run again and an interrupted one goes on, so that a long system is run in pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from edgewise.errors import (
    BudgetError,
    CheckFailed,
    MeasurementFailed,
    ModelError,
    RunFolderError,
    TrainingDiverged,
    UnknownName,
    UserError,
    nearest,
)
from edgewise.export.network import TENSORS
from edgewise.files import is_partial, read_json, write_json
from edgewise.layout import MANIFEST, RECIPE, RESULTS
from edgewise.page import ratio
from edgewise.progress import Progress
from edgewise.recipe import Recipe, Train, read, shipped
from edgewise.run import compress
from edgewise.systems import SYSTEMS, Arm, System
from edgewise.units import format_bytes

SHOWN_VERSIONS = ("torch", "onnxruntime")
# What went, as a share of the dense network's at batch 1, and the column it is counted from.
CUTS = {"params_cut": "params", "macs_cut": "macs", "memory_cut": "activation_bytes"}
METHODS_OWN = ("method.", "knee.", "complexity.", "keep_")  # settings worth a reader's eye where an arm changes them
COLUMNS = ("", "setting", "accuracy", "params cut", "MACs cut", "memory cut", "latency", "file", "training")


class OutOfTime(Exception):  # noqa: N818 - no error: the next piece goes on
    """The minutes are over; the message says how far an arm is."""


@dataclass(frozen=True)
class Reproduced:
    """What there is of a system.

    Args:
        record: as in ``NAME.json``; the rows of the arms that are finished.
        left: how far the first unfinished arm is, and how many there are; empty when there is nothing to go on with.
    """

    record: dict[str, Any]
    left: str = ""


def reproduce(
    name: str,
    out: Path | None = None,
    *,
    small: bool = False,
    data: str | None = None,
    resume: bool = False,
    minutes: float | None = None,
    progress: Progress | None = None,
    log: Callable[[str, dict[str, Any]], None] = lambda label, row: None,
) -> Reproduced:
    """Run a published system's arms and put their figures beside the published ones.

    Args:
        name: of `SYSTEMS`.
        out: where the arms' run folders lie; by default ``runs/reproduce/NAME``, or ``NAME-small``.
        small: the setting that two processor cores finish in some minutes, in place of the full one.
        data: replaces the recipes' data.
        resume: go on with what is in `out`.
        minutes: stop at the first end of an epoch or an arm after so long.
        progress: is told (what, done, total) while something lasts.
        log: is given each arm's label and row of results.json as it is known.

    Raises:
        UnknownName: no such system.
        RunFolderError: `out` holds something, and `resume` was not asked for.
        UserError: an arm's recipe, network or data cannot be used.
    """
    if name not in SYSTEMS:
        raise UnknownName(f'no system is called "{name}"; {nearest(name, SYSTEMS)}')
    system, title = SYSTEMS[name], f"{name}-small" if small else name
    arms = system.small if small else system.arms
    out = out or Path("runs") / "reproduce" / title
    if not resume and out.is_dir() and not all(is_partial(path) for path in out.iterdir()):
        raise RunFolderError(f"{out}: exists already; take --resume to go on with it, or another --out")
    plans = {arm.label: plan(arm, out, data) for arm in arms}  # all of them, before hours are spent on the first
    watch = Watch(minutes, progress)
    record = out / f"{title}.json"
    earlier = read_json(record)["refused"] if resume and record.exists() else {}
    refused: dict[str, str] = {arm.label: earlier[arm.label] for arm in arms if arm.label in earlier}
    left = ""
    out.mkdir(parents=True, exist_ok=True)

    def kept() -> dict[str, Any]:
        """Write what there is so far."""
        found = gathered(name, system, arms, out, "small" if small else "full", refused)
        write_json(record, found)
        return found

    for arm in arms:
        if arm.label in refused:  # it would be again
            continue
        folder = place(out, arm.label)
        try:
            watch.begin(arm.label, _finished(out, arm))
            going_on = (folder / RECIPE).exists()
            run = compress(plans[arm.label], folder, resume=going_on, progress=watch, log=partial(log, arm.label))
            watch.worked |= not run.before
        except OutOfTime as reason:
            left = f"{reason}; {sum(_finished(out, each) for each in arms)} of {len(arms)} runs are done"
            break
        except (BudgetError, ModelError, TrainingDiverged, MeasurementFailed, CheckFailed) as error:
            refused[arm.label] = str(error)  # that a budget cannot be met, or a training fails, is a result too
        kept()
    return Reproduced(kept(), left)


class Watch:
    """Looks at the clock where stopping costs nothing, and passes progress on.

    At least one epoch or arm is done before it stops, so that pieces however short come to an end; `worked` says so.

    Args:
        minutes: after which it stops; None never does.
        progress: is told what it is told.
        clock: seconds that only grow.
    """

    def __init__(
        self, minutes: float | None, progress: Progress | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.minutes, self.progress, self.clock = minutes, progress, clock
        self.started, self.worked, self.label = clock(), False, ""

    def begin(self, label: str, finished: bool) -> None:
        """Turn to an arm.

        Raises:
            OutOfTime: the minutes are over, and the arm is not finished.
        """
        if not finished:
            self._stop(f"{label} comes next")
        self.label = label

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take notice of progress.

        Raises:
            OutOfTime: the minutes are over, and an epoch has just been kept.
        """
        if self.progress is not None:
            self.progress(what, done, total)
        if what == "epochs":
            self.worked = True
            self._stop(f"{self.label} has done {done} of {total} epochs")

    def _stop(self, reason: str) -> None:
        over = self.minutes is not None and self.clock() - self.started >= 60 * self.minutes
        if over and self.worked:
            raise OutOfTime(reason)


def plan(arm: Arm, out: Path, data: str | None = None) -> Recipe:
    """Return what an arm does.

    Raises:
        RecipeError: its recipe is not there, or does not take its changes.
    """
    changes = [*arm.changes, *([f"data={data}"] if data else [])]
    recipe = read(shipped() / f"{arm.recipe}.toml", changes)
    if not arm.from_dense:
        return recipe
    weights = str((place(out, arm.dense) / TENSORS).absolute())
    return replace(recipe, weights=weights, step=recipe.step[recipe.dense_at :])


def place(out: Path, label: str) -> Path:
    """Return an arm's run folder."""
    return out / label.replace(" ", "-")


# -- what came of it ------------------------------------------------------------------------------------------------


def gathered(
    name: str, system: System, arms: tuple[Arm, ...], out: Path, scale: str, refused: dict[str, str]
) -> dict[str, Any]:
    """Put the rows of the finished arms under what was published."""
    rows = {arm.label: _row(arm, place(out, arm.label)) for arm in arms if _finished(out, arm)}
    train_s = {arm.label: _train_s(arm, rows) for arm in arms if arm.label in rows}
    for arm in arms:
        if arm.label in rows:
            if arm.dense in rows:
                rows[arm.label]["dense_accuracy"] = rows[arm.dense]["accuracy"]
            if arm.from_dense and arm.dense in rows:  # its own training is only what came after
                rows[arm.label]["epochs"] = rows[arm.dense]["epochs"] + rows[arm.label]["epochs"]
            usual = train_s.get(arm.against)
            rows[arm.label]["against"] = arm.against
            rows[arm.label]["train_s"] = train_s[arm.label]
            rows[arm.label]["train_s_cut"] = 1 - train_s[arm.label] / usual if usual else None
    return {
        "system": name,
        "about": system.about,
        "citation": system.citation,
        "scale": scale,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "published": [asdict(row) for row in system.published],
        "rows": list(rows.values()),
        "refused": {label: why for label, why in refused.items() if label not in rows},
        "missing": [arm.label for arm in arms if arm.label not in rows and arm.label not in refused],
    }


def _finished(out: Path, arm: Arm) -> bool:
    return (place(out, arm.label) / MANIFEST).exists()


def _row(arm: Arm, folder: Path) -> dict[str, Any]:
    """Read an arm's figures from its run folder."""
    results, manifest = read_json(folder / RESULTS), read_json(folder / MANIFEST)
    dense, *steps = results["rows"]
    seconds: dict[str, float] = {}
    for step in steps:
        seconds[step["kind"]] = seconds.get(step["kind"], 0.0) + step["seconds"]
    return {
        "label": arm.label,
        "recipe": arm.recipe,
        "changes": list(arm.changes),
        "model": results["model"],
        "data": manifest["data"]["name"],
        "data_note": results["data_note"],
        "epochs": [step.epochs for step in read(folder / RECIPE).step if isinstance(step, Train)],
        "seed": results["seed"],
        "cpu": manifest["machine"]["cpu"],
        "trained_on": manifest["training"]["device"],
        "versions": {"edgewise": manifest["edgewise"], **{p: manifest["versions"].get(p) for p in SHOWN_VERSIONS}},
        "accuracy": steps[-1]["accuracy"],
        "dense_accuracy": dense["accuracy"],
        **{column: steps[-1][column] for column in CUTS.values()},
        **{cut: 1 - steps[-1][column] / dense[column] for cut, column in CUTS.items()},
        "file_bytes": steps[-1]["file_bytes"],
        "latency_s": steps[-1]["latency_s"],
        "latency_ratio": ratio(steps[-1]["latency_s"], dense["latency_s"]),
        "seconds": seconds,
    }


def _train_s(arm: Arm, rows: dict[str, dict[str, Any]]) -> float:
    """Return the seconds of an arm's whole training, that of the dense network it starts from included."""
    own: float = rows[arm.label]["seconds"].get("train", 0.0)
    return own + (rows[arm.dense]["seconds"]["train"] if arm.from_dense and arm.dense in rows else 0.0)


def cells(record: dict[str, Any]) -> list[list[str]]:
    """Write a record's rows for a table of `COLUMNS`: what was published first, marked with its source."""
    published = [
        [
            "published",
            f"{row['setting']} ({row['source']})",
            row["accuracy_note"] or _percent(row["accuracy"], 2),
            *(_percent(row[cut], 1) for cut in CUTS),
            *("-",) * 3,
        ]
        for row in record["published"]
    ]
    ours = [
        [
            "ours",
            f"{row['label']}, {row['data']}, {'+'.join(map(str, row['epochs']))} epochs, seed {row['seed']}"
            + "".join(f", {change}" for change in _changed(row["changes"])),
            f"{_percent(row['accuracy'], 2)} of {_percent(row['dense_accuracy'], 2)}",
            *(_percent(row[cut], 1) for cut in CUTS),
            "-" if row["latency_ratio"] is None else f"{row['latency_ratio']:.2f} of dense",
            format_bytes(row["file_bytes"]),
            f"{row['train_s']:.0f} s" + _saved(row, record["rows"]),
        ]
        for row in record["rows"]
    ]
    refused = [["ours", f"{label}: {why}", *("-",) * 7] for label, why in record["refused"].items()]
    return [*published, *ours, *refused]


def _changed(changes: list[str]) -> list[str]:
    """Return the settings of its method that an arm changes, without the number of their step.

    >>> _changed(["images=9", "step.0.keep_macs=", "step.0.complexity.mode=params", "step.1.epochs=3"])
    ['complexity.mode=params']
    """
    own = [change.split(".", 2)[2] for change in changes if change.startswith("step.")]
    return [change for change in own if change.startswith(METHODS_OWN) and not change.endswith("=")]


def notes(record: dict[str, Any]) -> list[str]:
    """Say what must be known of the data that a record's rows come from, each thing once."""
    return list(dict.fromkeys(row["data_note"] for row in record["rows"] if row["data_note"]))


def _saved(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Say how much less time a training took than the one it is compared with, and what that one did."""
    if row["train_s_cut"] is None:
        return ""
    other = next(each for each in rows if each["label"] == row["against"])
    did = f"{'+'.join(map(str, other['epochs']))} epochs, {_percent(other['macs_cut'])} of the MACs cut"
    return f" ({-row['train_s_cut']:+.0%} of {row['against']}: {did})"


def _percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{share:.{digits}%}"


def record_into(repository: Path, reproduced: Reproduced) -> Path:
    """Keep a finished record among the repository's results, from which its results page is made.

    Raises:
        UserError: the folder is not edgewise's repository, or runs are missing.
    """
    results, record = repository / "docs" / "results", reproduced.record
    if not results.is_dir():
        raise UserError(f"--record: {results} is not there; run it in edgewise's repository")
    if record["missing"]:
        raise UserError(f"--record: {', '.join(record['missing'])} are not finished yet")
    suffix = "-small" if record["scale"] == "small" else ""
    return write_json(results / f"{record['system']}{suffix}.json", record)
