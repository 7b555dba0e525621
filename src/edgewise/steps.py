"""The steps of a recipe: each takes a network from one folder and leaves the next one in another.

A step's folder holds the network (`model.safetensors`, `structure.json`), the artifact where there is one
(`model.onnx`), and `result.json`: the step's row, checks, curve and notes. Networks pass from step to step through
these files only, so a resumed run sees exactly what an undisturbed one sees.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.cost import cost_of
from edgewise.cost.budget import Limit
from edgewise.data import Dataset, Split, normalize
from edgewise.devices.base import NOISY
from edgewise.devices.measure import measure
from edgewise.distill.logits import LogitDistillation
from edgewise.export import network
from edgewise.export.network import Builder
from edgewise.export.onnx import export
from edgewise.export.verify import Check, compare_float, compare_int8, compare_networks, outputs, require
from edgewise.files import read_json, write_json
from edgewise.graph import Graph, shrink, silence, trace
from edgewise.graph.trace import Atoms
from edgewise.layout import ARTIFACT, CHECKPOINT, DENSE, EPOCHS, RESULT
from edgewise.progress import Progress
from edgewise.prune.candidates import CARE
from edgewise.prune.config import Prune
from edgewise.prune.dhspg import Dhspg, DhspgPruning
from edgewise.prune.hesso import Hesso, HessoPruning
from edgewise.prune.judge import Judge, make_judge
from edgewise.prune.structured import Pruned, prune
from edgewise.quantize import Quantize, activation_cost, quantize_static, weight_bytes
from edgewise.recipe import Export, Measure, Recipe, Train
from edgewise.tasks.classification import Classification
from edgewise.train import TrainingMethod, evaluate, fit, gradients, recalibrate
from edgewise.train.randomness import mixed_seed
from edgewise.units import format_quantity

CHECKED_IMAGES = 256


@dataclass(frozen=True)
class Context:
    """What every step of a run shares.

    Args:
        recipe: what is done.
        folder: the run's.
        data: the images, normalised and augmented as `task` says.
        builder: how the unpruned network is made.
        device: where training and evaluation run.
        progress: is told (what, done, total).
    """

    recipe: Recipe
    folder: Path
    data: Dataset
    builder: Builder
    device: torch.device
    progress: Progress | None = None

    @property
    def example(self) -> Tensor:
        """An input of the right shape, zeros ``[1, C, H, W]``."""
        return torch.zeros(1, *self.data.input_shape)

    @property
    def task(self) -> Classification:
        """What the network learns; a training step adds its augmentation and smoothing."""
        return Classification(self.data.mean, self.data.std, len(self.data.classes))

    def limits(self, share: float) -> dict[str, Limit]:
        """Return a share of what the recipe's budget says of an artifact, by column; nothing where it has none."""
        limits = self.recipe.budget.by_column() if self.recipe.budget else {}
        return {name: Limit(share * limit.value, limit.of_dense) for name, limit in limits.items()}

    def inputs(self, split: Split) -> Tensor:
        """Return the images of a split as the network sees them, float32 ``[N, C, H, W]``."""
        return normalize(split.images, self.data.mean, self.data.std)

    def checked(self) -> Tensor:
        """Return held-out images to prove equalities on, drawn evenly: some data sets are ordered by class."""
        held = self.data.held
        chosen = torch.linspace(0, len(held) - 1, min(CHECKED_IMAGES, len(held))).long()
        return normalize(held.images[chosen], self.data.mean, self.data.std)

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on the test split, a fraction. It is reported and decides nothing."""
        return evaluate(model, self.task, self.data.test, device=self.device)

    def artifact_accuracy(self, path: Path, split: Split) -> float:
        """Return the accuracy of an ONNX file on a split, a fraction."""
        logits = torch.cat([outputs(path, self.inputs(part)) for part in _parts(split)])
        return self.task.metric(logits, split.labels.cpu())

    def calibration(self, images: int, seed: int) -> Tensor:
        """Return training images as the network sees them, drawn at random; all of them where there are no more."""
        train = self.data.train
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:images]
        return normalize(train.images.cpu()[chosen], self.data.mean, self.data.std)


def _parts(split: Split, size: int = 2048) -> list[Split]:
    """Cut a split into pieces that fit in memory as floats."""
    return [Split(split.images[i : i + size], split.labels[i : i + size]) for i in range(0, len(split), size)]


@dataclass(frozen=True)
class Place:
    """Where a step reads and writes.

    Args:
        index: the step's, counted from 0.
        before: the folder with the network as it is.
        after: the folder the step fills.
        dense: the folder of this run's dense network; None while it is being trained.
    """

    index: int
    before: Path
    after: Path
    dense: Path | None


Result = dict[str, Any]


def row(context: Context, model: nn.Module, accuracy: float | None = None, **figures: Any) -> dict[str, Any]:
    """Return a row of results.json: the network's accuracy unless it is known, its static cost, what else was found."""
    cost = cost_of(trace(model, context.example)).to_dict()
    unknown: dict[str, Any] = dict.fromkeys(("file_bytes", "latency_s", "resident_bytes"))
    return {"accuracy": context.accuracy(model) if accuracy is None else accuracy, **cost, **unknown, **figures}


