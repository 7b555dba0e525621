"""Latency foretold from single layers: looked up, between measured widths in straight lines, fitted to whole runs."""

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.cost import CostModel
from edgewise.cost.latency import LatencyModel, measured_widths, shapes_of
from edgewise.graph import trace
from edgewise.graph.trace import LayerShape
from edgewise.models import build


def seconds(shape: LayerShape) -> float:
    """Make up a runtime: a microsecond for each layer, and nanoseconds for each thousand of its MACs."""
    return 1e-6 + shape.macs * 1e-12


def table_of(graph) -> dict[LayerShape, float]:
    return {shape: seconds(shape) for shape in shapes_of(graph)}


def test_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.Flatten(), nn.Linear(512, 10)
    )
    graph = trace(net, torch.zeros(1, 3, 4, 4))
    assert [g.size for g in graph.groups] == [16, 32]
    one = {"size": (4, 4), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
    first = {LayerShape("convolution", kernel=(3, 3), padding=(1, 1), inputs=3, outputs=o, **one) for o in (8, 16)}
    second = {
        LayerShape("convolution", kernel=(1, 1), padding=(0, 0), inputs=i, outputs=o, **one)
        for i in (8, 16)
        for o in (8, 16, 24, 32)
    }
    last = {LayerShape("linear", (1,), (), (), (), (), 1, width, 10) for width in measured_widths(512)}
    assert shapes_of(graph) == first | second | last
    table = table_of(graph)
    model = LatencyModel(CostModel(graph), table)
    macs = 16 * 27 * 8 + 16 * 8 * 24 + 24 * 16 * 10
    assert model([8, 24]) == pytest.approx(3e-6 + macs * 1e-12)
    assert model([12, 20]) == pytest.approx(3e-6 + (16 * 27 * 12 + 16 * 12 * 20 + 20 * 16 * 10) * 1e-12)


def test_many_candidates_at_once_are_each_of_them() -> None:
    graph = trace(build("mobilenet_v2", classes=10, size=32), torch.zeros(1, 3, 32, 32))
    model = LatencyModel(CostModel(graph), table_of(graph))
    rng = np.random.default_rng(0)
    widths = np.array([[rng.integers(1, g.size + 1) for g in graph.groups] for _ in range(5)])
    assert np.allclose(model(widths), [model(row) for row in widths])


def test_a_steeper_runtime_is_looked_up_and_not_assumed() -> None:
    """A width that is slower than a larger one stays so."""
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 2, 1))
    graph = trace(net, torch.zeros(1, 3, 4, 4))
    table = {s: 5.0 if 24 in (s.inputs, s.outputs) else 1.0 for s in shapes_of(graph)}
    model = LatencyModel(CostModel(graph), table)
    assert [model([w]) for w in (8, 16, 24, 32, 28)] == [2.0, 2.0, 10.0, 2.0, 6.0]


def test_whole_networks_correct_what_the_layers_leave_out() -> None:
    graph = trace(build("resnet20", classes=10, size=32), torch.zeros(1, 3, 32, 32))
    cost = CostModel(graph)
    plain = LatencyModel(cost, table_of(graph))

    def truth(widths: np.ndarray) -> float:
        return 1.3 * plain(widths) + 2e-11 * cost.activation_bytes(widths) + 4e-5

    rng = np.random.default_rng(0)
    widths = [np.array([8 * rng.integers(1, g.size // 8 + 1) for g in graph.groups]) for _ in range(6)]
    one = plain.corrected(widths[0], truth(widths[0]))
    assert one(widths[0]) == pytest.approx(truth(widths[0]), rel=1e-2)
    model = plain
    for row in widths[:4]:
        model = model.corrected(row, truth(row))
    for row in widths[4:]:
        assert model(row) == pytest.approx(truth(row), rel=0.03)
        assert abs(model(row) / truth(row) - 1) <= abs(plain(row) / truth(row) - 1)


def test_a_layer_the_table_lacks_is_named() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), torch.zeros(1, 3, 4, 4))
    with pytest.raises(KeyError, match="LayerShape"):
        LatencyModel(CostModel(graph), {})
