import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from edgewise.train import TrainConfig, learning_rate


def pytorch_rates(steps: int, peak: float, make: type, **arguments: object) -> list[float]:
    """The rates that a scheduler of PyTorch gives, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make(optimizer, **arguments)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    return rates


def rates(config: TrainConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("steps", [10, 74, 500])
@pytest.mark.parametrize("warmup", [0.2, 0.3])
def test_one_cycle_is_pytorchs_to_the_bit(steps: int, warmup: float) -> None:
    expected = pytorch_rates(
        steps, 0.2, lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    assert rates(TrainConfig(lr=0.2, warmup=warmup), steps) == expected


def test_cosine_without_warmup_is_pytorchs() -> None:
    expected = pytorch_rates(50, 0.1, lr_scheduler.CosineAnnealingLR, T_max=50)
    assert rates(TrainConfig(lr=0.1, schedule="cosine", warmup=0.0), 50) == pytest.approx(expected, abs=1e-15)


def test_step_without_warmup_is_pytorchs() -> None:
    expected = pytorch_rates(10, 0.1, lr_scheduler.MultiStepLR, milestones=[3, 7], gamma=0.1)
    config = TrainConfig(lr=0.1, schedule="step", warmup=0.0, milestones=(0.3, 0.7), gamma=0.1)
    assert rates(config, 10) == pytest.approx(expected, rel=1e-12)


def test_step_with_warmup_by_hand() -> None:
    config = TrainConfig(lr=1.0, schedule="step", warmup=0.4, milestones=(0.5, 0.8), gamma=0.5)
    assert rates(config, 10) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


@given(
    schedule=st.sampled_from(["one_cycle", "cosine", "step"]),
    warmup=st.floats(0, 0.99),
    steps=st.integers(1, 300),
)
def test_every_rate_is_above_zero_and_at_most_the_peak(schedule: str, warmup: float, steps: int) -> None:
    found = rates(TrainConfig(lr=0.2, schedule=schedule, warmup=warmup), steps)
    assert all(0 < rate <= 0.2 for rate in found)


@given(schedule=st.sampled_from(["one_cycle", "cosine", "step"]), warmup=st.floats(0, 0.9), steps=st.integers(40, 300))
def test_it_rises_to_the_peak_and_then_never_rises(schedule: str, warmup: float, steps: int) -> None:
    found = rates(TrainConfig(lr=0.2, schedule=schedule, warmup=warmup), steps)
    top = found.index(max(found))
    assert abs(top + 1 - warmup * steps) <= 1.001
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert max(found) > 0.2 * 0.9
