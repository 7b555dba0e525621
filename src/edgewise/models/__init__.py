"""The reference networks, timm's, and the user's own: built by name, loaded from weights, checked once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from edgewise.data.dataset import Kind
from edgewise.errors import ModelError, UnknownName, nearest
from edgewise.models.centernet import centernet_mobilenet_v2, centernet_resnet, centernet_tiny
from edgewise.models.cifar_resnet import cifar_resnet
from edgewise.models.convnext import convnext
from edgewise.models.mobilenet import mobilenet_v2
from edgewise.models.output import check_maps, check_output
from edgewise.models.resnet import BasicBlock, Bottleneck, resnet
from edgewise.models.sources import from_file, from_timm
from edgewise.models.vgg import vgg
from edgewise.models.weights import load_pretrained, load_weights
from edgewise.models.xunet import xunet_jpeg

__all__ = [
    "MODELS",
    "Architecture",
    "build",
    "check_maps",
    "check_output",
    "describe",
    "load_pretrained",
    "load_weights",
]


@dataclass(frozen=True)
class Architecture:
    """A reference network: its builder (classes, channels, size, width), a line about it, and what it is for."""

    build: Callable[..., nn.Module]
    about: str
    kind: Kind = "classification"


def build(name: str, *, classes: int = 10, channels: int = 3, size: int = 32, width: float = 1.0) -> nn.Module:
    """Build a network with fresh weights, on the CPU, in training mode.

    The same network under the same ``torch.manual_seed``. Images up to 64 pixels get a stem that keeps their
    resolution, as is usual for CIFAR; larger ones the stem made for ImageNet.

    Args:
        name: of `MODELS`; ``timm:NAME``; or ``FILE.py:FUNCTION``, a function that returns a network and is given
            those of the keywords classes, channels and size that it takes.
        classes: numbers the network returns for each image; of a detector, heatmaps, and four maps besides.
        channels: colour channels of an image.
        size: side of an image in pixels.
        width: multiplies the channels of every layer, to a multiple of 8; reference networks only.

    Raises:
        UnknownName: no such network.
        MissingExtra: timm is not installed or cannot be imported.
        ModelError: the user's file or function fails; the image is too small for the network.
        ValueError: a number below 1, or a width that is not positive.

    >>> sum(p.numel() for p in build("resnet20").parameters())
    269722
    """
    for what, value in {"classes": classes, "channels": channels, "size": size}.items():
        if value < 1:
            raise ValueError(f"{what} must be at least 1, it is {value}")
    if not 0 < width < math.inf:
        raise ValueError(f"width must be a positive number, it is {width}")
    if name in MODELS:
        return MODELS[name].build(classes=classes, channels=channels, size=size, width=width)
    source, _, function = name.rpartition(":")
    foreign: Callable[..., nn.Module]
    if name.startswith("timm:"):
        foreign = partial(from_timm, name.removeprefix("timm:"))
    elif source.endswith(".py") and function:
        foreign = partial(from_file, source, function)
    elif name.endswith((".py", ".py:")):
        raise ModelError(f'which function of {name.rstrip(":")} builds the network? "{name.rstrip(":")}:FUNCTION"')
    else:
        raise UnknownName(f'no network is called "{name}"; {nearest(name, MODELS)} (or timm:NAME, or FILE.py:FUNCTION)')
    if width != 1.0:
        raise ModelError(f'width {width} cannot be given to "{name}": only the reference networks take one')
    return foreign(classes=classes, channels=channels, size=size)


def describe() -> list[tuple[str, str]]:
    """List what `build` knows: names, each with a line about it."""
    return [
        *((name, architecture.about) for name, architecture in MODELS.items()),
        ("timm:NAME", "any network of timm, with the extra edgewise[timm]"),
        ("FILE.py:FUNCTION", "your own: a function that returns a torch.nn.Module"),
    ]


# Parameters are those at 10 classes and 32 pixels.
MODELS: dict[str, Architecture] = {
    "resnet20": Architecture(partial(cifar_resnet, 3), "residual, made for CIFAR: 0.27 M parameters"),
    "resnet32": Architecture(partial(cifar_resnet, 5), "residual, made for CIFAR: 0.46 M parameters"),
    "resnet44": Architecture(partial(cifar_resnet, 7), "residual, made for CIFAR: 0.66 M parameters"),
    "resnet56": Architecture(partial(cifar_resnet, 9), "residual, made for CIFAR: 0.85 M parameters"),
    "resnet18": Architecture(partial(resnet, BasicBlock, (2, 2, 2, 2)), "residual: 11.17 M parameters"),
    "resnet34": Architecture(partial(resnet, BasicBlock, (3, 4, 6, 3)), "residual: 21.28 M parameters"),
    "resnet50": Architecture(partial(resnet, Bottleneck, (3, 4, 6, 3)), "residual, bottlenecks: 23.52 M parameters"),
    "vgg16_bn": Architecture(partial(vgg, (2, 2, 3, 3, 3)), "a plain chain, no shortcuts: 14.73 M parameters"),
    "vgg19_bn": Architecture(partial(vgg, (2, 2, 4, 4, 4)), "a plain chain, no shortcuts: 20.04 M parameters"),
    "mobilenet_v2": Architecture(mobilenet_v2, "depthwise, inverted residuals: 2.24 M parameters"),
    "convnext_atto": Architecture(
        partial(convnext, (2, 2, 6, 2), (40, 80, 160, 320)), "7x7 depthwise, layer norm: 3.38 M parameters"
    ),
    "convnext_femto": Architecture(
        partial(convnext, (2, 2, 6, 2), (48, 96, 192, 384)), "7x7 depthwise, layer norm: 4.83 M parameters"
    ),
    "convnext_pico": Architecture(
        partial(convnext, (2, 2, 6, 2), (64, 128, 256, 512)), "7x7 depthwise, layer norm: 8.54 M parameters"
    ),
    "convnext_nano": Architecture(
        partial(convnext, (2, 2, 8, 2), (80, 160, 320, 640)), "7x7 depthwise, layer norm: 14.96 M parameters"
    ),
    "convnext_tiny": Architecture(
        partial(convnext, (3, 3, 9, 3), (96, 192, 384, 768)), "7x7 depthwise, layer norm: 27.82 M parameters"
    ),
    "convnext_small": Architecture(
        partial(convnext, (3, 3, 27, 3), (96, 192, 384, 768)), "7x7 depthwise, layer norm: 49.46 M parameters"
    ),
    "centernet_tiny": Architecture(centernet_tiny, "finds boxes, small: 0.31 M parameters", "detection"),
    "centernet_mobilenet_v2": Architecture(
        centernet_mobilenet_v2, "finds boxes, on MobileNetV2: 1.99 M parameters", "detection"
    ),
    "centernet_resnet18": Architecture(
        partial(centernet_resnet, BasicBlock, (2, 2, 2, 2)),
        "finds boxes, on ResNet-18: 11.89 M parameters",
        "detection",
    ),
    "centernet_resnet50": Architecture(
        partial(centernet_resnet, Bottleneck, (3, 4, 6, 3)),
        "finds boxes, on ResNet-50: 24.59 M parameters",
        "detection",
    ),
    "xunet_jpeg": Architecture(xunet_jpeg, "steganalysis of gray JPEGs: 5.77 M parameters", "steganalysis"),
}