def _known_accuracy(folder: Path) -> float | None:
    """Return the accuracy of a folder's network where a step found it already; a run's start has none."""
    if not (folder / RESULT).exists():
        return None
    accuracy: float = read_result(folder)["row"]["accuracy"]
    return accuracy


def _train(context: Context, place: Place, config: Train) -> Result:
    """Train, with the recipe's methods; an interrupted training goes on at its last epoch."""
    losses: list[float] = []
    clock = EpochClock(place.after / EPOCHS)

    def log(loss: float) -> None:
        losses.append(loss)
        clock.done(len(losses))

    model = fit(
        network.load(place.before),
        context.task,
        context.data.train,
        config,
        methods=[_method(context, place, method) for method in config.method],
        seed=mixed_seed(context.recipe.seed, place.index),
        device=context.device,
        progress=context.progress,
        checkpoint=place.after / CHECKPOINT,
        log=log,
    )
    network.save(model, context.builder, place.after)
    curve = {"epoch": list(range(1, len(losses) + 1)), "loss": losses}
    return {"row": row(context, model), "curve": curve, "earlier_s": clock.earlier_s}


class EpochClock:
    """The seconds of a training's epochs, kept beside its checkpoint: what was interrupted knows its whole time.

    Args:
        path: the file they are kept in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: list[float] = read_json(path) if path.exists() else []
        self.earlier_s = sum(self.seconds)
        self._last = time.perf_counter()

    def done(self, epochs: int) -> None:
        """Take the time, now that so many epochs are done; those that are known already count no second time."""
        now = time.perf_counter()
        if epochs > len(self.seconds):
            self.seconds.append(now - self._last)
            write_json(self.path, self.seconds)
        self._last = now


def _method(context: Context, place: Place, config: Any) -> TrainingMethod:
    """Make the method that a training step's table asks for."""
    if isinstance(config, Hesso):
        return HessoPruning(context.example, config)
    if isinstance(config, Dhspg):
        return DhspgPruning(context.example, config)
    assert place.dense is not None  # the recipe's order was checked
    return LogitDistillation(network.load(place.dense).to(context.device), config)


def _prune(context: Context, place: Place, config: Prune) -> Result:
    """Remove channels, prove the shrunk network equal to the silenced one, mend the BatchNorm statistics."""
    model = network.load(place.before)
    seed = mixed_seed(context.recipe.seed, place.index)
    train = context.data.train
    batches: Iterable[Mapping[str, Tensor]] = ()
    if config.needs_gradients:
        batches = gradients(model, context.task, train, images=config.calibration, seed=seed, device=context.device)
    assert place.dense is not None  # it ends where the first prune step begins
    pruned = prune(
        model,
        context.example,
        config,
        gradients=batches,
        judge=_judge(context, model, config, seed) if config.judged else None,
        limits=context.limits(config.budget_share) if config.budget else {},
        reference=place.dense / ARTIFACT,
        seed=seed,
        progress=context.progress,
    )
    notes = [f'the width of "{name}" is written into the forward, so it stayed' for name in pruned.rigid]
    notes += [_tried(config, name, pruned) for name in pruned.limits if pruned.trials and name in CARE]
    if config.allocate == "zero":
        notes.append(_zeros_note(pruned.keep, pruned.graph))
    notes += _judged(pruned)
    if gone := [name for name, kept in pruned.keep.items() if pruned.graph.takes_branch(name, kept)]:
        notes.append(f"whole branches went, by their inner channels: {', '.join(gone)}")
    if pruned.graph.unused:
        notes.append(f"never ran, so stayed: {', '.join(pruned.graph.unused)}")
    if inexact := [name for name in pruned.keep if not pruned.graph.by_name[name].exact]:
        notes.append(f"removal is inexact, so not checked for equality: {', '.join(inexact)}")
    checks = removal_checks(model, pruned.graph, pruned.keep, context.checked())
    small = pruned.model
    if config.allocate == "zero":
        checks += zero_checks(model, small, context.checked())
    require(checks)
    if config.recalibrate and config.allocate != "zero":
        small = recalibrate(small, context.task, train, images=config.recalibrate, device=context.device)
    network.save(small, context.builder, place.after)
    widths = {g.name: [len(pruned.keep.get(g.name, range(g.size))), g.size] for g in pruned.graph.groups}
    kept = {name: index.tolist() for name, index in pruned.keep.items()}
    result = {"row": row(context, small), "checks": _dicts(checks), "notes": notes, "widths": widths, "keep": kept}
    if pruned.sensitivity:
        result["sensitivity"] = {name: curve.to_dict() for name, curve in pruned.sensitivity.items()}
    if pruned.search:
        result["search"] = {"drawn": pruned.search.drawn, "tried": [asdict(one) for one in pruned.search.tried]}
    return result


