"""XuNet-JPEG, which tells JPEG images with a hidden message from those without.

Reference: Xu, Deep Convolutional Neural Network to Detect J-UNIWARD, IH&MMSec 2017, arXiv 1704.08378. The channels
are those of the author's published network description.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data.jpeg import dct_matrix
from edgewise.errors import ModelError
from edgewise.models.layers import initialise_, scaled

SIDE = 4  # of the DCT's kernels, and so of the smallest image
TRUNCATION = 8.0  # section 3.1 of the paper
WIDTHS = (24, 48, 96, 192, 384)  # of the scales, each of which halves the resolution


def dct_kernels(side: int) -> Tensor:
    """Compute the basis images of the two-dimensional DCT-II, which are orthonormal.

    K_uv(y, x) = D_uy D_vx, D of `dct_matrix`

    Args:
        side: n, at least 1.

    Returns:
        float64 [n * n, n, n], in the order of u * n + v.

    >>> dct_kernels(2)[1].tolist()  # halves that differ from left to right
    [[0.5..., -0.5...], [0.5..., -0.5...]]
    """
    matrix = dct_matrix(side)
    return torch.einsum("uy,vx->uvyx", matrix, matrix).reshape(side * side, side, side)


class DCTBank(nn.Module):
    """How strongly each place of an image shows each of 16 frequencies: |DCT of the 4x4 pixels there|, at most 8.

    The kernels are a buffer: nothing trains or prunes them, and sharing or ternarising weights passes them by. In a
    file their convolution is called "dct", by which the quantisation of files can leave it out. Embedding changes a
    pixel by a few levels at most; the truncation hides the strong edges of the picture beside that.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.outputs = SIDE * SIDE * channels
        self.register_buffer("weight", dct_kernels(SIDE).float().unsqueeze(1).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images of 0 to 255 ``[N, C, H, W]`` to ``[N, 16 C, H - 3, W - 3]``, of 0 to 8."""
        # A width that the forward states is rigid: no pruning takes a kernel away.
        if len(self.weight) != self.outputs:
            raise ValueError(f"the bank has {len(self.weight)} kernels; it must have {self.outputs}")
        # Without padding: zeros around the image would be the strongest edge of all.
        return F.conv2d(x, self.weight, groups=x.shape[1]).abs().clamp(max=TRUNCATION)


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added; with a stride, by way of a 3x3 projection.

    Args:
        inputs: channels in.
        inner: channels between the two convolutions.
        outputs: channels out.
        stride: of the second convolution and of the projection; 1 adds the input itself.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            projection = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, I, H, W]`` to ``[N, O, ceil(H / stride), ceil(W / stride)]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class XuNet(nn.Module):
    """The fixed DCT bank, a block that narrows, four scales of two blocks, a last block, the mean and a linear layer.

    25 convolutions with weights to learn, five of them projections.

    Args:
        first: channels between the two convolutions of the first block.
        widths: channels of the scales.
        classes: numbers the network returns for each image.
        channels: of an image; each has its own bank.
    """

    def __init__(self, first: int, widths: tuple[int, ...], *, classes: int, channels: int) -> None:
        super().__init__()
        self.dct = DCTBank(channels)
        blocks = [Block(self.dct.outputs, first, widths[0], 2)]
        for width, after in pairwise(widths):
            blocks += [Block(width, width, width, 1), Block(width, width, after, 2)]
        self.blocks = nn.Sequential(*blocks, Block(widths[-1], widths[-1], widths[-1], 1))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images of 0 to 255 ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.fc(self.blocks(self.dct(x)).mean((2, 3)))
        return logits


def xunet_jpeg(*, classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build XuNet-JPEG with fresh weights.

    Its inputs are pixels of 0 to 255, since the bank's truncation counts in their levels.

    Raises:
        ModelError: images smaller than a kernel of the bank.
    """
    if size < SIDE:
        raise ModelError(f"images of {size}x{size} are too small for xunet_jpeg, whose kernels are {SIDE}x{SIDE}")
    first = 12 if width == 1 else scaled(12, width)  # the published 12 is no multiple of 8
    model = XuNet(first, tuple(scaled(channels_, width) for channels_ in WIDTHS), classes=classes, channels=channels)
    initialise_(model)
    return model
