"""A task that a few hundred weights learn in seconds: which band of a small image is brighter."""

import torch
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.tasks import Classification

CLASSES = 4
TASK = Classification(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), classes=CLASSES)


def tiny_split(images: int = 200, side: int = 8, seed: int = 0) -> Split:
    """Noise uint8 [N, 3, side, side] in which the label's quarter of the rows is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    pixels = torch.randint(100, (images, 3, side, side), generator=generator, dtype=torch.uint8)
    rows = torch.arange(side) * CLASSES // side
    bright = (rows == labels[:, None])[:, None, :, None]
    return Split(pixels + 80 * bright.to(torch.uint8), labels)


def tiny_net(seed: int = 1, channels: int = 3, classes: int = CLASSES, dropout: float = 0.1) -> nn.Sequential:
    """Convolutions (one depthwise), BatchNorm, dropout and a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(8 * 8 * 8, classes),
        )


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copy everything that a network holds."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> bool:
    """Whether two networks hold the same bytes."""
    a, b = (net.state_dict() if isinstance(net, nn.Module) else net for net in (first, second))
    return a.keys() == b.keys() and all(
        x.dtype == y.dtype and x.detach().numpy().tobytes() == y.detach().numpy().tobytes()
        for x, y in zip(a.values(), b.values(), strict=True)
    )
