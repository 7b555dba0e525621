"""The prune step of a run: who judges candidates, what is removed, proved and told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from statistics import median

from torch import Tensor, nn

from edgewise.context import Context, Place, Result, dicts, read_result, row
from edgewise.export import network
from edgewise.export.verify import Check, compare_networks, require
from edgewise.graph import Graph, shrink, silence
from edgewise.graph.trace import Atoms
from edgewise.layout import ARTIFACT
from edgewise.prune.candidates import CARE
from edgewise.prune.config import Prune
from edgewise.prune.judge import Judge, make_judge
from edgewise.prune.rates import Sensitivity
from edgewise.prune.structured import Pruned, prune
from edgewise.train import gradients, recalibrate
from edgewise.train.randomness import mixed_seed
from edgewise.units import format_quantity


def prune_step(context: Context, place: Place, config: Prune) -> Result:
    """Remove channels, prove the shrunk network equal to the silenced one, mend the BatchNorm statistics."""
    model = network.load(place.before)
    config = context.recipe.for_artifact(config)
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
        limits=context.limits(config, read_result(place.dense)["row"]),
        reference=place.dense / ARTIFACT,
        tail=context.task.tail(),
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
    kept_widths = zip(pruned.graph.groups, pruned.graph.widths(pruned.keep).tolist(), strict=True)
    widths = {group.name: [width, group.size] for group, width in kept_widths}
    kept = {name: index.tolist() for name, index in pruned.keep.items()}
    result = {"row": row(context, small), "checks": dicts(checks), "notes": notes, "widths": widths, "keep": kept}
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
        rates = ", ".join(_rate(pruned, name, curve) for name, curve in pruned.sensitivity.items())
        notes.append(f"rates at the knees (* none: within the tolerance), and channels removed: {rates}")
    if pruned.search:
        found = sorted(one.accuracy for one in pruned.search.tried)
        notes.append(
            f"{len(found)} of {pruned.search.drawn} random candidates lay within the budget and were judged: held-out "
            f"accuracy with recalibrated BatchNorm {found[0]:.4f} to {found[-1]:.4f}, median {median(found):.4f}; the "
            "best was taken"
        )
    return notes


def _rate(pruned: Pruned, name: str, curve: Sensitivity) -> str:
    """Say a group's rate, and what came of it."""
    size = pruned.graph.by_name[name].size
    removed = size - len(pruned.keep[name]) if name in pruned.keep else 0
    return f"{name} {curve.knee:g}{'' if curve.found else '*'} ({removed} of {size})"


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
