"""PE lasso with weight penalty clipping: blocks of the size of a processing element are pulled to zero, weak ones only.

A group lasso shrinks every block. Ternary values follow from the same weights (threshold and scale), so that strong
blocks crowd the threshold and flip. Clipped, the penalty leaves the strong ones alone.

Reference: Yang, He, Fan, Harmonious Coexistence of Structured Weight Pruning and Ternarization for Deep Neural
Networks, AAAI 2020, doi 10.1609/aaai.v34i04.6138. Only its abstract is open: that groups follow the processing elements
and that a clipped penalty has a threshold which adapts itself is the paper's; the formulas are the plainest that do so,
and strength, factor and tile have no published values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewise.errors import RecipeError
from edgewise.sparse.blocks import Tile, block_sizes, block_sums, resolve, spread
from edgewise.sparse.layers import Ends, layers, shadow
from edgewise.sparse.masks import keep_masks
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod

Clip = Literal["mean", "max", "none"]
GUARD = 1e-12  # the least norm that is divided by


@dataclass(frozen=True, kw_only=True)
class PeLasso:
    """Pull blocks of weights to zero while a network trains, then keep those at zero and train on.

    Beside `Ternary` it acts on the full-precision weights behind the ternary ones, in whichever order both are listed.

    Args:
        tile: (outputs, inputs) of a block, or -1 for all; see `edgewise.sparse.blocks`. (1, -1) takes filters.
        strength: lambda, the weight of the sum of norms. No value is published; 1e-5 to 1e-3 is where to search.
        clip: only blocks whose norm is below `factor` times the mean or the largest norm of their layer are
            penalised; "none" penalises all, the plain group lasso.
        factor: a, of the threshold.
        weigh: "sqrt_size" penalises a block by the square root of its size.
        epsilon: a block of a layer without ternary weights is zero when its norm is below this share of the largest.
        freeze_at: the share of the training after which the blocks that are zero stay so, without a penalty, in (0, 1].
        sparsity: the share of the layers' weights whose blocks are frozen at zero then: the weakest, each beside the
            mean of its layer. By default those that are zero by themselves, as in the paper, however many.
        spare: which ends of the network are left alone.

    Raises:
        ValueError: a value out of range, by name.
    """

    kind: Literal["pe_lasso"] = "pe_lasso"
    tile: Tile = (1, 16)
    strength: float
    clip: Clip = "mean"
    factor: float = 1.0
    weigh: Literal["equal", "sqrt_size"] = "equal"
    epsilon: float = 1e-3
    freeze_at: float = 0.7
    sparsity: float | None = None
    spare: Ends = "first_last"

    def __post_init__(self) -> None:
        if len(self.tile) != 2 or any(length < 1 and length != -1 for length in self.tile):
            raise ValueError(f"tile is {self.tile}; it must be two numbers of at least 1, or -1 for all of an axis")
        ranges: tuple[tuple[str, float, bool, str], ...] = (
            ("strength", self.strength, 0 <= self.strength < math.inf, "at least 0"),
            ("factor", self.factor, 0 < self.factor < math.inf, "above 0"),
            ("epsilon", self.epsilon, 0 <= self.epsilon < 1, "in [0, 1)"),
            ("freeze_at", self.freeze_at, 0 < self.freeze_at <= 1, "in (0, 1], a share of the training"),
        )
        for name, value, fits, range_ in ranges:
            if not fits:
                raise ValueError(f"{name} is {value}; it must be {range_}")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}; it must be in (0, 1), a share of the weights")


def block_norms(weight: Tensor, tile: Tile) -> Tensor:
    """Return the L2 norm of each block, ``[ceil(O / Tm), ceil(I / Tn)]``."""
    return block_sums(weight.square(), tile).sqrt()


def penalised(norms: Tensor, clip: Clip, factor: float) -> Tensor:
    """Say which blocks of a layer the clipped penalty acts on: those of a norm below the threshold.

    Args:
        norms: of all its blocks. Those that are zero count in the mean: the more they are the lower the threshold
            gets beside the norms that are left, so that the sparsity limits itself.
        clip: the threshold is `factor` times their mean or the largest; "none" is no threshold.
        factor: a.

    >>> penalised(torch.tensor([0.0, 1.0, 2.0, 5.0]), "mean", 1.0)
    tensor([ True,  True, False, False])
    """
    if clip == "none":
        return torch.ones_like(norms, dtype=torch.bool)
    return norms < factor * (norms.mean() if clip == "mean" else norms.max())


def penalty_gradient(weight: Tensor, config: PeLasso) -> Tensor:
    """Return the gradient of ``sum_g s_g min(|W_g|, tau)`` by the weight, of the same shape; tau is held.

    ``s_g W_g / |W_g|`` where ``|W_g| < tau``, else 0; s_g is 1, or the square root of the block's size.
    """
    return spread(_per_weight(weight, config), tuple(weight.shape), config.tile) * weight


def _per_weight(weight: Tensor, config: PeLasso) -> Tensor:
    """Return what share of its weights the penalty's gradient is, for each block."""
    norms = block_norms(weight, config.tile)
    size: Tensor | float = 1.0
    if config.weigh == "sqrt_size":
        size = block_sizes(tuple(weight.shape), config.tile).to(norms).sqrt()
    return penalised(norms, config.clip, config.factor) * size / norms.clamp_min(GUARD)


