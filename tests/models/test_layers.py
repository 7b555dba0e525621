import math

import pytest
import torch
from torch import nn

from edgewise.models.layers import initialise_, scaled


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (64, 1.0, 64),
        (64, 0.5, 32),
        (16, 0.01, 8),  # at least 8
        (24, 0.5, 16),  # 12 lies between 8 and 16: up
        (96, 0.35, 32),  # 33.6: 32 is nearest and less than 10 % short
        (24, 0.75, 24),  # 18: 16 is nearest but 11 % short
        (32, 1.4, 48),  # 44.8
    ],
)
def test_scaled_by_hand(channels, width, expected):
    assert scaled(channels, width) == expected


def test_scaled_is_the_published_rounding(torchvision_models):
    from torchvision.models._utils import _make_divisible

    for channels in (16, 24, 32, 64, 96, 160, 320, 1280):
        for width in (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4, 2.0):
            assert scaled(channels, width) == _make_divisible(channels * width, 8)


@pytest.mark.parametrize(("groups", "fan_out"), [(1, 256 * 9), (4, 64 * 9), (256, 9)])
def test_convolutions_start_with_variance_two_over_fan_out(groups, fan_out):
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, groups=groups)
    initialise_(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert not conv.bias.any()


def test_linear_layers_are_left_alone_unless_told():
    torch.manual_seed(0)
    linear = nn.Linear(500, 500)
    before = linear.weight.clone()
    initialise_(linear)
    assert torch.equal(linear.weight, before)
    initialise_(linear, linear_std=0.01)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not linear.bias.any()
