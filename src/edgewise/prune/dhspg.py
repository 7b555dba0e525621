"""DHSPG: the most redundant channels are penalised while a network trains, and projected to zero when they turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.prune.channels import lowest, target
from edgewise.prune.hesso import Cosine
from edgewise.prune.zeroing import Zeroing
from edgewise.train.config import TrainConfig

# Penalty, amp and coef by the training's optimizer, as in the authors' code.
BY_OPTIMIZER = {"sgd": (1e-3, 2.0, 10.0), "adamw": (1e-2, 20.0, 1e3)}


@dataclass(frozen=True, kw_only=True)
class Dhspg:
    """Penalise the most redundant channels and project them to zero until enough are (DHSPG).

    Args:
        sparsity: the share of the prunable channels that is to be zero in the end, in (0, 1). Nothing forces it: with
            a small penalty, a low learning rate or a short training fewer get there.
        start: the share of the training before, after which the channels are parted once, in [0, 1).
        tolerance: this share more is penalised than `sparsity`; the zeros lie between the two.
        epsilon: a channel goes to zero when a step takes its product with what it was below this share of its square.
        penalty: lambda, the least weight of a channel's norm; by default 1e-3 for sgd, 1e-2 for adamw.
        amp: how much stronger than a step that lengthens a channel its penalty is; by default 2 for sgd, 20 for adamw.
        coef: the largest penalty, in `penalty`; by default 10 for sgd, 1000 for adamw.
        cosine: what it says of a channel that its weights point where the optimizer takes from them; see `Hesso`.

    Raises:
        ValueError: a value out of range, by name.
    """

    kind: Literal["dhspg"] = "dhspg"
    sparsity: float
    start: float = 0.1
    tolerance: float = 0.0
    epsilon: float = 0.95
    penalty: float | None = None
    amp: float | None = None
    coef: float | None = None
    cosine: Cosine = "redundant"

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float | None, bool, str], ...] = (
            ("sparsity", self.sparsity, 0 < self.sparsity < 1, "in (0, 1)"),
            ("start", self.start, 0 <= self.start < 1, "in [0, 1), a share of the training"),
            ("tolerance", self.tolerance, 0 <= self.tolerance <= 1 - self.sparsity, "at least 0, at most 1 - sparsity"),
            ("epsilon", self.epsilon, 0 <= self.epsilon < 1, "in [0, 1)"),
            ("penalty", self.penalty, self.penalty is None or self.penalty > 0, "above 0"),
            ("amp", self.amp, self.amp is None or self.amp > 0, "above 0"),
            ("coef", self.coef, self.coef is None or self.coef >= 1, "at least 1"),
        )
        for name, value, fits, range_ in ranges:
            if not fits:
                raise ValueError(f"{name} is {value}; it must be {range_}")


def redundancy(x_x: Tensor, x_d: Tensor, d_d: Tensor, count: Tensor, cosine: Cosine) -> Tensor:
    """Compute how redundant each channel is ``[C]``.

    ``norm(cos(x, d)) / 2 + norm(1 / (|x| / n + 1e-6)) / 2``, where norm() divides by the norm over all channels (as
    HESSO's scores; the source leaves it open) and the cosine has its other sign where it says "important".

    Args:
        x_x: ``<x, x>`` ``[C]`` of the channels' weights.
        x_d: ``<x, d>`` ``[C]`` with the direction of the optimizer's step.
        d_d: ``<d, d>`` ``[C]``.
        count: how many numbers make each channel ``[C]``.
        cosine: what it says.

    Reference: Chen et al., OTOv2: Automatic, Generic, User-Friendly, ICLR 2023, arXiv 2303.06862, and its code.
    """
    tiny = torch.finfo(x_x.dtype).tiny
    sign = 1 if cosine == "redundant" else -1
    turned = sign * x_d / (x_x * d_d).sqrt().clamp_min(tiny)
    small = 1 / (x_x.sqrt() / count + 1e-6)
    found: Tensor = turned / turned.norm().clamp_min(tiny) / 2 + small / small.norm() / 2
    return found


def penalties(x_x: Tensor, x_d: Tensor, d_d: Tensor, penalty: float, amp: float, coef: float) -> Tensor:
    """Compute how strongly each channel's norm is penalised ``[C]``.

    lambda, unless the step -d lengthens the channel, ``<x, d> < 0``: then so much that it is shortened all the same,
    ``clip(amp low, lambda, coef lambda)`` with ``low = -<x, d> / |x|``, and where that reaches
    ``high = -|d|^2 |x| / <x, d>``, beyond which the whole step no longer descends, the middle of both.

    Args:
        x_x: ``<x, x>`` ``[C]`` of the channels' weights.
        x_d: ``<x, d>`` ``[C]`` with the direction of the optimizer's step.
        d_d: ``<d, d>`` ``[C]``.
        penalty: lambda.
        amp: by how much the penalty overcomes the step.
        coef: the largest penalty, in lambdas.

    >>> x_x, x_d, d_d = torch.tensor([[4.0, 4.0, 4.0], [1.0, -0.1, -0.1], [9.0, 9.0, 0.0026]])
    >>> penalties(x_x, x_d, d_d, penalty=0.02, amp=2.0, coef=10.0)
    tensor([0.0200, 0.1000, 0.0510])
    """
    norm = x_x.sqrt().clamp_min(torch.finfo(x_x.dtype).tiny)
    against = (-x_d).clamp_min(torch.finfo(x_x.dtype).tiny)
    low, high = against / norm, d_d * norm / against
    strong = (amp * low).clamp(penalty, coef * penalty)
    strong = strong.where(strong < high, (low + high) / 2)
    return strong.where(x_d < 0, penalty)


@final
class DhspgPruning(Zeroing):
    """Brings channels to zero as `Dhspg` says: the channels of `edgewise.graph`, by the rows that make them.

    After the warm-up the most redundant channels are chosen once. From then on, until enough channels are zero, each
    step x - lr d of the optimizer is led on to ``y = x - lr d - lr lambda x / |x|`` for those chosen, and to 0 where
    ``<y, x> < epsilon |x|^2``. With d = (x before - x after) / lr: what the optimizer really did, with momentum and
    weight decay, whatever optimizer it is. Zeros stay zero, and each group keeps at least one channel.

    Args:
        example: an input of the network's shape ``[N, C, H, W]``.
        config: how many, from when on, and how strongly.
    """

    config: Dhspg

    def __init__(self, example: Tensor, config: Dhspg) -> None:
        super().__init__(example)
        self.config = config
        self._strength = BY_OPTIMIZER["sgd"]  # penalty, amp, coef
        self._target = self._most = self._first = 0  # channels, then steps
        self._done = False

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the channels.

        Raises:
            UnsupportedOp: the network has an operator the channel graph cannot follow.
            RecipeError: no channels vanish at zero, or a sparsity that no group survives.
        """
        own = self.config
        given, usual = (own.penalty, own.amp, own.coef), BY_OPTIMIZER[config.optimizer]
        penalty, amp, coef = (u if g is None else g for g, u in zip(given, usual, strict=True))
        self._strength = penalty, amp, coef
        self._first = round(own.start * config.epochs * steps_per_epoch)
        self._begin(model)
        self._target = target(self._channels, own.sparsity)
        self._most = int(len(self._channels) * (own.sparsity + own.tolerance))
        self._done = False

    def gradients(self, model: nn.Module) -> None:
        """Keep the weights before the optimizer's step."""
        if self._step >= self._first and not self._done:
            self._before = self._channels.copy(self._before)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Penalise the chosen channels, project those that turn, and hold what is zero at zero."""
        self._step = step + 1
        if step < self._first:
            return
        if self._done:
            self._channels.zero_(self._zero)
        else:
            self._shrink(step, lr)

    def _shrink(self, step: int, lr: float) -> None:
        """Lead the optimizer's step on, and find which channels go to zero.

        With y = x - lr d the weights now and s = lr d the step, all that is needed follows from <y, y>, <y, s> and
        <s, s>, and the result is a y + b s: each tensor is read few times, and none is made anew.
        """
        channels, taken = self._channels, self._before
        torch._foreach_sub_(taken, channels.tensors)  # s, in the memory of x
        y_y, y_s, s_s = (
            channels.squares(channels.tensors),
            channels.dot(channels.tensors, taken),
            channels.squares(taken),
        )
        x_x, x_d, d_d = (y_y + 2 * y_s + s_s).clamp_min(0), (y_s + s_s) / lr, s_s / lr**2
        if step == self._first:
            scores = -redundancy(x_x, x_d, d_d, channels.count, self.config.cosine)
            self._chosen = lowest(scores, channels, channels.none(), self._most)
        # Compared where the numbers are: a GPU need not wait for its queue to say whether the target is reached.
        active = self._chosen & ~self._zero & (self._zero.sum() < self._target)
        weight = penalties(x_x, x_d, d_d, *self._strength) / x_x.sqrt().clamp_min(torch.finfo(x_x.dtype).tiny)
        turned = x_x - lr * x_d - lr * weight * x_x < self.config.epsilon * x_x
        self._zero = self._zero | (active & (turned | (x_x == 0)))
        shorter = (-lr * weight).where(active & ~self._zero, 0)  # of x = y + s
        channels.scale_((1 + shorter).where(~self._zero, 0))
        channels.add_(taken, shorter)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Leave the steps alone from now on if the target is reached."""
        self._done = int(self._zero.sum()) >= self._target
        if self._done:
            self._before = []

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the masks and the next step back."""
        super().load_state(state)
        self._done = int(self._zero.sum()) >= self._target
