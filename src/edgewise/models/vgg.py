"""VGG-16 and VGG-19 with batch normalisation, with torchvision's names for their tensors.

Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
arXiv 1409.1556, table 1, configurations D and E; batch normalisation after every convolution is later custom.
"""

from torch import Tensor, nn

from edgewise.models.layers import SMALL, initialise_, scaled

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages, each of which ends by halving the resolution
CELLS = 7  # a large image is averaged to 7x7 cells, which is what 224 pixels leave


class VGG(nn.Module):
    """A chain of 3x3 convolutions and max-pools, and a classifier.

    Args:
        features: images to feature maps.
        cells: the feature maps are averaged to cells x cells.
        classifier: the flattened cells to logits.
    """

    def __init__(self, features: nn.Module, cells: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(cells)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def vgg(depths: tuple[int, ...], *, classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build a VGG network with fresh weights: `depths` convolutions in its five stages.

    Small images leave one cell, and one linear layer is the whole classifier, as is usual for CIFAR; large ones have
    the published classifier, whose 4096 hidden units follow the width too.
    """
    widths = [scaled(width_, width) for width_ in WIDTHS]
    if size <= SMALL:
        # Sizes that five halvings do not divide are rounded up, so that something is left of 28 pixels.
        features = _features(depths, channels, widths, ceil_mode=size % 32 != 0)
        model = VGG(features, 1, nn.Linear(widths[-1], classes))
    else:
        hidden = scaled(4096, width)
        classifier = nn.Sequential(
            *(nn.Linear(widths[-1] * CELLS * CELLS, hidden), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()),
            nn.Linear(hidden, classes),
        )
        model = VGG(_features(depths, channels, widths, ceil_mode=False), CELLS, classifier)
    initialise_(
        model, linear_std=0.01
    )  # torchvision's; the paper's 0.1 (section 3.1) is for training without normalisation
    return model


def _features(depths: tuple[int, ...], channels: int, widths: list[int], *, ceil_mode: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=ceil_mode))
    return nn.Sequential(*layers)
