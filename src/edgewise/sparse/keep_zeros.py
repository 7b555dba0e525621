"""Zeros that stay: what a sparse network is trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn

from edgewise.errors import RecipeError
from edgewise.sparse.layers import layers, shadow
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


@dataclass(frozen=True, kw_only=True)
class KeepZeros:
    """Leave the single weights at zero that are exactly zero when the training starts."""

    kind: Literal["keep_zeros"] = "keep_zeros"


@final
class ZerosKept(TrainingMethod):
    """Sets the weights that were exactly 0 at the start to 0 again after each step, whatever moved them.

    That is momentum, weight decay or another method as much as the gradient. Only the weights that `Sparsify` sets to
    zero are looked at: a bias that begins at 0 is trained.
    """

    config: KeepZeros

    def __init__(self, config: KeepZeros) -> None:
        self.config = config
        self._zeros: list[tuple[nn.Parameter, Tensor]] = []  # weights, by themselves: a parametrisation renames them

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the zeros; a resumed training starts from the same network, so there is no state to keep.

        Raises:
            RecipeError: no weight is zero.
        """
        weights = map(shadow, layers(model).values())
        self._zeros = [(weight, zero) for weight in weights if bool((zero := weight.detach() == 0).any())]
        if not self._zeros:
            raise RecipeError("keep_zeros: no weight of the network is 0; sparsify it first, or leave the method out")

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Set them to zero again."""
        for weight, zero in self._zeros:
            weight.masked_fill_(zero, 0)
