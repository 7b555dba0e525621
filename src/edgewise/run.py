"""A recipe becomes a run folder: steps, artifact, results, proof, report.

    RUN/ recipe.toml  manifest.json  results.json  events.jsonl  report.html
         model.onnx  model.safetensors  structure.json
         dense/  steps/01-train/  ...

Every folder under `steps` appears whole or not at all, so a killed run goes on where it stopped. `manifest.json` is
written last: a run that has one is finished.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgewise
from edgewise import data, models
from edgewise.budget import verdict
from edgewise.cost import CostModel
from edgewise.devices.local import available_cores, cpu_name, machine
from edgewise.errors import BudgetError, RecipeError, TrainingDiverged, nearest
from edgewise.export import network
from edgewise.export.network import SOURCE, STRUCTURE, TENSORS, Builder
from edgewise.files import canonical_json, read_json, sha256, whole_folder, write_bytes, write_json
from edgewise.folder import choose, event, held
from edgewise.graph import trace
from edgewise.layout import ARTIFACT, DENSE, FIRST, MANIFEST, REPORT, RESULTS, STEPS, step_folder
from edgewise.page import ratio
from edgewise.progress import Progress
from edgewise.prune.candidates import CARE
from edgewise.prune.config import Prune
from edgewise.prune.structured import prune
from edgewise.recipe import Measure, Recipe
from edgewise.steps import Context, Place, dense_reference, read_result, run_step

START = "start.json"  # what the network at the start was made from
# What a figure may depend on, by the module's name; a manifest names those that were imported.
PACKAGES = {
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "timm": "timm",
    "torchvision": "torchvision",
    "PIL": "pillow",
}


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and its results, as in results.json; `before` if nothing was left to do."""

    folder: Path
    results: dict[str, Any]
    before: bool = False

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
    progress: Progress | None = None,
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
    folder = choose(recipe, Path(out) if out else None, resume)
    if (folder / MANIFEST).exists():
        return Finished(folder, read_json(folder / RESULTS), before=True)
    context, initial = prepare(recipe, progress)
    with held(folder, recipe, resume):
        return _carry_out(replace(context, folder=folder), initial, log or (lambda _: None))


def _carry_out(context: Context, initial: nn.Module, log: Callable[[dict[str, Any]], None]) -> Finished:
    """Do the steps that are not done yet, each in a folder that appears when it is."""
    before = _first(initial, context)
    context = replace(context, builder=_kept_builder(context.builder, before))
    dense: Path | None = None
    for index, step in enumerate(context.recipe.step):
        if index == context.recipe.dense_at:
            dense = _dense(context, before)
            log(_dense_row(read_result(dense)))
        after = step_folder(context.folder, index, step.kind)
        if not after.exists():
            event(context.folder, "step", step=after.name)
            try:
                with whole_folder(after, keep_partial=step.kind == "train") as partial:
                    run_step(context, Place(index, before, partial, dense))
            except TrainingDiverged as error:
                raise TrainingDiverged(f"step {after.name}: {error}") from error
        log(_step_row(after, index))
        before = after
    return _finish(context, before, dense or _dense(context, before))


# -- before the steps -----------------------------------------------------------------------------------------------


