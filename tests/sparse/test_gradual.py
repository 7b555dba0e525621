"""Weights that are taken while a network trains: when, how many, which, and that they stay zero."""

from dataclasses import replace

import pytest
import torch

from edgewise.sparse import Gradual, GradualPruning, prunable
from edgewise.sparse.gradual import event_steps, sparsity_after
from edgewise.train import TrainConfig, evaluate, fit
from train.tiny import TASK, same, tiny_net, tiny_split

SPLIT = tiny_split(400)
CONFIG = TrainConfig(epochs=6, batch=32, lr=0.05, augment=())


def zeros(model: torch.nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in prunable(model).values())


COUNT = sum(weight.numel() for weight in prunable(tiny_net()).values())


def test_the_cubic_curve_is_the_papers() -> None:
    """Eq. (1) with s_0 = 0: half way through seven eighths are done."""
    assert sparsity_after(1, 2, 0.8, "cubic") == pytest.approx(0.8 * 7 / 8)
    assert [sparsity_after(5, 5, 0.8, curve) for curve in ("cubic", "geometric")] == [pytest.approx(0.8)] * 2


def test_events_lie_between_start_and_end() -> None:
    assert event_steps(1, 0.5, 0.9, 10) == [5]
    assert event_steps(2, 0.0, 1.0, 10) == [1, 10]
    with pytest.raises(ValueError, match="events = 20: the training has 10 steps, too few"):
        event_steps(20, 0.0, 1.0, 10)


@pytest.mark.parametrize("criterion", ["l1", "random"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_as_many_are_zero_as_was_asked_for_and_the_rest_learns(criterion: str, scope: str) -> None:
    method = GradualPruning(Gradual(sparsity=0.7, criterion=criterion, scope=scope, events=5))  # type: ignore[arg-type]
    trained = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[method])
    asked = {name: round(0.7 * weight.numel()) for name, weight in prunable(trained).items()}
    assert zeros(trained) == (round(0.7 * COUNT) if scope == "global" else sum(asked.values()))
    if scope == "local":
        assert {name: int((w == 0).sum()) for name, w in prunable(trained).items()} == asked
    assert evaluate(trained, TASK, tiny_split(200, seed=9)) > 0.8


@pytest.mark.parametrize("changes", [{"ema": 0.9, "decay": "all"}, {"optimizer": "adamw", "lr": 0.01}])
def test_zeros_stay_zero_whatever_moves_the_weights(changes: dict[str, object]) -> None:
    trained = fit(tiny_net(), TASK, SPLIT, replace(CONFIG, **changes), methods=[GradualPruning(Gradual(sparsity=0.9))])
    assert zeros(trained) == round(0.9 * COUNT)


def test_whole_filters_go_where_a_tile_says_so() -> None:
    method = GradualPruning(Gradual(sparsity=0.5, scope="local", events=4, tile=(1, -1)))
    trained = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[method])
    for weight in prunable(trained).values():
        alive = (weight != 0).flatten(1)
        assert bool((alive.all(1) | ~alive.any(1)).all())
        assert int((~alive.any(1)).sum()) == len(weight) // 2


def test_magnitudes_by_hand() -> None:
    """One event at the first step of a training whose learning rate is next to nothing: the smallest weights go."""
    start = tiny_net()
    config = replace(CONFIG, epochs=1, lr=1e-12, weight_decay=0.0)
    method = GradualPruning(Gradual(sparsity=0.6, events=1, start=0.0))
    trained = fit(start, TASK, SPLIT, config, methods=[method])
    sizes = torch.cat([weight.detach().abs().flatten() for weight in prunable(start).values()])
    gone = torch.cat([weight.detach().flatten() == 0 for weight in prunable(trained).values()])
    assert sizes[gone].max() <= sizes[~gone].min()


def test_random_ones_follow_the_seed() -> None:
    method = Gradual(sparsity=0.6, criterion="random", events=2)
    one, two, other = (
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[GradualPruning(method)], seed=s) for s in (1, 1, 2)
    )
    assert same(one, two)
    assert not same(one, other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1.0; it must be in \(0, 1\)"),
        ({"sparsity": 0.5, "events": 0}, "events is 0; it must be at least 1"),
        ({"sparsity": 0.5, "start": 1.0}, r"start is 1.0; it must be in \[0, 1\)"),
        ({"sparsity": 0.5, "start": 0.5, "end": 0.5}, "end is 0.5; it must be above start"),
    ],
)
def test_schedules_that_mean_nothing(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gradual(**values)  # type: ignore[arg-type]


def test_a_block_goes_by_what_is_left_in_it_and_not_for_a_zero() -> None:
    """Rows of 100 with a zero in each stay beside rows of 1, and a row of zeros goes first."""
    layer = torch.nn.Linear(4, 6, bias=False)
    layer.weight.data = torch.tensor([100.0, 100.0, 1.0, 1.0, 50.0, 1.0])[:, None].repeat(1, 4)
    layer.weight.data[:2, 0] = 0
    layer.weight.data[4] = 0
    method = GradualPruning(Gradual(sparsity=0.5, events=1, start=0.1, tile=(1, -1)))
    method.start(layer, TrainConfig(epochs=1), 10)
    with torch.no_grad():
        method.after_step(layer, 0, 0.1)
    assert (layer.weight != 0).any(1).tolist().count(True) == 3
    assert bool((layer.weight[:2, 1:] != 0).all())
