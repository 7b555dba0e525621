"""What the reference networks share: how widths scale, which images are small, and the initial weights.

No forward in this folder names a number of channels: shapes follow from the tensors alone, so that a network whose
channels were removed runs with the same code.
"""

import math

from torch import nn

SMALL = 64  # pixels a side: up to here a network keeps its resolution in the stem, as is usual for CIFAR


def scaled(channels: int, width: float) -> int:
    """Multiply a number of channels by a network's width, to a multiple of 8.

    The nearest multiple, at least 8 and never more than 10 % too few. A width of 1 leaves multiples of 8, which all
    published widths here are, as they are.

    Reference: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv 1801.04381;
    the rounding is that of the authors' published code.

    >>> scaled(64, 0.5), scaled(16, 0.1), scaled(24, 0.75), scaled(24, 1.0)
    (32, 8, 24, 24)
    """
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def initialise_(model: nn.Module, *, linear_std: float | None = None) -> None:
    """Draw the weights that a network of convolutions and ReLUs starts from, in place.

    Convolutions: normal with variance 2 / fan_out, biases 0. Linear layers: normal with `linear_std`, biases 0; left
    as torch made them where it is None. Batch normalisations start as the identity by themselves.

    Reference: He et al., Delving Deep into Rectifiers, ICCV 2015, arXiv 1502.01852, eq. (14).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # An output channel of a grouped convolution reaches only its own group; `kaiming_normal_` forgets that,
            # and starts a depthwise one smaller by the square root of its channels.
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
