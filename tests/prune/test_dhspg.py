"""DHSPG against a straight transcription of its formulas, in plain loops over the channels, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgewise.errors import RecipeError
from edgewise.export.verify import compare_networks
from edgewise.prune import Dhspg, DhspgPruning, Prune, prune
from edgewise.prune.dhspg import BY_OPTIMIZER, penalties
from edgewise.train import TrainConfig
from prune.by_hand import CHANNELS, EXAMPLE, Bare, assert_same, put, rows, small_net, zero

CONFIG = TrainConfig(epochs=6, batch=10, lr=0.05, momentum=0.9, nesterov=False, weight_decay=1e-3)  # 60 steps
FIRST = 12
# 8 of 22 channels, chosen among 11. The penalty is high, so that a short training gets there.
DHSPG = Dhspg(sparsity=0.38, tolerance=0.13, start=0.2, penalty=1.5, epsilon=0.9, amp=2.0, coef=10.0)


def redundancies(x: dict[str, Tensor], d: dict[str, Tensor], sign: float) -> list[float]:
    cosines, small = [], []
    for channel in CHANNELS:
        a, b = rows(x, *channel), rows(d, *channel)
        cosines.append(sign * ((-a) @ (-b)).item() / (a.norm() * b.norm()).item())
        small.append(1 / (a.norm().item() / len(a) + 1e-6))
    sizes = [sum(v**2 for v in kind) ** 0.5 for kind in (cosines, small)]
    return [0.5 * c / sizes[0] + 0.5 * s / sizes[1] for c, s in zip(cosines, small, strict=True)]


def penalised(x: Tensor, d: Tensor, lr: float, config: Dhspg) -> tuple[Tensor, str]:
    """Return where the step leads, and which of the cases it was."""
    weight, case = config.penalty, "descending"
    inner, norm = (x @ d).item(), x.norm().item()
    if inner < 0:
        low, high = -inner / norm, -(d.norm().item() ** 2) * norm / inner
        weight, case = min(max(config.amp * low, config.penalty), config.coef * config.penalty), "clipped"
        if weight >= high:
            weight, case = (low + high) / 2, "middle"
    return x - lr * d - lr * weight * x / norm, case


def run_by_the_formulas(config: Dhspg, sign: float = 1.0) -> tuple[dict[str, Tensor], list[list[int]], set[str]]:
    """Train 60 steps; return the weights, the zeros after each step, and the cases that occurred."""
    bare, cases, history = Bare(CONFIG), set(), []
    chosen: list[int] = []
    gone: list[int] = []
    for n in range(60):
        x = bare.values()
        bare.step()
        if n == FIRST:
            scores = redundancies(x, bare.directions(), sign)
            chosen = sorted(range(len(CHANNELS)), key=lambda i: -scores[i])[: int(22 * (0.38 + 0.13))]
        enough = len(gone) >= 8
        for i in chosen:
            before = rows(x, *CHANNELS[i])
            if i not in gone and not enough:
                after, case = penalised(before, rows(bare.directions(), *CHANNELS[i]), CONFIG.lr, config)
                cases.add(case)
                if (after @ before) < config.epsilon * (before @ before):
                    gone.append(i)
                put(bare.parameters(), *CHANNELS[i], after)
            if i in gone:
                put(bare.parameters(), *CHANNELS[i], torch.zeros_like(before))
        history.append(sorted(gone))
    return bare.parameters(), history, cases


@pytest.mark.parametrize(("cosine", "sign", "least"), [("redundant", 1.0, 8), ("important", -1.0, 1)])
def test_a_training_is_that_of_the_formulas(cosine: str, sign: float, least: int) -> None:
    config = replace(DHSPG, cosine=cosine)
    expected, history, cases = run_by_the_formulas(config, sign)
    assert cases >= {"descending", "clipped"}
    bare = Bare(CONFIG, DhspgPruning(EXAMPLE.double(), config))
    for n in range(60):
        bare.step()
        assert zero(bare.parameters()) == history[n]
    assert history[FIRST - 1] == []
    assert least <= len(history[-1]) <= 11, "reached, and exceeded by no more than the tolerance"
    assert_same(bare.parameters(), expected)


def test_float32_and_a_falling_rate_lead_to_the_same_zeros() -> None:
    """The products that a step needs are put together from others, which must not cost digits."""
    nets = [small_net().to(dtype) for dtype in (torch.float32, torch.float64)]
    nets[1].load_state_dict(nets[0].state_dict())
    methods = [DhspgPruning(EXAMPLE.to(p.dtype), DHSPG) for p in (next(net.parameters()) for net in nets)]
    for net, method in zip(nets, methods, strict=True):
        method.start(net, CONFIG, 10)
    generator = torch.Generator().manual_seed(5)
    for n in range(60):
        lr = CONFIG.lr * (1 - n / 60)
        d = [0.3 * torch.randn(p.shape, generator=generator) for p in nets[0].parameters()]
        for net, method in zip(nets, methods, strict=True):
            with torch.no_grad():
                method.gradients(net)
                for parameter, direction in zip(net.parameters(), d, strict=True):
                    parameter.sub_(lr * direction)
                method.after_step(net, n, lr)
    masks = [method.state()["zero"] for method in methods]
    assert torch.equal(*masks)
    assert masks[0].any()
    for single, double in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(single.double(), double, rtol=1e-4, atol=1e-6)


def test_a_penalty_is_one_of_three_and_shortens_what_the_step_would_lengthen() -> None:
    generator = torch.Generator().manual_seed(3)
    seen = set()
    for _ in range(200):
        x = torch.randn(4, generator=generator, dtype=torch.float64)
        d = -x * torch.rand(1, generator=generator, dtype=torch.float64) * 0.05
        d += (
            0.05
            * torch.rand(1, generator=generator, dtype=torch.float64)
            * torch.randn(4, generator=generator, dtype=torch.float64)
        )
        config = Dhspg(sparsity=0.5, penalty=0.02, amp=2.0, coef=3.0)
        after, case = penalised(x, d, 0.1, config)
        sums = (value.reshape(1) for value in (x @ x, x @ d, d @ d))
        (weight,) = penalties(*sums, penalty=0.02, amp=2.0, coef=3.0)
        assert torch.allclose(x - 0.1 * d - 0.1 * weight * x / x.norm(), after, rtol=1e-9, atol=0)
        seen.add(case)
        if case == "middle":  # shorter than before, and still downhill
            assert after.norm() < x.norm()
            assert (x - after) @ d > 0
    assert seen == {"descending", "clipped", "middle"}


def test_the_shrunk_network_equals_the_trained_one() -> None:
    bare = Bare(CONFIG, DhspgPruning(EXAMPLE.double(), DHSPG))
    for _ in range(60):
        bare.step()
    pruned = prune(bare.net, EXAMPLE.double(), Prune(allocate="zero"))
    lost = sum(group.size - len(pruned.keep.get(group.name, range(group.size))) for group in pruned.graph.groups)
    assert lost == len(zero(bare.parameters())) >= 8
    assert compare_networks(pruned.model, bare.net, torch.randn(8, 3, 8, 8), limit=1e-9, precision="float64").passed


def test_without_time_nothing_is_zero_and_nothing_forces_it() -> None:
    bare = Bare(CONFIG, DhspgPruning(EXAMPLE.double(), replace(DHSPG, penalty=None)))
    for _ in range(60):
        bare.step()
    assert zero(bare.parameters()) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_not_given_follows_the_optimizer(optimizer: str) -> None:
    method = DhspgPruning(EXAMPLE, Dhspg(sparsity=0.5, amp=3.0))
    method.start(small_net(), TrainConfig(optimizer=optimizer, lr=0.01), 10)
    penalty, _, coef = BY_OPTIMIZER[optimizer]
    assert method._strength == (penalty, 3.0, coef)


def test_a_sparsity_that_no_group_survives_is_refused_before_the_training() -> None:
    with pytest.raises(RecipeError, match="at most 20 can go"):
        DhspgPruning(EXAMPLE, Dhspg(sparsity=0.99)).start(small_net(), CONFIG, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1\.0; it must be in \(0, 1\)"),
        ({"start": -0.1}, r"start is -0\.1"),
        ({"tolerance": 0.6}, r"tolerance is 0\.6; it must be at least 0, at most 1 - sparsity"),
        ({"epsilon": 1.0}, r"epsilon is 1\.0"),
        ({"penalty": 0.0}, r"penalty is 0\.0"),
        ({"amp": 0.0}, r"amp is 0\.0"),
        ({"coef": 0.5}, r"coef is 0\.5; it must be at least 1"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dhspg(**{"sparsity": 0.5, **changes})
