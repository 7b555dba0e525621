"""The oracles: torchvision's and timm's networks, given the very tensors that ours are given."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from torchvision_stub import declare

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="session")
def torchvision_models() -> ModuleType:
    declare()
    import torchvision

    return torchvision.models


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    declare()
    import timm

    return timm


@pytest.fixture
def shared() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder of shared data is not beside the repository")
    return folder


def on_meta(build: Callable[..., nn.Module], *args: object, **kwargs: object) -> nn.Module:
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        return build(*args, **kwargs).eval()


def shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def drawn(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Draw a state for a network: weights that keep the signal's size, and statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(model).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 16
            state[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


def assert_same_network(ours: nn.Module, theirs: nn.Module, inputs: Tensor) -> None:
    """Give two networks, built on meta, one state, and compare all names and shapes and what they compute."""
    assert shapes(ours) == shapes(theirs)
    state = drawn(ours)
    outputs = []
    for model in (ours, theirs):
        model.load_state_dict(state, assign=True)
        with torch.no_grad():
            outputs.append(model.eval()(inputs))
    assert outputs[0].std() > 1e-3
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4 * outputs[1].abs().max().item())
