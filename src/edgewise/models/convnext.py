"""ConvNeXt, from atto to small, with timm's names for its tensors.

Reference: Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv 2201.03545; atto to nano are timm's smaller sizes
(the dimensions are also those of Woo et al., ConvNeXt V2, CVPR 2023, arXiv 2301.00808). Stochastic depth, which the
paper trains with, is left out: it is a choice of the training and not of the network.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.layers import SMALL, scaled

EPSILON = 1e-6  # of every layer normalisation, and what layer scale starts at: both the paper's


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of each pixel's channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]`` over C."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise 7x7 convolution and, on each pixel, two linear layers of four times the width; the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        )
        self.gamma = nn.Parameter(torch.full((width,), EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape; the linear layers see the channels last."""
        y: Tensor = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class Head(nn.Module):
    """The mean over the image, its normalisation, and a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.fc(self.norm(x.mean((2, 3))))
        return logits


class ConvNeXt(nn.Module):
    """A stem of patches, four stages of blocks that halve the resolution between them, and a head.

    Args:
        patch: side of the stem's patches in pixels.
        depths: blocks of each stage.
        widths: channels of each stage.
    """

    def __init__(
        self, patch: int, depths: tuple[int, ...], widths: tuple[int, ...], *, classes: int, channels: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], patch, stride=patch), LayerNorm2d(widths[0], eps=EPSILON)
        )
        before = (None, *widths[:-1])
        self.stages = nn.Sequential(*map(_stage, depths, before, widths))
        self.head = Head(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


def _stage(depth: int, before: int | None, width: int) -> nn.Sequential:
    """Make a stage of blocks; after another stage, of `before` channels, it begins by halving the resolution."""
    downsample: nn.Module = nn.Identity()
    if before is not None:
        downsample = nn.Sequential(LayerNorm2d(before, eps=EPSILON), nn.Conv2d(before, width, 2, stride=2))
    blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
    return nn.Sequential(OrderedDict(downsample=downsample, blocks=blocks))


def convnext(
    depths: tuple[int, ...], dims: tuple[int, ...], *, classes: int, channels: int, size: int, width: float
) -> nn.Module:
    """Build a ConvNeXt with fresh weights: truncated normal with a deviation of 0.02, biases 0, as published.

    Small images are cut into patches of 2 pixels, not 4.

    Raises:
        ModelError: the image is too small to be halved four times.
    """
    if size < 16:
        raise ModelError(f"ConvNeXt halves an image four times: its size must be at least 16 pixels, it is {size}")
    patch = 2 if size <= SMALL else 4
    widths = tuple(scaled(dim, width) for dim in dims)
    model = ConvNeXt(patch, depths, widths, classes=classes, channels=channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
