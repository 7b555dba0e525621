"""A recipe becomes a run folder: steps, artifact, results, proof, report.

    RUN/ recipe.toml  manifest.json  results.json  events.jsonl  report.html
         model.onnx  model.safetensors  structure.json
         dense/  steps/01-train/  ...

Every folder under `steps` appears whole or not at all, so a killed run goes on where it stopped. `manifest.json` is
written last: a run that has one is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgewise
from edgewise import data, models
from edgewise.budget import verdict
from edgewise.cost import CostModel
from edgewise.devices.local import machine
from edgewise.errors import RunFolderError, TrainingDiverged
from edgewise.export import network
from edgewise.export.network import SOURCE, STRUCTURE, TENSORS, Builder
from edgewise.files import canonical_json, read_json, sha256, whole_folder, write_bytes, write_json
from edgewise.graph import trace
from edgewise.recipe import Recipe, to_toml
from edgewise.steps import ARTIFACT, Context, Place, Progress, dense_reference, read_result, run_step

RECIPE, MANIFEST, RESULTS, EVENTS, REPORT = (
    "recipe.toml",
    "manifest.json",
    "results.json",
    "events.jsonl",
    "report.html",
)
DENSE = "dense"


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and its results, as in results.json."""

    folder: Path
    results: dict[str, Any]

    @property
    def budget_met(self) -> bool:
        """Whether every limit of the recipe's budget holds; true where there is none."""
        return all(limit["met"] for limit in (self.results["budget"] or {}).values())


def load(folder: str | Path) -> nn.Module:
    """Read the compressed network of a run folder back, in evaluation mode.

    Raises:
        ModelError: the folder holds no network, or its tensors do not fit its structure.
    """
    return network.load(Path(folder))


