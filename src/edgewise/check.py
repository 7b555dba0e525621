"""Verify a run folder again, from its files alone: fingerprints, equality, accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgewise import data
from edgewise.errors import CheckFailed, DataError, RunFolderError
from edgewise.export import network
from edgewise.export.network import Builder
from edgewise.export.verify import Check, compare_float, compare_int8
from edgewise.files import canonical_json, read_json, sha256
from edgewise.recipe import Recipe, read
from edgewise.run import MANIFEST, RECIPE, RESULTS, files, sealed
from edgewise.steps import ARTIFACT, Context, read_result

ACCURACY_LIMIT = 0.005  # another processor rounds differently, which may move an image across a boundary


def check(folder: Path) -> Iterator[Check]:
    """Verify a finished run, yielding each check as it is done.

    First that every file is the one the run wrote; then, from the files alone, that the network can be rebuilt, that
    the artifact equals it on held-out images, and that both still have the accuracy of results.json.

    Raises:
        RunFolderError: a file was changed, is missing, or does not belong; it is named.
    """
    manifest = _manifest(folder)
    yield _unchanged(folder, manifest)
    recipe, results = read(folder / RECIPE), read_json(folder / RESULTS)
    model = network.load(folder)
    try:
        images = data.load(recipe.data, held=recipe.held, size=recipe.size)
    except DataError as error:
        raise DataError(f"{error}; the files are unchanged, equality and accuracy could not be checked") from error
    yield Check(
        "same images",
        images.checksum == manifest["data"]["checksum"],
        0.0 if images.checksum == manifest["data"]["checksum"] else 1.0,
        0.0,
        "checksums that differ",
        f"{recipe.data} against the run's {manifest['data']['checksum'][:19]}",
    )
    context = _context(recipe, folder, images)
    held = context.checked()
    last = folder / "steps" / f"{len(recipe.step):02d}-{recipe.step[-1].kind}"
    artifact = folder / ARTIFACT
    if artifact.exists():
        precision = read_result(last)["artifact"]["precision"]
        yield from (
            [compare_float(model, artifact, held)] if precision == "float32" else compare_int8(model, artifact, held)
        )
        accuracy = context.artifact_accuracy(artifact)
    else:
        accuracy = context.accuracy(model)
    stated = results["compressed"]["accuracy"]
    difference = abs(accuracy - stated)
    yield Check(
        "same accuracy",
        difference <= ACCURACY_LIMIT,
        difference,
        ACCURACY_LIMIT,
        "difference",
        f"{accuracy:.4f}, stated {stated:.4f}",
    )


def passed(checks: list[Check]) -> None:
    """Raise unless every check passed.

    Raises:
        CheckFailed: names the first that did not, its value and its limit.
    """
    for item in checks:
        if not item.passed:
            raise CheckFailed(f"{item.name}: {item.value:.3g} {item.unit}, the limit is {item.limit:.3g} {item.detail}")


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
