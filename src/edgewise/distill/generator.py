"""A network that makes images out of noise, for teachers whose training images are not there."""

from itertools import pairwise
from typing import final

from torch import Tensor, nn

from edgewise.errors import ModelError

WIDTH = 128  # of the noise once it is an image, and of every block but the last
LAST_WIDTH = 64


def first_side(side: int) -> tuple[int, int]:
    """Compute the side in pixels at which images begin, and how often it is doubled to reach theirs.

    It begins at 4 to 8 pixels and is doubled at least once.

    Raises:
        ModelError: a side that no such doubling reaches.

    >>> first_side(32), first_side(28), first_side(96)
    ((8, 2), (7, 2), (6, 4))
    """
    first, doublings = side, 0
    while first % 2 == 0 and (first > 8 or doublings == 0):
        first, doublings = first // 2, doublings + 1
    if doublings == 0 or not 4 <= first <= 8:
        raise ModelError(
            f"no images of {side} x {side} pixels can be generated: the side must be 4 to 8 doubled at least once, "
            "such as 28, 32, 64, 96 or 224"
        )
    return first, doublings


@final
class Generator(nn.Module):
    """Makes normalised images: each channel of a batch in training mode has mean 0 and variance 1.

    A linear layer makes an image [N, 128, s, s] of the noise, with s from `first_side`. Blocks follow, each of which
    doubles the side by nearest neighbours: a 3x3 convolution (64 channels in the last block, 128 before),
    BatchNorm, LeakyReLU. A last convolution to the image's channels, tanh, and a BatchNorm without scale and shift.

    Args:
        noise: how many numbers an image is made of.
        channels: of an image.
        side: of an image, in pixels.

    Raises:
        ModelError: a side that `first_side` cannot reach.

    References:
        Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv 1904.01186 (the network, for 32
        pixels), as Hao et al., "Data-Free Ensemble Knowledge Distillation for Privacy-conscious Multimedia Model
        Compression", ACM MM 2021, use it. Other sides are ours.
    """

    def __init__(self, noise: int, channels: int, side: int) -> None:
        super().__init__()
        first, doublings = first_side(side)
        self.linear = nn.Linear(noise, WIDTH * first**2)
        self.unflatten = nn.Unflatten(1, (WIDTH, first, first))
        self.norm = nn.BatchNorm2d(WIDTH)
        widths = [WIDTH] * doublings + [LAST_WIDTH]
        self.blocks = nn.Sequential(*(_doubled(inputs, outputs) for inputs, outputs in pairwise(widths)))
        self.image = nn.Conv2d(LAST_WIDTH, channels, 3, padding=1)
        self.tanh = nn.Tanh()
        self.normalise = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        """Map noise [N, noise], normally distributed, to images [N, channels, side, side]."""
        x = self.blocks(self.norm(self.unflatten(self.linear(z))))
        images: Tensor = self.normalise(self.tanh(self.image(x)))
        return images


def _doubled(inputs: int, outputs: int) -> nn.Sequential:
    """Make a block: [N, inputs, H, W] to [N, outputs, 2H, 2W]."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs, eps=0.8),  # as published; many hold the 0.8 for a momentum that slipped
        nn.LeakyReLU(0.2),
    )
