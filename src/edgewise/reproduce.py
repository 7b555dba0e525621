"""A published system beside ours: its arms are run, each into a run folder, and their figures gathered.

    OUT/ NAME.json  comparison.html  <arm>/ ...  <arm>/ ...

An arm that is finished is not run again and an interrupted one goes on, so that a long system is run in pieces.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, final

import torch

from edgewise.comparison import write_comparison
from edgewise.context import read_result
from edgewise.cost.visible import Visible, visible
from edgewise.data import Dataset
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
from edgewise.export import network
from edgewise.export.network import TENSORS
from edgewise.export.packed import stored_bytes
from edgewise.files import is_partial, read_json, whole_folder, write_bytes, write_json
from edgewise.folder import event
from edgewise.layout import DENSE, FIRST, MANIFEST, RECIPE, RESULTS, STEPS, step_folder
from edgewise.page import ratio
from edgewise.progress import Progress
from edgewise.quantize.schemes import SCHEMES
from edgewise.recipe import Recipe, Train, absolute, read, shipped, to_toml
from edgewise.run import compress, load_images
from edgewise.systems import SYSTEMS, Arm, System

SHOWN_VERSIONS = ("torch", "onnxruntime")
# What went, as a share of the dense network's at batch 1, and the column it is counted from.
CUTS = {
    "params_cut": "params",
    "macs_cut": "macs",
    "memory_cut": "activation_bytes",
}
COMPARISON = "comparison.html"


class OutOfTime(Exception):  # noqa: N818 - no error: the next piece goes on
    """The minutes are over; the message says how far an arm is."""


@dataclass(frozen=True)
class Reproduced:
    """What there is of a system.

    Args:
        record: as in ``NAME.json``; the rows of the arms that are finished.
        left: how far the first unfinished arm is, and how many there are; empty when there is nothing to go on with.
        page: the chart and the figures of the finished arms; None where none is finished.
    """

    record: dict[str, Any]
    left: str = ""
    page: Path | None = None


def reproduce(
    name: str,
    out: Path | None = None,
    *,
    small: bool = False,
    data: str | None = None,
    weights: Mapping[str, str] | None = None,
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
        weights: files by the names of models, which dense trainings start from in place of fresh weights.
        resume: go on with what is in `out`.
        minutes: stop at the first end of an epoch or an arm after so long.
        progress: is told (what, done, total) while something lasts.
        log: is given each arm's label and row of results.json as it is known.

    Raises:
        UnknownName: no such system, or weights for a network that it has not.
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
    # All of them, before hours are spent on the first.
    plans = {arm.label: plan(arm, out, data, weights, system.tuning) for arm in arms}
    models = {recipe.model for recipe in plans.values()}
    for model in weights or {}:
        if model not in models:
            raise UnknownName(f'--weights: {name} has no network "{model}"; {nearest(model, models)}')
    loaded = Loaded(progress)
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
            if arm.begins_as and not folder.exists():
                take_over(place(out, arm.begins_as), folder, plans[arm.label])
            going_on = (folder / RECIPE).exists()
            needless = _finished(out, arm) or plans[arm.label].data_free
            images = None if needless else loaded(plans[arm.label])
            show = partial(log, arm.label)
            run = compress(plans[arm.label], folder, resume=going_on, images=images, progress=watch, log=show)
            watch.worked |= not run.before
        except OutOfTime as reason:
            left = f"{reason}; {sum(_finished(out, each) for each in arms)} of {len(arms)} runs are done"
            break
        except (BudgetError, ModelError, TrainingDiverged, MeasurementFailed, CheckFailed) as error:
            refused[arm.label] = str(error)  # that a budget cannot be met, or a training fails, is a result too
        kept()
    done = {place(out, arm.label): series_of(arm, plans[arm.label].model) for arm in arms if _finished(out, arm)}
    about = f"{name}, {'small' if small else 'full'}: {len(done)} of {len(arms)} runs"
    page = write_comparison(list(done), out / COMPARISON, series=done, title=about, cost=system.cost) if done else None
    return Reproduced(kept(), left, page)


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


@final
class Loaded:
    """Loads the images of one recipe after the other, and keeps them as long as the next one wants the same."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self._wanted: tuple[object, ...] = ()
        self._images: Dataset

    def __call__(self, recipe: Recipe) -> Dataset:
        """Return a recipe's images."""
        wanted = (recipe.data, recipe.held, recipe.size, recipe.images, recipe.skip_bad, recipe.seed)
        if wanted != self._wanted:
            self._images, self._wanted = load_images(recipe, self.progress), wanted
        return self._images


