"""A recipe becomes a run folder: steps, artifact, results, proof, report.

    RUN/ recipe.toml  manifest.json  results.json  events.jsonl  report.html
         model.onnx  model.safetensors  structure.json
         dense/  steps/01-train/  ...

Every folder under `steps` appears whole or not at all, so a killed run goes on where it stopped. `manifest.json` is
written last: a run that has one is finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewise import data, models
from edgewise.context import Context, Place, read_result
from edgewise.cost.budget import Limit
from edgewise.data import Dataset
from edgewise.devices.local import available_cores
from edgewise.devices.runtimes import RUNTIMES, files_of
from edgewise.distill import Distill, DistillDetector
from edgewise.errors import BudgetError, RecipeError, TrainingDiverged, nearest
from edgewise.export import network
from edgewise.export.formats import check_installed
from edgewise.export.network import PACKED, SOURCE, STRUCTURE, TENSORS, Builder
from edgewise.files import read_json, sha256, whole_folder, write_bytes, write_json
from edgewise.folder import choose, event, held
from edgewise.graph import trace
from edgewise.layout import ARTIFACT, DENSE, FIRST, MANIFEST, REPORT, RESULTS, START, STEPS, shipped, step_folder
from edgewise.progress import Progress
from edgewise.prune.candidates import CARE
from edgewise.prune.config import Prune
from edgewise.prune.structured import prune
from edgewise.recipe import Export, Measure, Recipe, Train
from edgewise.results import dense_row, files, gather, made_with, sealed, step_row
from edgewise.steps import dense_reference, run_step
from edgewise.tasks import Detection, Task, task_of
from edgewise.teachers import check_taught, check_teacher
from edgewise.train.loop import with_choices
from edgewise.unseen import described, opened


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
    images: Dataset | None = None,
    progress: Progress | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Finished:
    """Carry out a recipe.

    Args:
        recipe: what to do.
        out: the run's folder; by default ``runs/<recipe's name>``, numbered when taken.
        resume: go on with an interrupted run in that folder (by default the newest of the recipe's name).
        images: the recipe's data, where they are loaded already; a recipe that does without reads none of them.
        progress: is told (what, done, total) while something lasts.
        log: is given each row of results.json as it is known, with the name of what "accuracy" is.

    Raises:
        UserError: the recipe's network, data or folder cannot be used; nothing is half-written.
        CheckFailed: an equality did not hold; the run stopped there.
        TrainingDiverged: the loss became NaN or infinite; the message names step and epoch.
    """
    folder = choose(recipe, Path(out) if out else None, resume)
    if (folder / MANIFEST).exists():
        return Finished(folder, read_json(folder / RESULTS), before=True)
    context, initial = prepare(recipe, progress, images)
    if recipe.step[0].kind == "train" and not folder.exists():
        check_reach(recipe, initial, context.example, progress)
    with held(folder, recipe, resume):
        return _carry_out(replace(context, folder=folder), initial, log or (lambda _: None))


def _carry_out(context: Context, initial: nn.Module, log: Callable[[dict[str, Any]], None]) -> Finished:
    """Do the steps that are not done yet, each in a folder that appears when it is."""
    before = _first(initial, context)
    context = replace(context, builder=_kept_builder(context.builder, before))
    dense, named = None, {"metric": context.task.metric_name}
    for index, step in enumerate(context.recipe.step):
        if index == context.recipe.dense_at:
            dense = _dense(context, before)
            log(dense_row(read_result(dense)) | named)
        after = step_folder(context.folder, index, step.kind)
        if not after.exists():
            event(context.folder, "step", step=after.name)
            try:
                with whole_folder(after, keep_partial=step.kind == "train") as partial:
                    run_step(context, Place(index, before, partial, dense))
            except TrainingDiverged as error:
                raise TrainingDiverged(f"step {after.name}: {error}") from error
        if index == 0 and context.recipe.data_free:
            context = opened(context, after)
        log(step_row(after, index) | named)
        before = after
    return _finish(context, before, dense or _dense(context, before))


# -- before the steps -----------------------------------------------------------------------------------------------


def prepare(
    recipe: Recipe, progress: Progress | None = None, images: Dataset | None = None
) -> tuple[Context, nn.Module]:
    """Load the data unless they are given, make the network, and find whatever is wrong with them; nothing is written.

    Returns:
        What the run's steps share, its folder left open; and the network it starts from.
    """
    if recipe.data_free:
        images = described(recipe)
    elif images is None:
        images = load_images(recipe, progress)
    channels, side, _ = images.input_shape
    builder = Builder(recipe.model, len(images.classes), channels, side, recipe.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = builder.build()
    notes: tuple[str, ...] = ()
    if recipe.weights is not None and recipe.step[0].kind == "train":
        model, fresh = models.load_pretrained(model, recipe.weights, len(images.classes))
        notes = (_begun(fresh),) if fresh else ()
    elif recipe.weights is not None:
        model = models.load_weights(model, recipe.weights)
    task = task_of(images)
    task.check_network(model, images.input_shape)
    _check_trainings(recipe, task)
    for name in recipe.teachers:
        check_teacher(name, builder, task, images.input_shape)
    context = Context(recipe, Path(), images, builder, _device(recipe.device), progress, notes)
    check_steps(recipe, model, context.example)
    check_taught(context, model)
    return context, model


def _begun(fresh: str) -> str:
    """Say which parts of a network the weights that it starts from have nothing for."""
    if ", " in fresh:
        return f"{fresh} begin anew: the weights are a classifier's"
    return f'"{fresh}" begins anew: the weights are of other classes'


def _check_trainings(recipe: Recipe, task: Task) -> None:
    """Refuse trainings whose augmentation or teachers mean nothing to the task."""
    teaching, other = (Distill, "distill_detector") if isinstance(task, Detection) else (DistillDetector, "distill")
    for index, step in enumerate(recipe.step):
        if not isinstance(step, Train) or step.data_free:
            continue
        try:
            with_choices(task, step)
        except ValueError as error:
            raise RecipeError(f"step.{index} (train): {error}") from error
        if wrong := [method.kind for method in step.method if isinstance(method, teaching)]:
            raise RecipeError(
                f'step.{index} (train): "{wrong[0]}" is for other data than {recipe.data}: take "{other}"'
            )


def load_images(recipe: Recipe, progress: Progress | None = None) -> Dataset:
    """Load a recipe's data, of the training images only as many as it uses."""
    images = data.load(recipe.data, held=recipe.held, size=recipe.size, skip_bad=recipe.skip_bad, progress=progress)
    return images if recipe.images is None else data.fewer(images, recipe.images, recipe.seed)


def check_steps(recipe: Recipe, model: nn.Module, example: torch.Tensor) -> None:
    """Refuse now what would fail after hours of training: an operator without a rule, a budget, a runtime."""
    cores = available_cores()
    for index, step in enumerate(recipe.step):
        if isinstance(step, Measure | Prune) and (step.threads or 1) > cores:
            raise RecipeError(
                f"step.{index}.threads = {step.threads}: this machine has {cores} cores to use; give 1 to {cores}"
            )
        if isinstance(step, Export) and step.format != "onnx":
            check_installed(step.format)
        if isinstance(step, Measure):
            RUNTIMES[step.runtime].imported()
    graph = trace(model, example)
    if (first := _first_prune(recipe)) is None:
        return
    index, config = first
    for name in config.whole:
        if name not in graph.by_name:
            raise RecipeError(f'step.{index}.whole: no group is called "{name}"; {nearest(name, graph.by_name)}')
    static = {name: limit for name, limit in recipe.limits(config).items() if name not in CARE}
    if static or config.keeps not in ([], ["keep_latency"]):  # else only measuring shows what can be reached
        _try(index, replace(config, keep_latency=None), model, example, static)


def check_reach(recipe: Recipe, model: nn.Module, example: torch.Tensor, progress: Progress | None = None) -> None:
    """Refuse what no widths can meet, as measured, before hours are spent on training.

    What artifacts cost depends on no weights. The table of layers that is measured for it is kept, and used again.

    Raises:
        BudgetError: no candidates can be made that are within what the first prune step must keep.
    """
    if (first := _first_prune(recipe)) is None:
        return
    index, config = first
    limits = recipe.limits(config)
    if config.keep_latency is not None or not CARE.keys().isdisjoint(limits):
        _try(index, recipe.for_artifact(config), model, example, limits, progress)


def _first_prune(recipe: Recipe) -> tuple[int, Prune] | None:
    return next(((index, step) for index, step in enumerate(recipe.step) if isinstance(step, Prune)), None)


def _try(
    index: int,
    config: Prune,
    model: nn.Module,
    example: torch.Tensor,
    limits: dict[str, Limit],
    progress: Progress | None = None,
) -> None:
    """Prune a network whose weights are not yet what they will be: which widths fit depends on its shape alone."""
    if config.judged:  # whose widths come from accuracies, at best as few as any
        config = replace(config, allocate="uniform", knee=None, search=None)
    importance = "l2" if config.needs_gradients else config.importance  # which look at the same tensors
    try:
        prune(model, example, replace(config, importance=importance), limits=limits, progress=progress)
    except BudgetError as error:
        raise type(error)(f"step.{index} (prune): {error}") from error


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
    for name in (TENSORS, STRUCTURE, PACKED, ARTIFACT, *(file.name for file in files_of(shipped(last)))):
        if (last / name).exists():
            write_bytes(folder / name, (last / name).read_bytes())
    if (last / SOURCE).exists():
        shutil.copytree(last / SOURCE, folder / SOURCE, dirs_exist_ok=True)
    figures = gather(context, dense)
    write_json(folder / RESULTS, figures)
    facts = made_with(context, dense)
    event(folder, "done")
    write_bytes(folder / REPORT, report.render(figures, facts).encode())
    facts["files"] = {name: sha256(folder / name) for name in files(folder)}
    write_json(folder / MANIFEST, sealed(facts))
    return Finished(folder, figures)
