"""Every rule by hand: which channels a small network has, and that removing half of them is exact."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.graph import shrink, silence, trace
from edgewise.graph.rules import RULES, reshape_factor


class Net(nn.Module):
    """A stem that makes 8 channels, something in the middle, and a head that reads what comes out."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor], head: nn.Module, **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleDict(layers)
        self.middle = middle
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.layers, self.stem(x)))


@dataclass(frozen=True)
class Case:
    """A network and the groups that follow by hand: channels by name, and which of them are inexact."""

    rule: str
    middle: Callable[[nn.Module, Tensor], Tensor]
    groups: dict[str, int]
    head: Callable[[], nn.Module] = lambda: nn.Conv2d(8, 5, 1)
    layers: Callable[[], dict[str, nn.Module]] = field(default=dict)
    inexact: tuple[str, ...] = ()
    rigid: tuple[str, ...] = ()
    name: str = ""


class Fixed(nn.Module):
    """A convolution of 8 to 6 channels that is not trained: its weight is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(6, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Masked(nn.Conv2d):
    """A convolution some of whose weights are off."""

    def __init__(self) -> None:
        super().__init__(8, 8, 1)
        self.register_buffer("mask", (torch.rand(8, 8, 1, 1) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias)


def filled(x: Tensor) -> Tensor:
    """Write two halves of the channels into a tensor made beforehand."""
    both, half = torch.zeros_like(x), x.shape[1] // 2
    both[:, :half] = x[:, half:]
    both[:, half:].add_(x[:, :half])
    return both


def conv(i: int, o: int, k: int = 1, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **options)


CASES = [
    Case("convolution", lambda m, x: m["a"](x), {"stem": 8, "layers.a": 8}, layers=lambda: {"a": conv(8, 8, 3)}),
    Case(
        "convolution",
        lambda m, x: m["a"](x),  # depthwise: its channels are its input's
        {"stem": 8},
        layers=lambda: {"a": conv(8, 8, 3, groups=8)},
        name="depthwise",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),  # two outputs for each input channel: they go with it
        {"stem": 8},
        head=lambda: conv(16, 5),
        layers=lambda: {"a": conv(8, 16, 3, groups=8)},
        name="depthwise multiplier",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),  # two groups of four: the same offset of both goes
        {"stem": 4, "layers.a": 3},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": conv(8, 6, 3, groups=2)},
        name="grouped",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),
        {"stem": 8, "layers.a": 6},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": nn.ConvTranspose2d(8, 6, 2, stride=2)},
        name="transposed",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),
        {"stem": 4, "layers.a": 3},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": nn.ConvTranspose2d(8, 6, 2, groups=2)},
        name="transposed grouped",
    ),
    Case(
        "convolution",
        lambda m, x: F.conv2d(x, m["a"](x)[:, :, :3, :3].mean(0, keepdim=True).expand(4, -1, -1, -1)),
        {},  # the filters are activations: no weight reads the channels
        head=lambda: conv(4, 5),
        layers=lambda: {"a": conv(8, 8)},
        name="activations as filters",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),
        {"stem": 8},
        layers=lambda: {"a": nn.ConvTranspose2d(8, 8, 2, groups=8)},
        name="transposed depthwise",
    ),
    Case(
        "convolution",
        lambda m, x: F.conv2d(x, m["a"].weight - 2 * m["b"].weight),  # both weights read the stem
        {"stem": 8, "layers.a": 6},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": conv(8, 6), "b": conv(8, 6)},
        name="sum of weights",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),
        {"stem": 8, "layers.a": 8},
        layers=lambda: {"a": Masked()},
        name="masked weight",
    ),
    Case(
        "convolution",
        lambda m, x: F.conv2d(x, m["a"].weight.exp()),  # 1 where the weight is 0
        {"stem": 8, "layers.a": 6},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": conv(8, 6)},
        inexact=("stem",),
        name="exponential weight",
    ),
    Case(
        "convolution",
        lambda m, x: F.conv2d(x, 1 - m["a"].weight),
        {"stem": 8, "layers.a": 6},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": conv(8, 6)},
        inexact=("stem",),
        name="shifted weight",
    ),
    Case(
        "convolution",
        lambda m, x: m["a"](x),
        {"stem": 8, "layers.a": 6},
        head=lambda: conv(6, 5),
        layers=lambda: {"a": Fixed()},
        name="buffer as filters",
    ),
    Case(
        "matmul",
        lambda m, x: m["b"](F.relu(m["a"](x.mean((2, 3))))),
        {"stem": 8, "layers.a": 6, "layers.b": 4},
        head=lambda: nn.Linear(4, 5),
        layers=lambda: {"a": nn.Linear(8, 6), "b": nn.Linear(6, 4, bias=False)},
    ),
    Case(
        "matmul",
        lambda m, x: (t := x.flatten(2)) @ t.transpose(1, 2),  # no weight reads what is contracted
        {},
        head=lambda: nn.Linear(8, 5),
        name="activations",
    ),
    Case(
        "matmul",
        lambda m, x: (x.flatten(0, 1) @ m["a"](x).flatten(0, 1)).view(x.shape),  # one product for each channel
        {"stem": 8},
        layers=lambda: {"a": conv(8, 8)},
        name="channels as a batch",
    ),
    Case(
        "matmul",
        lambda m, x: torch.arange(64.0 * 8).to(x).view(8, 8, 8) @ x,  # eight matrices by their number
        {},
        name="constants as a batch",
    ),
    Case("batch_norm", lambda m, x: m["a"](x), {"stem": 8}, layers=lambda: {"a": nn.BatchNorm2d(8)}),
    Case(
        "batch_norm",
        lambda m, x: F.batch_norm(x, None, None, training=True),  # each channel's own statistics
        {"stem": 8},
        name="batch statistics",
    ),
    Case(
        "batch_norm",
        lambda m, x: F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2),
        {"stem": 8},
        inexact=("stem",),
        name="batch statistics over channels",
    ),
    Case(
        "layer_norm",
        lambda m, x: m["b"](m["a"](x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        {"stem": 8, "layers.b": 8},
        layers=lambda: {"a": nn.LayerNorm(8), "b": nn.Linear(8, 8)},
        inexact=("stem",),
    ),
    Case(
        "group_norm",
        lambda m, x: m["a"](x),
        {"stem": 4},
        layers=lambda: {"a": nn.GroupNorm(2, 8)},
        inexact=("stem",),
    ),
    Case("group_norm", lambda m, x: m["a"](x), {"stem": 8}, layers=lambda: {"a": nn.GroupNorm(8, 8)}, name="of one"),
    Case("pointwise", lambda m, x: torch.empty_like(x).copy_(x), {"stem": 8}, name="copy"),
    Case("pointwise", lambda m, x: filled(x), {"stem": 4}, name="copies to halves of the channels"),
    Case(
        "pointwise",
        lambda m, x: torch.zeros(len(x), 8, 8, 8, dtype=x.dtype, device=x.device).copy_(x),
        {},  # eight channels by their number
        name="copy to a literal",
    ),
    Case("pointwise", lambda m, x: F.gelu(x) * torch.sigmoid(x) + 1, {"stem": 8}),
    Case(
        "pointwise",
        lambda m, x: x + m["a"](x),  # a residual: both make the same channels
        {"stem": 8},
        layers=lambda: {"a": conv(8, 8, 3, padding=1)},
        name="residual",
    ),
    Case(
        "pointwise",
        lambda m, x: x * torch.sigmoid(m["b"](F.relu(m["a"](x.mean((2, 3), keepdim=True))))),
        {"stem": 8, "layers.a": 4},
        layers=lambda: {"a": conv(8, 4), "b": conv(4, 8)},
        name="gate",
    ),
    Case(
        "pointwise",
        lambda m, x: x * torch.arange(8.0, dtype=x.dtype, device=x.device).view(1, 8, 1, 1),
        {},  # a constant made in the forward has its eight numbers: they cannot shrink
        name="constant",
    ),
    Case("pointwise", lambda m, x: x * x.mean((1, 2, 3), keepdim=True), {"stem": 8}, inexact=("stem",), name="scalar"),
    Case("reduction", lambda m, x: x.mean((2, 3), keepdim=True), {"stem": 8}),
    Case("reduction", lambda m, x: x * x.amax(1, keepdim=True), {"stem": 8}, inexact=("stem",), name="channels"),
    Case("reduction", lambda m, x: x.sum((2, 3)), {"stem": 8}, head=lambda: nn.Linear(8, 5), name="no keepdim"),
    Case("windows", lambda m, x: F.avg_pool2d(F.max_pool2d(x, 2), 2), {"stem": 8}),
    Case("same", lambda m, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), {"stem": 8}),
    Case("same", lambda m, x: x.detach(), {"stem": 8}, name="alias"),
    Case(
        "restride",
        lambda m, x: m["a"](x.contiguous(memory_format=torch.channels_last)),
        {"stem": 8},
        layers=lambda: {"a": nn.AdaptiveAvgPool2d(1)},
    ),
    Case("reshape", lambda m, x: x.flatten(1), {"stem": 8}, head=lambda: nn.Linear(8 * 64, 5)),
    Case(
        "reshape",
        lambda m, x: x.view(-1, 2, x.shape[1] // 2, 8, 8).transpose(1, 2).reshape(x.shape[0], -1, 8, 8),
        {"stem": 4},  # ShuffleNet's shuffle: the same offset of both halves goes, so that the cut stays between them
        name="shuffle",
    ),
    Case(
        "permute",
        lambda m, x: m["a"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        {"stem": 8, "layers.a": 8},
        layers=lambda: {"a": nn.Linear(8, 8)},
    ),
    Case(
        "transpose",
        lambda m, x: m["a"](x.transpose(1, 3)).transpose(1, 3),
        {"stem": 8, "layers.a": 8},
        layers=lambda: {"a": nn.Linear(8, 8)},
    ),
    Case("expand", lambda m, x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8), {"stem": 8}),
    Case("slice_dim", lambda m, x: x[:, :, ::2, ::2], {"stem": 8}),
    Case("slice_dim", lambda m, x: x[:, x.shape[1] // 2 :], {"stem": 4}, head=lambda: conv(4, 5), name="half"),
    Case("slice_dim", lambda m, x: x[:, :4], {"stem": 4}, head=lambda: conv(4, 5), rigid=("stem",), name="literal"),
    Case("slice_dim", lambda m, x: x[:, :3], {}, head=lambda: conv(3, 5), name="unequal"),
    Case("select", lambda m, x: x[:, :, 0], {"stem": 8}, head=lambda: nn.Conv1d(8, 5, 1)),
    Case("select", lambda m, x: x[:, 0], {}, head=lambda: nn.Linear(8, 5), name="channel"),
    Case("split", lambda m, x: torch.cat(x.split(4, dim=2), dim=3), {"stem": 8}),
    Case("split", lambda m, x: (p := x.chunk(2, dim=1))[0] * p[1], {"stem": 4}, head=lambda: conv(4, 5), name="chunks"),
    Case(
        "split",
        lambda m, x: (p := x.split(4, dim=1))[0] * p[1],
        {"stem": 4},
        head=lambda: conv(4, 5),
        rigid=("stem",),
        name="literal",
    ),
    Case("split", lambda m, x: x.split([6, 2], dim=1)[0], {}, head=lambda: conv(6, 5), name="unequal"),
    Case("unbind", lambda m, x: sum(x.unbind(2)), {"stem": 8}, head=lambda: nn.Conv1d(8, 5, 1)),
    Case("unbind", lambda m, x: sum(x.unbind(1)), {}, head=lambda: nn.Linear(8, 5), name="channels"),
    Case(
        "concatenate",
        lambda m, x: torch.cat([x, m["a"](x)], 1),
        {"stem": 8, "layers.a": 4},
        head=lambda: conv(12, 5),
        layers=lambda: {"a": conv(8, 4)},
    ),
    Case(
        "concatenate",
        lambda m, x: torch.cat([x, m["a"](x)], 2),  # along space: the channels beside each other are one
        {"stem": 8},
        layers=lambda: {"a": conv(8, 8)},
        name="along space",
    ),
    Case("index", lambda m, x: x[:, :, [0, 3, 5]], {"stem": 8}),
    Case("index", lambda m, x: x[[0, 0]][:, :, [[0, 1]], [2, 3]], {"stem": 8}, name="twice"),
    Case("index", lambda m, x: x[:, [5, 1]], {}, head=lambda: conv(2, 5), name="channels"),
    Case(
        "stack",
        lambda m, x: torch.stack([x, m["a"](x)], 1).sum(1),  # as SKNet adds its branches
        {"stem": 8},
        layers=lambda: {"a": conv(8, 8)},
    ),
    Case("repeat", lambda m, x: x.repeat(1, 2, 1, 1), {"stem": 8}, head=lambda: conv(16, 5)),
    Case("flip", lambda m, x: x.flip(1, 3), {"stem": 8}),
    Case("along", lambda m, x: x.roll((1, 2), (2, 3)).cumsum(2), {"stem": 8}),
    Case("along", lambda m, x: x.roll(1, 1), {}, name="channels"),
    Case("unfold", lambda m, x: x.unfold(2, 2, 2).amax(4), {"stem": 8}),
    Case("unfold", lambda m, x: x.unfold(1, 2, 1).amax(4), {}, head=lambda: conv(7, 5), name="channels"),
    Case(
        "patches",
        lambda m, x: F.fold(m["a"](F.unfold(x, 2, stride=2)), (8, 8), 2, stride=2),
        {"stem": 8, "layers.a": 6},  # every channel is four of the columns, and made by four of the rows
        head=lambda: conv(6, 5),
        layers=lambda: {"a": nn.Conv1d(32, 24, 1)},
    ),
    Case("reduction", lambda m, x: x / x.norm(dim=(2, 3), keepdim=True), {"stem": 8}, name="norm"),
    Case("reduction", lambda m, x: x + x.max(2, keepdim=True)[0], {"stem": 8}, name="maximum"),
    Case("pad", lambda m, x: F.pad(x, (1, 1, 1, 1)), {"stem": 8}),
    Case(
        "pad",
        lambda m, x: m["p"](x) + m["a"](x),  # the middle eight are the stem's, two and four around them the branch's
        {"stem": 8, "layers.a": 6},
        head=lambda: conv(14, 5),
        layers=lambda: {"p": nn.ConstantPad3d((0, 0, 0, 0, 2, 4), 0.0), "a": conv(8, 14)},
        name="option-A shortcut",
    ),
    Case(
        "pad",
        lambda m, x: m["p"](x) * torch.sigmoid(m["p"](x.relu())),  # one module twice
        {"stem": 8, "head": 6},
        head=lambda: conv(14, 5),
        layers=lambda: {"p": nn.ConstantPad3d((0, 0, 0, 0, 2, 4), 1.0)},
        name="twice",
    ),
    Case(
        "pad",
        lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)) + m["a"](x),  # two literals: those four stay
        {"stem": 8},
        head=lambda: conv(12, 5),
        layers=lambda: {"a": conv(8, 12)},
        name="literal",
    ),
    Case("frozen", lambda m, x: x.flatten(2).softmax(1).unflatten(2, (8, 8)), {}),
    Case("nothing", lambda m, x: x + torch.zeros(1, 1, 1, 1, dtype=x.dtype, device=x.device), {"stem": 8}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}{'-' if case.name else ''}{case.name}")
def test_groups_by_hand_and_exact(case: Case) -> None:
    torch.manual_seed(0)
    net = Net(case.middle, case.head(), **case.layers()).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(net, x)
    assert {group.name: group.size for group in graph.groups} == case.groups
    assert tuple(group.name for group in graph.groups if not group.exact) == case.inexact
    assert graph.rigid == case.rigid
    rng = np.random.default_rng(0)
    keep = {g.name: np.sort(rng.permutation(g.size)[: g.size // 2]) for g in graph.prunable()}
    with torch.no_grad():
        expected, got = silence(net, graph, keep)(x), shrink(net, graph, keep)(x)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    if keep:
        assert not torch.allclose(expected, net(x)), "silencing must change something for the check to mean anything"


def test_every_rule_has_a_case() -> None:
    functions = {rule.follow.__name__ for rule in RULES.values()}
    assert functions == {case.rule for case in CASES}


def test_a_factor_is_expanded_only_over_what_it_is_merged_with() -> None:
    factor = np.arange(4).reshape(1, 4, 1, 1)
    merged = reshape_factor(factor, (2, 4, 3, 5), (2, 12, 5))
    assert merged.shape == (1, 12, 1)
    assert merged.reshape(-1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
