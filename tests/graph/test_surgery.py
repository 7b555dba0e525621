"""Shrinking, silencing, and the record that rebuilds a network without code."""

import copy
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.graph import rigid_groups, shrink, silence, trace
from edgewise.graph.surgery import rebuild, record, restore
from edgewise.models import build

EXAMPLE = torch.zeros(1, 3, 32, 32)
MODELS = ["resnet20", "resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "convnext_atto"]


def half(graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]) for g in graph.prunable()}


def trained_looking(name: str) -> nn.Module:
    """Give a network statistics and scales that are not all alike, as training would."""
    torch.manual_seed(0)
    net = build(name, classes=10, size=32).double().eval()
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if "running_mean" in key or key.endswith("bias"):
                tensor.normal_(0, 0.1)
            elif "running_var" in key or (tensor.dim() == 1 and tensor.is_floating_point()):
                tensor.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("name", MODELS)
def test_the_shrunk_network_equals_the_silenced_one_and_is_rebuilt_from_its_record(name: str) -> None:
    net = trained_looking(name)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    graph = trace(net, x)
    keep = half(graph)
    small = shrink(net, graph, keep)
    with torch.no_grad():
        got, expected, dense = small(x), silence(net, graph, keep)(x), net(x)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert (got - dense).abs().max() > 1e-3 * dense.abs().max(), "half of the channels must matter"
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), "the original was changed"

    attributes = json.loads(json.dumps(record(small, net)))
    again = restore(build(name, classes=10, size=32).double(), attributes, small.state_dict()).eval()
    with torch.no_grad():
        assert torch.equal(again(x), got)
    assert record(again, small) == {}


def test_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False))
    net[0].weight.data = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    net[1].weight.data = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)
    graph = trace(net, torch.zeros(1, 1, 1, 1))
    small = shrink(net, graph, {"0": [2, 0]})
    assert small[0].weight.flatten().tolist() == [1.0, 3.0]
    assert small[1].weight.flatten().tolist() == [10.0, 30.0]
    assert (small[0].out_channels, small[1].in_channels) == (2, 2)
    assert silence(net, graph, {"0": [0, 2]})[1].weight.flatten().tolist() == [10.0, 0.0, 30.0]


def test_a_padding_module_forgets_the_channels_that_went() -> None:
    net = build("resnet20", classes=10, size=32)
    graph = trace(net, EXAMPLE)
    own = next(g for g in graph.groups if any(m.kind == "padding" for m in g.members))
    pad = next(m for m in own.members if m.kind == "padding")
    kept = np.arange(3, own.size)  # the first three are put before
    small = dict(shrink(net, graph, {own.name: kept}).named_modules())[pad.tensor]
    before, after = dict(net.named_modules())[pad.tensor].padding[4:]
    assert small.padding[4:] == (before - 3, after)


def test_what_a_shortcut_adds_to_a_stream_can_all_go() -> None:
    net = trained_looking("resnet20")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = trace(net, x)
    keep = {g.name: np.arange(0) for g in graph.groups if g.beside_others}
    assert len(keep) == 2
    small = shrink(net, graph, keep)
    assert dict(small.named_modules())["layer3.2.bn2"].num_features == 16
    with torch.no_grad():
        assert torch.allclose(small(x), silence(net, graph, keep)(x), rtol=1e-10, atol=1e-10)


def test_a_depthwise_convolution_keeps_one_group_a_channel() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1))
    graph = trace(net, EXAMPLE)
    small = shrink(net, graph, {graph.groups[0].name: [1, 4, 5]})
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (3, 3, 3)
    assert small(EXAMPLE).shape == (1, 2, 30, 30)


def test_a_grouped_convolution_with_one_channel_a_group_is_no_depthwise_one() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1)).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    graph = trace(net, x)
    keep = {group.name: [1] for group in graph.groups}  # of four offsets one, in both groups
    small = shrink(net, graph, keep)
    assert (small[1].groups, small[1].in_channels) == (2, 2)
    assert torch.allclose(small(x), silence(net, graph, keep)(x))


