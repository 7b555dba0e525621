from dataclasses import FrozenInstanceError

import pytest

from edgewise.train import TrainConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"lr": float("nan")}, "lr is nan; it must be above 0"),
        ({"momentum": 1.0}, r"momentum is 1.0; it must be in \[0, 1\)"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; it must be at least 0"),
        ({"warmup": 1.0}, r"warmup is 1.0; it must be in \[0, 1\)"),
        ({"gamma": 0.0}, r"gamma is 0.0; it must be in \(0, 1\]"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"ema": 1.0}, r"ema is 1.0; it must be in \[0, 1\)"),
        ({"label_smoothing": 1.5}, r"label_smoothing is 1.5; it must be in \[0, 1\]"),
        ({"cutout_size": 0.0}, r"cutout_size is 0.0; it must be in \(0, 1\]"),
        ({"mixup_alpha": 0.0}, "mixup_alpha is 0.0; it must be above 0"),
        ({"milestones": (0.5, 1.0)}, "milestones are"),
        ({"milestones": (0.75, 0.5)}, "milestones are"),
        ({"optimizer": "adamw", "lr": 0.2}, "a rate for sgd"),
        ({"momentum": 0.0}, "nesterov"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


def test_it_is_frozen_and_its_kind_is_train() -> None:
    config = TrainConfig()
    assert config.kind == "train"
    with pytest.raises(FrozenInstanceError):
        config.lr = 1.0


def test_plain_sgd_needs_no_momentum() -> None:
    assert TrainConfig(momentum=0.0, nesterov=False).momentum == 0.0
