"""The optimizer of a training, over the parameters that ask for gradients."""

import torch
from torch import nn

from edgewise.errors import ModelError
from edgewise.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer; with ``decay="weights"`` parameters of one dimension are a group without weight decay.

    Not the fused kernels: on the CPU they walk weight, gradient and momentum in the order of memory, and give wrong
    numbers without a word when a method leaves one of them in another layout (torch 2.13).

    Raises:
        ModelError: no parameter asks for a gradient.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError("the network has no parameter that requires a gradient; there is nothing to train")
    spared = [p for p in trained if config.decay == "weights" and p.dim() < 2]
    decayed = [p for p in trained if config.decay == "all" or p.dim() >= 2]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, config.weight_decay), (spared, 0.0))
        if group
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), foreach=True)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, foreach=True)
