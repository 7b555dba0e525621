"""Branches that go whole: which can, that it is exact, and that the record brings them back as they are: gone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.cost import CostModel, cost_of
from edgewise.export.onnx import export
from edgewise.export.verify import compare_float
from edgewise.graph import shrink, silence, trace
from edgewise.graph.surgery import record, restore
from edgewise.models import build
from graph.test_surgery import trained_looking

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("resnet20", 9),
        ("resnet18", 8),
        ("resnet50", 16),  # two inner groups in each block: the first goes with the second, not alone
        ("mobilenet_v2", 10),  # the blocks with a residual path
        ("vgg16_bn", 0),
        ("convnext_atto", 12),
    ],
)
def test_what_can_go_is_beside_a_path(name: str, branches: int) -> None:
    assert len(trace(build(name, classes=10, size=32), EXAMPLE).branches) == branches


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "mobilenet_v2", "convnext_atto"])
def test_removal_is_exact_and_rebuilt_from_its_record(name: str) -> None:
    net, x = trained_looking(name), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = trace(net, x)
    rng = np.random.default_rng(0)
    chosen = [n for n in graph.branches if graph.by_name[n].exact][::2]
    keep = {g.name: np.sort(rng.permutation(g.size)[: (g.size + 1) // 2]) for g in graph.prunable()}
    keep |= {name: np.arange(0) for name in chosen}
    small = shrink(net, graph, keep)
    with torch.no_grad():
        expected, got = silence(net, graph, keep)(x), small(x)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()
    attributes = json.loads(json.dumps(record(small, net)))
    again = restore(build(name, classes=10, size=32).double(), attributes, dict(small.state_dict())).eval()
    with torch.no_grad():
        assert torch.equal(again(x), got)
    assert cost_of(trace(small, x)).macs < cost_of(trace(shrink(net, graph, {}), x)).macs


def test_by_hand() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)
            self.norm, self.head = nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.norm(self.b(nn.functional.relu_(self.a(x)))))

    net = Residual().eval()
    net.b.bias.data = torch.tensor([1.0, -2.0])
    net.norm.running_mean.copy_(torch.tensor([0.5, 1.0]))
    net.norm.running_var.copy_(torch.tensor([4.0, 1.0]))
    net.norm.bias.data = torch.tensor([0.0, 10.0])
    graph = trace(net, torch.zeros(1, 1, 4, 4))
    assert {name: (b.groups, b.gone, b.ends) for name, b in graph.branches.items()} == {
        "a": (("a",), ("a", "b"), {"norm": "b"})
    }
    small = shrink(net, graph, {"a": []})
    assert small.norm.value.tolist() == pytest.approx([0.25, 7.0], rel=1e-4)  # (1 - 0.5) / 2 and 10 - 3
    x = torch.randn(2, 1, 4, 4)
    before = x.clone()
    with torch.no_grad():
        assert torch.allclose(small(x), silence(net, graph, {"a": []})(x), rtol=1e-5)
    assert torch.equal(x, before)
    assert [name for name, _ in small.named_parameters()] == ["stem.weight", "norm.value", "head.weight", "head.bias"]


def test_it_trains_and_is_gone_from_the_file(tmp_path: Path) -> None:
    net = build("resnet20", classes=10, size=32)
    graph = trace(net, EXAMPLE)
    gone = list(graph.branches)[:4]
    small = shrink(net, graph, {name: [] for name in gone}).train()
    small(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    small.eval()
    path = export(small, EXAMPLE, tmp_path / "small.onnx")
    import onnx

    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    depthwise = [node for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    assert len(convolutions) - len(depthwise) == 19 - 2 * len(gone)
    assert len(depthwise) <= 2  # what is left of the constants, one in each stage that lost blocks
    assert compare_float(small, path, torch.randn(8, 3, 32, 32)).passed


def test_behind_its_end_a_padded_convolution_sees_the_whole_constant() -> None:
    """One number a channel would do for the shapes, but not for a filter that looks over the border."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
            self.behind, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.behind(self.b(self.a(x).relu())))

    torch.manual_seed(0)
    net, x = Behind().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = trace(net, x)
    assert graph.branches["a"].sizes == {"b": (-1, 6, 6)}
    with torch.no_grad():
        expected, got = silence(net, graph, {"a": []})(x), shrink(net, graph, {"a": []})(x)
    assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()


class ConvAct(nn.Conv2d):
    """A convolution that goes on to an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(super().forward(x))


class TwoResults(nn.Conv2d):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None


class Odd(nn.Module):
    """A residual block whose parts come together in a way of its own."""

    def __init__(self, merge: Callable[[nn.Module, Tensor, Tensor], Tensor], b: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.merge = merge
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), b(12, 8, 1), nn.Conv2d(8, 2, 1)
        self.behind, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 8, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.merge(self, x, self.b(self.a(x).relu())))


class Alias(nn.Module):
    """Its branch is called by another name than that of its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (nn.Conv2d(i, o, 1) for i, o in ((3, 8), (8, 12), (12, 8), (8, 2)))
        self.body = nn.Sequential(self.a, nn.ReLU(), self.b)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.body(x))


