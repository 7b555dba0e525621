import pytest
import torch
from torch import nn

from edgewise.errors import ModelError
from edgewise.train import TrainConfig
from edgewise.train.optimizer import build_optimizer
from train.tiny import tiny_net

ADAMW = {"optimizer": "adamw", "lr": 0.01}


def decays(config: TrainConfig) -> dict[str, float]:
    """The weight decay of each parameter of the tiny network, by name."""
    net = tiny_net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = build_optimizer(net, config).param_groups
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("optimizer", [{}, ADAMW], ids=["sgd", "adamw"])
def test_biases_and_normalisations_are_spared_of_decay(optimizer: dict[str, object]) -> None:
    found = decays(TrainConfig(weight_decay=0.01, **optimizer))
    assert found == {
        **dict.fromkeys(("0.weight", "3.weight", "8.weight"), 0.01),
        **dict.fromkeys(("1.weight", "1.bias", "4.weight", "4.bias", "8.bias"), 0.0),
    }


def test_decay_on_all_spares_none() -> None:
    assert set(decays(TrainConfig(weight_decay=0.01, decay="all")).values()) == {0.01}


def test_frozen_parameters_are_left_out_and_a_wholly_frozen_network_is_refused() -> None:
    net = tiny_net()
    net[0].weight.requires_grad_(False)
    optimizer = build_optimizer(net, TrainConfig())
    assert all(p is not net[0].weight for group in optimizer.param_groups for p in group["params"])
    with pytest.raises(ModelError, match="no parameter that requires a gradient"):
        build_optimizer(net.requires_grad_(False), TrainConfig())


def test_one_step_of_sgd_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(2.0)
    optimizer = build_optimizer(net, TrainConfig(lr=0.1, momentum=0.5, weight_decay=0.25))
    net.weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    # g = 1 + 0.25 * 2 = 1.5; first momentum = g; nesterov looks ahead: g + 0.5 g = 2.25; 2 - 0.1 * 2.25
    assert net.weight.item() == pytest.approx(1.775)


@pytest.mark.parametrize("optimizer", [{}, ADAMW], ids=["sgd", "adamw"])
def test_the_memory_layout_of_a_gradient_does_not_matter(optimizer: dict[str, object]) -> None:
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        net = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        stepper = build_optimizer(net, TrainConfig(**optimizer))
        for _ in range(3):
            for parameter in net.parameters():
                gradient = torch.randn(parameter.shape)
                parameter.grad = gradient.contiguous(memory_format=layout) if gradient.dim() == 4 else gradient
            stepper.step()
        results.append(net.weight.detach().clone())
    assert torch.allclose(*results, rtol=1e-6)
