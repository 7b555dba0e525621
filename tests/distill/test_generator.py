import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgewise.distill import Generator
from edgewise.errors import ModelError


def published(generator: Generator, z: Tensor) -> Tensor:
    """The 32-pixel network call by call, with the statistics of this batch in every BatchNorm."""
    w = dict(generator.named_parameters())

    def norm(x: Tensor, name: str = "", eps: float = 1e-5) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + eps)
        return x * w[f"{name}.weight"].view(1, -1, 1, 1) + w[f"{name}.bias"].view(1, -1, 1, 1) if name else x

    x = (z @ w["linear.weight"].T + w["linear.bias"]).reshape(-1, 128, 8, 8)
    x = norm(x, "norm")
    for block in ("blocks.0", "blocks.1"):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = norm(F.conv2d(x, w[f"{block}.1.weight"], w[f"{block}.1.bias"], padding=1), f"{block}.2", eps=0.8)
        x = torch.where(x > 0, x, 0.2 * x)
    return norm(torch.tanh(F.conv2d(x, w["image.weight"], w["image.bias"], padding=1)))


def test_it_is_the_published_network() -> None:
    torch.manual_seed(0)
    generator = Generator(noise=256, channels=3, side=32).double()
    for name, parameter in generator.named_parameters():
        if "norm" in name or ".2." in name:  # scales and shifts start at 1 and 0, where a swap would not show
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    z = torch.randn(3, 256, dtype=torch.float64)
    assert torch.allclose(generator(z), published(generator, z), rtol=0, atol=1e-9)
    convolutions = [tuple(m.weight.shape) for m in generator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [(128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]


@pytest.mark.parametrize(
    ("side", "channels", "first", "doublings"),
    [(8, 3, 4, 1), (28, 1, 7, 2), (32, 3, 8, 2), (64, 3, 8, 3), (96, 1, 6, 4)],
)
def test_sides_and_channels(side: int, channels: int, first: int, doublings: int) -> None:
    generator = Generator(noise=5, channels=channels, side=side)
    assert generator.linear.out_features == 128 * first**2
    assert len(generator.blocks) == doublings
    images = generator(torch.randn(4, 5))
    assert images.shape == (4, channels, side, side)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(channels), atol=1e-4)
    # Below 1 by BatchNorm's eps, which a fresh network's faint images do not drown.
    assert torch.allclose(images.var((0, 2, 3), correction=0), torch.ones(channels), atol=0.1)


@pytest.mark.parametrize("side", [1, 2, 4, 6, 25, 30, 36, 100])
def test_a_side_that_no_doubling_reaches_is_refused(side: int) -> None:
    with pytest.raises(ModelError, match=f"no images of {side} x {side} pixels can be generated: the side must be 4"):
        Generator(noise=5, channels=3, side=side)
