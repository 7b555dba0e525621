"""The one training loop."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.errors import TrainingDiverged
from edgewise.progress import Progress
from edgewise.tasks import Task
from edgewise.train.average import WeightAverage
from edgewise.train.checkpoint import Training, fingerprint, read_checkpoint, write_checkpoint
from edgewise.train.config import TrainConfig
from edgewise.train.forward import (
    autocast,
    forward,
    home,
    image_layout,
    resolve_device,
    take_modes,
    weight_layout,
)
from edgewise.train.method import TrainingMethod
from edgewise.train.optimizer import build_optimizer
from edgewise.train.randomness import mixed_seed, reproducible, seed_global
from edgewise.train.schedule import learning_rate

# What each stream of random numbers is for; part of the seed, so the streams never meet.
START, IMAGES, NETWORK = 0, 1, 2

# Steps between two looks at the losses: each makes a GPU wait for its queue, and a diverged step is still found.
LOOK_EVERY = 50


def fit(
    model: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    *,
    methods: Sequence[TrainingMethod] = (),
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    log: Callable[[float], None] | None = None,
) -> nn.Module:
    """Train a copy of a network.

    The whole split lies on the device as bytes. Everything random follows from the seed: the order and the
    augmentation of each epoch's images from (seed, epoch), whatever network and methods are trained, and dropout
    and the methods' own numbers from another stream. The global random state is left as it was.

    Args:
        model: stays as it is.
        task: its loss and its batches; `config` sets its label smoothing and augmentation.
        split: the training images.
        config: the training.
        methods: take part in the order given; see `TrainingMethod`.
        seed: at least 0.
        device: where to train, such as "cpu" or "cuda".
        progress: called after each step with ("train", steps done, steps in all), and once an epoch is safe in its
            checkpoint with ("epochs", epochs done, epochs in all).
        checkpoint: a file that holds the training's state after each epoch. When it exists the training goes on from
            it and ends, on the same machine, with the very same weights as one that was never interrupted.
        log: called with the mean loss of each epoch in turn, those of an existing checkpoint included, so that the
            history is whole.

    Returns:
        A new network on the model's device, each module in the mode it has in the model.

    Raises:
        ValueError: a seed below 0, a choice that means nothing to the task.
        UnknownName: a device that is not here.
        DataError: a split the task cannot learn from.
        ModelError: nothing to train, a forward that raises, outputs of a wrong shape.
        TrainingDiverged: the loss or a weight became NaN or infinite.
        RunFolderError: a checkpoint that cannot be read or written, or that another training wrote.
    """
    device = resolve_device(device)
    task = with_choices(task, config)
    task.check(split)
    made_by = fingerprint(model, task, split, config, methods, seed) if checkpoint else {}
    config = replace(config, batch=min(config.batch, len(split)))
    # The average comes last: it sees the weights as the methods leave them, and hands them its own first of all.
    methods = [*methods, *([WeightAverage(config.ema)] if config.ema else [])]

    with reproducible(device):
        split = split.to(device)
        training = _start(model, config, methods, len(split) // config.batch, seed, device)
        losses = read_checkpoint(checkpoint, training, made_by) if checkpoint and checkpoint.exists() else []
        if log:
            for loss in losses:
                log(loss)
        for epoch in range(len(losses), config.epochs):
            losses.append(_train_epoch(training, task, split, config, epoch, seed, progress))
            if checkpoint:
                write_checkpoint(checkpoint, training, losses, made_by)
            if log:
                log(losses[-1])
            if checkpoint and progress:
                progress("epochs", epoch + 1, config.epochs)
        network = _finish(training)
    take_modes(network, model)
    return weight_layout(network, torch.contiguous_format).to(home(model))


def with_choices(task: Task, config: TrainConfig) -> Task:
    """Return the task with a training's label smoothing and augmentation.

    Raises:
        ValueError: a choice that means nothing to the task.
    """
    return task.trained_with(
        label_smoothing=config.label_smoothing,
        augment=config.augment,
        cutout_size=config.cutout_size,
        mixup_alpha=config.mixup_alpha,
    )


def _start(
    model: nn.Module,
    config: TrainConfig,
    methods: Sequence[TrainingMethod],
    steps_per_epoch: int,
    seed: int,
    device: torch.device,
) -> Training:
    """Copy the network to the device, let the methods prepare it, and make the optimizer of what they left."""
    network = weight_layout(copy.deepcopy(model).to(device), torch.channels_last)
    seed_global(mixed_seed(seed, START), device)
    for method in methods:
        method.start(network, config, steps_per_epoch)
    return Training(network, build_optimizer(network, config), methods)


def _finish(training: Training) -> nn.Module:
    """Let the methods take away what they added, the last one first."""
    network = training.network
    with torch.no_grad():
        for method in reversed(training.methods):
            network = method.finish(network)
    network.zero_grad()
    return network


def _train_epoch(
    training: Training,
    task: Task,
    split: Split,
    config: TrainConfig,
    epoch: int,
    seed: int,
    progress: Progress | None,
) -> float:
    """Train one epoch; return its mean loss."""
    network, optimizer, methods = training.network, training.optimizer, training.methods
    device = split.images.device
    steps_per_epoch = len(split) // config.batch
    steps = config.epochs * steps_per_epoch

    seed_global(mixed_seed(seed, NETWORK, epoch), device)
    generator = torch.Generator(device).manual_seed(mixed_seed(seed, IMAGES, epoch))
    order = torch.randperm(len(split), generator=generator, device=device)
    losses = torch.zeros(steps_per_epoch, device=device)
    network.train()
    for place in range(steps_per_epoch):
        step = epoch * steps_per_epoch + place
        lr = learning_rate(config, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr

        index = order[place * config.batch : (place + 1) * config.batch]
        inputs, targets = task.batch(split, index, augment=True, generator=generator)
        inputs = image_layout(inputs)
        with torch.no_grad():
            for method in methods:
                method.before_step(network, index)
        with autocast(device, config.precision):
            outputs = forward(network, inputs)
            loss = task.loss(outputs, targets)
            for method in methods:
                loss = method.loss(network, inputs, outputs, targets, loss)

        optimizer.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for method in methods:
                method.gradients(network)
            optimizer.step()
            for method in methods:
                method.after_step(network, step, lr)

        losses[place] = loss.detach()
        if place % LOOK_EVERY == LOOK_EVERY - 1:
            _stop_if_diverged(losses[: place + 1], epoch, config)
        if progress:
            progress("train", step + 1, steps)

    _stop_if_diverged(losses, epoch, config)
    with torch.no_grad():
        for method in methods:
            method.after_epoch(network, epoch)
    _stop_if_broken(network, epoch, config)
    return float(losses.double().mean())


def _stop_if_diverged(losses: Tensor, epoch: int, config: TrainConfig) -> None:
    """Raise TrainingDiverged for the first step whose loss is NaN or infinite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        place = int(bad[0])
        raise TrainingDiverged(
            f"the loss became {float(losses[place])} at step {place + 1} of epoch {epoch + 1} (of {config.epochs}); "
            f"a lower lr than {config.lr} usually helps"
        )


def _stop_if_broken(network: nn.Module, epoch: int, config: TrainConfig) -> None:
    """Raise TrainingDiverged for a weight that the epoch's last step broke, which no loss has shown yet."""
    for name, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            raise TrainingDiverged(
                f"{name} holds NaN or infinity after the last step of epoch {epoch + 1} (of {config.epochs}); "
                f"a lower lr than {config.lr} usually helps"
            )
