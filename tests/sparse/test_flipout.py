"""FlipOut: flips on a scripted path, noise of the right size, the saliency by hand, and whole trainings."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgewise.sparse import FlipOut, FlipOutPruning, prunable
from edgewise.train import TrainConfig, evaluate, fit
from train.tiny import TASK, tiny_net, tiny_split

SPLIT = tiny_split(400)
CONFIG = TrainConfig(epochs=6, batch=32, lr=0.05, augment=())


def started(config: FlipOut, weights: list[float], steps: int = 10) -> tuple[FlipOutPruning, nn.Linear]:
    model = nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights])
    method = FlipOutPruning(config)
    method.start(model, TrainConfig(epochs=1), steps)
    return method, model


def walk(method: FlipOutPruning, model: nn.Linear, path: list[list[float]]) -> None:
    with torch.no_grad():
        for step, weights in enumerate(path):
            model.weight.data = torch.tensor([weights])
            method.after_step(model, step, 0.1)


def test_the_one_that_flips_goes_first_of_two_of_one_size() -> None:
    method, model = started(FlipOut(sparsity=0.5, events=1, start=0.3), [0.5, 0.5])
    walk(method, model, [[0.5, -0.5], [0.5, 0.5], [0.5, -0.5]])
    assert model.weight.tolist() == [[0.5, 0.0]]


def test_flips_and_saliency_by_hand() -> None:
    """Sizes 2, 3, 4 with 0, 1, 3 flips: 4, 4.5 and 4 by p = 2; 2, 1.5 and 1 by p = 1."""
    path = [[2.0, -3.0, -4.0], [2.0, -3.0, 4.0], [2.0, -3.0, -4.0]]
    for power, expected in ((2.0, [4.0, 4.5, 4.0]), (1.0, [2.0, 1.5, 1.0])):
        method, model = started(FlipOut(sparsity=0.5, events=1, start=0.9, power=power), [2.0, 3.0, 4.0])
        walk(method, model, path)
        assert method.scores({"weight": model.weight})["weight"].tolist() == [expected]


def test_what_is_gone_flips_no_more_and_does_not_come_back() -> None:
    method, model = started(FlipOut(sparsity=0.5, events=1, start=0.1), [0.1, 1.0])
    walk(method, model, [[0.1, 1.0], [-0.1, 1.0], [0.1, -1.0]])
    assert model.weight.tolist() == [[0.0, -1.0]]
    assert method.state()["flips/weight"].tolist() == [[0.0, 1.0]]


def test_noise_has_the_size_of_each_tensors_gradient_until_the_last_event() -> None:
    model = nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 10))
    method = FlipOutPruning(FlipOut(sparsity=0.75, events=2, noise=0.5))
    method.start(model, TrainConfig(epochs=1), 30)
    sizes = [0.01, 3.0, 20.0, 0.1]
    for step in range(30):
        given = [torch.full_like(parameter, size) for parameter, size in zip(model.parameters(), sizes, strict=True)]
        for parameter, gradient in zip(model.parameters(), given, strict=True):
            parameter.grad = gradient.clone()
        with torch.no_grad():
            method.gradients(model)
            noise = [p.grad - g for p, g in zip(model.parameters(), given, strict=True) if p.grad is not None]
            method.after_step(model, step, 0.1)
        if step == 0:
            for part, size in zip(noise[:3], sizes, strict=False):
                assert part.std().item() == pytest.approx(0.5 * size, rel=0.15)
    assert all(bool((part == 0).all()) for part in noise[1::2])  # biases, long after the last event
    kept = model[0].weight != 0
    assert bool((noise[0][kept] == 0).all())


@pytest.mark.parametrize("changes", [{}, {"noise_end": 1.0}, {"noise": 0.0}])
def test_as_many_are_zero_as_was_asked_for_and_the_rest_learns(changes: dict[str, float]) -> None:
    config = FlipOut(sparsity=0.8, events=3, **changes)  # type: ignore[arg-type]
    trained = fit(tiny_net(), TASK, SPLIT, replace(CONFIG, epochs=8), methods=[FlipOutPruning(config)])
    weights = torch.cat([weight.detach().flatten() for weight in prunable(trained).values()])
    assert int((weights == 0).sum()) == round(0.8 * len(weights))
    assert evaluate(trained, TASK, tiny_split(200, seed=9)) > 0.8


def test_the_published_schedule() -> None:
    """Half of what is left each time, evenly over the training: 4 events for 93.75 %."""
    assert FlipOut(sparsity=0.9375).span == pytest.approx((0.2, 0.8))
    assert FlipOut(sparsity=0.5, events=1).span == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 0.0}, r"sparsity is 0.0; it must be in \(0, 1\)"),
        ({"sparsity": 0.5, "noise": -1.0}, "noise is -1.0; it must be at least 0"),
        ({"sparsity": 0.5, "noise_end": 2.0}, r"noise_end is 2.0; it must be in \[0, 1\]"),
        ({"sparsity": 0.5, "power": -1.0}, "power is -1.0"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlipOut(**values)  # type: ignore[arg-type]