@torch.no_grad()
def shrink_(weight: Tensor, config: PeLasso, lr: float) -> None:
    """Make a step of size lr down the penalty, in place: each penalised block gets shorter by ``lr lambda s_g``.

    A step that would lead a block through zero and beyond ends at zero: without a clip that makes it the proximal step.
    """
    shorter = (1 - lr * config.strength * _per_weight(weight, config)).clamp_min(0)
    weight.mul_(spread(shorter, tuple(weight.shape), config.tile))


@final
class PeLassoPruning(TrainingMethod):
    """Prunes blocks as `PeLasso` says.

    The penalty acts on what the optimizer moves: on ternary values it would do nothing, they follow from those. A block
    is pruned when all its ternary values are 0, or by its norm where the layer's weight is no parametrised one.
    """

    config: PeLasso

    def __init__(self, config: PeLasso) -> None:
        self.config = config
        self._layers: dict[str, nn.Module] = {}
        self._zero: dict[str, Tensor] = {}  # masks of blocks: these are 0 and stay so
        self._freeze = 0  # the step

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the layers, and the step at which zeros are frozen: the last one at the latest.

        Raises:
            RecipeError: no layer is left, or one is smaller than the tile.
        """
        steps = config.epochs * steps_per_epoch
        self._freeze = min(round(self.config.freeze_at * steps), steps - 1)
        self._layers = layers(model, self.config.spare)
        if not self._layers:
            raise RecipeError(f'pe_lasso: spare = "{self.config.spare}" leaves no layer of {len(layers(model))}')
        try:
            for name, layer in self._layers.items():
                resolve(tuple(shadow(layer).shape), self.config.tile, name)
        except ValueError as error:
            raise RecipeError(f"pe_lasso: {error}") from error
        self._zero = {
            name: torch.zeros_like(block_norms(shadow(layer), self.config.tile), dtype=torch.bool)
            for name, layer in self._layers.items()
        }

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Shrink, or hold what is frozen at zero, whatever moved it: gradient, momentum, weight decay."""
        if step < self._freeze:
            # The paper's penalty is a part of the loss. There AdamW would divide its gradient by its own size, so that
            # every block shrinks as fast as the largest, and sgd's momentum m makes it 1 / (1 - m) as strong. Here it
            # is a step of its own with the optimizer's rate: strength means one thing, whatever the optimizer.
            for layer in self._layers.values():
                shrink_(shadow(layer), self.config, lr)
            return
        if step == self._freeze:
            self._zero = self._frozen()
        self._hold()

    def _frozen(self) -> dict[str, Tensor]:
        """Choose the blocks that stay at zero."""
        if self.config.sparsity is None:
            return {name: self._is_zero(layer) for name, layer in self._layers.items()}
        squares = {name: shadow(layer).detach().square() for name, layer in self._layers.items()}
        scores = {name: square / square.mean().clamp_min(GUARD) for name, square in squares.items()}
        keep = keep_masks(scores, self.config.sparsity, "global", self.config.tile)
        return {name: block_sums(kept, self.config.tile) == 0 for name, kept in keep.items()}

    def _is_zero(self, layer: nn.Module) -> Tensor:
        """Say which blocks of a layer are pruned."""
        if parametrize.is_parametrized(layer, "weight"):
            return block_sums(cast(Tensor, layer.weight) != 0, self.config.tile) == 0
        norms = block_norms(shadow(layer), self.config.tile)
        return (norms == 0) | (norms < self.config.epsilon * norms.max())

    def _hold(self) -> None:
        for name, layer in self._layers.items():
            weight = shadow(layer)
            weight.masked_fill_(spread(self._zero[name], tuple(weight.shape), self.config.tile), 0)

    def finish(self, model: nn.Module) -> nn.Module:
        """Set what is zero to zero again, which an average of the weights has forgotten."""
        self._hold()
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the masks, by layer."""
        return dict(self._zero)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        self._zero = {name: state[name].to(zero.device) for name, zero in self._zero.items()}
