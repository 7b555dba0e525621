"""MobileNetV2, with torchvision's names for its tensors.

Reference: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv 1801.04381.
"""

from torch import Tensor, nn

from edgewise.models.layers import SMALL, initialise_, scaled

# (expansion, channels, blocks, stride of the first block): the paper's table 2
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM = 32
HEAD = 1280


def conv_bn_relu(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Make a convolution that keeps or divides the resolution, its normalisation, and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; add the input where the shape stays.

    Args:
        expansion: how many times wider the depthwise convolution is than the block's input.
    """

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [conv_bn_relu(inputs, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, I, H, W]`` to ``[N, O, H / stride, W / stride]``."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """A chain of inverted residuals, the mean over the image, dropout and a linear layer.

    Args:
        features: images to feature maps of `head` channels.
    """

    def __init__(self, features: nn.Module, head: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def mobilenet_v2(*, classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build MobileNetV2 with fresh weights.

    Small images keep their resolution in the stem and in the first stage that would halve it, so that 32 pixels
    become 4 and not 1. A width below 1 leaves the head's 1280 channels as they are (the paper, section 4).
    """
    small = size <= SMALL
    last = scaled(STEM, width)
    layers: list[nn.Module] = [conv_bn_relu(channels, last, 3, stride=1 if small else 2)]
    for stage, (expansion, outputs, blocks, stride) in enumerate(STAGES):
        first = 1 if small and stage == 1 else stride
        for block in range(blocks):
            stride_ = first if block == 0 else 1
            layers.append(InvertedResidual(last, scaled(outputs, width), expansion=expansion, stride=stride_))
            last = scaled(outputs, width)
    head = scaled(HEAD, max(1.0, width))
    model = MobileNetV2(nn.Sequential(*layers, conv_bn_relu(last, head, 1)), head, classes)
    initialise_(model, linear_std=0.01)
    return model