def test_the_new_network_shares_no_memory_and_keeps_mode_and_flags() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).train()
    net[0].weight.requires_grad_(False)
    graph = trace(net, EXAMPLE)
    small = shrink(net, graph, {})
    assert small.training
    assert not small[0].weight.requires_grad
    assert small[2].weight.requires_grad
    small[2].weight.data.zero_()
    small[1].running_mean.fill_(9)
    assert net[2].weight.abs().sum() > 0
    assert net[1].running_mean.sum() == 0


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nope": [0]}, 'no group is called "nope"; the network has 0'),
        ({"0": []}, 'group "0" keeps []: at least one channel'),
        ({"0": [8]}, "different channels of 0..7"),
        ({"0": [-1]}, "different channels of 0..7"),
        ({"0": [1, 1]}, "different channels of 0..7"),
    ],
)
def test_a_wrong_keep_list_is_refused(keep: dict[str, list[int]], message: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(ValueError, match=re.escape(message)):
        shrink(net, trace(net, EXAMPLE), keep)


class Literal(nn.Module):
    """Writes one of its two widths into a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fixed(self.free(x).relu()).mean((2, 3)).view(-1, 4))


def test_a_width_written_into_the_forward_is_found_and_named() -> None:
    net = Literal()
    graph = trace(net, EXAMPLE)
    assert [g.name for g in graph.groups] == ["free", "fixed"]
    assert rigid_groups(graph) == ("fixed",)
    assert trace(build("resnet20", classes=10, size=32), EXAMPLE).rigid == ()


class Scaled(nn.Module):
    """Uses one of its two widths as a number."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.free, self.used, self.head, self.use = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1), use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.used(self.free(x).relu())))


@pytest.mark.parametrize(
    "use",
    [
        lambda h: h * h.shape[1] ** -0.5,
        lambda h: h / torch.full((1,), float(h.shape[1]), device=h.device),
        lambda h: h / torch.tensor(float(h.shape[1])),
        lambda h: h.relu() if h.shape[1] > 6 else h.tanh(),
        lambda h: h.relu() if h.shape[1] > 6 else h,
        lambda h: h.view(-1, 8, 10, 10),
    ],
)
def test_a_width_that_the_forward_computes_with_is_found_and_stays(use: Callable[[Tensor], Tensor]) -> None:
    net, x = Scaled(use), torch.zeros(1, 3, 10, 10)
    graph = trace(net, x)
    assert [g.name for g in graph.groups] == ["free", "used"]
    assert graph.rigid == ("used",)
    assert [g.name for g in graph.prunable(inexact=True)] == ["free"]


def test_groups_that_fit_only_one_at_a_time_are_told_apart() -> None:
    class Either(nn.Module):
        """Two convolutions that must not both be narrow."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x)
            if x.shape[1] + y.shape[1] < 6:
                raise RuntimeError("too narrow")
            return self.c(y)

    assert trace(Either(), EXAMPLE).rigid == ("b",)


def test_widths_that_must_shrink_together_are_found_where_one_of_them_is_inexact() -> None:
    class Same(nn.Module):
        """Reshapes one tensor by another's width, which a layer normalisation keeps from shrinking."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(4, 8)
            self.one, self.other = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.norm(self.a(x))
            return self.one(a) + self.other(self.b(x).reshape(*x.shape[:2], a.shape[2]))

    graph = trace(Same(), torch.zeros(1, 3, 4))
    assert [(g.name, g.exact) for g in graph.groups] == [("a", False), ("b", True)]
    assert graph.rigid == ("b",)


def test_only_the_modules_that_lost_channels_are_mended() -> None:
    class Wide(nn.Linear):
        """States a width of its own."""

    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Flatten(), Wide(2 * 32 * 32, 2))
    net[3].out_features = 99
    graph = trace(net, EXAMPLE)
    assert shrink(net, graph, {"0": [0, 1]})[3].out_features == 99


def test_a_rebuilt_network_shares_no_memory_with_its_original() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    again = rebuild(net, {})
    again[0].weight.data.zero_()
    assert net[0].weight.abs().sum() > 0


def test_transposed_depthwise_and_group_norm_of_one_are_mended() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.GroupNorm(8, 8), nn.Conv2d(8, 2, 1)
    )
    graph = trace(net, EXAMPLE)
    small = shrink(net, graph, {"0": [1, 4, 5]})
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (3, 3, 3)
    assert (small[2].num_groups, small[2].num_channels) == (3, 3)
    assert small(EXAMPLE).shape == (1, 2, 64, 64)
    assert record(small, net)["2"] == {"num_channels": 3, "num_groups": 3}


def test_a_record_that_does_not_fit_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(ModelError, match=r"lack 1 tensors of the network, the first '0\.bias'"):
        restore(net, {}, {"0.weight": net[0].weight.data})
    with pytest.raises(ModelError, match="hold 1 tensors the network lacks, the first 'x'"):
        restore(net, {}, {**net.state_dict(), "x": torch.zeros(1)})
    with pytest.raises(ModelError, match='a module "9"'):
        restore(net, {"9": {"groups": 1}}, net.state_dict())
