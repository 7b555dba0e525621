"""What training methods share that bring channels to exactly zero: the masks, their state, and that zeros stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.prune.channels import Channels, channels_to_zero
from edgewise.train.method import TrainingMethod


class Zeroing(TrainingMethod):
    """Keeps which channels are zero and which are chosen to become so.

    Args:
        example: an input of the network's shape ``[N, C, H, W]``.
    """

    def __init__(self, example: Tensor) -> None:
        self._example = example
        self._channels: Channels
        self._zero: Tensor  # mask [C]: these are 0 and stay so
        self._chosen: Tensor  # mask [C]: these are to become so
        self._before: list[Tensor] = []  # the weights before a step, where they are needed
        self._step = 0  # the next

    def _begin(self, model: nn.Module) -> None:
        """Find the channels; none is chosen yet.

        Raises:
            UnsupportedOp: the network has an operator the channel graph cannot follow.
            RecipeError: no channels vanish at zero.
        """
        self._channels = channels_to_zero(model, self._example)
        self._zero, self._chosen = self._channels.none(), self._channels.none()
        self._before, self._step = [], 0

    def finish(self, model: nn.Module) -> nn.Module:
        """Set what is zero to zero again, which an average of the weights has forgotten."""
        self._channels.zero_(self._zero)
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the masks and the next step."""
        return {"zero": self._zero, "chosen": self._chosen, "step": torch.tensor(self._step)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self._zero, self._chosen = state["zero"].to(self._zero.device), state["chosen"].to(self._zero.device)
        self._step = int(state["step"])
