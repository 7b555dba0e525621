"""Zeros that stay: what a sparse network is trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import nn

from edgewise.errors import RecipeError
from edgewise.sparse.masking import Masking
from edgewise.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class KeepZeros:
    """Leave the single weights at zero that are exactly zero when the training starts."""

    kind: Literal["keep_zeros"] = "keep_zeros"


@final
class ZerosKept(Masking):
    """Keeps the weights at 0 that are exactly 0 at the start.

    Only the weights that `Sparsify` sets to zero are looked at: a bias that begins at 0 is trained.
    """

    config: KeepZeros

    def __init__(self, config: KeepZeros) -> None:
        super().__init__()
        self.config = config

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the zeros.

        Raises:
            RecipeError: no weight is zero.
        """
        super().start(model, config, steps_per_epoch)
        if all(bool(keep.all()) for keep in self.keep.values()):
            raise RecipeError("keep_zeros: no weight of the network is 0; sparsify it first, or leave the method out")
