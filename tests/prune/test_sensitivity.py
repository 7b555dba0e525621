"""Sensitivity scans: what is resumed in the middle equals what runs whole, on networks of many shapes."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.data import Split
from edgewise.graph import Graph, shrink, trace
from edgewise.models import build
from edgewise.prune import make_judge, score
from edgewise.prune.judge import Judge, convolution, one_pass, prepared
from edgewise.prune.resume import OtherOperators, Recording, State, advance, finish
from edgewise.prune.sensitivity import _cut, _starts, removed, scan, without
from edgewise.tasks import Classification
from edgewise.train import evaluate, recalibrate

CLASSES = 4
TASK = Classification(mean=(0.4,) * 3, std=(0.2,) * 3, classes=CLASSES)
RATES = (0.0, 0.3, 0.75)


def split(images: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.randint(CLASSES, (images,), generator=generator))


def norm_relu(width: int, inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace))


class Dense(nn.Module):
    """Concatenates, as DenseNet does; normalises and rectifies the concatenation, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(norm_relu(8 + 6 * i, inplace=True) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3))
        self.end, self.head = norm_relu(26), nn.Linear(26 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(norm(x))], 1)
        return self.head(F.adaptive_avg_pool2d(self.end(x), 2).flatten(1))


class Inverted(nn.Module):
    """Expands, filters each channel by itself, gates, projects, adds: in place where it can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), *norm_relu(8, True))
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), *norm_relu(24, True))
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), *norm_relu(24, True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1))
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        x += self.project(y.mul_(self.gate(y).sigmoid()))
        return self.head(x.relu_())


class Shuffled(nn.Module):
    """Splits, shuffles and joins channels; the head is flattened without pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.BatchNorm2d(16)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.stem(x)).chunk(2, 1)
        x = torch.cat([self.left(a), self.right(b).relu()], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.flatten(1))


def vgg() -> nn.Module:
    return build("vgg16_bn", classes=CLASSES, size=16, width=0.125)


def resnet() -> nn.Module:
    return build("resnet20", classes=CLASSES, size=16, width=0.5)


