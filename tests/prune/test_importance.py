"""Criteria by hand, and what every one of them must obey."""

import pytest
import torch
from torch import nn

from edgewise.errors import ModelError
from edgewise.graph import trace
from edgewise.models import build
from edgewise.prune import IMPORTANCES, score
from edgewise.prune.importance import fpgm, l1, lamp

EXAMPLE = torch.zeros(1, 2, 4, 4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
    )


def loss_gradients(net: nn.Module) -> list[dict[str, torch.Tensor]]:
    """Return the gradients of some loss on two batches."""
    batches = []
    for seed in range(2):
        x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        found = torch.autograd.grad(net.eval()(x).square().mean(), list(net.parameters()))
        batches.append(dict(zip(dict(net.named_parameters()), found, strict=True)))
    return batches


def test_taylor_is_the_batches_mean_of_what_the_loss_loses() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    net[0].weight.data = torch.tensor([2.0, -3.0]).view(2, 1, 1, 1)
    batches = [{"0.weight": torch.tensor(g).view(2, 1, 1, 1)} for g in ([1.0, 1.0], [-1.0, 0.0])]
    graph = trace(net, torch.zeros(1, 1, 2, 2))
    # |2 * 1| and |2 * -1|; |-3 * 1| and 0: they do not cancel.
    assert score(graph, "taylor", gradients=batches)["0"].tolist() == [2.0, 1.5]
    with pytest.raises(ValueError, match="needs the gradients of the loss"):
        score(graph, "taylor")
    with pytest.raises(ModelError, match=r'no gradient of "0\.weight" is known'):
        score(graph, "taylor", gradients=[{}])


def test_taylor_foretells_the_loss() -> None:
    """To first order: with a small weight, the score is the change of the loss when it is set to 0."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Tanh(), nn.Conv2d(3, 1, 1, bias=False)).double()
    net[0].weight.data = torch.tensor([1e-4, 1.0, -2e-4], dtype=torch.float64).view(3, 1, 1, 1)
    x = torch.randn(8, 1, 3, 3, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return net(x).square().mean()

    found = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss(), list(net.parameters())), strict=True))
    scores = score(trace(net, x), "taylor", gradients=[found])["0"]
    for channel in (0, 2):
        before, kept = float(loss().detach()), net[0].weight.data[channel].clone()
        net[0].weight.data[channel] = 0
        assert abs(float(loss().detach()) - before) == pytest.approx(float(scores[channel]), rel=1e-3)
        net[0].weight.data[channel] = kept


def test_fpgm_and_lamp_against_slow_loops() -> None:
    weight = torch.randn(7, 5)
    weight[3] = weight[5]  # a tie
    distances = [sum(float((a - b).norm()) for b in weight) / 7 for a in weight]
    assert torch.allclose(fpgm(weight), torch.tensor(distances))
    squares = [float(row.square().sum()) for row in weight]
    lamps = []
    for i, u in enumerate(squares):
        lamps.append(u / sum(v for j, v in enumerate(squares) if v > u or (v == u and j >= i)))
    assert torch.allclose(lamp(weight), torch.tensor(lamps))
    assert lamp(torch.zeros(3, 2)).tolist() == [0, 0, 0]


def test_scores_of_several_tensors_are_reduced() -> None:
    net = build("resnet20", classes=10, size=32)
    graph = trace(net, torch.zeros(1, 3, 32, 32))
    stream = graph.by_name["conv1"]
    rows = [
        l1(m)
        for key, m in stream.matrices(dict(net.named_parameters())).items()
        if key.endswith("weight:0") and "bn" not in key
    ]
    assert len(rows) == 10  # option A: the first sixteen channels run through all stages
    stacked = torch.stack(rows)
    reduced = {"mean": stacked.mean(0), "sum": stacked.sum(0), "max": stacked.amax(0), "first": rows[0]}
    for name, expected in reduced.items():
        assert torch.allclose(score(graph, "l1", reduce=name)["conv1"], expected)
    with pytest.raises(ValueError, match='reduce "least" is none of mean, sum, max, first'):
        score(graph, "l1", reduce="least")


def test_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2), bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    net[0].weight.data = torch.tensor([[3.0, -4.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    net[1].weight.data = torch.tensor([-2.0, 0.5])
    graph = trace(net, torch.zeros(1, 1, 1, 2))
    assert score(graph, "l1")["0"].tolist() == [3.5, 0.5]
    assert torch.allclose(score(graph, "l2")["0"], torch.tensor([(25 / 2) ** 0.5, 0.5**0.5]))
    assert score(graph, "bn_scale")["0"].tolist() == [2.0, 0.5]


def test_a_residual_stream_is_scored_by_all_who_make_it() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.head(x + self.b(x))

    net = Residual()
    net.a.weight.data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    net.b.weight.data = torch.tensor([[1.0, 3.0], [5.0, 5.0]]).view(2, 2, 1, 1)
    # Channel 0: 1 from a, (1 + 3) / 2 from b's filter; what reads it is not asked.
    assert score(trace(net, torch.zeros(1, 1, 2, 2)), "l1")["a"].tolist() == [1.5, 3.5]


@pytest.mark.parametrize("name", IMPORTANCES)
def test_every_criterion_is_finite_deterministic_and_leaves_the_network_alone(name: str) -> None:
    net = network()
    graph = trace(net, EXAMPLE)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    batches = loss_gradients(net)
    scores, again = (score(graph, name, gradients=batches, seed=3) for _ in range(2))
    assert set(scores) == {"0", "3"}
    for group in graph.groups:
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].isfinite().all()
        assert torch.equal(scores[group.name], again[group.name])
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("name", [name for name in IMPORTANCES if name not in ("random", "first")])
def test_scores_follow_a_permutation_of_the_channels(name: str) -> None:
    net = network()
    net[1].weight.data.uniform_()
    scores = score(trace(net, EXAMPLE), name, gradients=loss_gradients(net))["0"]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
        tensor.data = tensor.data[order]
    net[3].weight.data = net[3].weight.data[:, order]
    assert torch.allclose(score(trace(net, EXAMPLE), name, gradients=loss_gradients(net))["0"], scores[order])


def test_a_group_without_batchnorm_cannot_be_ranked_by_it() -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1))
    assert score(trace(net, EXAMPLE), "bn_scale") == {}


def test_unknown_criterion_and_broken_weights_are_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match='importance "l3" is none of l1'):
        score(trace(net, EXAMPLE), "l3")
    net[3].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match='group "3" has weights or gradients that are not finite'):
        score(trace(net, EXAMPLE), "l1")


def test_random_scores_are_one_draw_however_many_layers_make_a_channel() -> None:
    scores = score(trace(build("resnet20", classes=10, size=32), torch.zeros(1, 3, 32, 32)), "random")
    stream, inner = scores["conv1"], scores["layer1.0.conv1"]  # made by four layers and by one
    for values in (stream, inner):  # a mean of four draws would have half the spread
        assert 0.2 < float(values.std()) < 0.4
