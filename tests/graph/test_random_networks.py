"""Random small networks, random channels kept: the shrunk network is the silenced one, and costs what was foretold."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgewise.cost import CostModel, cost_of
from edgewise.graph import shrink, silence, trace


@dataclass(frozen=True)
class Layer:
    """What is done to which of the tensors so far (counted from the last), and a size."""

    kind: str
    first: int
    second: int
    width: int


KINDS = "conv grouped depthwise transposed norm relu add gate cat chunk half shuffle group_norm reused"
LAYERS = st.builds(
    Layer, st.sampled_from(KINDS.split()), st.integers(0, 5), st.integers(0, 5), st.sampled_from([2, 4, 6, 8])
)


class Network(nn.Module):
    """A stem of eight channels, the layers one after another, and a head on the last tensor or on its flat pixels."""

    def __init__(self, layers: list[Layer], flat: bool) -> None:
        super().__init__()
        self.layers, self.flat, self.doubled = layers, flat, []
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList()
        widths = [8]
        for layer in layers:
            i, o = widths[-1 - layer.first % len(widths)], layer.width
            other = widths[-1 - layer.second % len(widths)]
            made, width = {
                "conv": lambda i, o, _: (nn.Conv2d(i, o, 3, padding=1), o),
                "grouped": lambda i, o, _: (nn.Conv2d(i, o, 1, groups=2), o),
                "depthwise": lambda i, o, _: (nn.Conv2d(i, i, 3, padding=1, groups=i), i),
                "transposed": lambda i, o, _: (nn.ConvTranspose2d(i, o, 3, padding=1), o),
                "norm": lambda i, o, _: (nn.BatchNorm2d(i), i),
                "group_norm": lambda i, o, _: (nn.GroupNorm(2, i), i),
                "add": lambda i, o, other: (nn.Conv2d(other, i, 1), i),
                "gate": lambda i, o, other: (nn.Conv2d(other, i, 1), i),
                "cat": lambda i, o, other: (nn.Identity(), i + other),
                "chunk": lambda i, o, _: (nn.Identity(), i // 2),
                "half": lambda i, o, _: (nn.Identity(), i // 2),
                "reused": lambda i, o, _: (nn.Conv2d(i, i, 1), i),
            }.get(layer.kind, lambda i, o, _: (nn.Identity(), i))(i, o, other)
            self.body.append(made)
            self.doubled.append(width % 2 == 1)  # every width stays even, so that any tensor can be cut in two
            widths.append(width * (1 + self.doubled[-1]))
        self.head = nn.Linear(widths[-1] * (25 if flat else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [self.stem(x)]
        for layer, module, doubled in zip(self.layers, self.body, self.doubled, strict=True):
            y, other = tensors[-1 - layer.first % len(tensors)], tensors[-1 - layer.second % len(tensors)]
            half = y.shape[1] // 2
            match layer.kind:
                case "relu":
                    y = y.relu()
                case "add":
                    y = y + module(other)
                case "gate":
                    y = y * torch.sigmoid(module(other.mean((2, 3), keepdim=True)))
                case "cat":
                    y = torch.cat([y, other], 1)
                case "chunk":
                    y = reduce(torch.mul, y.chunk(2, 1))
                case "half":
                    y = y[:, half:].tanh()
                case "shuffle":
                    y = y.view(len(y), 2, half, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
                case "reused":
                    y = module(module(y).relu())
                case _:
                    y = module(y)
            tensors.append(torch.cat([y, y], 1) if doubled else y)
        last = tensors[-1]
        return self.head(last.flatten(1) if self.flat else last.mean((2, 3)))


@given(st.lists(LAYERS, min_size=1, max_size=8), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=60)
def test_the_shrunk_network_is_the_silenced_one(layers: list[Layer], flat: bool, seed: int) -> None:
    torch.manual_seed(seed)
    net = Network(layers, flat).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    x, rng = torch.randn(2, 3, 5, 5, dtype=torch.float64), np.random.default_rng(seed)
    graph = trace(net, x)
    keep = {g.name: np.sort(rng.permutation(g.size)[: rng.integers(1, g.size + 1)]) for g in graph.prunable()}
    small = shrink(net, graph, keep)
    with torch.no_grad():
        expected, got = silence(net, graph, keep)(x), small(x)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max().clamp_min(1)

    widths = [len(keep.get(g.name, range(g.size))) for g in graph.groups]
    cost = cost_of(trace(small, x))
    foretold = CostModel(graph).cost(widths, cost.nonzero)
    assert (foretold.params, foretold.macs, foretold.weight_bytes) == (cost.params, cost.macs, cost.weight_bytes)
    assert foretold.activation_bytes >= cost.activation_bytes  # to shuffle parts of one channel takes no copy
    assert foretold.peak_activation_bytes >= cost.peak_activation_bytes
