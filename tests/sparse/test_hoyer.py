"""The Hoyer-Square penalty by hand, and a training that becomes sparse by it."""

import pytest
import torch

from edgewise.errors import TrainingDiverged
from edgewise.sparse import HoyerSparsity, HoyerSquare, prunable
from edgewise.sparse.hoyer import hoyer_square
from edgewise.train import TrainConfig, evaluate, fit
from train.tiny import TASK, tiny_net, tiny_split

SPLIT = tiny_split(400)
CONFIG = TrainConfig(epochs=8, batch=32, lr=0.05, augment=())


def share_of_zeros(model: torch.nn.Module) -> float:
    weights = torch.cat([weight.detach().flatten() for weight in prunable(model).values()])
    return (weights == 0).double().mean().item()


def test_it_counts_equal_weights_and_does_not_feel_their_size() -> None:
    weights = torch.tensor([2.0, -2.0, 2.0, 0.0])
    assert hoyer_square(weights) == hoyer_square(100 * weights) == 3
    assert hoyer_square(torch.zeros(4)) == 0


def test_the_penalty_makes_zeros_that_stay() -> None:
    config = HoyerSquare(strength=1e-2, threshold=1e-2)
    trained = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[HoyerSparsity(config)])
    plain = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[HoyerSparsity(HoyerSquare(strength=1e-9, threshold=1e-2))])
    assert share_of_zeros(trained) > 2 * share_of_zeros(plain) > 0
    assert evaluate(trained, TASK, tiny_split(200, seed=9)) > 0.8


def test_a_penalty_that_leaves_nothing_is_told() -> None:
    with pytest.raises(TrainingDiverged, match=r"hoyer: all weights of 0.weight are below 10 .* take a strength below"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[HoyerSparsity(HoyerSquare(threshold=10.0))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 0.0}, "strength is 0.0; it must be above 0"),
        ({"threshold": -1.0}, "threshold is -1.0; it must be above 0"),
        ({"end": 1.0}, r"end is 1.0; it must be in \(0, 1\)"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HoyerSquare(**values)