def transformer_like() -> nn.Module:
    """Layers whose normalisation runs over channels, in a network without BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, stride=4), nn.GELU(), nn.Conv2d(12, 16, 3, padding=1), nn.GroupNorm(1, 16), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10), nn.Linear(10, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "resnet": resnet,
    "dense": Dense,
    "inverted": Inverted,
    "shuffled": Shuffled,
    "transformer_like": transformer_like,
}


def randomized(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network whose every number matters: fresh BatchNorms are too alike to tell a mistake."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def slow_outputs(model: nn.Module, judge: Judge) -> Tensor:
    """The oracle: BatchNorm after BatchNorm in the order they run, statistics by two passes in float64, then eval."""
    network = copy.deepcopy(model).double().eval()
    calibration, held = (TASK.batch(s, torch.arange(len(s)), augment=False)[0] for s in (judge.calibration, judge.held))
    order: list[nn.BatchNorm2d] = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda module, _: order.append(module)) for norm in norms]
    seen: dict[nn.Module, Tensor] = {}
    with torch.no_grad():
        network(calibration.double())
        for hook in hooks:
            hook.remove()
        for norm in order:
            hook = norm.register_forward_pre_hook(lambda module, args: seen.update({module: args[0].clone()}))
            network(calibration.double())
            hook.remove()
            values = seen[norm].transpose(0, 1).flatten(1)
            mean = values.sum(1) / values.shape[1]
            norm.running_mean = mean
            norm.running_var = ((values - mean[:, None]) ** 2).sum(1) / (values.shape[1] - 1)
        return network(held.double())


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return randomized(NETWORKS[request.param])


def judge_of(model: nn.Module) -> Judge:
    return make_judge(model, TASK, split(40), split(30, seed=1), calibration=24, images=20, arithmetic="float32")


def graph_of(model: nn.Module) -> Graph:
    return trace(model, torch.zeros(1, 3, 16, 16))


def test_one_pass_gives_what_layer_by_layer_recalibration_gives(network: nn.Module) -> None:
    judge = judge_of(network)
    outputs = judge.passing(network)()[len(judge.calibration) :]
    torch.testing.assert_close(outputs.double(), slow_outputs(network, judge), rtol=1e-3, atol=1e-4)


def test_every_resumed_candidate_computes_what_a_whole_pass_does(network: nn.Module) -> None:
    """Outputs, not accuracies: these hide small mistakes."""
    graph, judge = graph_of(network), judge_of(network)
    scores = score(graph, "l1")
    groups = graph.prunable(inexact=True)
    starts = _starts(graph, groups, {})
    assert starts.keys() == {group.name for group in groups}
    for name, start in starts.items():
        for rate in RATES[1:]:
            state = advance(judge.passing(network), State(), start.step, start.live)
            keep = without(graph, scores, name, rate)
            small = judge.passing(shrink(network, graph, {name: keep}))
            found = finish(small, _cut(state, start, graph.by_name[name], keep))
            torch.testing.assert_close(found, small(), rtol=1e-4, atol=1e-5)


def test_most_candidates_begin_late(network: nn.Module) -> None:
    """A scan is fast where the work before a group is not done again."""
    graph = graph_of(network)
    starts = _starts(graph, graph.prunable(inexact=True), {})
    recording = Recording()
    recording.run(judge_of(network).passing(network))
    assert np.mean([start.step for start in starts.values()]) > 0.3 * len(recording.names)


def test_a_scan_finds_the_accuracies_of_the_plain_way(network: nn.Module) -> None:
    """Copy, shrink, recalibrate, evaluate."""
    graph, judge = graph_of(network), judge_of(network)
    scores = score(graph, "l1")
    names = [group.name for group in graph.prunable(inexact=True)]
    curves = scan(graph, judge, scores=scores, rates=RATES, groups=names)
    assert list(curves) == names
    for name in names:
        for rate, accuracy in zip(RATES, curves[name], strict=True):
            small = shrink(network, graph, {name: without(graph, scores, name, rate)})
            plain = recalibrate(small, TASK, judge.calibration, images=24, batch=24)
            # One image of 20 on the border may fall to either side.
            assert abs(accuracy - evaluate(plain, TASK, judge.held)) <= 1 / 20 + 1e-9


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 2)),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_a_convolution_of_a_small_map_is_the_same_as_a_product(
    size: tuple[int, int], kernel: tuple[int, int], stride: Any, padding: Any, dilation: int, grouped: bool
) -> None:
    assume(all(n + 2 * p > (k - 1) * dilation for n, p, k in zip(size, padding, kernel, strict=True)))
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 4, *size), (6, 2 if grouped else 4, *kernel), (6,))
    )
    settings = (stride, padding, dilation, 2 if grouped else 1)
    torch.testing.assert_close(convolution(x, weight, bias, *settings), F.conv2d(x, weight, bias, *settings))


def test_a_small_map_is_convolved_with_any_spelling_of_the_settings() -> None:
    x, weight = torch.randn(2, 3, 2, 2), torch.randn(5, 3, 3, 3)
    for settings in ({"padding": 1}, {"padding": (1, 1), "stride": 2}, {"padding": "same", "dilation": (1, 1)}):
        torch.testing.assert_close(convolution(x, weight, **settings), F.conv2d(x, weight, **settings))


def test_where_memory_is_short_a_scan_goes_the_plain_way() -> None:
    model = randomized(vgg)
    graph, judge = graph_of(model), replace(judge_of(model), at_once=False)
    name = graph.groups[2].name
    (curve,) = scan(graph, judge, scores=score(graph, "l1"), rates=(0.0, 0.5), groups=[name]).values()
    small = shrink(model, graph, {name: without(graph, score(graph, "l1"), name, 0.5)})
    for accuracy, net in zip(curve, (model, small), strict=True):
        assert accuracy == evaluate(recalibrate(net, TASK, judge.calibration, images=24), TASK, judge.held)


class Branching(nn.Module):
    """Runs another operator on batches of 30 and more: what a few inputs show does not hold for many."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = F.relu(x) if len(x) < 30 else x.clamp_min(0)
        return self.c(self.b(x).mean((2, 3)))


