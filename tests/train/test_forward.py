import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError, UnknownName
from edgewise.train.forward import (
    forward,
    home,
    image_layout,
    resolve_device,
    take_modes,
    weight_layout,
)
from train.tiny import tiny_net


class Pair(nn.Module):
    """Returns two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_outputs_must_be_one_tensor() -> None:
    with pytest.raises(ModelError, match="an object of type tuple; it must return one tensor"):
        forward(Pair(), torch.zeros(1))


def test_what_the_forward_raises_is_repeated_on_one_line() -> None:
    with pytest.raises(ModelError, match=r"inputs \[2, 3\]: RuntimeError: .*shapes") as caught:
        forward(nn.Linear(4, 1), torch.zeros(2, 3))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_modes_are_taken_over_and_a_new_module_follows_the_whole() -> None:
    net = tiny_net().eval()
    net[1].train()
    trained = copy.deepcopy(net).train()
    trained.append(nn.Identity())
    take_modes(trained, net)
    assert [name for name, module in trained.named_modules() if module.training] == ["1"]


def test_home_is_where_the_tensors_lie() -> None:
    assert home(nn.ReLU()) == torch.device("cpu")
    assert home(nn.Linear(1, 1, device="meta")) == torch.device("meta")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "cpu:1"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UnknownName, match=f'device "{name}" is not here'):
        resolve_device(name)


def test_the_cpu_is_always_here() -> None:
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


def test_layouts_change_strides_and_no_values() -> None:
    net, images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(4, 2, 3)), torch.rand(2, 3, 4, 4)
    values = [parameter.clone() for parameter in net.parameters()]
    weight_layout(net, torch.channels_last)
    assert net[0].weight.stride() == (9, 1, 3, 1)
    assert net[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert image_layout(images).is_contiguous(memory_format=torch.channels_last)
    weight_layout(net, torch.contiguous_format)
    assert net[1].weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), values, strict=True))
    assert image_layout(images[0]).dim() == 3


def test_a_narrow_filter_that_skips_pixels_does_not_crash_the_process() -> None:
    script = Path(__file__).with_name("narrow_stride.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr[-300:]
