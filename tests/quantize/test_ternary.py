"""Ternary weights: the published formulas transcribed, a drawn Gaussian, and real trainings."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewise.errors import ModelError, RecipeError
from edgewise.quantize.ternary import (
    EXPANSION,
    GaussianTernary,
    MaxTernary,
    Ternarization,
    Ternary,
    gaussian_threshold,
    max_threshold,
    ternary_gaussian,
    ternary_max,
)
from edgewise.sparse.layers import shadow
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit
from train.tiny import TASK, same, tiny_net, tiny_split

SPLIT = tiny_split(200)
CONFIG = TrainConfig(epochs=3, batch=32, lr=0.05, augment=())


def published_max(weight: Tensor, beta: float) -> tuple[Tensor, float, float]:
    """WACV 2019, weight by weight."""
    values = weight.flatten().tolist()
    threshold = beta * max(abs(w) for w in values)
    above = [abs(w) for w in values if abs(w) >= threshold]
    scale = sum(above) / len(above)
    codes = [scale if w >= threshold else -scale if w < -threshold else 0.0 for w in values]
    return torch.tensor(codes, dtype=weight.dtype).reshape(weight.shape), threshold, scale


def published_gaussian(weight: Tensor, delta: float) -> tuple[Tensor, float, float]:
    """CVPR 2019, weight by weight, with the normal distribution of torch."""
    values = weight.flatten().tolist()
    mean, std = weight.mean().item(), weight.std().item()
    threshold = min(abs(delta), 3 * std)
    normal = torch.distributions.Normal(torch.zeros((), dtype=weight.dtype), torch.ones((), dtype=weight.dtype))
    a = torch.tensor(threshold / std, dtype=weight.dtype)
    scale = mean + std * (normal.log_prob(a).exp() / (1 - normal.cdf(a))).item()
    codes = [scale if w > mean + threshold else -scale if w < mean - threshold else 0.0 for w in values]
    return torch.tensor(codes, dtype=weight.dtype).reshape(weight.shape), threshold, scale


SHAPES = ((1, 2), (5, 3), (4, 3, 3, 3), (2, 1, 5))


@given(st.sampled_from(SHAPES), st.integers(0, 50), st.floats(0.01, 0.9), st.floats(-0.5, 0.5))
@settings(max_examples=60, deadline=None)
def test_max_equals_the_published_formulas(shape: tuple[int, ...], seed: int, beta: float, shift: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    expected, threshold, scale = published_max(weight, beta)
    found = max_threshold(weight, beta)
    assert [x.item() for x in found] == pytest.approx([threshold, scale], rel=1e-12)
    torch.testing.assert_close(ternary_max(weight, beta), expected, rtol=1e-12, atol=0)


@given(st.sampled_from(SHAPES), st.integers(0, 50), st.floats(-4, 4), st.floats(-1.5, 1.5))
@settings(max_examples=60, deadline=None)
def test_gaussian_equals_the_published_formulas(shape: tuple[int, ...], seed: int, delta: float, shift: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    expected, threshold, scale = published_gaussian(weight, delta)
    _, *found = gaussian_threshold(weight, torch.tensor(delta, dtype=torch.float64))
    assert [x.item() for x in found] == pytest.approx([threshold, scale], rel=1e-9)
    torch.testing.assert_close(
        ternary_gaussian(weight, torch.tensor([delta], dtype=torch.float64)), expected, rtol=1e-9, atol=0
    )


def test_max_by_hand_at_the_threshold() -> None:
    # D = 0.5; at D it is +a, at -D it is 0 though it counts in a: (1 + 0.5 + 0.5 + 0.75) / 4.
    weight = torch.tensor([1.0, 0.5, -0.5, -0.75, 0.25])
    assert ternary_max(weight, 0.5).tolist() == [0.6875, 0.6875, 0, -0.6875, 0]


def test_the_scale_is_the_mean_of_a_drawn_gaussians_tail() -> None:
    for mean, std, delta in ((0.0, 1.0, 0.3), (0.1, 0.5, 0.7), (-0.2, 2.0, 4.0)):
        drawn = torch.randn(2_000_000, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * std + mean
        m, threshold, scale = gaussian_threshold(drawn, torch.tensor(delta, dtype=torch.float64))
        tail = drawn[drawn > m + threshold]
        error = (tail.std() / math.sqrt(len(tail))).item()
        assert abs(scale.item() - tail.mean().item()) < 4 * error + 1e-3 * std


def test_the_threshold_stays_within_three_deviations() -> None:
    weight = torch.linspace(-1, 1, 200)
    _, threshold, _ = gaussian_threshold(weight, torch.tensor([-99.0]))
    assert threshold.item() == pytest.approx(3 * weight.std().item(), rel=1e-6)
    assert not ternary_gaussian(weight, torch.tensor([99.0])).any()


def test_maxs_gradient_passes_below_one() -> None:
    weight = torch.tensor([1.0, -1.0, 0.999, -0.999, 0.01, 1.5, -2.0], requires_grad=True)
    outer = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    (ternary_max(weight) * outer).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]


class Codes(torch.autograd.Function):
    """The published rounding, whose backward divides by the scale ("gradient correctness")."""

    @staticmethod
    def forward(ctx, weight: Tensor, mean: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return (weight > mean + threshold).to(weight.dtype) - (weight < mean - threshold).to(weight.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def, override]
        return gradient / ctx.scale, None, None, None


@pytest.mark.parametrize("delta", [0.4, -0.9, 50.0])
def test_gaussians_gradients_equal_the_published_graph(delta: float) -> None:
    outer = torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = [], []
    for into in (found, expected):
        weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
        learnt = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
        if into is found:
            result = ternary_gaussian(weight, learnt)
        else:
            mean, std = weight.detach().mean(), weight.detach().std()
            threshold = torch.minimum(learnt.abs(), 3 * std)
            a = threshold / std
            normal = torch.distributions.Normal(torch.zeros(1).double(), torch.ones(1).double())
            scale = mean + std * normal.log_prob(a).exp() / (1 - normal.cdf(a))
            result = scale * Codes.apply(weight, mean, threshold.detach(), scale.detach())
        into += torch.autograd.grad((result * outer).sum(), (weight, learnt))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0], outer)
    assert bool(found[1]) == (abs(delta) < 3)  # no gradient from beyond three deviations


def test_deltas_gradient_is_that_of_finite_differences() -> None:
    weight = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    codes = ternary_gaussian(weight, torch.tensor(0.5).double()).sign()

    def value(delta: Tensor) -> Tensor:
        return (gaussian_threshold(weight, delta)[2] * codes * weight).sum()

    assert torch.autograd.gradcheck(value, torch.tensor(0.5, dtype=torch.float64, requires_grad=True))


def test_pruned_weights_stay_zero_and_have_no_part_in_the_gaussian() -> None:
    kept = torch.randn(40, generator=torch.Generator().manual_seed(0)) - 3  # by the formula 0 > m + D
    both = torch.cat([kept, torch.zeros(60)])
    delta = torch.tensor([0.5])
    found = ternary_gaussian(both, delta)
    torch.testing.assert_close(found[:40], ternary_gaussian(kept, delta))
    assert not found[40:].any()
    assert not ternary_max(both)[40:].any()


@pytest.mark.parametrize("weight", [torch.zeros(2, 3), torch.full((2, 3), 0.5), torch.tensor([[0.5]])])
def test_degenerate_layers_are_finite(weight: Tensor) -> None:
    for made in (MaxTernary(), GaussianTernary(weight)):
        assert made(weight).isfinite().all()
        assert made(weight).unique().numel() == 1
    assert not ternary_max(torch.zeros(2, 3)).any()


def test_expansion_is_the_sum_of_its_terms() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = MaxTernary(*EXPANSION)(weight)
    torch.testing.assert_close(found, sum(published_max(weight.detach(), beta)[0] for beta in EXPANSION))
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == (4.0 * (weight.detach().abs() < 1)).tolist()


# -- in a training --------------------------------------------------------------------------------------------------


def ternary_values(weight: Tensor) -> int:
    """Count the values of a ternary weight; fail for another."""
    scale = weight.abs().max()
    assert set(weight.unique().tolist()) <= {-scale.item(), 0.0, scale.item()}
    return len(weight.unique())


@pytest.mark.parametrize("variant", ["max", "gaussian"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.9, "nesterov": False}, {"optimizer": "adamw", "lr": 0.01, "precision": "bfloat16"}],
    ids=["momentum", "average", "adamw"],
)
def test_a_training_ends_with_ternary_weights_and_learns(variant: str, changes: dict[str, object]) -> None:
    start, data, unseen = tiny_net(), tiny_split(400), tiny_split(200, seed=9)
    last = "first" if variant == "max" else "first_last"  # see `Ternary`
    method = Ternarization(Ternary(variant=variant, float_layers=last))  # type: ignore[arg-type]
    trained = fit(start, TASK, data, replace(CONFIG, epochs=6, **changes), methods=[method])  # type: ignore[arg-type]
    assert list(trained.state_dict()) == list(start.state_dict())
    assert [type(module) for module in trained.modules()] == [type(module) for module in start.modules()]
    for layer in (3, 8) if variant == "max" else (3,):
        assert ternary_values(trained[layer].weight) == 3
    assert len(trained[0].weight.unique()) > 100
    assert evaluate(trained, TASK, unseen) > 0.9


def test_what_is_returned_computes_what_was_trained() -> None:
    method = Ternarization(Ternary(variant="gaussian", float_layers="none"))
    net = tiny_net().eval()
    method.start(net, CONFIG, 4)
    image = torch.rand(2, 3, 8, 8)
    before = net(image)
    with torch.no_grad():
        assert method.finish(net) is net
    assert torch.equal(net(image), before)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


def test_delta_begins_at_a_share_of_the_largest_weight_without_decay() -> None:
    net = tiny_net()
    Ternarization(Ternary(variant="gaussian", beta=0.2)).start(net, CONFIG, 4)
    delta = net[3].parametrizations.weight[0].delta
    assert delta.item() == pytest.approx(0.2 * shadow(net[3]).abs().max().item())
    # A learning rate of nearly 0 but for decay's sake: the weights shrink, delta does not.
    strong = TrainConfig(epochs=1, batch=32, weight_decay=1e3, lr=1e-5, augment=(), momentum=0.0, nesterov=False)
    seen: dict[str, Tensor] = {}

    class Spy(TrainingMethod):
        def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
            seen.update({n: p.detach().clone() for n, p in model.named_parameters()})

        def finish(self, model: nn.Module) -> nn.Module:
            for name, parameter in model.named_parameters():
                seen[name] = (parameter.norm() / seen[name].norm()).clone()
            return model

    fit(tiny_net(), TASK, SPLIT, strong, methods=[Ternarization(Ternary(variant="gaussian")), Spy()])
    assert seen["3.parametrizations.weight.original"].item() < 0.985
    assert seen["3.parametrizations.weight.0.delta"].item() == pytest.approx(1, abs=0.002)


def test_a_shared_weight_stays_shared() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    method = Ternarization(Ternary(variant="gaussian", float_layers="none"))
    method.start(net, CONFIG, 4)
    assert len(list(net.parameters())) == 3 + 2 + 2  # biases, weights, deltas
    with torch.no_grad():
        method.finish(net)
    assert net[2].weight is net[0].weight
    assert ternary_values(net[0].weight) in (2, 3)


def test_two_trainings_with_one_method_are_alike() -> None:
    method = Ternarization(Ternary(variant="gaussian"))
    first = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[method])
    assert same(first, fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[method]))


def test_what_cannot_be_done_is_refused() -> None:
    gaussian = Ternarization(Ternary(variant="gaussian"))
    with pytest.raises(RecipeError, match='weight decay would close the learnt thresholds; take decay = "weights"'):
        gaussian.start(tiny_net(), replace(CONFIG, decay="all"), 4)
    gaussian.start(tiny_net(), replace(CONFIG, decay="all", weight_decay=0.0), 4)
    Ternarization(Ternary()).start(tiny_net(), replace(CONFIG, decay="all"), 4)
    with pytest.raises(RecipeError, match='ternary: float_layers = "first_last" leaves no layer of 1'):
        Ternarization(Ternary()).start(nn.Linear(2, 2), CONFIG, 4)
    net = tiny_net()
    parametrize.register_parametrization(net[3], "weight", nn.Identity())
    with pytest.raises(ModelError, match="ternary: the weight of 3 is parametrised already"):
        Ternarization(Ternary()).start(net, CONFIG, 4)
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"beta is {beta}; it must be in \(0, 1\)"):
            Ternary(beta=beta)
