"""What a module counter sees: against torch's own quantize_dynamic, and the published shares of ConvNeXt."""

import copy
import warnings

import pytest
import torch
from torch import nn

from edgewise.cost.visible import Visible, visible
from edgewise.models import build


def counted(model: nn.Module, example: torch.Tensor) -> Visible:
    """Count what is there as PyTorch's users do: parameters(), and a hook on each Conv2d and Linear."""
    macs = 0

    def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            taps = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            macs += output.numel() * taps
        else:
            macs += output.numel() * module.in_features

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()(example)
    for handle in handles:
        handle.remove()
    return Visible(sum(p.numel() for p in model.parameters()), macs)


class Own(nn.Linear):
    """A class made of nn.Linear, which torch leaves alone."""


@pytest.mark.parametrize(
    "model",
    [
        build("convnext_atto", classes=10, size=32, width=0.25),
        build("resnet20", classes=10, size=32),
        build("mobilenet_v2", classes=10, size=32, width=0.5),
        nn.Sequential(nn.Conv2d(3, 8, 32, groups=1), nn.Flatten(), Own(8, 8), nn.Linear(8, 4)),
    ],
    ids=["convnext", "resnet", "mobilenet", "own"],
)
def test_it_is_what_a_counter_finds_in_torchs_network(model: nn.Module) -> None:
    example = torch.zeros(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, and what the study used
        packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).eval(), {nn.Linear})
        theirs = counted(packed, example)
    assert visible(model, example, packed=True) == theirs
    assert visible(model, example) == counted(model, example)
    assert theirs != visible(model, example)


def test_the_network_stays_and_one_layer_used_twice_has_its_macs_twice() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer).train()
    assert visible(model, torch.zeros(1, 4)) == Visible(20, 32)
    assert visible(model, torch.zeros(1, 4), packed=True) == Visible(0, 0)
    assert model.training
    assert layer.weight.device.type == "cpu"
    assert not layer._forward_hooks


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("convnext_tiny", 0.931, 0.934), ("convnext_small", 0.954, 0.959)]
)
def test_the_published_shares_are_what_lies_in_linear_layers(name: str, params: float, macs: float) -> None:
    """No training, no data: 10 classes and ImageNet's 224 pixels give the study's 95 % of ConvNeXt-Small."""
    with torch.device("meta"):
        model = build(name, classes=10, size=224)
    example = torch.zeros(1, 3, 224, 224)
    whole, seen = visible(model, example), visible(model, example, packed=True)
    assert 1 - seen.params / whole.params == pytest.approx(params, abs=5e-4)
    assert 1 - seen.macs / whole.macs == pytest.approx(macs, abs=5e-4)
