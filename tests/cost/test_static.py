"""Costs against hand counts, torch's own counter, and the networks that candidates become."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgewise.cost import CostModel, cost_of
from edgewise.graph import shrink, trace
from edgewise.models import build

MODELS = ["resnet20", "resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "convnext_atto"]


def test_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 3*8*9 + 8 params, 6*6*8*27 MACs, out 8*36
        nn.BatchNorm2d(8),  # 16 params, in place
        nn.ReLU(),  # in place
        nn.MaxPool2d(2),  # out 8*9
        nn.Flatten(),
        nn.Linear(72, 5, bias=False),  # 360 params, 360 MACs, out 5
    ).eval()
    net[5].weight.data[0] = 0
    cost = cost_of(trace(net, torch.zeros(1, 3, 6, 6)))
    assert cost.params == 216 + 8 + 16 + 360
    assert cost.nonzero == cost.params - 72 - 8  # a row of the last layer, and BatchNorm's shift, which starts at 0
    assert cost.macs == 36 * 8 * 27 + 360
    assert cost.weight_bytes == 4 * cost.params
    assert cost.activation_bytes == 4 * (8 * 36 + 8 * 9 + 5)
    assert cost.peak_activation_bytes == 4 * (3 * 36 + 8 * 36)  # the first convolution's input and output


def test_an_activation_after_a_view_is_in_place() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4))  # on tokens, a product and a view each
    assert cost_of(trace(net, torch.zeros(1, 10, 4))).peak_activation_bytes == 4 * (40 + 640)


class Function(nn.Module):
    """A convolution to four channels, and a function of what it makes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.stem(x))


@pytest.mark.parametrize(
    ("function", "elements"),
    [
        (lambda y: y.clone(memory_format=torch.channels_last), 200),  # a copy in another order needs both
        (lambda y: y.view(1, -1).relu_() + y.view(1, -1), 200),  # truly in place: the older view changes as well
        (lambda y: torch.zeros_like(y), 200),  # reads the shape alone; the convolution has its input and output
    ],
)
def test_memory_by_hand(function: Callable[[Tensor], Tensor], elements: int) -> None:
    assert cost_of(trace(Function(function), torch.zeros(1, 4, 5, 5))).peak_activation_bytes == 4 * elements


def test_tensors_count_as_wide_as_they_are() -> None:
    halves = Function(lambda y: y.to(torch.float16))
    cost = cost_of(trace(halves, torch.zeros(1, 4, 5, 5)))
    assert cost.activation_bytes == 100 * 4 + 100 * 2
    net = Function(lambda y: y.mean((0, 2, 3)))  # no batch dimension: not divided by one
    assert cost_of(trace(net, torch.zeros(3, 4, 5, 5))).activation_bytes == 4 * (100 + 4)


def test_widths_of_the_wrong_length_are_refused() -> None:
    model = CostModel(trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), torch.zeros(1, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"widths of shape \(2,\): one for each of the 1 groups"):
        model.macs([8, 2])


def test_a_residual_keeps_its_input_alive() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.b(torch.relu(self.a(x)))

    cost = cost_of(trace(Residual(), torch.zeros(1, 1, 5, 5)))
    assert cost.peak_activation_bytes == 4 * 25 * (4 + 16 + 4)  # the skip, the inside, the branch's result


def test_the_batch_of_the_example_does_not_matter() -> None:
    net = build("resnet20", classes=10, size=32)
    assert cost_of(trace(net, torch.zeros(4, 3, 32, 32))) == cost_of(trace(net, torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize("name", MODELS)
def test_counts_agree_with_torch_and_with_the_shrunk_network(name: str) -> None:
    net, x = build(name, classes=10, size=32).eval(), torch.zeros(1, 3, 32, 32)
    graph = trace(net, x)
    with FlopCounterMode(display=False) as counter:
        net(x)
    cost = cost_of(graph)
    assert cost.macs * 2 == counter.get_total_flops()
    assert cost.params == sum(p.numel() for p in net.parameters())

    model, rng = CostModel(graph), np.random.default_rng(0)
    widths = np.array([rng.integers(1, g.size + 1) for g in graph.groups])
    keep = {g.name: np.arange(w) for g, w in zip(graph.groups, widths, strict=True)}
    small = cost_of(trace(shrink(net, graph, keep), x))
    assert model.cost(widths, small.nonzero) == small


@pytest.mark.parametrize("name", MODELS)
def test_layers_add_up_to_the_network(name: str) -> None:
    graph = trace(build(name, classes=10, size=32), torch.zeros(1, 3, 32, 32))
    model, cost = CostModel(graph), cost_of(graph)
    layers = model.layers(graph.sizes)
    assert sum(layer.macs for layer in layers) == cost.macs
    assert sum(layer.params for layer in layers) == cost.params
    assert sum(layer.weight_bytes for layer in layers) == cost.weight_bytes
    assert len({layer.name for layer in layers}) == len(layers)


def test_grouped_transposed_and_matmul_macs_by_hand() -> None:
    def macs(net: nn.Module, *shape: int) -> int:
        return cost_of(trace(net, torch.zeros(1, *shape))).macs

    assert macs(nn.Conv2d(8, 12, 3, groups=4, padding=1), 8, 5, 5) == 25 * 12 * 2 * 9
    assert macs(nn.Conv2d(8, 8, 3, groups=8, padding=1), 8, 5, 5) == 25 * 8 * 9
    assert macs(nn.ConvTranspose2d(8, 6, 2, stride=2), 8, 5, 5) == 25 * 8 * 6 * 4
    assert macs(nn.Linear(7, 3), 4, 7) == 4 * 7 * 3
