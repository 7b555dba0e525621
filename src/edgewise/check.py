"""Verify a run folder again, from its files alone: fingerprints, equality, accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise import data
from edgewise.context import Context, read_result
from edgewise.errors import DataError, RunFolderError
from edgewise.export import network
from edgewise.export.network import Builder
from edgewise.export.pack import reread
from edgewise.export.tail import has_tail
from edgewise.export.verify import (
    Check,
    compare_answers,
    compare_float,
    compare_formats,
    compare_masked,
    compare_quantized,
)
from edgewise.files import canonical_json, read_json, sha256
from edgewise.graph import shrink, trace
from edgewise.layout import ARTIFACT, DENSE, FIRST, MANIFEST, RECIPE, RESULTS, STEPS, shipped, step_folder
from edgewise.page import read_run
from edgewise.prune.config import Prune
from edgewise.prune_step import removal_checks, zero_checks
from edgewise.recipe import Recipe, read
from edgewise.results import files, sealed
from edgewise.sparse import Sparsify
from edgewise.unseen import opened, without_images

LEAST = 0.5  # of the answers of a quantised network; what they may cost was for the run to judge
MOVED = 0.005  # of the test images: another processor rounds differently, which may move one across a boundary


def check(folder: Path) -> Iterator[Check]:
    """Verify a finished run, yielding each check as it is done.

    First that every file is the one the run wrote; then, from the files alone, that the dense network equals its
    artifact, that pruned networks equal the ones before them with the channels silenced, that the artifact equals the
    network on held-out images, and that it still has the accuracy of results.json.

    Raises:
        RunFolderError: a file was changed, is missing, or does not belong; it is named.
        DataError: the run's images are not there, so that no more than the fingerprints could be checked.
    """
    manifest = _manifest(folder)
    yield _unchanged(folder, manifest)
    recipe = read(folder / RECIPE)
    try:
        images = data.load(recipe.data, held=recipe.held, size=recipe.size, skip_bad=recipe.skip_bad)
    except DataError as error:
        raise DataError(f"{error}; the files are unchanged, equality and accuracy could not be checked") from error
    yield _same_images(recipe, images, manifest)
    context = _context(recipe, folder, images)
    if recipe.data_free:
        described = without_images(recipe, read_run(folder, RESULTS))
        context = opened(replace(context, data=described), step_folder(folder, 0, recipe.step[0].kind))
    held = context.checked()
    dense = _equal(context, network.load(folder / DENSE), folder / DENSE / ARTIFACT, held)
    yield replace(dense, name=f"{DENSE}: {dense.name}")
    yield from _pruned(context, held)
    yield from _result(context, held)


def _same_images(recipe: Recipe, images: data.Dataset, manifest: dict[str, Any]) -> Check:
    stated = manifest["data"]["checksum"]
    same = images.checksum == stated
    detail = f"{recipe.data} against the run's {stated[:19]}"
    return Check("same images", same, 0.0 if same else 1.0, 0.0, "checksums that differ", detail)


def _pruned(context: Context, held: Tensor) -> Iterator[Check]:
    """Hold each pruned network against the one before it: the weights it kept, and the proof of what it lost.

    Of a sparse one, that its weights are those of the one before it, or 0.
    """
    steps = context.recipe.step
    after = [step_folder(context.folder, index, step.kind) for index, step in enumerate(steps)]
    for step, (before, here) in zip(steps, pairwise([context.folder / STEPS / FIRST, *after]), strict=True):
        if isinstance(step, Sparsify):
            found = compare_masked(network.load(here), network.load(before))
            yield replace(found, name=f"{here.name}: {found.name}")
        if not isinstance(step, Prune):
            continue
        whole, small = network.load(before), network.load(here)
        graph = trace(whole, context.example)
        keep = {name: np.array(index, np.int64) for name, index in read_result(here)["keep"].items()}
        kept = dict(shrink(whole, graph, keep).named_parameters())
        other = [name for name, weight in small.named_parameters() if not torch.equal(weight, kept[name])]
        yield Check(
            f"{here.name}: weights are the kept ones", not other, len(other), 0, "tensors", ", ".join(other[:3])
        )
        zeros = zero_checks(whole, small, held) if step.allocate == "zero" else []
        for proof in [*removal_checks(whole, graph, keep, held), *zeros]:
            yield replace(proof, name=f"{here.name}: {proof.name}")


def _result(context: Context, held: Tensor) -> Iterator[Check]:
    """Hold the artifact against the network, and the accuracy against results.json."""
    folder, last = context.folder, len(context.recipe.step) - 1
    model, artifact, alike = network.load(folder), folder / ARTIFACT, context.task.agreement
    if artifact.exists():
        made = read_result(step_folder(folder, last, context.recipe.step[last].kind))["artifact"]
        if made["precision"] == "float32":
            yield _equal(context, model, artifact, held)
        elif has_tail(artifact):
            yield compare_answers(model, artifact, held, alike, least=LEAST)
        else:
            yield from compare_quantized(model, artifact, held, precision=made["precision"], alike=alike)
        if (file := shipped(folder)) != artifact:
            kind = file.suffix.removeprefix(".")
            yield from compare_formats(artifact, file, held, made["precision"], kind, alike=alike)
        accuracy = context.artifact_accuracy(file, context.data.test)
    else:
        accuracy = context.accuracy(model)
    if (packed := folder / network.PACKED).exists():
        yield reread(packed, network.tensors(model))
    stated = read_json(folder / RESULTS)["compressed"]["accuracy"]
    count = len(context.data.test)
    moved, most = round(abs(accuracy - stated) * count), max(1, round(MOVED * count))
    detail = f"{accuracy:.4f}, stated {stated:.4f}, {count} images"
    yield Check("same accuracy", moved <= most, moved, most, "images' worth", detail)


def _equal(context: Context, model: nn.Module, artifact: Path, held: Tensor) -> Check:
    """Hold a float artifact against its network: by its answers, where it gives no outputs."""
    if has_tail(artifact):
        return compare_answers(model, artifact, held, partial(context.task.agreement, exactly=True))
    return compare_float(model, artifact, held)


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest, having made sure that it is the one the run wrote, to the byte."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        state = "the run is not finished" if (folder / RECIPE).exists() else "no run folder"
        raise RunFolderError(f"{path}: missing; {state}") from None
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}") from error
    try:
        manifest: dict[str, Any] = json.loads(content)
        intact = canonical_json(manifest) == content and sealed(manifest) == manifest
    except (ValueError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise RunFolderError(f"{path}: was changed after the run")
    return manifest


def _unchanged(folder: Path, manifest: dict[str, Any]) -> Check:
    """Compare every file with its fingerprint."""
    stated: dict[str, str] = manifest["files"]
    present = files(folder)
    for name in sorted(set(stated) - set(present)):
        raise RunFolderError(f"{folder / name}: missing; the run wrote it")
    for name in present:
        if name not in stated:
            raise RunFolderError(f"{folder / name}: the run did not write it")
        if sha256(folder / name) != stated[name]:
            raise RunFolderError(f"{folder / name}: was changed after the run")
    return Check("files unchanged", True, 0.0, 0.0, "files", f"{len(stated)} files have their fingerprints")


def _context(recipe: Recipe, folder: Path, images: data.Dataset) -> Context:
    channels, side, _ = images.input_shape
    builder = Builder(recipe.model, len(images.classes), channels, side, recipe.width)
    return Context(recipe, folder, images, builder, torch.device("cpu"))
