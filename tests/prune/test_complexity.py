"""Widths by contribution: the closed form of VGG-16, targets met from below, heavier layers lose more."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.cost import Budget, CostModel
from edgewise.cost.latency import LatencyModel, shapes_of
from edgewise.errors import BudgetError
from edgewise.graph import trace
from edgewise.graph.groups import Graph
from edgewise.models import build
from edgewise.prune import Complexity, Prune, allocate, prune, score
from edgewise.prune.complexity import KEEP, MEMORY, ByContribution, contributions, memory_model

EXAMPLE = torch.zeros(1, 3, 32, 32)
QUANTITY = {"params": "params", "macs": "macs", "memory": "memory_bytes"}
SHARES = {  # per cent of all convolutions, for CIFAR's 32 pixels
    "params": [0.01, 0.25, 0.50, 1.00, 2.00, 4.01, 4.01, 8.02, 16.04, 16.04, 16.04, 16.04, 16.04],
    "macs": [0.56, 12.05, 6.03, 12.05, 6.03, 12.05, 12.05, 6.03, 12.05, 12.05, 3.01, 3.01, 3.01],
    "activations": [23.70, 23.70, 11.85, 11.85, 5.93, 5.93, 5.93, 2.96, 2.96, 2.96, 0.74, 0.74, 0.74],
    "activations+params": [0.45, 0.68, 0.71, 1.2, 2.1, 4.0, 4.0, 7.9, 15.8, 15.8, 15.8, 15.8, 15.8],
}


def vgg16() -> nn.Sequential:
    """Return the thirteen convolutions alone, and a mean over each of the last one's channels."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten())


@pytest.fixture(scope="module")
def plain() -> Graph:
    """VGG-16's convolutions, whose last one's channels are the output."""
    return trace(vgg16(), EXAMPLE)


def test_vgg16_has_the_published_totals(plain: Graph) -> None:
    layers = [layer for layer in CostModel(plain).layers(plain.sizes) if layer.params]
    assert len(layers) == 13
    assert sum(layer.params for layer in layers) == 14_710_464
    assert sum(layer.macs for layer in layers) == 313_196_544
    assert sum(layer.activation_bytes for layer in layers) == 4 * 276_480


@pytest.mark.parametrize("counted", SHARES)
def test_the_contributions_of_vgg16_are_the_closed_form(plain: Graph, counted: str) -> None:
    memory = counted if counted in MEMORY else "activations"
    mode = "memory" if counted in MEMORY else counted
    found = 100 * contributions(CostModel(plain), Complexity(mode=mode, memory=memory), plain.sizes)
    assert len(found) == 12  # the thirteenth layer makes the output, which is not to be pruned
    digits = 0.05001 if counted == "activations+params" else 0.00501
    assert found == pytest.approx(SHARES[counted][:12], abs=digits)
    assert found.sum() + SHARES[counted][12] == pytest.approx(100, abs=digits)


