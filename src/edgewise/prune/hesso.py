"""HESSO: while a network trains, the channels that matter least are brought to zero, some more in every period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.errors import RecipeError
from edgewise.prune.channels import lowest, target
from edgewise.prune.zeroing import Zeroing
from edgewise.train.config import TrainConfig

Cosine = Literal["important", "redundant"]


FIVE = "five numbers, at least 0 each, not all 0"


@dataclass(frozen=True, kw_only=True)
class Hesso:
    """Bring the channels of least saliency to zero, period by period, at a given time in the training (HESSO).

    Args:
        sparsity: the share of the prunable channels that is zero in the end, in (0, 1).
        start: the share of the training before the first period, in [0, 1). The authors advise about 0.1, and to be
            done at 0.2 to 0.25.
        duration: the share of the training that all periods last together.
        periods: how often channels are chosen; each period brings as many to zero.
        weights: of the five scores, in the order of `saliency`.
        cosine: what it says of a channel that its weights point where the optimizer takes from them. HESSO has it
            "important", DHSPG "redundant"; the authors' code has both.
        round_to: how many channels are left of each group becomes a multiple of this, or all; then somewhat fewer than
            `sparsity` may be zero.

    Raises:
        ValueError: a value out of range, by name.
    """

    kind: Literal["hesso"] = "hesso"
    sparsity: float
    start: float = 0.1
    duration: float = 0.1
    periods: int = 10
    weights: tuple[float, float, float, float, float] = (0.2, 0.2, 0.2, 0.2, 0.2)
    cosine: Cosine = "important"
    round_to: int = 1

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, object, bool, str], ...] = (
            ("sparsity", self.sparsity, 0 < self.sparsity < 1, "in (0, 1)"),
            ("start", self.start, 0 <= self.start < 1, "in [0, 1), a share of the training"),
            ("duration", self.duration, 0 < self.duration <= 1, "in (0, 1], a share of the training"),
            ("periods", self.periods, self.periods >= 1, "at least 1"),
            ("weights", self.weights, len(self.weights) == 5 and min(self.weights) >= 0 < max(self.weights), FIVE),
            ("round_to", self.round_to, self.round_to >= 1, "at least 1"),
        )
        for name, value, fits, range_ in ranges:
            if not fits:
                raise ValueError(f"{name} is {value}; it must be {range_}")
        if self.start + self.duration > 1 + 1e-9:
            raise ValueError(f"start + duration is {self.start + self.duration:g}; the training ends at 1")


def saliency(x_x: Tensor, x_d: Tensor, d_d: Tensor, count: Tensor, config: Hesso) -> Tensor:
    """Compute how much each channel matters ``[C]``: at least 0, and 0 for a channel that is zero.

    ``sum_c w_c s_c / |s_c|``, each score's vector over all channels divided by its norm, with s of

    1. the channel's norm ``|x|``
    2. its norm over the count of its numbers ``|x| / n``
    3. the cosine ``cos(x, d) + 1``, or ``1 - cos(x, d)`` where `cosine` is "redundant"
    4. the change of the loss to first order ``|<x, d>|``
    5. and its second-order term ``<x, d>^2 / 2``, which ranks as the one before, only steeper

    Args:
        x_x: ``<x, x>`` ``[C]`` of the channels' weights.
        x_d: ``<x, d>`` ``[C]`` with the direction of the optimizer's step; d's length does not matter.
        d_d: ``<d, d>`` ``[C]``.
        count: how many numbers make each channel ``[C]``.
        config: the weights of the scores, and what the cosine says.

    Reference: Chen et al., HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and
    Pruning, 2024, arXiv 2409.09085, and its code.
    """
    norm = x_x.sqrt()
    cosine = x_d / (norm * d_d.sqrt()).clamp_min(torch.finfo(x_x.dtype).tiny)
    sign = 1 if config.cosine == "important" else -1
    scores = (norm, norm / count, sign * cosine + 1, x_d.abs(), x_d.square() / 2)
    total = torch.zeros_like(norm)
    for weight, score in zip(config.weights, scores, strict=True):
        # A channel that is zero has no direction. The published code gives it a cosine of 0, which ranks it in the
        # middle and counts it in the norm; here it is the lowest, and has no part in how the scores are weighed.
        known = score.where(norm > 0, 0)
        total += weight * known / known.norm().clamp_min(torch.finfo(score.dtype).tiny)
    return total


@final
class HessoPruning(Zeroing):
    """Brings channels to zero as `Hesso` says: the channels of `edgewise.graph`, by the rows that make them.

    At the first step of each period the lowest of the channels that are left are chosen, by the weights x before the
    step and d = (x before - x after) / lr: what the optimizer really did, with momentum and weight decay, whatever
    optimizer it is. During the period they are scaled by (T - t - 1) / (T - t) after step t of T, on a straight line
    to exactly 0, and stay there. Each group keeps at least `round_to` channels.

    Args:
        example: an input of the network's shape ``[N, C, H, W]``.
        config: how many, and when.
    """

    config: Hesso

    def __init__(self, example: Tensor, config: Hesso) -> None:
        super().__init__(example)
        self.config = config
        self._target = self._first = self._period = 0  # channels, then steps

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the channels, and lay the periods over the steps.

        Raises:
            UnsupportedOp: the network has an operator the channel graph cannot follow.
            RecipeError: no channels vanish at zero, fewer steps than periods, a sparsity that no group survives.
        """
        steps, periods = config.epochs * steps_per_epoch, self.config.periods
        self._first = round(self.config.start * steps)
        duration = min(round(self.config.duration * steps), steps - self._first)
        self._period = duration // periods
        if self._period == 0:
            raise RecipeError(f"hesso: {periods} periods in {duration} of {steps} steps: fewer, or a longer duration")
        self._begin(model)
        self._target = target(self._channels, self.config.sparsity, self.config.round_to)

    def gradients(self, model: nn.Module) -> None:
        """Keep the weights, where the coming step is one at which channels are chosen."""
        period, place = self._period_and_place(self._step)
        if place == 0 and 0 <= period < self.config.periods:
            self._before = self._channels.copy()

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Choose at a period's first step, scale what is chosen, and hold what is zero at zero."""
        self._step = step + 1
        period, place = self._period_and_place(step)
        if period >= self.config.periods:
            self._channels.zero_(self._zero)
        elif period >= 0:
            if place == 0:
                self._chosen = self._choose(period)
            left = self._period - place
            stay = (~self._zero).to(self._channels.count.dtype)
            self._channels.scale_(stay.where(~self._chosen, (left - 1) / left))
            if left == 1:
                self._zero, self._chosen = self._zero | self._chosen, self._channels.none()

    def _period_and_place(self, step: int) -> tuple[int, int]:
        """Return the period that a step lies in, below 0 before the first one, and how many came before in it."""
        return divmod(step - self._first, self._period)

    def _choose(self, period: int) -> Tensor:
        """Pick as many more channels as the target has for this period, by the step that was just made."""
        channels, x = self._channels, self._before
        d = torch._foreach_sub(x, channels.tensors)  # lr times d; its length does not matter
        self._before = []
        scores = saliency(channels.dot(x, x), channels.dot(x, d), channels.dot(d, d), channels.count, self.config)
        # Split evenly, the rest in the last period. What rounding left over in one is made up for in the next.
        last = period == self.config.periods - 1
        wanted = self._target if last else self._target // self.config.periods * (period + 1)
        return lowest(scores, channels, self._zero, wanted - int(self._zero.sum()), self.config.round_to)