def compress(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    progress: Progress = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Finished:
    """Carry out a recipe.

    Args:
        recipe: what to do.
        out: the run's folder; by default ``runs/<recipe's name>``, numbered when taken.
        resume: go on with an interrupted run in that folder (by default the newest of the recipe's name).
        progress: is told (what, done, total) while something lasts.
        log: is given each row of results.json as it is known.

    Raises:
        UserError: the recipe's network, data or folder cannot be used; nothing is half-written.
        CheckFailed: an equality did not hold; the run stopped there.
        TrainingDiverged: the loss became NaN or infinite; the message names step and epoch.
    """
    log = log or (lambda _: None)
    context, initial = _prepare(recipe, progress)
    folder = _open(recipe, Path(out) if out else None, resume)
    if (folder / MANIFEST).exists():
        return Finished(folder, read_json(folder / RESULTS))
    context = replace(context, folder=folder)
    _event(folder, "resume" if resume else "start", recipe=recipe.name)
    before = _first(folder, initial, context)
    context = replace(context, builder=_kept_builder(context.builder, before))
    dense: Path | None = None
    for index, step in enumerate(recipe.step):
        if index == recipe.dense_at:
            dense = _dense(context, before)
            log(_dense_row(read_result(dense)))
        name = f"{index + 1:02d}-{step.kind}"
        after = folder / "steps" / name
        if not after.exists():
            _event(folder, "step", step=name)
            try:
                with whole_folder(after, keep_partial=step.kind == "train") as partial:
                    run_step(context, Place(index, before, partial, dense))
            except TrainingDiverged as error:
                raise TrainingDiverged(f"step {name}: {error}") from error
        log(_step_row(after, index))
        before = after
    dense = dense or _dense(context, before)
    return _finish(context, before, dense)


# -- before the steps -----------------------------------------------------------------------------------------------


def _prepare(recipe: Recipe, progress: Progress) -> tuple[Context, nn.Module]:
    """Load the data and make the network, and find whatever is wrong with them before anything is written."""
    images = data.load(recipe.data, held=recipe.held, size=recipe.size, progress=progress)
    channels, side, _ = images.input_shape
    builder = Builder(recipe.model, len(images.classes), channels, side, recipe.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = builder.build()
    if recipe.weights is not None:
        model = models.load_weights(model, Path(recipe.weights))
    models.check_output(model, images.input_shape, len(images.classes))
    context = Context(recipe, Path(), images, builder, _device(recipe.device), progress)
    trace(model, context.example)  # an operator without a rule is named now, not after hours of training
    return context, model


def _device(name: str) -> torch.device:
    from edgewise.train.forward import resolve_device

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return resolve_device(name)


def _open(recipe: Recipe, out: Path | None, resume: bool) -> Path:
    """Find or make the run's folder; refuse one that holds something else."""
    text = to_toml(recipe)
    folder = out or _default_folder(recipe.name, resume)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder}: a file of that name is in the way")
    if resume:
        if not (folder / RECIPE).exists():
            raise RunFolderError(f"{folder}: no run to resume")
        if (folder / RECIPE).read_text(encoding="utf-8") != text:
            raise RunFolderError(f"{folder}: was begun with another recipe (its {RECIPE}); resume with that one")
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(f"{folder}: exists already; take --resume to go on with it, or another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / RECIPE, text.encode())
    return folder


def _default_folder(name: str, resume: bool) -> Path:
    """Return ``runs/<name>``, or with a number: the first that is free, or the last there is to resume."""
    number, folder = 1, Path("runs") / name
    while folder.exists():
        number += 1
        following = Path("runs") / f"{name}-{number}"
        if resume and not following.exists():
            break
        folder = following
    return folder


def _first(folder: Path, initial: nn.Module, context: Context) -> Path:
    """Keep the network the run starts from."""
    start = folder / "steps" / "00-start"
    if not start.exists():
        with whole_folder(start) as partial:
            network.save(initial, context.builder, partial)
    return start


def _kept_builder(builder: Builder, start: Path) -> Builder:
    """Build from the run's own copy of the user's file from now on: the original may change while the run lasts."""
    if not (start / SOURCE).exists():
        return builder
    return replace(builder, model=f"{start / SOURCE}:{builder.model.rpartition(':')[2]}")


def _dense(context: Context, before: Path) -> Path:
    """Return the folder of the dense reference, made if it is not there."""
    dense = context.folder / DENSE
    if not dense.exists():
        with whole_folder(dense) as partial:
            dense_reference(context, before, partial)
    return dense


# -- after the steps ------------------------------------------------------------------------------------------------


def _finish(context: Context, last: Path, dense: Path) -> Finished:
    """Put the results together, write the report, and seal the folder with its manifest."""
    from edgewise import report

    folder = context.folder
    for name in (TENSORS, STRUCTURE, SOURCE, ARTIFACT):
        if (last / name).exists():
            write_bytes(folder / name, (last / name).read_bytes())
    results = _results(context, dense)
    write_json(folder / RESULTS, results)
    manifest = _manifest(context, dense)
    _event(folder, "done")
    write_bytes(folder / REPORT, report.render(results, manifest).encode())
    manifest["files"] = {name: sha256(folder / name) for name in files(folder)}
    write_json(folder / MANIFEST, sealed(manifest))
    return Finished(folder, results)


def _step_folders(context: Context) -> list[Path]:
    return [context.folder / "steps" / f"{i + 1:02d}-{s.kind}" for i, s in enumerate(context.recipe.step)]


def _step_row(folder: Path, index: int) -> dict[str, Any]:
    result = read_result(folder)
    step, kind = folder.name, folder.name.partition("-")[2]
    return {
        "index": index + 1,
        "step": step,
        "kind": kind,
        "label": kind,
        **result["row"],
        "seconds": result["seconds"],
        "notes": result["notes"],
    }


def _dense_row(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": 0,
        "step": DENSE,
        "kind": DENSE,
        "label": "dense float32",
        **result["row"],
        "seconds": result["seconds"],
        "notes": result["notes"],
    }


def _results(context: Context, dense: Path) -> dict[str, Any]:
    """Gather results.json: one row a step, the dense row first."""
    recipe, images = context.recipe, context.data
    folders = _step_folders(context)
    found = [read_result(folder) for folder in folders]
    measurements: list[dict[str, Any]] = next((r["measurements"] for r in reversed(found) if "measurements" in r), [])
    reference = _dense_row(read_result(dense))
    if measurements:
        reference["latency_s"] = measurements[0]["latency_s"]
        reference["resident_bytes"] = measurements[0]["resident_bytes"]
    if recipe.dense_at == 0 and recipe.weights is None:
        reference["notes"] = [*reference["notes"], "this run never trained its dense network"]
        reference["accuracy"] = None
    rows = [reference, *(_step_row(folder, index) for index, folder in enumerate(folders))]
    compressed = _compressed(reference, rows[-1])
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "data": recipe.data,
        "data_note": images.note,
        "classes": list(images.classes),
        "input_shape": list(images.input_shape),
        "mean": list(images.mean),
        "std": list(images.std),
        "seed": recipe.seed,
        "rows": rows,
        "layers": _layers(context, dense, folders[-1]),
        "measurements": measurements,
        "budget": verdict(recipe.budget, compressed) if recipe.budget else None,
        "curves": {f.name: r["curve"] for f, r in zip(folders, found, strict=True) if "curve" in r},
        "compressed": compressed,
    }


def _compressed(dense: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Return the final network's figures and what they are of the dense network's; None where one is unknown."""
    columns = ("accuracy", "params", "nonzero", "macs", "weight_bytes", "peak_activation_bytes", "file_bytes")
    figures = {name: last[name] for name in (*columns, "latency_s", "resident_bytes")}

    def ratio(a: Any, b: Any) -> float | None:
        return None if a is None or not b else a / b

    known = dense["accuracy"] is not None
    return {
        **figures,
        # Rounded, so that exactly one point does not miss a limit of one point by a float's last bit.
        "drop_pt": round((dense["accuracy"] - last["accuracy"]) * 100, 9) if known else None,
        "size_ratio": ratio(last["file_bytes"], dense["file_bytes"]),
        "speedup": ratio(dense["latency_s"], last["latency_s"]),
    }


def _layers(context: Context, dense: Path, last: Path) -> list[dict[str, Any]]:
    """Say layer by layer where params, MACs and memory went; a layer that is gone costs nothing afterwards."""
    tables = []
    for folder in (dense, last):
        graph = trace(network.load(folder), context.example)
        tables.append({layer.name: layer for layer in CostModel(graph).layers(graph.sizes)})
    before, after = tables
    columns = ("params", "macs", "weight_bytes", "activation_bytes")
    return [
        {
            "name": name,
            "kind": layer.kind,
            "before": {c: getattr(layer, c) for c in columns},
            "after": {c: getattr(after[name], c) if name in after else 0 for c in columns},
        }
        for name, layer in before.items()
    ]


def _manifest(context: Context, dense: Path) -> dict[str, Any]:
    """Say what the run was made with and from, and every equality that was checked."""
    checks = []
    for folder in (dense, *_step_folders(context)):
        checks += [{"step": folder.name, **check} for check in read_result(folder)["checks"]]
    facts = machine()
    return {
        "edgewise": edgewise.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "versions": facts.get("versions", {}),
        "seed": context.recipe.seed,
        "data": {"name": context.data.name, "checksum": context.data.checksum, "note": context.data.note},
        "checks": checks,
    }


def files(folder: Path) -> list[str]:
    """List every file of a run folder but the manifest, by its path inside, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the manifest's own fingerprint, so that a change to itself shows too."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return {**body, "seal": hashlib.sha256(canonical_json(body)).hexdigest()}


def _event(folder: Path, event: str, **details: Any) -> None:
    """Append a line to the run's log; a line cut short by a kill is closed first."""
    path = folder / EVENTS
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps({"time": now, "event": event, **details}) + "\n")
        file.flush()
        os.fsync(file.fileno())
