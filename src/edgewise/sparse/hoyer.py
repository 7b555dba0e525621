"""Hoyer-Square: a penalty that falls as fewer weights hold a layer's norm; a baseline of FlipOut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.errors import TrainingDiverged
from edgewise.sparse.masking import Masking
from edgewise.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class HoyerSquare:
    """Draw weights to zero by a penalty, set the small ones to zero at a given time, and train the others on.

    Args:
        strength: of the penalty, the sum over layers of ``(sum |w|)^2 / sum w^2``.
        threshold: magnitudes below it become zero.
        end: the share of the training after which they do, in (0, 1); the penalty ends there as well.

    Raises:
        ValueError: a value out of range, by name.

    Reference: Yang, Wen, Li, DeepHoyer, ICLR 2020, arXiv 1908.09979, eq. (3).
    """

    kind: Literal["hoyer"] = "hoyer"
    strength: float = 1e-4
    threshold: float = 1e-4
    end: float = 0.7

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("threshold", self.threshold)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not 0 < self.end < 1:
            raise ValueError(f"end is {self.end}; it must be in (0, 1), a share of the training")


def hoyer_square(weight: Tensor) -> Tensor:
    """Return ``(sum |w|)^2 / sum w^2``, between 1 for a single weight and their number for equal ones; 0 for zeros.

    >>> hoyer_square(torch.tensor([3.0, -4.0])), hoyer_square(torch.tensor([0.0, 5.0]))
    (tensor(1.9600), tensor(1.))
    """
    return weight.abs().sum().square() / weight.square().sum().clamp(min=torch.finfo(weight.dtype).tiny)


@final
class HoyerSparsity(Masking):
    """Adds the penalty, then keeps what it left, as `HoyerSquare` says."""

    config: HoyerSquare

    def __init__(self, config: HoyerSquare) -> None:
        super().__init__()
        self.config = config
        self._last = self._step = 0

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the weights, and the step that is the last with the penalty."""
        super().start(model, config, steps_per_epoch)
        self._last, self._step = max(1, round(self.config.end * config.epochs * steps_per_epoch)), 0

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Add the penalty, until the small weights are gone."""
        if self._step >= self._last:
            return loss
        return loss + self.config.strength * torch.stack([hoyer_square(w) for w in self.weights.values()]).sum()

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Set the small weights to zero when it is time.

        Raises:
            TrainingDiverged: all weights of a layer were small.
        """
        super().after_step(model, step, lr)
        self._step = step + 1
        if self._step == self._last:
            large = {name: weight.detach().abs() >= self.config.threshold for name, weight in self.weights.items()}
            for name, chosen in large.items():
                if bool(self.keep[name].any()) and not bool((chosen & self.keep[name]).any()):
                    raise TrainingDiverged(
                        f"hoyer: all weights of {name} are below {self.config.threshold:g} after step {self._step}; "
                        f"take a strength below {self.config.strength:g}"
                    )
            self.choose({name: keep & large[name] for name, keep in self.keep.items()})

    def state(self) -> dict[str, Tensor]:
        """Return the masks and the next step."""
        return {**super().state(), "step": torch.tensor(self._step)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        super().load_state(state)
        self._step = int(state["step"])