def _judge(context: Context, model: nn.Module, config: Prune, seed: int) -> Judge:
    """Return who judges candidates: on training and held-out images, never the test split's."""
    assert config.judged is not None
    return make_judge(
        model,
        context.task,
        context.data.train,
        context.data.held,
        calibration=config.judged.calibration,
        images=config.judged.images,
        arithmetic=config.judged.arithmetic,
        seed=seed,
        device=context.device,
    )


def _judged(pruned: Pruned) -> list[str]:
    """Say what the candidates' accuracies were."""
    notes = []
    if pruned.sensitivity:
        rates = ", ".join(f"{name} {c.knee:g}{'' if c.found else '*'}" for name, c in pruned.sensitivity.items())
        notes.append(f"pruning rates from sensitivity curves (* no knee, within the tolerance): {rates}")
    if pruned.search:
        found = sorted(one.accuracy for one in pruned.search.tried)
        notes.append(
            f"{len(found)} of {pruned.search.drawn} random candidates lay within the budget and were judged: held-out "
            f"accuracy with recalibrated BatchNorm {found[0]:.4f} to {found[-1]:.4f}, median {median(found):.4f}; the "
            "best was taken"
        )
    return notes


def _tried(config: Prune, name: str, pruned: Pruned) -> str:
    """Say what was asked of the artifact, and what candidates were foretold and measured."""

    def amount(figures: Mapping[str, float]) -> str:
        return format_quantity(name, figures[name])

    tried = ", ".join(f"{amount(trial.measured)} (foretold {amount(trial.foretold)})" for trial in pruned.trials)
    return f"{config.precision} {name} of at most {amount(pruned.limits)}; measured in turn: {tried}"


def removal_checks(model: nn.Module, graph: Graph, keep: Mapping[str, Atoms], images: Tensor) -> list[Check]:
    """Hold the network without the channels of its exact groups against the whole one with them silenced."""
    exact = {name: index for name, index in keep.items() if graph.by_name[name].exact}
    shrunk, silenced = shrink(model, graph, exact), silence(model, graph, exact)
    return [compare_networks(shrunk, silenced, images, name="shrunk equals silenced")] if exact else []


def zero_checks(model: nn.Module, small: nn.Module, images: Tensor) -> list[Check]:
    """Hold the network without its zero channels against the network as it was."""
    return [compare_networks(small, model, images, name="shrunk equals the network with zeros")]


def _zeros_note(keep: Mapping[str, Atoms], graph: Graph) -> str:
    """Say how many channels were zero."""
    lost = sum(graph.by_name[name].size - len(kept) for name, kept in keep.items())
    return f"{lost} of {graph.sizes.sum()} channels were zero and went" if lost else "no channel is zero: nothing went"


def _quantize(context: Context, place: Place, config: Quantize) -> Result:
    """Turn the network into an int8 artifact, calibrated on training images."""
    model = network.load(place.before)
    network.save(model, context.builder, place.after)
    images = context.calibration(config.calibration, mixed_seed(context.recipe.seed, place.index))
    float_file = export(model, context.example, place.after / "float.onnx")
    artifact = quantize_static(float_file, place.after / ARTIFACT, images, config, progress=context.progress)
    float_file.unlink()
    checks = compare_int8(model, artifact, context.checked())
    require(checks)
    base = row(context, model, context.artifact_accuracy(artifact, context.data.test))
    figures = {
        "weight_bytes": weight_bytes(artifact),
        **asdict(activation_cost(artifact)),
        "file_bytes": artifact.stat().st_size,
    }
    notes = []
    if len(images) < config.calibration:
        notes.append(f"calibrated on all {len(images)} training images; {config.calibration} were asked for")
    return {"row": {**base, **figures}, "checks": _dicts(checks), "notes": notes, "artifact": {"precision": "int8"}}


