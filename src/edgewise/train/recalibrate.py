"""BatchNorm statistics of a changed network."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.data import Split
from edgewise.errors import DataError
from edgewise.graph.trace import evaluating
from edgewise.tasks import Task
from edgewise.train.forward import forward, home, image_layout, resolve_device
from edgewise.train.randomness import mixed_seed, reproducible


def recalibrate(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    images: int = 2048,
    batch: int = 256,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Measure every BatchNorm's mean and variance anew on training images, with all weights fixed.

    A pruned network's activations differ from those its statistics were taken on, and until they are measured anew
    its accuracy says little about its weights. The new statistics are plain averages over batches of equal size, of
    each batch's mean and of its unbiased variance; the old ones are forgotten. Only BatchNorm is in training mode
    meanwhile: dropout and its kin stay off.

    Args:
        model: stays as it is; one without BatchNorm (or whose BatchNorms keep no statistics) comes back as a copy.
        task: makes the batches, without augmentation.
        split: the training split.
        images: how many of its images, drawn by the seed; all of them if it has fewer.
        batch: images per batch; those that fill no batch are left out.
        seed: at least 0.
        device: where to compute.

    Returns:
        A new network on the model's device, each module in the mode it has in the model.

    Raises:
        ValueError: images or batch below 2, a seed below 0.
        UnknownName: a device that is not here.
        DataError: a split of one image (no variance), or one that the task refuses.
        ModelError: a forward that raises.

    Reference: Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020,
    arXiv 2007.02491. It lets a moving average of momentum 0.1 forget the old statistics over about
    100 batches; starting from nothing, the plain average does the same exactly and with fewer.
    """
    for name, value in (("images", images), ("batch", batch)):
        if value < 2:
            raise ValueError(f"{name} is {value}; it must be at least 2")
    device = resolve_device(device)
    task.check(split)
    if len(split) < 2:
        raise DataError("the split holds one image; BatchNorm's variance needs at least 2")
    images = min(images, len(split))
    batch = min(batch, images)

    with reproducible(device):
        network = copy.deepcopy(model).to(device)
        norms = [
            module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if norms:
            # Drawn and gathered on the CPU, so that every device measures on the same images.
            generator = torch.Generator().manual_seed(mixed_seed(seed))
            chosen = torch.randperm(len(split), generator=generator)[: images - images % batch]
            _measure(network, norms, task, split.part(chosen).to(device), batch)
    return network.to(home(model))


def _measure(network: nn.Module, norms: list[_BatchNorm], task: Task, split: Split, batch: int) -> None:
    """Run the batches through the network, in place, with the given modules in training mode."""
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), evaluating(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's spelling of a cumulative average
            norm.train()
        for index in torch.split(torch.arange(len(split), device=split.images.device), batch):
            inputs, _ = task.batch(split, index, augment=False)
            forward(network, image_layout(inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
