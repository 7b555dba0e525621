"""Which layers methods act on."""

import pytest
from torch import nn
from torch.nn.utils import parametrize

from edgewise.sparse.layers import Ends, layers, shadow
from train.tiny import tiny_net


@pytest.mark.parametrize(
    ("without", "names"),
    [("none", ["0", "3", "8"]), ("first", ["3", "8"]), ("last", ["0", "3"]), ("first_last", ["3"])],
)
def test_the_ends_are_left_out(without: Ends, names: list[str]) -> None:
    assert list(layers(tiny_net(), without)) == names


def test_no_layers_and_one() -> None:
    assert layers(nn.ReLU()) == {}
    assert layers(nn.ReLU(), "first_last") == {}
    assert layers(nn.Sequential(nn.Linear(2, 2)), "first_last") == {}
    assert list(layers(nn.Linear(2, 2))) == [""]


def test_a_shared_weight_is_one_layer_also_behind_a_parametrisation() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    weight = net[0].weight
    assert list(layers(net)) == ["0", "1"]
    for layer in (net[0], net[2]):
        parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert list(layers(net)) == ["0", "1"]
    assert shadow(net[2]) is weight
    assert shadow(net[1]) is net[1].weight
