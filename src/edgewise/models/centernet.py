"""Detectors: CenterNet's maps of centres, on backbones that are brought back up from a 32nd to a quarter.

The way up is a feature pyramid's: at each of three steps the coarse map is doubled by repeating its pixels, a 1x1
convolution of the backbone's map of that size is added, and a 3x3 convolution smooths the sum. The paper's networks
have transposed and deformable convolutions there. Repeating pixels moves 8-bit codes as they are, in every runtime,
where a transposed convolution falls back to floats; every channel can be pruned; no checkerboards are to unlearn.

Heatmaps, offsets and sizes have a last layer each, since their numbers differ by orders of magnitude: one for all
would get one scale for all when its outputs become 8-bit codes.

References: Zhou, Wang, Krähenbühl, "Objects as Points", 2019, arXiv 1904.07850. Lin et al., "Feature Pyramid Networks
for Object Detection", CVPR 2017, arXiv 1612.03144.
"""

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.layers import SMALL, initialise_, scaled
from edgewise.models.mobilenet import MobileNetV2, mobilenet_v2
from edgewise.models.resnet import BasicBlock, Bottleneck, ResNet

STRIDE = 32  # of the backbones' last map

# Where nothing is learned yet every place is a centre with probability 0.1, so that the many places without one do not
# drown the others at first: -log((1 - 0.1) / 0.1), as in the authors' code.
PRIOR = -2.19

# The features of MobileNetV2 after which the resolution is halved next: maps at a 4th, 8th, 16th and 32nd.
TAPS = (3, 6, 13, 17)


class ResNetBackbone(nn.Module):
    """The stages of a ResNet, under their own names."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``[N, C, H, W]`` to maps at a 4th, 8th, 16th and 32nd of the resolution."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        maps = [x]
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return tuple(maps)


class MobileNetBackbone(nn.Module):
    """The features of MobileNetV2 without the last, which only widens them for a classifier."""

    def __init__(self, net: MobileNetV2) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(net.features.children())[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``[N, C, H, W]`` to maps at a 4th, 8th, 16th and 32nd of the resolution."""
        maps = []
        for place, layer in enumerate(self.features.children()):
            x = layer(x)
            if place in TAPS:
                maps.append(x)
        return tuple(maps)


class TinyBackbone(nn.Module):
    """Two convolutions that halve the resolution and four residual blocks, the last three of which halve it too."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn_relu(channels, widths[0], 3, 2), conv_bn_relu(widths[0], widths[1], 3, 2))
        inputs = (widths[1], *widths[1:])
        self.stages = nn.ModuleList(
            BasicBlock(inputs[i], width, stride, _shortcut(inputs[i], width) if stride > 1 else nn.Identity())
            for i, (width, stride) in enumerate(zip(widths[1:], (1, 2, 2, 2), strict=True))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``[N, C, H, W]`` to maps at a 4th, 8th, 16th and 32nd of the resolution."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class Pyramid(nn.Module):
    """Bring the coarsest map up to the finest, adding the others on the way.

    Args:
        inputs: channels of the maps, the finest first.
        width: channels of the result, and of every map on the way.
    """

    def __init__(self, inputs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in inputs)
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.smooth = nn.ModuleList(conv_bn_relu(width, width, 3) for _ in inputs[1:])

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Map ``[N, I, H / 2^i, W / 2^i]``, i from 0, to ``[N, O, H, W]``."""
        x: Tensor = self.laterals[-1](maps[-1])
        for place in range(len(maps) - 2, -1, -1):
            x = self.smooth[place](self.upsample(x) + self.laterals[place](maps[place]))
        return x


class CenterNet(nn.Module):
    """A backbone, the way up, one convolution for all outputs and one more for each.

    Args:
        backbone: images to four maps, the finest first.
        maps: channels of those maps.
        width: channels of the way up and of the convolution after it.
        classes: how many heatmaps.
    """

    def __init__(self, backbone: nn.Module, maps: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = Pyramid(maps, width)
        self.head = conv_bn_relu(width, width, 3)
        self.heatmap = nn.Conv2d(width, classes, 1)
        self.offset = nn.Conv2d(width, 2, 1)
        self.size = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to maps ``[N, classes + 4, H / 4, W / 4]``: heatmap logits, offsets, sizes."""
        x = self.head(self.neck(self.backbone(x)))
        return torch.cat([self.heatmap(x), self.offset(x), self.size(x)], 1)


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Make a convolution that keeps or divides the resolution, its normalisation, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def centernet_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, ...],
    *,
    classes: int,
    channels: int,
    size: int,
    width: float,
) -> nn.Module:
    """Build a detector on a residual network, with fresh weights.

    Raises:
        ModelError: a side that is no multiple of 32.
    """
    _check_side(size)
    widths = tuple(scaled(64 << stage, width) for stage in range(4))
    backbone = ResNetBackbone(ResNet(block, depths, widths, classes=1, channels=channels, small=False))
    maps = tuple(each * block.expansion for each in widths)
    return _initialised(CenterNet(backbone, maps, scaled(128, width), classes))


def centernet_mobilenet_v2(*, classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build a detector on MobileNetV2, with fresh weights.

    Raises:
        ModelError: a side that is no multiple of 32.
    """
    _check_side(size)
    net = mobilenet_v2(classes=1, channels=channels, size=SMALL + 1, width=width)  # the stem for large images
    assert isinstance(net, MobileNetV2)
    maps = tuple(scaled(each, width) for each in (24, 32, 96, 320))
    return _initialised(CenterNet(MobileNetBackbone(net), maps, scaled(64, width), classes))


def centernet_tiny(*, classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build a detector that two cores can train, with fresh weights.

    Raises:
        ModelError: a side that is no multiple of 32.
    """
    _check_side(size)
    widths = tuple(scaled(each, width) for each in (16, 24, 48, 64, 96))
    return _initialised(CenterNet(TinyBackbone(channels, widths), widths[1:], scaled(32, width), classes))


def _check_side(size: int) -> None:
    if size % STRIDE:
        raise ModelError(
            f"images of {size} pixels are no multiple of {STRIDE}, which a detector halves to 1; resize them"
        )


def _shortcut(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


def _initialised(model: CenterNet) -> nn.Module:
    """Draw the weights; the last layers start small, so that all places begin alike."""
    initialise_(model)
    for last in (model.heatmap, model.offset, model.size):
        nn.init.normal_(last.weight, std=0.001)  # as in the authors' code
    nn.init.constant_(model.heatmap.bias, PRIOR)  # type: ignore[arg-type]
    return model