def test_operators_that_depend_on_the_batch_are_noticed() -> None:
    model = randomized(Branching)
    graph, judge = graph_of(model), judge_of(model)
    scores = score(graph, "l1")
    starts = _starts(graph, graph.groups, {})
    assert {start.step > 0 for start in starts.values()} == {True}
    curves = scan(graph, judge, scores=scores, rates=(0.5,), groups=list(starts))
    for name, (accuracy,) in curves.items():
        assert accuracy == judge.accuracy(shrink(model, graph, {name: without(graph, scores, name, 0.5)}))
    state = advance(judge.passing(model), State(), 4, ())
    with pytest.raises(OtherOperators):
        finish(lambda: one_pass(prepared(model, judge.device, torch.float32), judge.inputs[:20], 10), state)


def test_groups_can_be_scanned_on_a_network_that_lost_others() -> None:
    model = randomized(Dense)
    graph, judge = graph_of(model), judge_of(model)
    scores = score(graph, "l1")
    base = {"stem": np.arange(5)}
    name = "norms.2.0"  # the second layer's channels: the norms over the concatenation own all of them first
    (curve,) = scan(graph, judge, scores=scores, rates=(0.0, 0.5), groups=[name], base=base).values()
    keeps = (base, {**base, name: without(graph, scores, name, 0.5)})
    assert curve == [judge.accuracy(shrink(model, graph, keep)) for keep in keeps]


@given(st.integers(1, 4096), st.integers(0, 99))
def test_a_rate_removes_as_many_channels_as_it_says_but_never_all(size: int, percent: int) -> None:
    assert removed(percent / 100, size) == min(size * percent // 100, size - 1)


def test_a_scan_leaves_the_network_and_its_images_as_they_were() -> None:
    model = randomized(Inverted)
    graph, judge = graph_of(model), judge_of(model)
    before = copy.deepcopy(model.state_dict())
    inputs = judge.inputs.clone()
    names = [group.name for group in graph.prunable()]
    first, second = (scan(graph, judge, scores=score(graph, "l1"), rates=RATES, groups=names) for _ in range(2))
    assert first == second
    assert torch.equal(judge.inputs, inputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training


def test_images_to_judge_by_are_drawn_by_the_seed_and_counted() -> None:
    model = randomized(vgg)
    one, same, other = (
        make_judge(model, TASK, split(40), split(30), calibration=9, images=5, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(one.held.images, same.held.images)
    assert not torch.equal(one.held.images, other.held.images)
    assert (len(one.calibration), len(one.held)) == (9, 5)
    assert len(make_judge(model, TASK, split(40), split(30)).inputs) == 70
    with pytest.raises(ValueError, match="calibration is 1"):
        make_judge(model, TASK, split(40), split(30), calibration=1)
    with pytest.raises(ValueError, match="images is 0"):
        make_judge(model, TASK, split(40), split(30), images=0)


def test_bfloat16_rounds_but_counts_its_statistics_in_float32() -> None:
    model = randomized(vgg)
    exact = judge_of(model)
    rounded = make_judge(model, TASK, split(40), split(30, seed=1), calibration=24, images=20, arithmetic="bfloat16")
    a, b = exact.passing(model)(), rounded.passing(model)()
    assert b.dtype == torch.bfloat16
    assert float((a - b.float()).norm() / a.norm()) < 0.05
    norms = [m for m in prepared(model, rounded.device, torch.bfloat16).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
