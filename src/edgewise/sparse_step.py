"""The steps that make single weights zero: what is taken, and what it buys."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn

from edgewise.context import Context, Place, Result, dicts, row
from edgewise.errors import UnknownName, UserError, nearest
from edgewise.export import network
from edgewise.export.verify import compare_masked, require
from edgewise.sparse import (
    NetTrim,
    Sparsify,
    grasp,
    keep_masks,
    keep_n_of_m,
    masked,
    prunable,
    score,
    snip,
    sparsify_layers,
    synflow,
)
from edgewise.train.randomness import mixed_seed

BATCH = 64  # images of which a gradient is taken at once


def sparsify_step(context: Context, place: Place, config: Sparsify) -> Result:
    """Set single weights to zero."""
    model = network.load(place.before)
    keep = _keep(context, place, config, model)
    gone, count = sum(int((~mask).sum()) for mask in keep.values()), sum(mask.numel() for mask in keep.values())
    if not count:
        raise UserError("sparsify: no layer is left to take weights from: exclude fewer")
    if gone in (0, count):
        whole = f" in whole blocks of {list(config.tile)}" if config.tile else ""
        raise UserError(
            f"sparsify: of {count:,} weights {'all' if gone else 'none'} would become 0 with sparsity = "
            f"{config.sparsity}{whole}: take another"
        )
    sparse = masked(model, keep)
    checks = [compare_masked(sparse, model)]
    require(checks)
    network.save(sparse, context.builder, place.after)
    notes = [
        f"{gone:,} of {count:,} weights of convolutions and linear layers are 0, stored and computed with as before"
    ]
    return {"row": row(context, sparse), "checks": dicts(checks), "notes": notes}


def net_trim_step(context: Context, place: Place, config: NetTrim) -> Result:
    """Give each layer the sparsest weights that still compute what it computed on some training images."""
    model = network.load(place.before)
    images = context.calibration(config.images, mixed_seed(context.recipe.seed, place.index))
    try:
        sparse, layers = sparsify_layers(
            model,
            images,
            gamma=config.gamma,
            scheme=config.scheme,
            form=config.form,
            rounds=config.rounds,
            support=config.support,
            ridge=config.ridge,
            skip=config.exclude,
            seed=context.recipe.seed,
            progress=context.progress,
        )
    except ValueError as error:
        raise UserError(f"net_trim: {error}") from error
    network.save(sparse, context.builder, place.after)
    kept, count = sum(layer.nonzero for layer in layers), sum(layer.weights for layer in layers)
    behind = [layer.layer for layer in layers if not layer.below_baseline]
    notes = [f"{count - kept:,} of {count:,} weights of {len(layers)} layers are 0, stored and computed with as before"]
    if config.support == "magnitude":
        notes.append("the baseline: of each layer as many weights as Net-Trim would keep, but the largest")
    elif behind:
        would = "was nearer and is taken" if config.support == "better" else "would have been as near"
        notes.append(f"magnitude pruning and least squares {would}: {', '.join(behind)}")
    return {"row": row(context, sparse), "notes": notes, "trimmed": [asdict(layer) for layer in layers]}


def _keep(context: Context, place: Place, config: Sparsify, model: nn.Module) -> dict[str, Tensor]:
    """Choose the weights that stay.

    Raises:
        UserError: a tile or a pattern that does not fit a layer, a layer that is not there.
    """
    scores = _scores(context, place, config, model)
    layers = {name.removesuffix(".weight"): name for name in scores}
    for name in config.exclude:
        if name not in layers:
            raise UnknownName(f'sparsify: exclude = "{name}": there is no such layer; {nearest(name, layers)}')
    scores = {name: found for name, found in scores.items() if name.removesuffix(".weight") not in config.exclude}
    try:
        if config.sparsity is None:
            return keep_n_of_m(scores, *config.n_of_m)
        return keep_masks(scores, config.sparsity, config.scope, config.tile)
    except ValueError as error:
        raise UserError(f"sparsify: {error}") from error


def _scores(context: Context, place: Place, config: Sparsify, model: nn.Module) -> dict[str, Tensor]:
    """Score the weights as the step's criterion does."""
    generator = torch.Generator().manual_seed(mixed_seed(context.recipe.seed, place.index))
    if config.criterion in ("l1", "random"):
        return score(prunable(model), config.criterion, generator)
    if config.criterion == "synflow":
        assert config.sparsity is not None
        exclude = {f"{name}.weight" for name in config.exclude}
        return synflow(model, context.data.input_shape, config.sparsity, config.scope, config.tile, exclude)
    split = context.data.train
    chosen = torch.randperm(len(split), generator=generator)[: config.images]
    parts = [context.task.batch(split, index, augment=False) for index in torch.split(chosen, BATCH)]
    return {"snip": snip, "grasp": grasp}[config.criterion](model, context.task.loss, parts)
