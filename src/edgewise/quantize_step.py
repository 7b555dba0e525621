"""The quantise step of a run: the artifact of a scheme, what was tried for it, and the proofs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from edgewise.context import Context, Place, Result, dicts, row
from edgewise.devices.base import Measurement
from edgewise.devices.kernels import kernels
from edgewise.devices.local import sums_saturate
from edgewise.devices.measure import measure
from edgewise.devices.runtimes import RUNTIMES
from edgewise.export import network
from edgewise.export.compact import write
from edgewise.export.formats import shipped_as
from edgewise.export.onnx import export
from edgewise.export.read import read
from edgewise.export.verify import (
    TRAINED,
    compare_codes,
    compare_quantized,
    compare_simulation,
    network_outputs,
    outputs,
    require,
)
from edgewise.layout import ARTIFACT
from edgewise.models.onnx import OnnxNetwork
from edgewise.quantize import Quantize, Quantizer, activation_cost, weight_bytes
from edgewise.quantize.auto import FLOAT, STATIC, Candidate, Choice, choose, without_sensitive
from edgewise.quantize.config import ALLOWED_PT
from edgewise.quantize.mixed import MANY, write_mixed
from edgewise.quantize.qat import Lsq
from edgewise.quantize.schemes import SCHEMES, schemes_for
from edgewise.quantize.sensitivity import IMAGES
from edgewise.quantize.simulate import integer_outputs
from edgewise.quantize.ties import avoid_ties_
from edgewise.recipe import Export
from edgewise.teachers import taught_by
from edgewise.train import fit
from edgewise.train.config import TrainConfig
from edgewise.train.evaluate import evaluate
from edgewise.train.randomness import mixed_seed

QAT_BATCH = 64


def quantize_step(context: Context, place: Place, config: Quantize) -> Result:
    """Turn the network into an artifact of fewer bits, calibrated on training images."""
    model = network.load(place.before)
    network.save(model, context.builder, place.after)
    images = context.calibration(config.calibration, mixed_seed(context.recipe.seed, place.index))
    float_file = export(model, context.example, place.after / "float.onnx", names=True)
    fixed = fixed_layers(model, float_file)
    config = replace(config, exclude=(*config.exclude, *fixed))
    quantizer = Quantizer(float_file, images, config, progress=context.progress)
    made = _make(context, place, config, quantizer)
    float_file.unlink()
    artifact = place.after / ARTIFACT
    checks = compare_quantized(
        model, artifact, context.checked(), precision=made["precision"], alike=context.task.agreement
    )
    notes = [*_equalized(quantizer), *made.pop("notes")]
    notes += [f"filters that no training made stay floats: {', '.join(fixed)}"] if fixed else []
    simulated, excluded = made.pop("simulated"), made.pop("excluded", ())
    if simulated is not None:
        runtime = context.recipe.measured.runtime
        made["kernels"] = asdict(found := kernels(artifact, runtime))
        if found.floating:
            layers = found.integer + found.floating
            notes.append(f"{found.floating} of {layers} layers compute on floats in {RUNTIMES[runtime].title}")
        inputs = context.checked()
        expected = integer_outputs(simulated, inputs, QAT_BATCH)
        whole = network_outputs(model, inputs)
        computed = outputs(artifact, inputs)
        checks += compare_simulation(expected, computed, made["precision"], whole=whole, alike=context.task.agreement)
        here = found if runtime == "onnxruntime" else kernels(artifact)
        if quantizer.sites(excluded).whole and not here.floating and not sums_saturate():
            checks.append(compare_codes(expected, computed, made["precision"]))
    if not any(isinstance(step, Export) for step in context.recipe.step[place.index :]):
        checks += context.with_answers(artifact)
    require(checks)
    base = row(context, model, context.artifact_accuracy(artifact, context.data.test))
    figures = {
        "weight_bytes": weight_bytes(artifact),
        **asdict(activation_cost(artifact)),
        "file_bytes": artifact.stat().st_size,
    }
    if len(images) < config.calibration:
        notes.append(f"calibrated on all {len(images)} training images; {config.calibration} were asked for")
    return {
        "row": {**base, **figures},
        "checks": dicts(checks),
        "notes": notes,
        "artifact": {"precision": made.pop("precision")},
        **made,
    }


def fixed_layers(model: nn.Module, file: Path) -> list[str]:
    """Name the layers of a network's file whose filters are no parameters: what they compute is given, to the bit."""
    named = {node.name for node in read(file).graph}
    banks = (name for name, module in model.named_modules() if "weight" in dict(module.named_buffers(recurse=False)))
    return [name for name in banks if name in named]


