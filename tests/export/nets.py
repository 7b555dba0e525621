"""A network that holds every kind of operator the reference networks have, of some hundred weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
SIZE = 8


class TinyNet(nn.Module):
    """Convolution, depthwise convolution, both residual, a shortcut that subsamples and pads, a mean, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12))
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.depthwise(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = F.relu(self.down(x) + shortcut)
        return self.linear(self.dropout(x.mean((2, 3))))


def images(count: int, seed: int = 0) -> Tensor:
    """Normal images ``[count, 3, 8, 8]``."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def tiny_net(seed: int = 0) -> TinyNet:
    """Return the network with statistics that are not the identity, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyNet()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        with torch.no_grad():
            for seed in range(10):
                model(images(32, seed=100 + seed))
    return model
