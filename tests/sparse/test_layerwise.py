"""Whole networks made sparse: what follows a layer, convolutions as matrices, both schemes, and what stays."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.errors import ModelError, UnknownName
from edgewise.models import build
from edgewise.sparse import sparsify_layers
from edgewise.sparse.follow import followed
from edgewise.sparse.layerwise import Support, output_lengths, patches

FAST = {"gamma": 0.1, "iterations": 300}


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs), nn.Dropout(0.5), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules[:-2])


def convnet(**settings: object) -> nn.Sequential:
    """A grouped convolution between two others, with BatchNorms whose statistics are not the identity's."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def images(count: int = 60, channels: int = 3, side: int = 8) -> Tensor:
    mixing = torch.randn(channels * side * side, channels * side * side, generator=torch.Generator().manual_seed(1))
    x = torch.randn(count, channels * side * side, generator=torch.Generator().manual_seed(2)) @ mixing / side
    return x.reshape(count, channels, side, side)


def zeros(network: nn.Module, name: str) -> Tensor:
    return network.get_submodule(name).weight == 0


# -- what follows a layer -------------------------------------------------------------------------------------------


class Wired(nn.Module):
    """Every way in which a layer's output can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.functional, self.method, self.clamped, self.leaky, self.twice, self.read, self.last, self.both = (
            nn.Linear(4, 4) for _ in range(8)
        )
        self.inplace, self.summed = nn.Linear(4, 4), nn.Linear(4, 4)
        self.normed, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.dropped = nn.Linear(4, 4)
        self.raised = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.functional(x))
        x = self.method(x).relu()
        x = self.clamped(x).clamp(min=0)
        x = F.leaky_relu(self.leaky(x), 0.1)
        y = self.twice(x)
        x = F.relu(y) + torch.relu(y)  # two ReLUs, nothing else
        y = self.read(x)
        x = F.relu(y) + y
        y = self.both(x)
        assert y.shape[1] == y.size(1) == 4  # shapes are no values
        x = y.relu_() + 1
        y = self.inplace(x)
        y += 1  # is the layer's output no longer
        x = y.relu()
        y = self.summed(x)
        x = F.relu(torch.cat([y, x], 1))[:, :4]
        x = F.relu(self.norm(self.normed(x)))
        x = F.relu(F.dropout(self.dropped(x), 0.5, self.training))
        x = self.raised(x).clamp(min=-1)
        return self.last(x)


def test_what_follows_is_found() -> None:
    found = followed(Wired(), torch.randn(3, 4))
    rectified = {name for name, layer in found.items() if layer.rectified}
    assert rectified == {"functional", "method", "clamped", "twice", "both", "normed", "dropped"}
    assert {name: layer.norm for name, layer in found.items() if layer.norm} == {"normed": "norm"}
    assert list(found)[:3] == ["functional", "method", "clamped"]


def test_what_follows_in_a_residual_network() -> None:
    found = followed(build("resnet20", classes=10, size=32, width=0.25), torch.randn(2, 3, 32, 32))
    assert len(found) == 20
    for name, layer in found.items():
        assert layer.rectified == (name.endswith("conv1")), name
        assert (layer.norm is None) == (name == list(found)[-1]), name


def test_a_batchnorm_that_runs_twice_or_has_no_bias_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), norm

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.b(F.relu(self.norm(self.a(x))))))

    for layer in followed(Shared(nn.BatchNorm1d(4)), torch.randn(3, 4)).values():
        assert (layer.norm, layer.rectified) == (None, False)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU())
    assert followed(net, torch.randn(3, 4))["0"].norm is None


# -- convolutions as matrices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2)},
        {"kernel_size": 3, "groups": 2, "dilation": 2, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
        {"kernel_size": 3, "groups": 4, "padding": (1, 0), "padding_mode": "circular"},
    ],
)
def test_patches_times_weights_is_the_convolution(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, **settings).double()
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    out = layer(x)
    assert output_lengths(layer, x) == list(out.shape[2:])
    places = torch.randperm(3 * out[0, 0].numel())[:20]
    rows = patches(layer, x, places)
    weights = layer.weight.reshape(layer.groups, 8 // layer.groups, -1).mT
    ours = (rows @ weights).movedim(0, 1).reshape(20, 8) + layer.bias
    assert torch.allclose(ours, out.movedim(1, 3).reshape(-1, 8)[places])


@pytest.mark.parametrize("dimensions", [1, 3])
def test_patches_in_other_dimensions(dimensions: int) -> None:
    layer = (nn.Conv1d if dimensions == 1 else nn.Conv3d)(2, 3, 3, stride=2, padding=1).double()
    x = torch.randn(2, 2, *[5, 6, 7][:dimensions], dtype=torch.float64)
    out = layer(x)
    rows = patches(layer, x, torch.arange(out.numel() // 3))[0]
    assert torch.allclose(rows @ layer.weight.flatten(1).T + layer.bias, out.movedim(1, -1).reshape(-1, 3))


@pytest.mark.parametrize("form", ["convex", "rows"])
def test_a_convolution_is_the_linear_layer_of_its_patches(form: str) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 6, 3, stride=2, padding=1), images(30)
    flat = F.unfold(x, 3, stride=2, padding=1).mT.reshape(-1, 27)
    linear = nn.Linear(27, 6)
    linear.weight.data, linear.bias.data = conv.weight.data.flatten(1), conv.bias.data
    one, (row,) = sparsify_layers(nn.Sequential(conv, nn.ReLU()), x, form=form, rows=10**6, **FAST)
    other, (flat_row,) = sparsify_layers(nn.Sequential(linear, nn.ReLU()), flat, form="convex", **FAST)
    assert (row.rows, row.weights) == (480, 162)
    if form == "convex":
        assert torch.allclose(one[0].weight.flatten(1), other[0].weight, atol=1e-5)
        assert row.nonzero == flat_row.nonzero < row.weights
        assert row.error == pytest.approx(flat_row.error, rel=1e-4)
    else:  # whole channels
        gone = (one[0].weight == 0).transpose(0, 1).flatten(1)
        assert torch.equal(gone.all(1), gone.any(1))


# -- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
@pytest.mark.parametrize("form", ["convex", "log_sum", "rows"])
def test_a_network_is_left_as_it_was_and_its_copy_sparse(scheme: str, form: str) -> None:
    net, x = convnet(), images()
    net[1].train(), net[2].eval()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    random = torch.get_rng_state()
    told: list[tuple[str, int, int]] = []
    network, rows = sparsify_layers(
        net, x, scheme=scheme, form=form, rounds=2, progress=lambda *said: told.append(said), **FAST
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes == [module.training for module in network.modules()]
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in (*net.modules(), *network.modules())
    )
    assert [row.layer for row in rows] == ["0", "3", "6", "9"]
    assert told == [("nettrim", done, 4) for done in range(1, 5)]
    for row in rows:
        assert row.nonzero == int((~zeros(network, row.layer)).sum())
        assert row.weights == zeros(network, row.layer).numel()
        assert row.below_baseline == (row.error < row.baseline_error)
        assert row.residual <= row.epsilon * 1.02 or row.iterations >= 300
    assert sum(row.nonzero for row in rows) < sum(row.weights for row in rows)
    again, same = sparsify_layers(net, x, scheme=scheme, form=form, rounds=2, **FAST)
    assert same == rows
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_the_rows_tell_what_the_network_does(scheme: str) -> None:
    """Errors from the networks themselves, after BatchNorm and ReLU: what was folded is written back as it was."""
    net, x = convnet().eval(), images()
    network, rows = sparsify_layers(net, x, scheme=scheme, rows=10**6, **FAST)
    with torch.no_grad():
        for row, ends in zip(rows, (3, 6, 7, 10), strict=True):
            start, relu = int(row.layer), row.rectified
            inputs = net[:start](x) if scheme == "parallel" else network[:start](x)
            ours, theirs = network[start:ends](inputs), net[:ends](x)
            if start == 3:  # ReLU6 cuts off above too, which is no part of the problem
                ours, theirs = network[3:5](inputs).relu(), net[:5](x).relu()
            assert relu == (start in (0, 3))
            assert row.error == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-3)
            assert row.gamma == pytest.approx(row.epsilon / float(theirs.norm()), rel=1e-3)
            if scheme == "parallel":
                assert row.gamma == pytest.approx(0.1)


def test_the_cascades_epsilon_is_that_of_the_original_weights() -> None:
    net, x = mlp(192, 20, 15, 4).eval(), images(150)
    network, rows = sparsify_layers(net, x, scheme="cascade", **FAST)
    with torch.no_grad():
        for row in rows[1:]:
            place = int(row.layer)
            hidden, target = network[:place](x), net[: place + 1](x)
            off = net[place](hidden) - (target.relu() if row.rectified else target)
            expected = math.sqrt(1.1) * float((off[target > 1e-6] if row.rectified else off).norm())
            assert row.epsilon == pytest.approx(expected, rel=1e-4)
            assert row.residual <= row.epsilon * 1.01
        assert rows[0].gamma == pytest.approx(0.1)
        assert rows[-1].error == pytest.approx(float((network(x) - net(x)).norm() / net(x).norm()), rel=1e-3)


def test_below_magnitude_pruning_where_inputs_go_together() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 12, generator=generator) @ torch.randn(12, 192, generator=generator)
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    _, (first, last) = sparsify_layers(mlp(192, 40, 4), x, gamma=0.1)
    assert first.nonzero < 0.2 * first.weights
    assert first.error < 0.5 * first.baseline_error
    assert first.below_baseline
    assert last.nonzero > 0.8 * last.weights  # nearly all are kept, and the few by magnitude are the better choice
    assert last.error > last.baseline_error
    assert not last.below_baseline
    assert max(first.error, last.error) < 0.1


def test_gamma_by_layer_and_skip() -> None:
    net, x = mlp(192, 20, 15, 4), images()
    network, rows = sparsify_layers(net, x, gamma={"4": 0.3, "1": 0.05}, skip=["4"], iterations=200)
    assert [(row.layer, row.gamma) for row in rows] == [("1", pytest.approx(0.05))]
    assert torch.equal(network[4].weight, net[4].weight)
    _, all_but = sparsify_layers(net, x, skip=["1"], **FAST)
    assert [row.layer for row in all_but] == ["4", "7"]


def test_a_layer_without_bias_and_an_output_that_is_switched_off() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3, bias=False))
    net[1].weight.data[2], net[1].bias.data[2] = 0.0, 0.7
    net[1].weight.data[3] = -1.0
    network, (first, last) = sparsify_layers(net, images(), **FAST)
    assert bool(zeros(network, "0")[2].all())
    assert bool(network[0].weight.isfinite().all())
    assert first.error < 0.1
    assert network[3].bias is None
    assert last.error < 0.1


def test_the_errors() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    net, x = mlp(4, 5, 3), torch.randn(10, 4)
    with pytest.raises(ModelError, match='layer "layer" runs 2 times in a forward: it is not one problem; skip it'):
        sparsify_layers(Twice(), x, gamma=0.1)
    with pytest.raises(ModelError, match='layer "never" runs 0 times'):
        sparsify_layers(Twice(), x, gamma=0.1, skip=["layer"])
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ModelError, match=r"shares its weights \(0, 1\)"):
        sparsify_layers(tied, x, gamma=0.1)
    with pytest.raises(UnknownName, match='the network has no convolution or linear layer "3"'):
        sparsify_layers(net, x, gamma={"3": 0.1})
    with pytest.raises(ModelError, match="the network's forward raised on inputs"):
        sparsify_layers(net, torch.randn(10, 7), gamma=0.1)
    for arguments, message in (
        ({"gamma": 1.5}, r"gamma = 1.5: it must be in \(0, 1\)"),
        ({"scheme": "serial"}, 'scheme "serial", form "convex": known are parallel, cascade; convex, log_sum, rows'),
        ({"images": x[:0]}, "0 images"),
        ({"ridge": 0.0}, "which does not determine its"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsify_layers(**({"model": mlp(4, 30, 40, 3), "images": x, "gamma": 0.01} | arguments))


def test_the_baseline_and_the_better_of_both_are_written_when_asked_for() -> None:
    """As in the test above: the solver is ahead on the first layer, magnitude on the last."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 12, generator=generator) @ torch.randn(12, 192, generator=generator)
    x, net = x + 0.1 * torch.randn(x.shape, generator=generator), mlp(192, 40, 4)
    made = {
        support: sparsify_layers(net, x, gamma=0.1, support=support) for support in ("solved", "magnitude", "better")
    }
    solved, magnitude, better = (rows for _, rows in made.values())
    assert [row.error for row in magnitude] == [row.baseline_error for row in solved]
    assert [row.nonzero for row in magnitude] == [row.nonzero for row in solved]
    assert [row.error for row in better] == [solved[0].error, magnitude[1].error]
    first = made["magnitude"][0].get_submodule(solved[0].layer)
    assert isinstance(first, nn.Linear)
    kept, size = first.weight != 0, net.get_submodule(solved[0].layer).weight.detach().abs()  # type: ignore[operator,union-attr]
    assert float(size[kept].min()) >= float(size[~kept].max())
    with torch.no_grad():
        ours, theirs = first(x).relu(), net.get_submodule(solved[0].layer)(x).relu()
    assert float((ours - theirs).norm() / theirs.norm()) == pytest.approx(magnitude[0].error, rel=1e-3)


@pytest.mark.parametrize("support", ["solved", "magnitude"])
def test_zeros_have_no_sign_that_a_packed_file_would_keep(support: Support) -> None:
    # A masked negative weight is -0.0, and so is a zero divided by a BatchNorm's negative scale.
    small, _ = sparsify_layers(convnet(), images(), gamma=0.1, iterations=300, support=support)
    for module in small.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gone = module.weight[module.weight == 0]
            assert len(gone)
            assert not torch.signbit(gone).any()
