"""ResNet-18 and ResNet-50, with torchvision's names for their tensors.

Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385. As in torchvision, a
bottleneck strides in its 3x3 convolution and not, as in the paper, in its first 1x1 ("ResNet v1.5").
"""

from torch import Tensor, nn

from edgewise.models.layers import SMALL, initialise_, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added, by way of a shortcut that gives it their output's shape."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, I, H, W]`` to ``[N, O, H / stride, W / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """A 3x3 convolution between a 1x1 that narrows and one that widens, around which the input is added likewise."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, I, H, W]`` to ``[N, O, H / stride, W / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu3(y + self.downsample(x))
        return out


class ResNet(nn.Module):
    """A stem, four stages, the mean over the image and a linear layer.

    Args:
        block: what the stages are made of.
        depths: blocks of each stage.
        widths: channels of the 3x3 convolutions of each stage.
        small: keep the resolution in the stem, which has a 3x3 convolution then; otherwise it is quartered.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        classes: int,
        channels: int,
        small: bool,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, widths[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        outputs = [width * block.expansion for width in widths]
        self.layer1 = _stage(block, depths[0], widths[0], widths[0], stride=1)
        self.layer2 = _stage(block, depths[1], outputs[0], widths[1], stride=2)
        self.layer3 = _stage(block, depths[2], outputs[1], widths[2], stride=2)
        self.layer4 = _stage(block, depths[3], outputs[2], widths[3], stride=2)
        self.fc = nn.Linear(outputs[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Make the paper's shortcut B: the input itself, or a 1x1 convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], depth: int, inputs: int, width: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    rest = (block(outputs, width, 1, nn.Identity()) for _ in range(depth - 1))
    return nn.Sequential(block(inputs, width, stride, _shortcut(inputs, outputs, stride)), *rest)


def resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    *,
    classes: int,
    channels: int,
    size: int,
    width: float,
) -> nn.Module:
    """Build a residual network with fresh weights; ResNet-18 is two basic blocks in each of four stages."""
    widths = tuple(scaled(64 << stage, width) for stage in range(4))
    model = ResNet(block, depths, widths, classes=classes, channels=channels, small=size <= SMALL)
    initialise_(model)
    return model
