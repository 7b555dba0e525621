"""Branches that go whole: which can, that it is exact, and that the record brings them back as they are: gone."""

import json
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
