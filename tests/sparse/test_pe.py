"""The PE lasso with weight penalty clipping: its gradient, its steps by hand, and trainings with ternary weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import small_run
from edgewise.check import check
from edgewise.distill import Distill, Distillation
from edgewise.errors import RecipeError
from edgewise.export import network
from edgewise.quantize.ternary import Ternarization, Ternary
from edgewise.recipe import read
from edgewise.run import compress
from edgewise.sparse import PeLasso, PeLassoPruning
from edgewise.sparse.blocks import block_sums
from edgewise.sparse.layers import layers
from edgewise.sparse.pe import block_norms, penalised, penalty_gradient, shrink_
from edgewise.sparse.pe_array import is_ternary
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit
from train.tiny import TASK, same, tiny_net, tiny_split

SPLIT = tiny_split(200)  # 6 steps an epoch
CONFIG = TrainConfig(epochs=4, batch=32, lr=0.05, augment=())
LASSO = PeLasso(tile=(2, 3), strength=1.0)


def weight(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (5, 7, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weigh", ["equal", "sqrt_size"])
@pytest.mark.parametrize(("clip", "factor"), [("none", 1.0), ("mean", 1.0), ("mean", 1.3), ("max", 0.7)])
def test_the_gradient_is_that_of_the_formula(clip: str, factor: float, weigh: str) -> None:
    w = weight().requires_grad_()
    total, norms = w.new_zeros(()), []
    blocks = [w[o : o + 2, i : i + 3] for o in range(0, 5, 2) for i in range(0, 7, 3)]
    norms = torch.stack([block.square().sum().sqrt() for block in blocks])
    tau = {"none": torch.tensor(torch.inf), "mean": factor * norms.mean(), "max": factor * norms.max()}[clip].detach()
    for block, norm in zip(blocks, norms, strict=True):
        total = total + torch.minimum(norm, tau) * (block.numel() ** 0.5 if weigh == "sqrt_size" else 1)
    (expected,) = torch.autograd.grad(total, w)
    config = replace(LASSO, clip=clip, factor=factor, weigh=weigh)
    torch.testing.assert_close(penalty_gradient(w.detach(), config), expected, rtol=1e-12, atol=1e-14)
    assert clip == "none" or 0 < int((norms < tau).sum()) < len(norms)  # it clips some


def test_a_step_by_hand() -> None:
    w = torch.tensor([[3.0, 4.0, 0.0, 1.0], [0.3, 0.4, 0.0, 0.0]])  # norms 5, 1, 0.5, 0; their mean 1.625
    config = PeLasso(tile=(1, 2), strength=5.0)
    shrink_(w, config, lr=0.125)  # by 0.625: 5 stays, 1 becomes 0.375, 0.5 ends at zero, 0 stays there
    assert w.tolist() == [[3, 4, 0, 0.375], [0, 0, 0, 0]]


def test_a_step_follows_the_gradient() -> None:
    w = weight()
    stepped = w.clone()
    shrink_(stepped, LASSO, lr=0.01)
    torch.testing.assert_close(stepped, w - 0.01 * penalty_gradient(w, LASSO))


def test_clipping_leaves_strong_blocks_as_they_are() -> None:
    w = weight()
    strong = ~penalised(block_norms(w, (2, 3)), "mean", 1.0)
    assert 0 < int(strong.sum()) < strong.numel()
    clipped, plain = w.clone(), w.clone()
    for _ in range(200):
        shrink_(clipped, LASSO, lr=0.05)
        shrink_(plain, replace(LASSO, clip="none"), lr=0.05)
    moved = block_sums((clipped != w).double(), (2, 3)) > 0
    assert not bool((moved & strong).any())
    assert not plain.any()  # what the clip is for
    assert not penalty_gradient(torch.zeros(4, 6), replace(LASSO, clip="none")).any()  # finite at zero


def test_the_threshold_falls_as_blocks_vanish() -> None:
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert penalised(norms[:4], "mean", 1.0).tolist() == [True, True, False, False]
    assert penalised(norms, "mean", 1.0)[:4].tolist() == [False] * 4  # their mean is 1, not below itself


# -- in a training --------------------------------------------------------------------------------------------------


class Watch(TrainingMethod):
    """Looks at the network after each step, when the methods before it have acted."""

    def __init__(self, look: Callable[[nn.Module, int], None]) -> None:
        self.look = look

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        self.look(model, step)


def zero_blocks(model: nn.Module, tile: tuple[int, int], spare: str = "first") -> list[Tensor]:
    return [block_sums(layer.weight != 0, tile) == 0 for layer in layers(model, spare).values()]  # type: ignore[arg-type, operator]


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.9, "decay": "all"}, {"optimizer": "adamw", "lr": 0.01, "precision": "bfloat16"}],
    ids=["momentum", "average", "adamw"],
)
def test_without_ternary_weights_frozen_blocks_stay_zero(changes: dict[str, object]) -> None:
    tile, seen = (2, 8), {}

    def look(model: nn.Module, step: int) -> None:
        seen[step] = zero_blocks(model, tile)

    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    strength = 1.0 if "optimizer" not in changes else 3.0
    lasso = PeLasso(tile=tile, strength=strength, clip="none", epsilon=0.2, freeze_at=0.5, spare="first")
    net = whole_net()
    net[8] = tiny_net()[8]
    trained = fit(net, TASK, SPLIT, config, methods=[PeLassoPruning(lasso), Watch(look)])
    frozen = seen[12]
    assert sum(int(zero.sum()) for zero in frozen) > 10
    assert not any(bool(zero.all()) for zero in frozen)
    for step in range(13, 24):
        assert all(map(torch.equal, seen[step], frozen))  # momentum and decay move nothing back
    assert all(map(torch.equal, zero_blocks(trained, tile), frozen))


def test_biases_and_normalisations_are_not_penalised() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.ones_(net[0].bias)
    method = PeLassoPruning(PeLasso(tile=(1, 2), strength=100.0, clip="none", spare="none"))
    method.start(net, CONFIG, 6)
    method.after_step(net, 0, 0.5)
    assert not net[0].weight.any()
    assert torch.equal(net[0].bias, torch.ones(4))
    assert torch.equal(net[1].weight, torch.ones(4))


TILE = (1, 8)


def joint(variant: str, order: int) -> list[TrainingMethod]:
    """Logit distillation, ternary weights and the PE lasso, the last two in either order."""
    both: list[TrainingMethod] = [
        Ternarization(Ternary(variant=variant, float_layers="first", beta=0.2)),  # type: ignore[arg-type]
        PeLassoPruning(PeLasso(tile=TILE, strength=0.15, freeze_at=0.6, spare="first")),
    ]
    return [Distillation([tiny_net(seed=5)], Distill(alpha=0.5)), *both[::order]]


def whole_net() -> nn.Module:
    """A tiny network without a depthwise layer, whose one input a tile would not fit."""
    net = tiny_net()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net[3] = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        net[8] = nn.Sequential(nn.Linear(512, 4), nn.BatchNorm1d(4))
    return net


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("variant", ["max", "gaussian"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_ternary_pruned_and_distilled_in_one_training(variant: str, order: int, ema: float, tmp_path: Path) -> None:
    seen = {}

    def look(model: nn.Module, step: int) -> None:
        seen[step] = zero_blocks(model, TILE)

    config = replace(CONFIG, ema=ema, epochs=5)
    trained = fit(whole_net(), TASK, SPLIT, config, methods=[*joint(variant, order), Watch(look)])
    for layer in layers(trained, "first").values():
        scale = layer.weight.abs().max().item()  # type: ignore[operator]
        assert set(layer.weight.unique().tolist()) <= {-scale, 0.0, scale}  # type: ignore[operator]
        assert scale > 0
    frozen = seen[18]
    assert sum(int(zero.sum()) for zero in frozen) > 3
    for step, zero in seen.items():
        if step >= 18:  # others may be zero for a while
            assert all(bool(now[was].all()) for now, was in zip(zero, frozen, strict=True))
    assert all(bool(now[was].all()) for now, was in zip(zero_blocks(trained, TILE), frozen, strict=True))

    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 27:  # in the last epoch, after the freeze
            raise StoppedError

    path = tmp_path / "checkpoint"
    with pytest.raises(StoppedError):
        fit(whole_net(), TASK, SPLIT, config, methods=joint(variant, order), checkpoint=path, progress=stop)
    assert same(fit(whole_net(), TASK, SPLIT, config, methods=joint(variant, order), checkpoint=path), trained)


def test_either_order_gives_the_same_weights() -> None:
    first, second = (fit(whole_net(), TASK, SPLIT, CONFIG, methods=joint("max", order)) for order in (1, -1))
    assert same(first, second)


def test_the_joint_training_learns() -> None:
    data, unseen = tiny_split(400), tiny_split(200, seed=9)
    teacher = fit(tiny_net(seed=5), TASK, data, CONFIG)
    methods = joint("max", 1)
    methods[0] = Distillation([teacher], Distill(alpha=0.5))
    trained = fit(whole_net(), TASK, data, replace(CONFIG, epochs=6), methods=methods)
    assert evaluate(trained, TASK, unseen) > 0.9
    assert sum(int(zero.sum()) for zero in zero_blocks(trained, TILE)) > 3


def test_zeros_are_frozen_at_the_last_step_at_the_latest() -> None:
    lasso = PeLasso(tile=(-1, 8), strength=2.0, clip="none", epsilon=0.5, freeze_at=1.0, spare="first")
    trained = fit(whole_net(), TASK, SPLIT, CONFIG, methods=[PeLassoPruning(lasso)])
    for layer in layers(trained, "first").values():
        norms = block_norms(layer.weight.detach(), (-1, 8))  # type: ignore[operator]
        assert bool(((norms == 0) | (norms >= 0.5 * norms.max())).all())


@pytest.mark.parametrize("clip", ["mean", "none"])
def test_as_many_weights_are_frozen_as_were_asked_for(clip: str) -> None:
    """Within one block of the share, whatever the penalty made of them."""
    lasso = PeLasso(tile=TILE, strength=0.05, clip=clip, freeze_at=0.5, sparsity=0.4, spare="first")  # type: ignore[arg-type]
    trained = fit(whole_net(), TASK, SPLIT, CONFIG, methods=[PeLassoPruning(lasso)])
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers(trained, "first").values()])  # type: ignore[operator]
    assert 0.4 * len(weights) - 8 * 9 <= int((weights == 0).sum()) <= 0.4 * len(weights)


def test_the_weakest_blocks_are_those_of_least_norm_beside_their_layers_mean() -> None:
    """Norms 1, 2, 3, 4 and 10, 12, 14, 300: relative to the layers, 10, 12, 14 are the weakest of all."""
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(2, 4, bias=False))
    for layer, norms in zip(net, ([1.0, 2.0, 3.0, 4.0], [10.0, 12.0, 14.0, 300.0]), strict=True):
        layer.weight.data = torch.tensor(norms)[:, None] * torch.tensor([[0.6, -0.8]])
    method = PeLassoPruning(PeLasso(tile=(1, 2), strength=0.0, freeze_at=0.01, sparsity=0.5, spare="none"))
    method.start(net, CONFIG, 6)
    with torch.no_grad():
        method.after_step(net, 0, 0.1)
    assert [(layer.weight != 0).any(1).tolist() for layer in net] == [
        [False, True, True, True],
        [False, False, False, True],
    ]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (tiny_net(), r"pe_lasso: tile \(1, 16\) is larger than 3 \[8, 1, 3, 3\]: take at most \(8, 1\), or -1"),
        (nn.Sequential(nn.Linear(2, 2)), 'pe_lasso: spare = "first_last" leaves no layer of 1'),
    ],
)
def test_a_network_it_does_not_fit_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PeLassoPruning(PeLasso(strength=0.1)).start(net, CONFIG, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": (0, 1)}, r"tile is \(0, 1\); it must be two numbers of at least 1, or -1"),
        ({"strength": -1.0}, r"strength is -1\.0; it must be at least 0"),
        ({"factor": 0.0}, r"factor is 0\.0; it must be above 0"),
        ({"epsilon": 1.0}, r"epsilon is 1\.0; it must be in \[0, 1\)"),
        ({"sparsity": 1.0}, r"sparsity is 1\.0; it must be in \(0, 1\), a share"),
        ({"freeze_at": 0.0}, r"freeze_at is 0\.0; it must be in \(0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeLasso(**{"strength": 0.1, **changes})  # type: ignore[arg-type]


# -- in a recipe ----------------------------------------------------------------------------------------------------

RECIPE = """
model = "{folder}/network.py:tiny"
data = "pack:{folder}/pack"
[[step]]
kind = "train"
epochs = 2
batch = 64
lr = 0.05
[[step.method]]
kind = "ternary"
float_layers = "first"
[[step.method]]
kind = "pe_lasso"
tile = [1, 1]
strength = 0.1
spare = "first"
[[step]]
kind = "export"
"""


def test_a_run_ships_ternary_weights(tmp_path: Path) -> None:
    small_run.write(tmp_path, train=320)
    path = tmp_path / "ternary.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    run = compress(read(path), tmp_path / "run").folder
    trained = network.load(run / "steps" / "01-train")
    for layer in layers(trained, "first").values():
        assert is_ternary(layer.weight)  # type: ignore[arg-type]
    assert len(list(layers(trained))) > 1
    assert all(item.passed for item in check(run))