def _export(context: Context, place: Place, config: Export) -> Result:
    """Write the artifact, or take over the quantised one, and prove it equal to the network."""
    model = network.load(place.before)
    network.save(model, context.builder, place.after)
    quantized = place.before / ARTIFACT
    images = context.checked()
    if quantized.exists():
        artifact = Path(shutil.copyfile(quantized, place.after / ARTIFACT))
        before = read_result(place.before)
        checks, precision = compare_int8(model, artifact, images), before["artifact"]["precision"]
        stored = ("weight_bytes", "peak_activation_bytes", "activation_bytes")
        figures = {name: before["row"][name] for name in stored}
    else:
        artifact = export(model, context.example, place.after / ARTIFACT)
        checks, precision, figures = [compare_float(model, artifact, images)], "float32", {}
    require(checks)
    figures["file_bytes"] = artifact.stat().st_size
    return {
        "row": {**row(context, model, _known_accuracy(place.before)), **figures},
        "checks": _dicts(checks),
        "artifact": {"precision": precision},
    }


def _measure(context: Context, place: Place, config: Measure) -> Result:
    """Measure the artifact beside the dense float network, in one fresh process."""
    assert place.dense is not None  # the recipe's order was checked
    shutil.copytree(place.before, place.after, ignore=shutil.ignore_patterns(RESULT), dirs_exist_ok=True)
    before = read_result(place.before)
    dense, ours = measure(
        [place.dense / ARTIFACT, place.after / ARTIFACT],
        runtime=config.runtime,
        threads=config.threads,
        seconds=config.seconds,
        input_shape=context.data.input_shape,
        progress=context.progress,
    )
    notes = [
        f"the latency of the {label} network is noisy: its spread is {m.spread:.0%} (limit {NOISY:.0%})"
        for label, m in (("dense", dense), ("compressed", ours))
        if m.noisy
    ]
    if ours.latency_s > dense.latency_s:
        notes.append(f"SLOWER than the dense float network: {ours.ratio(dense):.2f}x its speed")
    if ours.file_bytes >= dense.file_bytes:
        notes.append(f"NOT SMALLER than the dense float file: {ours.file_bytes} of {dense.file_bytes} bytes")
    measurements = [{**dense.to_dict(), "artifact": f"{DENSE}/{ARTIFACT}"}, {**ours.to_dict(), "artifact": ARTIFACT}]
    figures = {"latency_s": ours.latency_s, "resident_bytes": ours.resident_bytes}
    return {
        "row": {**before["row"], **figures},
        "notes": notes,
        "measurements": measurements,
        "artifact": before["artifact"],
    }


def _dicts(checks: list[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]


RUN_STEP: dict[str, Callable[[Context, Place, Any], Result]] = {
    "train": _train,
    "prune": _prune,
    "quantize": _quantize,
    "export": _export,
    "measure": _measure,
}


def run_step(context: Context, place: Place) -> Result:
    """Run one step into its folder and write its result there."""
    started = time.perf_counter()
    config = context.recipe.step[place.index]
    result = {"checks": [], "notes": [], **RUN_STEP[config.kind](context, place, config)}
    result["seconds"] = result.pop("earlier_s", 0.0) + time.perf_counter() - started
    write_json(place.after / RESULT, result)
    for name in (CHECKPOINT, EPOCHS):  # last: until here a kill costs no epoch
        (place.after / name).unlink(missing_ok=True)
    return result


def dense_reference(context: Context, before: Path, after: Path) -> Result:
    """Export the dense float network: what everything later is compared with."""
    started = time.perf_counter()
    model = network.load(before)
    network.save(model, context.builder, after)
    artifact = export(model, context.example, after / ARTIFACT)
    checks = [compare_float(model, artifact, context.checked())]
    require(checks)
    figures = {"file_bytes": artifact.stat().st_size}
    result: Result = {
        "row": row(context, model, _known_accuracy(before), **figures),
        "checks": _dicts(checks),
        "notes": [],
    }
    result["seconds"] = time.perf_counter() - started
    write_json(after / RESULT, result)
    return result


def read_result(folder: Path) -> Result:
    """Read what a step left behind."""
    result: Result = read_json(folder / RESULT)
    return result