def prepare(recipe: Recipe, progress: Progress | None = None) -> tuple[Context, nn.Module]:
    """Load the data and make the network, and find whatever is wrong with them; nothing is written.

    Returns:
        What the run's steps share, its folder left open; and the network it starts from.
    """
    images = data.load(recipe.data, held=recipe.held, size=recipe.size, progress=progress)
    if recipe.images is not None:
        images = data.fewer(images, recipe.images, recipe.seed)
    channels, side, _ = images.input_shape
    builder = Builder(recipe.model, len(images.classes), channels, side, recipe.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = builder.build()
    if recipe.weights is not None:
        model = models.load_weights(model, Path(recipe.weights))
    models.check_output(model, images.input_shape, len(images.classes))
    context = Context(recipe, Path(), images, builder, _device(recipe.device), progress)
    _check_steps(recipe, model, context.example)
    return context, model


def _check_steps(recipe: Recipe, model: nn.Module, example: torch.Tensor) -> None:
    """Refuse now what would fail after hours of training: an operator without a rule, a budget, too many threads."""
    cores = available_cores()
    for index, step in enumerate(recipe.step):
        if isinstance(step, Measure | Prune) and step.threads > cores:
            raise RecipeError(
                f"step.{index}.threads = {step.threads}: this machine has {cores} cores to use; give 1 to {cores}"
            )
    graph = trace(model, example)
    first = next((index for index, step in enumerate(recipe.step) if isinstance(step, Prune)), None)
    if first is not None:
        config = recipe.step[first]
        assert isinstance(config, Prune)
        for name in config.whole:
            if name not in graph.by_name:
                raise RecipeError(f'step.{first}.whole: no group is called "{name}"; {nearest(name, graph.by_name)}')
        limits = recipe.budget.by_column() if recipe.budget and config.budget else {}
        static = {name: limit for name, limit in limits.items() if name not in CARE}
        if not static and config.keeps in ([], ["keep_latency"]):
            return  # what can be reached is found by measuring
        if config.judged:  # whose widths come from accuracies, at best as few as any
            config = replace(config, allocate="uniform", knee=None, search=None)
        try:  # whether widths fit depends on the network's shape alone, so any scores will do
            plain = replace(config, importance="random", keep_latency=None)
            prune(model, example, plain, limits=static)
        except BudgetError as error:
            raise BudgetError(f"step.{first} (prune): {error}") from error


def _device(name: str) -> torch.device:
    from edgewise.train.forward import resolve_device

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return resolve_device(name)


def _first(initial: nn.Module, context: Context) -> Path:
    """Keep the network the run starts from."""
    start = context.folder / STEPS / FIRST
    if not start.exists():
        weights = context.recipe.weights
        with whole_folder(start) as partial:
            network.save(initial, context.builder, partial)
            write_json(partial / START, {"weights_sha256": sha256(Path(weights)) if weights else None})
    return start


def _kept_builder(builder: Builder, start: Path) -> Builder:
    """Build from the run's own copy of the user's file from now on: the original may change while the run lasts."""
    if not (start / SOURCE).exists():
        return builder
    return replace(builder, model=str(start / read_json(start / STRUCTURE)["builder"]["model"]))


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
    for name in (TENSORS, STRUCTURE, ARTIFACT):
        if (last / name).exists():
            write_bytes(folder / name, (last / name).read_bytes())
    if (last / SOURCE).exists():
        shutil.copytree(last / SOURCE, folder / SOURCE, dirs_exist_ok=True)
    results = _results(context, dense)
    write_json(folder / RESULTS, results)
    manifest = _manifest(context, dense)
    event(folder, "done")
    write_bytes(folder / REPORT, report.render(results, manifest).encode())
    manifest["files"] = {name: sha256(folder / name) for name in files(folder)}
    write_json(folder / MANIFEST, sealed(manifest))
    return Finished(folder, results)


def _step_folders(context: Context) -> list[Path]:
    return [step_folder(context.folder, index, step.kind) for index, step in enumerate(context.recipe.step)]


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
    reference = _dense_row(read_result(dense))
    if recipe.dense_at == 0 and recipe.weights is None:
        reference["notes"] = [*reference["notes"], "this run never trained its dense network"]
        reference["accuracy"] = None
    rows = [reference, *(_step_row(folder, index) for index, folder in enumerate(folders))]
    measurements = _measurements(folders)
    for row, measured in zip((rows[0], rows[-1]), measurements, strict=False):
        row |= {name: measured[name] for name in ("latency_s", "resident_bytes")}
    compressed = _compressed(reference, rows[-1])
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "data": recipe.data,
        "data_note": images.note,
        "plan": list(recipe.notes),
        "classes": list(images.classes),
        "input_shape": list(images.input_shape),
        "mean": list(images.mean),
        "std": list(images.std),
        "seed": recipe.seed,
        "rows": rows,
        "layers": _layers(context, dense, folders[-1]),
        "measurements": measurements,
        "budget": verdict(recipe.budget, compressed, reference) if recipe.budget else None,
        "curves": {f.name: r["curve"] for f, r in zip(folders, found, strict=True) if "curve" in r},
        "sensitivity": {f.name: r["sensitivity"] for f, r in zip(folders, found, strict=True) if r.get("sensitivity")},
        "compressed": compressed,
    }


def _measurements(folders: list[Path]) -> list[dict[str, Any]]:
    """Return what the last measure step found, the dense network's first, if it measured the final artifact."""
    measured = next((folder for folder in reversed(folders) if folder.name.endswith("-measure")), None)
    final = folders[-1] / ARTIFACT
    if measured is None or not final.exists() or sha256(measured / ARTIFACT) != sha256(final):
        return []
    found: list[dict[str, Any]] = read_result(measured)["measurements"]
    return found


def _compressed(dense: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Return the final network's figures and what they are of the dense network's; None where one is unknown."""
    columns = ("accuracy", "params", "nonzero", "macs", "weight_bytes", "peak_activation_bytes", "file_bytes")
    figures = {name: last[name] for name in (*columns, "latency_s", "resident_bytes")}

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
        "versions": {**facts.get("versions", {}), **_imported_versions()},
        "training": {"device": _device_name(context.device), "torch_threads": torch.get_num_threads()},
        "seed": context.recipe.seed,
        **read_json(context.folder / STEPS / FIRST / START),
        "data": {"name": context.data.name, "checksum": context.data.checksum, "note": context.data.note},
        "checks": checks,
    }


def _imported_versions() -> dict[str, str]:
    """Return the versions of the packages that took part."""
    return {package: version(package) for module, package in PACKAGES.items() if module in sys.modules}


def _device_name(device: torch.device) -> str:
    """Return the name of what trained, as its maker gave it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {cpu_name()}"


def files(folder: Path) -> list[str]:
    """List every file of a run folder but the manifest, by its path inside, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the manifest's own fingerprint, so that a change to itself shows too."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return {**body, "seal": hashlib.sha256(canonical_json(body)).hexdigest()}
