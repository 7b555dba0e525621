"""The model of a PE array and the bits of ternary weights, worked out by hand."""

import pytest
import torch
from torch import nn

from edgewise.cost.static import cost_of
from edgewise.graph import trace
from edgewise.sparse import on_array, ternary_accounting
from train.tiny import tiny_net


class Net(nn.Module):
    """A float convolution 3 -> 4, a ternary one 4 -> 6 with stride 2, a ternary linear layer 6 -> 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            self.body.weight.fill_(0.5)[::2].neg_()
            self.body.weight[0:2, 0:3] = 0  # one whole tile of (2, 3)
            self.body.weight[2:4, 3:] = 0  # another, ragged: 2 x 1
            self.body.weight[4, 0, 0] = 0  # no tile
            self.head.weight.fill_(0.25)[4] = 0  # the ragged tiles of the last row, 1 x 3 each

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
        return self.head(y.mean((2, 3)))


TILE = (2, 3)
IMAGE = torch.zeros(1, 3, 8, 8)


def test_by_hand() -> None:
    found = on_array(Net(), IMAGE, TILE)
    stem, body, head = found.layers
    assert [layer.name for layer in found.layers] == ["stem", "body", "head"]
    assert [layer.ternary for layer in found.layers] == [False, True, True]
    # stem: 2 x 1 tiles, 9 kernel positions, 64 outputs; all run.
    assert (stem.tiles, stem.skipped, stem.kernel, stem.positions) == (2, 0, 9, 64)
    assert (stem.cycles, stem.dense_cycles, stem.speed_up) == (2 * 9 * 64, 2 * 9 * 64, 1)
    assert (stem.additions, stem.multiplications, stem.loaded_bits) == (108 * 64, 108 * 64, 108 * 32 + 2)
    # body: 3 x 2 tiles, 16 outputs; a tile of 2 x 3 and one of 2 x 1 kernels of 9 are skipped.
    assert (body.tiles, body.skipped, body.run, body.positions) == (6, 2, 4, 16)
    assert (body.cycles, body.dense_cycles, body.speed_up) == (4 * 9 * 16, 6 * 9 * 16, 1.5)
    assert (body.weights, body.weights_run) == (216, 216 - 54 - 18)
    assert (body.additions, body.multiplications, body.loaded_bits) == (144 * 16, 6 * 16, 144 * 2 + 6)
    # head: 3 x 2 tiles of which the last row's two, of one output each, are skipped.
    assert (head.tiles, head.skipped, head.cycles, head.dense_cycles) == (6, 2, 4, 6)
    assert (head.additions, head.multiplications, head.loaded_bits) == (24, 5, 24 * 2 + 6)
    assert (found.tiles, found.skipped, found.run) == (14, 4, 10)
    assert (found.cycles, found.dense_cycles) == (1152 + 576 + 4, 1152 + 864 + 6)
    assert found.speed_up == pytest.approx(2022 / 1732)
    assert found.additions == 6912 + 2304 + 24
    assert found.multiplications == 6912 + 96 + 5
    assert found.loaded_bits == 3458 + 294 + 54
    assert found.other_macs == {}


def test_accounting_by_hand() -> None:
    found = ternary_accounting(Net(), TILE)
    assert (found.ternary_weights, found.zero_block_weights) == (216 + 30, 54 + 18 + 6)
    assert (found.blocks, found.ternary_layers) == (12, 2)
    assert found.float_params == 108 + 8 + 6 + 5  # stem, BatchNorm, biases
    assert found.group_sparsity == pytest.approx(78 / 246)
    assert found.paper_compression == pytest.approx(16 / (1 - 78 / 246))
    assert found.bits == 2 * (246 - 78) + 12 + 32 * (2 + 127)
    assert found.dense_bits == 32 * (246 + 127)
    assert found.compression == pytest.approx(found.dense_bits / found.bits)


def test_the_papers_headline() -> None:
    # 21x of ResNet-18 is 23.8 % of the weights in zero blocks.
    net = nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0).view(-1)[:2380] = 0
    assert ternary_accounting(net, (1, 1)).paper_compression == pytest.approx(21.0, abs=0.01)


def test_filters_are_tiles_of_minus_one() -> None:
    net = Net()
    with torch.no_grad():
        net.body.weight[1] = 0
    found = ternary_accounting(net, (1, -1))
    assert (found.blocks, found.zero_block_weights) == (6 + 5, 36 + 6)


def test_a_network_without_ternary_layers_saves_nothing() -> None:
    found = ternary_accounting(tiny_net(), (1, 16))
    assert (found.ternary_layers, found.group_sparsity, found.compression) == (0, 0, 1)
    assert found.paper_compression == 16


def test_every_weight_of_a_dense_network_is_a_mac() -> None:
    net, image = tiny_net().eval(), torch.zeros(1, 3, 8, 8)
    found = on_array(net, image, (1, 1))
    assert found.additions == found.multiplications == found.cycles == cost_of(trace(net, image)).macs
    # A depthwise layer of one input an output is smaller than the array: each tile has 16 places for one number.
    depthwise = on_array(net, image, (4, 16)).layers[1]
    assert (depthwise.tiles, depthwise.cycles) == (2, 2 * 9 * 64)


def test_a_batch_counts_as_one_image() -> None:
    assert on_array(Net(), torch.zeros(3, 3, 8, 8), TILE) == on_array(Net(), IMAGE, TILE)


def test_all_zero_and_no_array() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.zeros_(net[0].weight)
    found = on_array(net, torch.zeros(1, 4), (2, 2))
    assert (found.cycles, found.speed_up) == (0, float("inf"))
    assert ternary_accounting(net, (2, 2)).paper_compression == float("inf")
    with pytest.raises(ValueError, match=r"tile is \(1, -1\); an array has at least 1 output and 1 input"):
        on_array(net, torch.zeros(1, 4), (1, -1))


class Attention(nn.Module):
    """A linear layer over tokens, and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(x.flatten(2).transpose(1, 2))
        return y @ y.transpose(1, 2)


def test_tokens_are_positions_and_other_macs_are_named() -> None:
    found = on_array(Attention(), torch.zeros(1, 4, 3, 3), (2, 2))
    assert found.layers[0].positions == 9
    assert found.cycles == 4 * 9
    assert found.other_macs == {"": 9 * 9 * 4}
