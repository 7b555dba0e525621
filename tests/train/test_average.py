import pytest
import torch
from torch import nn

from edgewise.train import TrainConfig, WeightAverage
from train.tiny import same, tensors, tiny_net


@torch.no_grad()
def test_by_hand_with_the_warm_up_of_the_decay() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.fill_(1.0)
    average = WeightAverage(0.5)
    average.start(net, TrainConfig(), 1)
    net.weight.fill_(2.0)
    average.after_step(net, 0, 0.1)  # d = min(0.5, 1/10): 0.1 * 1 + 0.9 * 2 = 1.9
    net.weight.fill_(3.0)
    average.after_step(net, 90, 0.1)  # d = min(0.5, 91/100): 0.5 * 1.9 + 0.5 * 3 = 2.45
    average.finish(net)
    assert net.weight.item() == pytest.approx(2.45)


@torch.no_grad()
def test_statistics_are_averaged_and_counters_and_masks_are_the_networks_own() -> None:
    net = nn.BatchNorm1d(1)
    net.register_buffer("mask", torch.tensor([1.0]))
    average = WeightAverage(0.9)
    average.start(net, TrainConfig(), 1)
    net.running_mean.fill_(10.0)
    net.num_batches_tracked.fill_(5)
    net.mask.fill_(0.0)
    average.after_step(net, 0, 0.1)
    average.finish(net)
    assert net.running_mean.item() == pytest.approx(9.0)
    assert net.num_batches_tracked.item() == 5
    assert net.mask.item() == 0.0


@torch.no_grad()
def test_an_average_of_equal_weights_is_those_weights() -> None:
    net = tiny_net()
    before = tensors(net)
    average = WeightAverage(0.99)
    average.start(net, TrainConfig(), 1)
    for step in range(5):
        average.after_step(net, step, 0.1)
    assert same(average.finish(net), before)


@torch.no_grad()
def test_its_state_goes_on_where_it_stopped() -> None:
    nets = [tiny_net(), tiny_net()]
    averages = [WeightAverage(0.9), WeightAverage(0.9)]
    for average, net in zip(averages, nets, strict=True):
        average.start(net, TrainConfig(), 1)
    for parameter in nets[0].parameters():
        parameter.add_(1.0)
    averages[0].after_step(nets[0], 0, 0.1)
    averages[1].load_state(averages[0].state())
    assert same(averages[0].finish(nets[0]), averages[1].finish(nets[1]))
