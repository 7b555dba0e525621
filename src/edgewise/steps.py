"""The steps of a recipe: each takes a network from one folder and leaves the next one in another.

A step's folder holds the network (`model.safetensors`, `structure.json`), the artifact where there is one
(`model.onnx`), and `result.json`: the step's row, checks, curve and notes. Networks pass from step to step through
these files only, so a resumed run sees exactly what an undisturbed one sees.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from edgewise.context import Context, Place, Result, dicts, read_result, row
from edgewise.devices.base import NOISY, Measurement
from edgewise.devices.measure import measure, measure_until_quiet
from edgewise.devices.runtimes import RUNTIMES, files_of
from edgewise.distill import DataFree, DataFreeDistillation
from edgewise.export import network
from edgewise.export.few_bits import stored_codes
from edgewise.export.formats import FORMATS, WHOLE
from edgewise.export.onnx import export
from edgewise.export.verify import compare_float, compare_formats, compare_quantized, require
from edgewise.files import read_json, write_json
from edgewise.layout import ARTIFACT, CHECKPOINT, DENSE, EPOCHS, RESULT, SHIPPED, SNAPSHOTS, shipped
from edgewise.pack_step import pack_artifact
from edgewise.prune.dhspg import Dhspg, DhspgPruning
from edgewise.prune.hesso import Hesso, HessoPruning
from edgewise.prune_step import prune_step
from edgewise.quantize import Quantize
from edgewise.quantize.codebook import ShareWeights, WeightsShared
from edgewise.quantize.inq import Incremental, PowersOfTwo
from edgewise.quantize.ternary import Ternarization, Ternary
from edgewise.quantize_step import quantize_step
from edgewise.recipe import Export, Measure, Train
from edgewise.sparse import (
    FlipOut,
    FlipOutPruning,
    Gradual,
    GradualPruning,
    HoyerSparsity,
    HoyerSquare,
    KeepZeros,
    PeLasso,
    PeLassoPruning,
    ZerosKept,
)
from edgewise.sparse_step import net_trim_step, sparsify_step
from edgewise.teachers import load_teacher, taught_by
from edgewise.train import Snapshots, TrainingMethod, evaluate, fit
from edgewise.train.randomness import mixed_seed
from edgewise.units import format_bytes
from edgewise.unseen import keep_generated, opened


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

    seed = mixed_seed(context.recipe.seed, place.index)
    methods = [_method(context, place, method) for method in config.method]
    taught = next((method for method in methods if isinstance(method, DataFreeDistillation)), None)
    snapshots = Snapshots(place.after / SNAPSHOTS, taught.config.judged) if taught else None
    model = fit(
        network.load(place.before),
        taught.task if taught else context.task,
        taught.split(config.batch) if taught else context.data.train,
        config,
        methods=[*methods, *([snapshots] if snapshots else [])],
        seed=seed,
        device=context.device,
        progress=context.progress,
        checkpoint=place.after / CHECKPOINT,
        log=log,
    )
    notes = list(context.notes) if place.index == 0 else []
    if config.undo_if_worse and (worse := _worse(context, place, model)):
        model = network.load(place.before)
        notes.append(worse)
    network.save(model, context.builder, place.after)
    curve = {"epoch": list(range(1, len(losses) + 1)), "loss": losses}
    told: Result = {"curve": curve, "earlier_s": clock.earlier_s, "notes": notes}
    if taught and snapshots:
        told["generated"] = keep_generated(taught, context.data, place.after, seed)
        context = opened(context, place.after)
        notes.append("no image of the data set was read: it was opened after the training, to test the network")
    found = row(context, model)
    if taught and snapshots:
        judged = _judged(context, snapshots, model) | {config.epochs: found["accuracy"]}
        told["judged"] = {
            "step": [epoch * taught.config.student_steps * taught.config.steps for epoch in judged],
            "accuracy": list(judged.values()),
        }
    return {"row": found, **told}


def _judged(context: Context, snapshots: Snapshots, trained: nn.Module) -> dict[int, float]:
    """Return the accuracy on the test split along a training, by epoch."""
    accuracies = {}
    for epoch, model in snapshots.networks_in_turn(trained):
        accuracies[epoch] = evaluate(model, context.task, context.data.test, device=context.device)
        if context.progress:
            context.progress("judge", len(accuracies), len(snapshots.epochs))
    return accuracies


def _worse(context: Context, place: Place, model: nn.Module) -> str:
    """Say by how much a training made a network worse on the held-out images; nothing where it did not."""
    before, after = (
        evaluate(each, context.task, context.data.held, device=context.device)
        for each in (network.load(place.before), model)
    )
    if after >= before:
        return ""
    return f"undone: on held-out images the training went from {before:.2%} to {after:.2%}"


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
    for kind, made in OF_WEIGHTS.items():
        if isinstance(config, kind):
            return made(config)
    teachers = [load_teacher(name, context.builder) for name in config.teachers]
    if isinstance(config, DataFree):
        return DataFreeDistillation(
            teachers, config, context.data.input_shape, len(context.data.classes), context.progress
        )
    if not teachers:
        assert place.dense is not None  # the recipe's order was checked
        teachers = [network.load(place.dense)]
    return taught_by(context, teachers, config)


OF_WEIGHTS: dict[type, Callable[[Any], TrainingMethod]] = {
    KeepZeros: ZerosKept,
    Gradual: GradualPruning,
    FlipOut: FlipOutPruning,
    HoyerSquare: HoyerSparsity,
    Ternary: Ternarization,
    PeLasso: PeLassoPruning,
    ShareWeights: WeightsShared,
    PowersOfTwo: Incremental,
}


def _export(context: Context, place: Place, config: Export) -> Result:
    """Write the artifact, or take over the quantised one, and prove it equal to the network."""
    model = network.load(place.before)
    network.save(model, context.builder, place.after)
    quantized = place.before / ARTIFACT
    images, notes = context.checked(), list[str]()
    if quantized.exists():
        artifact = Path(shutil.copyfile(quantized, place.after / ARTIFACT))
        before = read_result(place.before)
        precision = before["artifact"]["precision"]
        checks = compare_quantized(model, artifact, images, precision=precision, alike=context.task.agreement)
        stored = ("weight_bytes", "peak_activation_bytes", "activation_bytes")
        figures = {name: before["row"][name] for name in stored}
    else:
        artifact = export(model, context.example, place.after / ARTIFACT, codes=config.codes)
        checks, precision, figures = [compare_float(model, artifact, images)], "float32", {}
        notes += [_coded(artifact)] if config.codes else []
    accuracy = _known_accuracy(place.before)
    if config.format in WHOLE:
        checks += context.with_answers(artifact)
    elif context.task.tail() is not None:
        notes.append(f"the file gives the network's outputs: {config.format} cannot hold what makes answers of them")
    if config.format != "onnx":
        calibration = context.calibration(CALIBRATION, mixed_seed(context.recipe.seed, place.index))
        shipped_file = FORMATS[config.format].write(artifact, place.after / SHIPPED[config.format], calibration)
        checks += compare_formats(
            artifact, shipped_file, images, precision, config.format, alike=context.task.agreement
        )
        accuracy = context.artifact_accuracy(shipped_file, context.data.test)
    require(checks)
    figures["file_bytes"] = sum(file.stat().st_size for file in files_of(shipped(place.after)))
    made = {**row(context, model, accuracy), **figures}
    told = pack_artifact(context, place, model, made["accuracy"]) if config.pack else {}
    made["file_bytes"] = told.pop("file_bytes", made["file_bytes"])
    return {
        "row": made,
        "checks": [*dicts(checks), *told.pop("checks", [])],
        "artifact": {"precision": precision},
        **told,
        "notes": [*notes, *told.get("notes", [])],
    }


def _coded(artifact: Path) -> str:
    """Say how many weights a file keeps as codes of few bits."""
    found = [f"{count:,} in {bits} bits" for bits, count in stored_codes(artifact).items()]
    if not found:
        return "codes = true changes nothing: no layer's weights are few multiples of one step"
    return f"weights as codes that the runtime turns into floats at every run: {', '.join(found)}"


def _measure(context: Context, place: Place, config: Measure) -> Result:
    """Measure the artifact beside the dense float network, in one fresh process."""
    assert place.dense is not None  # the recipe's order was checked
    shutil.copytree(place.before, place.after, ignore=shutil.ignore_patterns(RESULT), dirs_exist_ok=True)
    before, file = read_result(place.before), shipped(place.after)
    once = partial(
        measure,
        [place.dense / ARTIFACT, file],
        runtime=config.runtime,
        threads=config.threads,
        seconds=config.seconds,
        input_shape=context.data.input_shape,
        progress=context.progress,
    )
    (dense, ours), *noisier = measure_until_quiet(once)
    notes = [
        f"the latency of the {label} network is noisy: its spread is {m.spread:.0%} (limit {NOISY:.0%})"
        for label, m in (("dense", dense), ("compressed", ours))
        if m.noisy
    ]
    if noisier:
        ratios = ", ".join(f"{small.latency_s / whole.latency_s:.3f}" for whole, small in noisier)
        notes.append(
            f"the least noisy of {len(noisier) + 1} measurements; the others found {ratios} of the dense latency"
        )
    if ours.latency_s > (1 + AS_FAST) * dense.latency_s:
        chosen = before["artifact"]["precision"] == "float32" or _chose_fastest(context)
        instead = "" if chosen else '; scheme = "auto" looks for a faster one'
        notes.append(f"SLOWER than the dense float network: {ours.ratio(dense):.2f}x its speed{instead}")
    notes += _bought(place, before["row"], dense, ours)
    if ours.runtime != dense.runtime:
        notes.append(f"speeds are those of {ours.runtime} beside the dense float network in {dense.runtime}")
    if file.read_bytes() == (place.dense / ARTIFACT).read_bytes():
        notes.append("the file is the dense float network's: nothing in this run makes it smaller")
    elif ours.file_bytes >= dense.file_bytes:
        packed = ", only the packed one is" if (place.before / network.PACKED).exists() else ""
        notes.append(f"NOT SMALLER than the dense float file: {ours.file_bytes} of {dense.file_bytes} bytes{packed}")
    measurements = [{**dense.to_dict(), "artifact": f"{DENSE}/{ARTIFACT}"}, {**ours.to_dict(), "artifact": file.name}]
    figures = {"latency_s": ours.latency_s, "resident_bytes": ours.resident_bytes}
    return {
        "row": {**before["row"], **figures},
        "notes": notes,
        "measurements": measurements,
        "artifact": before["artifact"],
    }


def _bought(place: Place, now: Result, dense: Measurement, ours: Measurement) -> list[str]:
    """Say what single weights that are zero are worth in the runtime, and on disk."""
    assert place.dense is not None  # the recipe's order was checked
    zeros = 1 - now["nonzero"] / now["params"]
    if zeros < FEW_ZEROS:
        return []
    title, packed = RUNTIMES[ours.runtime].title, place.before / network.PACKED
    alike = now["params"] == read_result(place.dense)["row"]["params"] and now["weight_bytes"] == 4 * now["params"]
    share = ours.latency_s / dense.latency_s
    if alike:
        buys = "nothing" if share > 1 - BARELY else "time"
        what = f"in {title} that buys {buys}: {share:.2f} of the dense latency, "
        what += f"{ours.file_bytes / dense.file_bytes:.2f} of its file"
    else:
        what = f"{title} stores them and multiplies by them as by any others"
    small = (
        f"packed: {format_bytes(packed.stat().st_size)}"
        if packed.exists()
        else "stored small by pack = true in the export step"
    )
    return [f"{zeros:.1%} of the parameters are 0; {what}; {small}"]


def _chose_fastest(context: Context) -> bool:
    return any(isinstance(step, Quantize) and step.scheme == "auto" for step in context.recipe.step)


CALIBRATION = 64  # images that a format's own ranges are found on
FEW_ZEROS = 0.05  # of the parameters: below that nothing was meant by them
BARELY = 0.05  # of a latency: what two measurements of one file may differ by
AS_FAST = 0.02  # of a latency: what is no slower than that is as fast, the same kernels measured twice differ by it

RUN_STEP: dict[str, Callable[[Context, Place, Any], Result]] = {
    "train": _train,
    "prune": prune_step,
    "sparsify": sparsify_step,
    "net_trim": net_trim_step,
    "quantize": quantize_step,
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
    shutil.rmtree(place.after / SNAPSHOTS, ignore_errors=True)
    return result


def dense_reference(context: Context, before: Path, after: Path) -> Result:
    """Export the dense float network: what everything later is compared with."""
    started = time.perf_counter()
    model = network.load(before)
    network.save(model, context.builder, after)
    artifact = export(model, context.example, after / ARTIFACT)
    checks = [compare_float(model, artifact, context.checked()), *context.with_answers(artifact)]
    require(checks)
    figures = {"file_bytes": artifact.stat().st_size}
    result: Result = {
        "row": row(context, model, _known_accuracy(before), **figures),
        "checks": dicts(checks),
        "notes": [],
    }
    result["seconds"] = time.perf_counter() - started
    write_json(after / RESULT, result)
    return result