def gated(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x + m.behind(y * x.mean((2, 3), keepdim=True))


ODD: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "in place behind the end": (lambda: Odd(lambda m, x, y: x + nn.functional.silu(y, inplace=True)), True),
    "an activation in the end": (lambda: Odd(lambda m, x, y: x + y, ConvAct), True),
    "a gate before a padded filter": (lambda: Odd(gated), True),
    "zeros between places": (lambda: Odd(lambda m, x, y: x + m.up(y)[..., :6, :6]), True),
    "a number of the width": (lambda: Odd(lambda m, x, y: x * y.shape[-1] ** -0.5 + y), False),
    "two results": (lambda: Odd(lambda m, x, y: x + m.behind(y[0]), TwoResults), False),
    "another name": (Alias, False),
}


@pytest.mark.parametrize("name", ODD)
def test_what_goes_is_exact_or_does_not_go(name: str) -> None:
    make, goes = ODD[name]
    torch.manual_seed(0)
    net, x = make().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = trace(net, x)
    assert ("a" in graph.branches) == goes
    if goes:
        small = shrink(net, graph, {"a": []})
        with torch.no_grad():
            expected = silence(net, graph, {"a": []})(x)
            for _ in range(2):  # what works in place must leave the constant as it is
                assert (small(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
        small.train()(x).sum().backward()


class NormAct(nn.BatchNorm2d):
    """A normalisation that goes on to an activation, as timm writes them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Block(nn.Module):
    """A residual block as others write them.

    Args:
        in_place: the sum is written into what the branch gave out.
        norm: behind the last convolution.
        gate: "inside" the branch, at its "end", or none.
        scale: what the branch gives out is scaled by a parameter of the block's own.
    """

    def __init__(self, in_place: bool, norm: type[nn.Module], gate: str, scale: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.a, self.norm_a, self.b, self.norm_b = nn.Conv2d(8, 12, 3, 1, 1), norm(12), nn.Conv2d(12, 8, 1), norm(8)
        self.inside = Gate(12) if gate == "inside" else nn.Identity()
        self.end = Gate(8) if gate == "end" else nn.Identity()
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 0.5)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.end(self.norm_b(self.b(self.inside(self.norm_a(self.a(x))))))
        if self.scale is not None:
            out = self.scale * out
        if self.in_place:
            out += x
            return out
        return out + x


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("norm", "gate", "scale"),
    [
        (nn.BatchNorm2d, "", False),
        (nn.BatchNorm2d, "inside", True),
        (NormAct, "inside", False),
        (NormAct, "end", True),
    ],
)
def test_blocks_as_others_write_them(
    in_place: bool, norm: type[nn.Module], gate: str, scale: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *(Block(in_place, norm, gate, scale) for _ in range(2)), nn.Conv2d(8, 5, 1))
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 1:
            tensor.data.uniform_(0.5, 1.5)
    net, x = net.double().eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    graph = trace(net, x)
    assert {"1.a", "2.a"} <= set(graph.branches)
    assert "0" not in graph.branches  # without it the network would not see its input
    for keep in ({"1.a": [], "2.a": []}, {"1.a": [], "2.a": [0, 3]}, {name: [] for name in graph.branches}):
        small = shrink(net, graph, keep)
        with torch.no_grad():
            expected, got = silence(net, graph, keep)(x), small(x)
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()
        again = restore(net, json.loads(json.dumps(record(small, net))), dict(small.state_dict())).eval()
        assert torch.equal(again(x), got)
    small = shrink(net, graph, {"1.a": [], "2.a": []}).float()
    path = export(small, x.float(), tmp_path / "small.onnx")
    assert compare_float(small, path, x.float()).passed
    import onnx

    names = [node.op_type for node in onnx.load(path).graph.node]
    assert gate == "end" or names.count("Conv") <= 3  # the stem, the head, and what adds the constants
    small(x.float()).sum().backward()


def test_a_branch_whose_shape_is_needed_stays() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.head = (nn.Conv2d(i, o, 1) for i, o in ((3, 4), (4, 4), (4, 4), (8, 2)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(torch.cat([x, self.b(self.a(x))], 1))

    graph = trace(Dense(), EXAMPLE)
    assert graph.branches == {}
    with pytest.raises(ValueError, match="no others lie beside it and no path around it"):
        shrink(graph.model, graph, {"a": []})


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "mobilenet_v2", "convnext_atto"])
def test_the_cost_without_branches_is_foretold(name: str) -> None:
    net = build(name, classes=10, size=32)
    graph = trace(net, EXAMPLE)
    keep = {g.name: np.arange((g.size + 1) // 2) for g in graph.prunable()} | {
        n: [] for n in list(graph.branches)[1::2]
    }
    small = cost_of(trace(shrink(net, graph, keep), EXAMPLE))
    gone = {n for name in keep if graph.takes_branch(name, keep[name]) for n in graph.branches[name].groups}
    widths = [0 if g.name in gone else len(keep.get(g.name, range(g.size))) for g in graph.groups]
    foretold = CostModel(graph, branches=graph.branches).cost(widths)
    assert (foretold.params, foretold.macs, foretold.weight_bytes) == (small.params, small.macs, small.weight_bytes)
    assert small.activation_bytes <= 1.1 * foretold.activation_bytes
    assert foretold.activation_bytes <= 1.1 * small.activation_bytes
    assert foretold.peak_activation_bytes >= small.peak_activation_bytes