@pytest.mark.parametrize("rule", ["bisection", "greedy"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize(("mode", "keep"), [("params", 0.3), ("macs", 0.5), ("memory", 0.5)])
@pytest.mark.parametrize("name", ["vgg16_bn", "resnet56", "mobilenet_v2"])
def test_targets_are_met_from_below(name: str, mode: str, keep: float, round_to: int, rule: str) -> None:
    settings = Complexity(mode=mode, rule=rule)
    config = Prune(allocate="complexity", round_to=round_to, complexity=settings, **{KEEP[mode]: keep})
    pruned = prune(build(name), EXAMPLE, config)
    model = memory_model(pruned.graph, settings.memory)
    widths = np.array([len(pruned.keep.get(g.name, range(g.size))) for g in pruned.graph.groups])
    share = model.quantity(QUANTITY[mode], widths) / model.quantity(QUANTITY[mode], pruned.graph.sizes)
    assert share <= keep
    # Greedily only the heaviest streams of a ResNet-56 are narrowed: a block of one is up to a tenth of the whole.
    assert share >= keep * (0.88 if rule == "greedy" else 0.98 if round_to == 1 else 0.94)
    assert (widths % round_to == 0).all()
    floored = np.array([not g.beside_others for g in pruned.graph.groups])
    assert (widths >= 8)[floored].all()
    assert (widths >= np.floor(0.1 * pruned.graph.sizes))[floored].all()
    assert model.macs(widths) == CostModel(trace(pruned.model, EXAMPLE)).macs(
        trace(pruned.model, EXAMPLE).sizes
    )  # counted with the inputs that are left


@pytest.mark.parametrize("mode", ["params", "macs", "memory"])
@pytest.mark.parametrize("name", ["vgg16_bn", "mobilenet_v2"])
def test_heavier_layers_lose_the_larger_share(name: str, mode: str) -> None:
    graph = trace(build(name), EXAMPLE)
    settings = Complexity(mode=mode)
    model = memory_model(graph, "activations")
    keep = allocate(
        graph,
        scores=score(graph, "first"),
        budget=Budget(**{QUANTITY[mode]: 0.6}),
        allocation=ByContribution(settings),
        cost_model=model,
    )
    lost = np.array([1 - len(keep.get(g.name, range(g.size))) / g.size for g in graph.groups])
    free = np.array([min(g.size, 8) < len(keep.get(g.name, range(g.size))) for g in graph.groups])
    order = np.argsort(contributions(model, settings, graph.sizes))
    ranked, sizes = lost[order][free[order]], graph.sizes[order][free[order]]
    assert (np.diff(ranked) >= -(1 / sizes[:-1] + 1 / sizes[1:])).all()  # but for a channel of either
    assert ranked[-1] > ranked[0]


def test_a_wider_network_in_a_stricter_budget_by_hand() -> None:
    """Two equal layers of 100 channels, the third layer reads them: the rates are equal, and known."""
    net = nn.Sequential(*(nn.Conv2d(i, o, 1, bias=False) for i, o in ((100, 100), (100, 100), (100, 100))))
    graph = trace(net, torch.zeros(1, 100, 2, 2))
    settings = Complexity(mode="params", min_channels=1)
    keep = allocate(
        graph,
        scores=score(graph, "first"),
        budget=Budget(params=0.4225),
        allocation=ByContribution(settings),
    )
    # 100 a + a b + 100 b <= 12675 with a and b alike: a = b = 50.6, and 51 fits for one of the two.
    assert sorted(len(kept) for kept in keep.values()) == [50, 51]
    assert keep["0"].tolist() == list(range(len(keep["0"])))  # the first filters stay


def test_layers_that_share_a_width_count_together() -> None:
    """In MobileNetV2 an expansion and its depthwise convolution make the same channels."""
    graph = trace(build("mobilenet_v2"), EXAMPLE)
    model = CostModel(graph)
    layers = {layer.name: layer.macs for layer in model.layers(graph.sizes)}
    name = "features.2.conv.0.0"
    together = contributions(model, Complexity(), graph.sizes)[graph.places[name]]
    both = layers[name] + layers["features.2.conv.1.0"]
    assert together == pytest.approx(both / sum(layers.values()))
    apart = contributions(model, Complexity(shared="mean"), graph.sizes)[graph.places[name]]
    assert apart == pytest.approx(together / 2)


def test_a_layer_whose_channels_lie_in_two_groups_counts_for_each_by_its_share() -> None:
    """ResNet-20's padded shortcuts: half of the second stage's stream comes from the first one."""
    graph = trace(build("resnet20"), EXAMPLE)
    model = CostModel(graph)
    found = contributions(model, Complexity(), graph.sizes)
    linear = next(layer.macs for layer in model.layers(graph.sizes) if layer.name == "linear")
    assert found.sum() == pytest.approx(1 - linear / model.macs(graph.sizes))
    assert (found > 0).all()


def test_the_latency_of_layers_decides_in_la() -> None:
    graph = trace(build("vgg16_bn", width=0.25), EXAMPLE)
    table = {shape: 1e-6 + shape.macs * 1e-12 for shape in shapes_of(graph)}
    slow = max(table, key=lambda shape: (shape.size, shape.inputs))
    table = {s: t * (5 if (s.size, s.kernel) == (slow.size, slow.kernel) else 1) for s, t in table.items()}
    latency = LatencyModel(CostModel(graph), table)
    model = CostModel(graph, {"latency_s": latency})
    assert sum(latency.layers(graph.sizes).values()) == pytest.approx(latency(graph.sizes))
    settings = Complexity(mode="latency")
    keep = allocate(
        graph,
        scores=score(graph, "first"),
        budget=Budget(latency_s=0.6 * latency(graph.sizes)),
        allocation=ByContribution(settings),
        round_to=8,
        cost_model=model,
    )
    widths = np.array([len(keep.get(g.name, range(g.size))) for g in graph.groups])
    assert latency(widths) <= 0.6 * latency(graph.sizes)
    lost = {g.name: 1 - w / g.size for g, w in zip(graph.groups, widths, strict=True)}
    slowest = max(latency.layers(graph.sizes), key=latency.layers(graph.sizes).get)
    assert lost[slowest] == max(lost.values()) > 0
    assert lost[graph.groups[-1].name] < lost[slowest]


@pytest.mark.parametrize("keep", ["first", "random", "l1"])
def test_with_fresh_weights_the_choice_of_filters_means_nothing(keep: str) -> None:
    """The responses of the filters that stay have the spread of all filters' responses, however they were chosen."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 512, 3, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    graph = trace(nn.Sequential(layer, nn.Conv2d(512, 4, 1)), torch.zeros(1, 64, 8, 8))
    pruned = prune(
        graph.model,
        torch.zeros(1, 64, 8, 8),
        Prune(allocate="complexity", keep_macs=0.5, round_to=1, recalibrate=0, complexity=Complexity(filters=keep)),
    )
    images = torch.randn(8, 64, 8, 8)
    with torch.no_grad():
        whole, left = layer(images), pruned.model[0](images)
    assert left.shape[1] == len(pruned.keep["0"]) < 512
    assert float(left.std() / whole.std()) == pytest.approx(1, abs=0.02)
    assert float(left.mean() / whole.std()) == pytest.approx(0, abs=0.02)


def test_a_target_that_the_floors_forbid_says_the_least() -> None:
    with pytest.raises(BudgetError, match=r"macs cannot go down .*r_max = 0\.9 and min_channels = 8"):
        prune(build("resnet20"), EXAMPLE, Prune(allocate="complexity", keep_macs=0.01, round_to=1))


def test_keeping_everything_changes_nothing() -> None:
    assert prune(build("resnet20"), EXAMPLE, Prune(allocate="complexity", keep_macs=1.0)).keep == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allocate": "complexity", "keep_params": 0.5}, 'complexity.mode = "macs" takes keep_macs alone'),
        (
            {"allocate": "complexity", "keep_params": 0.5, "keep_macs": 0.5},
            'complexity.mode = "macs" takes keep_macs alone, not keep_macs, keep_params',
        ),
        ({"keep_macs": 0.5, "complexity": Complexity()}, 'complexity goes with allocate = "complexity", not "global"'),
        ({"keep_memory": 0.5}, 'keep_memory goes with allocate = "complexity"'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Prune(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_max": 1.0}, "r_max = 1.0: a share"),
        ({"fraction": 0.0}, "fraction = 0.0: a share"),
        ({"min_channels": 0}, "min_channels = 0: at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Complexity(**settings)
