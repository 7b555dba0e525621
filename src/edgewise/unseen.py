"""Runs that learn without data: what they know of it, what they read of it and when, and what stands in for it.

Such a run is told its classes, the size of its images and their normalisation by its first teacher, whose run wrote
them down. The data set is opened after the training, and of it the test split alone is used, for the accuracy. Steps
that need images, to calibrate, to judge or to prove, get some that the generator made, with the teachers' classes for
labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.context import Context
from edgewise.data import Dataset, Split, load
from edgewise.distill import DataFreeDistillation
from edgewise.errors import RecipeError
from edgewise.files import write_bytes
from edgewise.layout import RESULTS
from edgewise.page import read_run
from edgewise.pictures import sheet
from edgewise.recipe import Recipe

GENERATED = "generated.safetensors"
TRAIN, HELD = 1024, 256  # generated images that stand in for those of the data set
SHOWN = 64  # of them in the report


def described(recipe: Recipe) -> Dataset:
    """Return the data set of a run without data, with no images in it, as its first teacher's run describes it.

    Raises:
        RecipeError: the first teacher is no run that classifies images, or its images have another size.
    """
    name = recipe.teachers[0]
    if not (Path(name) / RESULTS).exists():
        raise RecipeError(f'teacher "{name}": the first one must be a run folder: it says what images there are')
    facts = read_run(Path(name), RESULTS)
    if facts.get("kind", "classification") != "classification":
        raise RecipeError(f'teacher "{name}": data-free distillation is for classifiers')
    if recipe.size not in (None, side := facts["input_shape"][-1]):
        raise RecipeError(
            f'size = {recipe.size}: without data the images are as teacher "{name}" knows them, {side} pixels'
        )
    return without_images(recipe, facts)


def without_images(recipe: Recipe, facts: Mapping[str, Any]) -> Dataset:
    """Return a data set with no images in it, as the results.json of a run on it describes it."""
    nothing = Split(torch.empty(0, *facts["input_shape"], dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    return Dataset(recipe.data, tuple(facts["classes"]), nothing, nothing, nothing, mean, std, checksum="not opened")


def keep_generated(method: DataFreeDistillation, data: Dataset, folder: Path, seed: int) -> str:
    """Write images of a trained generator into a step's folder, and return some of them for the report, as one."""
    from safetensors.torch import save

    inputs = method.sample(TRAIN + HELD, seed)
    images = _as_bytes(inputs, data)
    write_bytes(folder / GENERATED, save({"images": images, "labels": method.answers(inputs).argmax(1)}))
    return sheet(images[:SHOWN])


def _as_bytes(inputs: Tensor, data: Dataset) -> Tensor:
    """Return normalised images as bytes, as far as these go."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def opened(context: Context, step: Path) -> Context:
    """Return what steps share once a data-free training is done: the test split, and generated images for the rest.

    Args:
        context: of the run.
        step: the folder that the training left.

    Raises:
        RecipeError: the data set's images or classes are not those that the teachers know.
    """
    from safetensors.torch import load_file

    kept, recipe = load_file(step / GENERATED), context.recipe
    found = load(recipe.data, held=recipe.held, size=context.data.size, progress=context.progress)
    if (found.classes, found.input_shape) != (context.data.classes, context.data.input_shape):
        raise RecipeError(f"{recipe.data}: its images or classes are not those of the teachers")
    made = Split(kept["images"], kept["labels"])
    note = "trained without data: of the data set the test split alone is used, for the accuracy"
    data = replace(
        context.data,
        name=found.name,
        train=made.part(slice(TRAIN)),
        held=made.part(slice(TRAIN, None)),
        test=found.test,
        checksum=found.checksum,
        note=f"{found.note}; {note}" if found.note else note,
    )
    return replace(context, data=data)
