"""What the training methods share that keep single weights at zero."""

from __future__ import annotations

from torch import Tensor, nn

from edgewise.sparse.layers import layers, shadow
from edgewise.sparse.masks import apply_
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


class Masking(TrainingMethod):
    """Keeps masks of the weights of convolutions and linear layers, from those that are zero at the start on.

    A weight outside its mask is set to zero after each step, whatever moved it: momentum, weight decay or another
    method. It has no gradient, so that momentum forgets it.
    """

    def __init__(self) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self.keep: dict[str, Tensor] = {}  # by the weights' names, true where a weight stays

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the weights, behind a parametrisation the full-precision ones, and those that are not zero."""
        self.weights = {f"{name}.weight".removeprefix("."): shadow(layer) for name, layer in layers(model).items()}
        self.keep = {name: weight.detach() != 0 for name, weight in self.weights.items()}

    def gradients(self, model: nn.Module) -> None:
        """Take the gradients of what is zero away."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.keep[name], 0)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Set what is zero to zero again."""
        apply_(self.weights, self.keep)

    def finish(self, model: nn.Module) -> nn.Module:
        """Do so once more: an average of the weights has forgotten it."""
        apply_(self.weights, self.keep)
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the masks."""
        return {f"keep/{name}": keep for name, keep in self.keep.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        for name, keep in self.keep.items():
            keep.copy_(state[f"keep/{name}"])
