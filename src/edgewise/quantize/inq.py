"""Powers of two, a part of the weights at a time: those that are still free make up for those that are not (INQ).

Reference: Zhou et al., Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights, ICLR 2017,
arXiv 1702.03044.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.errors import RecipeError
from edgewise.quantize.codebook import FEWEST_BITS, MOST_BITS, chosen, powers_of_two
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


@dataclass(frozen=True, kw_only=True)
class PowersOfTwo:
    """Make each layer's weights powers of two or 0, a part at a time, while the network trains.

    Args:
        bits: of a code, 2 to 8; the paper's are 5.
        portions: of each layer's weights that are fixed by then, rising, the last is 1; the first before the training,
            the others after equal numbers of epochs. Section 4 of the paper has these.
        layers: names of the layers, as `named_modules` tells them; empty: all.

    Raises:
        ValueError: bits or portions out of range.
    """

    kind: Literal["powers_of_two"] = "powers_of_two"
    bits: int = 5
    portions: tuple[float, ...] = (0.5, 0.75, 0.875, 1.0)
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not FEWEST_BITS <= self.bits <= MOST_BITS:
            raise ValueError(f"bits = {self.bits}: {FEWEST_BITS} to {MOST_BITS}")
        rising = all(low < high for low, high in pairwise((0.0, *self.portions)))
        if not rising or not self.portions or self.portions[-1] != 1:
            raise ValueError(f"portions = {self.portions}: shares of the weights that rise from above 0 to 1")


@dataclass
class _Layer:
    """A layer on its way.

    Args:
        weight: the parameter.
        largest: magnitude at the start, which tells the exponents.
        fixed: bool, in the weight's shape.
        held: what the fixed ones are.
    """

    weight: nn.Parameter
    largest: float
    fixed: Tensor
    held: Tensor

    def fix(self, portion: float, bits: int) -> None:
        """Fix the largest of the free weights until their share of all is reached; by rank, ties by their place."""
        count = round(portion * self.weight.numel()) - int(self.fixed.sum())
        magnitudes = self.weight.detach().abs().masked_fill(self.fixed, -1.0).flatten()
        self.fixed.view(-1)[magnitudes.argsort(descending=True, stable=True)[:count]] = True
        rounded = powers_of_two(self.weight, bits, self.largest).weight
        self.held = torch.where(self.fixed, rounded, self.held)
        self.hold()

    def hold(self) -> None:
        """Let the fixed weights be what they were fixed at."""
        self.weight.copy_(torch.where(self.fixed, self.held, self.weight))


def _free(weight: nn.Parameter) -> _Layer:
    """Return a layer of which no weight is fixed."""
    largest = float(weight.detach().abs().max())
    return _Layer(weight, largest, torch.zeros(weight.shape, dtype=torch.bool, device=weight.device), weight.detach())


@final
class Incremental(TrainingMethod):
    """Fixes the largest weights at powers of two, trains the others, and so on until all are fixed."""

    config: PowersOfTwo

    def __init__(self, config: PowersOfTwo) -> None:
        self.config = config
        self._layers: dict[str, _Layer] = {}
        self._epochs: dict[int, float] = {}

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Fix the first part.

        Raises:
            RecipeError: no layer of such a name, or fewer epochs than parts.
            ValueError: a weight is NaN or infinite.
        """
        parts = self.config.portions
        if config.epochs < len(parts):
            raise RecipeError(f"powers_of_two: {config.epochs} epochs for {len(parts)} portions; give each an epoch")
        self._epochs = {place * config.epochs // len(parts) - 1: portion for place, portion in enumerate(parts)}
        self._layers = {name: _free(weight) for name, weight in chosen(model, self.config.layers).items()}
        self.after_epoch(model, -1)

    def gradients(self, model: nn.Module) -> None:
        """Take away the gradients of the fixed weights."""
        for layer in self._layers.values():
            if layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(layer.fixed, 0)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Hold the fixed weights, which momentum and decay move as well."""
        for layer in self._layers.values():
            layer.hold()

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Fix the next part, where its turn has come."""
        portion = self._epochs.get(epoch)
        if portion is not None:
            for layer in self._layers.values():
                layer.fix(portion, self.config.bits)

    def finish(self, model: nn.Module) -> nn.Module:
        """Hold all weights, in an average of them too."""
        self.after_step(model, 0, 0.0)
        return model

    def state(self) -> dict[str, Tensor]:
        """Return which weights are fixed, and where."""
        return {
            f"{kind}.{name}": getattr(layer, kind) for name, layer in self._layers.items() for kind in ("fixed", "held")
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        for name, layer in self._layers.items():
            layer.fixed.copy_(state[f"fixed.{name}"])
            layer.held.copy_(state[f"held.{name}"])