def _make(context: Context, place: Place, config: Quantize, quantizer: Quantizer) -> dict[str, Any]:
    """Write the artifact, and say what it is: its precision, its simulation where there is one, notes, and more."""
    artifact = place.after / ARTIFACT
    held = partial(context.artifact_accuracy, split=context.data.held)
    if config.scheme == "auto":
        return _auto(context, place, config, quantizer)
    if config.scheme == "mixed":
        assert config.size is not None
        _, bits = write_mixed(quantizer, artifact, config.size, context.checked()[:IMAGES], context.progress)
        few = [name for name, width in bits.items() if width < MANY]
        notes = [f"4 bits: {', '.join(few)}" if few else "8 bits everywhere are within the size"]
        return {"precision": "int8", "simulated": quantizer.simulated(bits=bits), "notes": notes}
    if config.scheme == "qat":
        simulated, notes = _train(context, place, config, quantizer)
        quantizer.write(artifact, simulated=simulated)
        return {"precision": TRAINED, "simulated": simulated, "notes": [*_constant(quantizer), *notes]}
    if config.scheme != STATIC:
        SCHEMES[config.scheme].write(quantizer, artifact)
        return {"precision": SCHEMES[config.scheme].precision, "simulated": None, "notes": []}
    if config.max_drop is None:
        simulated = quantizer.simulated()
        quantizer.write(artifact, simulated=simulated)
        return {"precision": "int8", "simulated": simulated, "notes": _constant(quantizer)}
    whole = held(quantizer.path)
    static, curve = without_sensitive(
        quantizer,
        artifact,
        accuracy=held,
        least=whole - config.max_drop / 100,
        images=context.checked(),
        progress=context.progress,
    )
    choice = Choice(static, (Candidate(FLOAT, quantizer.path, (), whole, quantizer.path.stat().st_size), static), curve)
    return _told(choice, quantizer, config.max_drop)


def _auto(context: Context, place: Place, config: Quantize, quantizer: Quantizer) -> dict[str, Any]:
    """Keep the fastest scheme that holds the accuracy."""
    budget = context.recipe.budget
    allowed = config.max_drop
    if allowed is None:
        allowed = ALLOWED_PT if budget is None or budget.drop is None else budget.drop
    step = context.recipe.measured
    candidates = place.after / "candidates"
    candidates.mkdir()
    kind = context.recipe.format

    def side_by_side(paths: Sequence[Path]) -> list[Measurement]:
        paths = [shipped_as(kind, path, quantizer.images, candidates) for path in paths]
        settings = {"runtime": step.runtime, "threads": step.threads, "input_shape": context.data.input_shape}
        return measure(paths, **settings, progress=context.progress)  # type: ignore[arg-type]

    choice = choose(
        quantizer,
        candidates,
        accuracy=partial(context.artifact_accuracy, split=context.data.held),
        allowed_pt=allowed,
        images=context.checked(),
        measure=side_by_side,
        schemes=schemes_for(kind),
        progress=context.progress,
    )
    if choice.kept.scheme == FLOAT:
        write(quantizer.prepared(), place.after / ARTIFACT)
    else:
        shutil.copyfile(choice.kept.path, place.after / ARTIFACT)
    shutil.rmtree(candidates)
    return _told(choice, quantizer, allowed)


def _told(choice: Choice, quantizer: Quantizer, allowed_pt: float) -> dict[str, Any]:
    """Say what was tried, and what was kept."""
    kept, dense = choice.kept, choice.tried[0]
    static = kept.scheme == STATIC
    notes = _constant(quantizer) if static else []
    lost = 100 * (dense.accuracy - kept.accuracy)
    if kept.scheme == FLOAT:
        notes.append("nothing was as fast as float32, smaller and accurate enough: float32 stays")
    elif lost > allowed_pt:
        notes.append(f"{kept.label} loses {lost:.2f} points on held-out images, {allowed_pt:g} may go")
    elif len(choice.tried) > 2:
        notes.append(
            f"{kept.label} is the fastest of {len(choice.tried) - 1} that were tried: {kept.speed:.2f} times float32"
        )
    if kept.excluded:
        notes.append(f"in floats: {', '.join(kept.excluded)}")
    return {
        "precision": "float32" if kept.scheme == FLOAT else SCHEMES[kept.scheme].precision,
        "simulated": quantizer.simulated(kept.excluded) if static else None,
        "excluded": kept.excluded,
        "notes": notes,
        "tried": [candidate.to_dict() for candidate in choice.tried],
        "exclusion": [asdict(point) for point in choice.curve],
    }


def _equalized(quantizer: Quantizer) -> list[str]:
    """Say how many pairs of layers were equalised."""
    count = len(quantizer.equalized)
    return [f"pairs of layers that were equalised: {count}"] if quantizer.config.equalize else []


def _constant(quantizer: Quantizer) -> list[str]:
    """Name the layers whose input never changes."""
    constant = quantizer.constant
    return [f"reads the same number on every calibration image: {', '.join(constant)}"] if constant else []


def _train(context: Context, place: Place, config: Quantize, quantizer: Quantizer) -> tuple[OnnxNetwork, list[str]]:
    """Train the simulated network, with the float one as its teacher; kept where it is better on held-out images."""
    simulated, teacher = quantizer.simulated(), OnnxNetwork(quantizer.prepared().graph)
    before = _accuracy(context, simulated)
    batch = min(QAT_BATCH, len(context.data.train))
    training = TrainConfig(epochs=config.epochs, lr=config.lr, batch=batch, weight_decay=0.0)
    trained = fit(
        simulated,
        context.task,
        context.data.train,
        training,
        methods=[Lsq(), taught_by(context, [teacher.to(context.device)])],
        seed=mixed_seed(context.recipe.seed, place.index),
        device=context.device,
        progress=context.progress,
    )
    assert isinstance(trained, OnnxNetwork)
    avoid_ties_(trained, quantizer.sites())
    after = _accuracy(context, trained)
    said = f"on held-out images {before:.2%} before training for int8, {after:.2%} after it"
    return (trained, [said]) if after >= before else (simulated, [f"undone: {said}"])


def _accuracy(context: Context, model: nn.Module) -> float:
    return evaluate(model, context.task, context.data.held, device=context.device)
