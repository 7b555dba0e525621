"""The gradients of the loss on some training images, for criteria that look at them."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.graph.trace import evaluating
from edgewise.tasks import Task
from edgewise.train.forward import forward, image_layout, resolve_device
from edgewise.train.randomness import mixed_seed, reproducible


def gradients(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    images: int = 512,
    batch: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of the loss by parameter, one batch after another.

    The network is in eval mode, as it will be used: BatchNorm normalises with its running statistics.

    Args:
        model: stays as it is.
        task: makes the batches, without augmentation, and their loss.
        split: the training split.
        images: how many of its images, drawn by the seed; all of them if it has fewer.
        batch: images per gradient; those that fill no batch are left out, unless they are all there are.
        seed: at least 0.
        device: where to compute.

    Raises:
        ValueError: images or batch below 1, a seed below 0.
        UnknownName: a device that is not here.
        DataError: a split that the task refuses.
        ModelError: a forward that raises.
    """
    for name, value in (("images", images), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    device = resolve_device(device)
    task.check(split)
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(mixed_seed(seed)))[:images]
    batch = min(batch, len(chosen))
    network = copy.deepcopy(model).to(device).requires_grad_(True)
    parameters = dict(network.named_parameters())
    for index in torch.split(chosen[: len(chosen) - len(chosen) % batch], batch):
        with reproducible(device), evaluating(network), torch.enable_grad():
            part = split.part(index).to(device)
            inputs, targets = task.batch(part, torch.arange(len(index), device=device), augment=False)
            loss = task.loss(forward(network, image_layout(inputs)), targets)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        yield {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}
