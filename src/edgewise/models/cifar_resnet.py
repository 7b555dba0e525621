"""The residual networks made for CIFAR: 6n + 2 layers of 16, 32 and 64 channels, shortcuts without parameters.

Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, section 4.2.
"""

from torch import Tensor, nn

from edgewise.models.layers import SMALL, initialise_, scaled
from edgewise.models.resnet import BasicBlock


class Subsample(nn.Module):
    """Every second pixel, both ways."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, ceil(H / 2), ceil(W / 2)]``."""
        return x[:, :, ::2, ::2]


def option_a(inputs: int, outputs: int) -> nn.Sequential:
    """Make the paper's shortcut A: every second pixel, and channels of zeros around those that there are.

    A padding module rather than a call, so that surgery can take single channels of zeros away; the three-dimensional
    one, since it pads the last three dimensions and the channels are the third of them.
    """
    before = (outputs - inputs) // 2
    return nn.Sequential(Subsample(), nn.ConstantPad3d((0, 0, 0, 0, before, outputs - inputs - before), 0.0))


class CifarResNet(nn.Module):
    """A stem, three stages at full, half and quarter resolution, the mean over the image and a linear layer.

    Args:
        blocks: blocks a stage; the network has 6 · blocks + 2 layers with weights.
        widths: channels of the three stages.
        small: keep the resolution in the stem; otherwise it is quartered, as ImageNet's residual networks do.
    """

    def __init__(self, blocks: int, widths: tuple[int, int, int], *, classes: int, channels: int, small: bool) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, widths[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(blocks, widths[0], widths[0], stride=1)
        self.layer2 = _stage(blocks, widths[0], widths[1], stride=2)
        self.layer3 = _stage(blocks, widths[1], widths[2], stride=2)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    shortcut = nn.Identity() if stride == 1 else option_a(inputs, outputs)
    rest = (BasicBlock(outputs, outputs, 1, nn.Identity()) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), *rest)


def cifar_resnet(blocks: int, *, classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build a CIFAR residual network with fresh weights; 3 blocks a stage are ResNet-20."""
    widths = (scaled(16, width), scaled(32, width), scaled(64, width))
    model = CifarResNet(blocks, widths, classes=classes, channels=channels, small=size <= SMALL)
    initialise_(model)
    return model