def take_over(other: Path, folder: Path, recipe: Recipe) -> None:
    """Begin an arm's run folder with the first steps of a finished run, as far as its recipe has the same ones.

    What a step leaves depends on what came before it alone, so the run goes on as if it had done them itself.
    """
    if not (other / MANIFEST).exists():
        return
    theirs = read(other / RECIPE)
    if replace(theirs, step=recipe.step) != absolute(recipe):
        return
    pairs = zip(theirs.step, recipe.step, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if same < recipe.dense_at:
        return
    with whole_folder(folder) as partial_run:
        write_bytes(partial_run / RECIPE, to_toml(absolute(recipe)).encode())
        event(partial_run, "take over", steps=same, of=other.name)
        shutil.copytree(other / DENSE, partial_run / DENSE)
        shutil.copytree(other / STEPS / FIRST, partial_run / STEPS / FIRST)
        for index, step in enumerate(recipe.step[:same]):
            shutil.copytree(step_folder(other, index, step.kind), step_folder(partial_run, index, step.kind))


def plan(
    arm: Arm,
    out: Path,
    data: str | None = None,
    weights: Mapping[str, str] | None = None,
    tuning: tuple[str, ...] = (),
) -> Recipe:
    """Return what an arm does.

    Args:
        arm: of a system.
        out: where the arms' run folders lie.
        data: replaces the recipe's.
        weights: files by the names of models; the arm's dense training starts from its model's, if there is one.
        tuning: changes of the recipe then.

    Raises:
        RecipeError: its recipe is not there, or does not take its changes.
    """
    path, replaced = shipped() / f"{arm.recipe}.toml", [f"data={data}"] if data else []
    if arm.teachers:
        teachers = [str(place(out, label).absolute()) for label in arm.teachers]
        replaced.append(f"step.0.method.0.teachers={teachers}")
    recipe = read(path, [*arm.changes, *replaced])
    if weights and (start := weights.get(recipe.model)):
        recipe = replace(read(path, [*arm.changes, *tuning, *replaced]), weights=start)
    if not arm.from_dense:
        return recipe
    trained = str((place(out, arm.dense) / TENSORS).absolute())
    return replace(recipe, weights=trained, step=recipe.step[recipe.dense_at :])


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


def series_of(arm: Arm, model: str) -> str:
    """Return what an arm is one of in the chart."""
    return arm.series or arm.label.removeprefix(f"{model} ")


def _finished(out: Path, arm: Arm) -> bool:
    return (place(out, arm.label) / MANIFEST).exists()


def _row(arm: Arm, folder: Path) -> dict[str, Any]:
    """Read an arm's figures from its run folder."""
    results, manifest = read_json(folder / RESULTS), read_json(folder / MANIFEST)
    dense, *steps = results["rows"]
    recipe = read(folder / RECIPE)
    found = [read_result(step_folder(folder, index, step.kind)) for index, step in enumerate(recipe.step)]
    made, stored = found[-1].get("artifact", {}), next((each for each in found if "packed_ratio" in each), {})
    packed = made.get("precision") == SCHEMES["int8_dynamic"].precision  # whoever chose it
    shape = tuple(results["input_shape"])
    before, seen = visible_in(folder / DENSE, shape), visible_in(folder, shape, packed)
    counted = [layer["name"] for layer in results["layers"] if layer["after"]["params"] and layer["after"]["macs"]]
    seconds: dict[str, float] = {}
    for step in steps:
        seconds[step["kind"]] = seconds.get(step["kind"], 0.0) + step["seconds"]
    return {
        "label": arm.label,
        "series": series_of(arm, results["model"]),
        "recipe": arm.recipe,
        "changes": list(arm.changes),
        "model": results["model"],
        "data": manifest["data"]["name"],
        "data_note": results["data_note"],
        "epochs": [step.epochs for step in recipe.step if isinstance(step, Train)],
        "pretrained": "" if arm.from_dense or recipe.weights is None else Path(recipe.weights).name,
        "seed": results["seed"],
        "cpu": manifest["machine"]["cpu"],
        "trained_on": manifest["training"]["device"],
        "versions": {"edgewise": manifest["edgewise"], **{p: manifest["versions"].get(p) for p in SHOWN_VERSIONS}},
        "metric": results.get("metric", "accuracy"),
        "accuracy": steps[-1]["accuracy"],
        "dense_accuracy": dense["accuracy"],
        **{column: steps[-1][column] for column in ("nonzero", *CUTS.values())},
        "nonzero_cut": 1 - steps[-1]["nonzero"] / dense["params"],  # gone or zero, whichever
        **{cut: 1 - steps[-1][column] / dense[column] for cut, column in CUTS.items()},
        "packed": packed,
        "visible_params": seen.params,
        "visible_macs": seen.macs,
        "visible_params_cut": 1 - seen.params / before.params,
        "visible_macs_cut": 1 - seen.macs / before.macs,
        "file_bytes": steps[-1]["file_bytes"],
        "file_cut": 1 - steps[-1]["file_bytes"] / dense["file_bytes"],
        "packed_ratio": stored.get("packed_ratio"),
        **weight_bits(folder, counted),
        **({"judged": results["judged"]} if results.get("judged") else {}),
        **stored.get("ternary", {}),
        "latency_s": steps[-1]["latency_s"],
        "latency_ratio": ratio(steps[-1]["latency_s"], dense["latency_s"]),
        "seconds": seconds,
    }


def weight_bits(folder: Path, layers: Collection[str]) -> dict[str, Any]:
    """Return what a layer's weight takes in a run's packed file, in bits, mean and each; nothing without the file."""
    packed = folder / network.PACKED
    if not packed.exists():
        return {}
    weights = [each for each in stored_bytes(packed) if each.name.removesuffix(".weight") in layers]
    mean = 8 * sum(each.bytes for each in weights) / sum(each.numbers for each in weights)
    return {"weight_bits": mean, "layer_bits": {each.name: round(each.bits, 2) for each in weights}}


@cache
def visible_in(folder: Path, shape: tuple[int, ...], packed: bool = False) -> Visible:
    """Count the network of a finished run's folder as a module counter does, its linear layers packed or not."""
    return visible(network.load(folder), torch.zeros(1, *shape), packed=packed)


def _train_s(arm: Arm, rows: dict[str, dict[str, Any]]) -> float:
    """Return the seconds of an arm's whole training, that of the dense network it starts from included."""
    own: float = rows[arm.label]["seconds"].get("train", 0.0)
    return own + (rows[arm.dense]["seconds"]["train"] if arm.from_dense and arm.dense in rows else 0.0)


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
