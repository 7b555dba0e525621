"""Learning rates as a pure function of the step, so that a resumed training needs no scheduler's state."""

import math

from edgewise.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Compute the learning rate of one step.

    Args:
        config: the training; its schedule, lr, warmup, milestones and gamma count.
        step: the step, from 0 to steps - 1.
        steps: how many steps the whole training has.

    >>> config = TrainConfig(lr=1.0, schedule="cosine", warmup=0.5)
    >>> [round(learning_rate(config, step, 8), 3) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rise = config.warmup * steps
    if config.schedule == "one_cycle":
        return _one_cycle(config.lr, step, rise, steps)
    if step + 1 <= rise:
        return config.lr * min(1.0, (step + 1) / rise)
    if config.schedule == "cosine":
        return _anneal(config.lr, 0.0, (step - int(rise)) / (steps - int(rise)))
    # A milestone is compared in whole steps: 0.3 * 10 is 3.0000000000000004 in floating point.
    passed = sum(step >= round(share * steps) for share in config.milestones)
    return config.lr * config.gamma**passed


def _one_cycle(peak: float, step: int, rise: float, steps: int) -> float:
    """Rise along a cosine from peak/25, then fall along one to peak/250,000; the last step has the lowest rate.

    The two constants are PyTorch's (``OneCycleLR``), after the fastai library's.
    """
    start = peak / 25
    end = start / 1e4
    top = max(rise - 1, 0.0)  # the step, counted from 0, that has the peak
    if step < top:
        return _anneal(start, peak, step / top)
    return _anneal(peak, end, (step - top) / max(steps - 1 - top, 1.0))


def _anneal(start: float, end: float, share: float) -> float:
    """Go from start to end along half a cosine; share runs from 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
