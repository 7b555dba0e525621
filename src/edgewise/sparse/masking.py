"""What the training methods share that keep single weights at zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgewise.sparse.layers import layers, shadow
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


class Masking(TrainingMethod):
    """Keeps masks of the weights of convolutions and linear layers, from those that are zero at the start on.

    A weight outside its mask is set to zero after each step, whatever moved it: momentum, weight decay or another
    method. It has no gradient, so that momentum forgets it.
    """

    def __init__(self) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self.keep: dict[str, Tensor] = {}  # by the weights' names, true where a weight stays; `choose` sets them
        self._factors: dict[str, Tensor] = {}  # the same as ones and zeros: a product is 5 times as fast as a mask

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the weights, behind a parametrisation the full-precision ones, and those that are not zero."""
        self.weights = {f"{name}.weight".removeprefix("."): shadow(layer) for name, layer in layers(model).items()}
        self.choose({name: weight.detach() != 0 for name, weight in self.weights.items()})

    def choose(self, keep: Mapping[str, Tensor]) -> None:
        """Keep these weights from now on, and set the others to zero; by their names, true where a weight stays."""
        self.keep = dict(keep)
        self._factors = {name: kept.to(self.weights[name].dtype) for name, kept in keep.items()}
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Set what is zero to zero again, whatever moved it: to +0, which is stored as nothing, and not to -0."""
        self.only_kept(self.weights)
        if self.weights:
            torch._foreach_add_(list(self.weights.values()), 0.0)

    def only_kept(self, tensors: Mapping[str, Tensor]) -> None:
        """Multiply the entries of tensors by zero, in place, that belong to weights that are zero.

        Args:
            tensors: some of them, by the weights' names, each of its weight's shape.
        """
        if tensors:
            torch._foreach_mul_(list(tensors.values()), [self._factors[name] for name in tensors])

    def gradients(self, model: nn.Module) -> None:
        """Take the gradients of what is zero away."""
        self.only_kept({name: weight.grad for name, weight in self.weights.items() if weight.grad is not None})

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Set what is zero to zero again."""
        self.hold()

    def finish(self, model: nn.Module) -> nn.Module:
        """Do so once more: an average of the weights has forgotten it."""
        self.hold()
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the masks."""
        return {f"keep/{name}": keep for name, keep in self.keep.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self.choose({name: state[f"keep/{name}"].to(keep.device) for name, keep in self.keep.items()})
