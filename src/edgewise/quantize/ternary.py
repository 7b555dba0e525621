"""Ternary weights: each is -a, 0 or +a, with one a for a layer, in the forward of a network that trains.

The optimizer moves full-precision weights behind them (the shadow weights); gradients pass straight through.

References: (max) He, Gong, Fan, Optimize Deep Convolutional Neural Network with Ternarized Weights and High Accuracy,
WACV 2019, arXiv 1807.07948. (gaussian) He, Fan, Simultaneously Optimizing Weight and Quantizer of Ternary Neural
Network using Truncated Gaussian Approximation, CVPR 2019, arXiv 1810.01018. Both by the authors of the AAAI 2020 paper
that joins ternary weights with pruning (see `edgewise.sparse.pe`); which of the two it used is not published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewise.errors import ModelError, RecipeError
from edgewise.sparse.layers import Ends, layers, shadow
from edgewise.sparse.masks import LAYERS
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod

BETA = 0.05  # of both papers: the threshold, or where it begins, as a share of the largest weight
EXPANSION = (0.05, 0.1, 0.15, 0.2)  # the betas of WACV 2019's residual expansion with four terms
FURTHEST = 3.0  # the threshold of CVPR 2019 stays within so many standard deviations


def max_threshold(weight: Tensor, beta: float = BETA) -> tuple[Tensor, Tensor]:
    """Return the threshold ``D = beta max|w|`` and the scale ``a = mean(|w| : |w| >= D)``, both ``[]``.

    >>> max_threshold(torch.tensor([1.0, -0.5, 0.02]))
    (tensor(0.0500), tensor(0.7500))
    """
    size = weight.detach().abs()
    threshold = beta * size.max()
    above = size >= threshold
    return threshold, (size * above).sum() / above.sum().clamp_min(1)


def ternary_max(weight: Tensor, beta: float = BETA) -> Tensor:
    """Round to +a where ``w >= D``, to -a where ``w < -D``, else to 0, with D and a of `max_threshold`.

    The gradient is passed on where ``-1 < w < 1``, and is 0 elsewhere.

    Args:
        weight: of any shape; what it returns has the same.
        beta: in (0, 1).

    >>> ternary_max(torch.tensor([1.0, -0.5, 0.02, -0.05]))
    tensor([ 0.5167, -0.5167,  0.0000,  0.0000])
    """
    threshold, scale = max_threshold(weight, beta)
    codes = (weight >= threshold).to(weight.dtype) - (weight < -threshold).to(weight.dtype)
    return _straight_through(scale * codes, weight * (weight.abs() < 1))


def gaussian_threshold(weight: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, threshold and scale of the layer's weights seen as a Gaussian, each of delta's shape.

    With mean m and standard deviation s: ``D = min(|delta|, 3 s)`` and ``a = m + s phi(D/s) / (1 - Phi(D/s))``, the
    mean of what lies above m + D. D and a have a gradient by delta; m and s are taken as given, so that the weights'
    gradient is the straight-through one alone.

    Args:
        weight: of any shape.
        delta: the learnt threshold, ``[]`` or ``[1]``.

    >>> [round(x.item(), 4) for x in gaussian_threshold(torch.tensor([-1.0, 1.0, -2.0, 2.0]), torch.tensor(0.0))]
    [0.0, 0.0, 1.4567]
    """
    fixed = weight.detach()
    # Weights that are exactly 0 are pruned: the Gaussian is that of the others. The paper has none of them; counted in,
    # they would shrink s, and with it the scale of the weights that are left, the more the more is pruned.
    left = fixed != 0
    count = left.sum()
    mean = fixed.sum() / count.clamp_min(1)
    variance = ((fixed - mean) * left).square().sum() / (count - 1).clamp_min(1)  # unbiased, as torch's std
    std = variance.sqrt().clamp_min(torch.finfo(weight.dtype).tiny)
    threshold = torch.minimum(delta.abs(), FURTHEST * std)
    a = threshold / std
    density = torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi)
    beyond = torch.erfc(a / math.sqrt(2)) / 2
    return mean.expand_as(threshold), threshold, mean + std * density / beyond


def ternary_gaussian(weight: Tensor, delta: Tensor) -> Tensor:
    """Round to +a where ``w > m + D``, to -a where ``w < m - D``, else to 0, with `gaussian_threshold`'s m, D and a.

    The weights' gradient is that of the result, unchanged: the paper divides the codes' gradient by a ("gradient
    correctness"), and the product with a makes it good again. Delta's comes through a. For m other than 0 the scale of
    the positive side stands for both, as in the authors' code.

    Args:
        weight: of any shape; what it returns has the same.
        delta: the learnt threshold, ``[]`` or ``[1]``.
    """
    mean, threshold, scale = gaussian_threshold(weight, delta)
    codes = (weight > mean + threshold).to(weight.dtype) - (weight < mean - threshold).to(weight.dtype)
    # A weight that is exactly 0 is pruned and stays 0; by the formula it could become +-a where |m| > D.
    return _straight_through(scale * (codes * (weight != 0)), weight)


def _straight_through(value: Tensor, passed: Tensor) -> Tensor:
    """Return the value with its own gradient and that of what is passed."""
    return value + (passed - passed.detach())


@final
class MaxTernary(nn.Module):
    """Parametrises a weight as `ternary_max`, or as the sum of several (residual expansion).

    Args:
        betas: one threshold for each term. More than one make more than three values, and take as many codes.
    """

    def __init__(self, *betas: float) -> None:
        super().__init__()
        self.betas = betas or (BETA,)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the ternary weight."""
        total = ternary_max(weight, self.betas[0])
        for beta in self.betas[1:]:
            total = total + ternary_max(weight, beta)
        return total


@final
class GaussianTernary(nn.Module):
    """Parametrises a weight as `ternary_gaussian` with a threshold that is learnt.

    Args:
        weight: the weight it is for; delta begins at ``beta max|w|``.
        beta: in (0, 1).
    """

    def __init__(self, weight: Tensor, beta: float = BETA) -> None:
        super().__init__()
        self.delta = nn.Parameter(beta * weight.detach().abs().max().reshape(1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the ternary weight."""
        return ternary_gaussian(weight, self.delta)


@dataclass(frozen=True, kw_only=True)
class Ternary:
    """Train with ternary weights: each convolution and linear layer ends with -a, 0 and +a alone.

    Biases and normalisations stay float. Methods that trace the network (hesso, dhspg) stand before this one.

    Args:
        variant: "max", a threshold by the largest weight; "gaussian", one that is learnt. Its only gradient comes
            through the scale: where no normalisation is behind a layer, as in most last ones, a scale that wants to
            grow can take the threshold to three standard deviations, where all is zero. Leave such layers float.
        beta: the threshold, or where it begins, as a share of the largest weight.
        float_layers: which ends of the network stay float. "none" is what the authors have for CIFAR-10.

    Raises:
        ValueError: a value out of range, by name.
    """

    kind: Literal["ternary"] = "ternary"
    variant: Literal["max", "gaussian"] = "max"
    beta: float = BETA
    float_layers: Ends = "first_last"

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"beta is {self.beta}; it must be in (0, 1), a share of the largest weight")


@final
class Ternarization(TrainingMethod):
    """Puts ternary weights in front of the trained ones, as `Ternary` says, and leaves only them in the end.

    Both the shadow weights and the thresholds are parameters of the network while it trains, so a checkpoint holds
    them, and an average of the weights (`TrainConfig.ema`) is one of the shadow weights, made ternary afterwards.
    """

    config: Ternary

    def __init__(self, config: Ternary) -> None:
        self.config = config
        self._layers: list[list[nn.Module]] = []  # those in one list share a weight

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Parametrise the layers' weights.

        Raises:
            RecipeError: no layer is left, or weight decay would pull at the thresholds.
            ModelError: a weight is parametrised already.
        """
        own = self.config
        if own.variant == "gaussian" and config.decay == "all" and config.weight_decay > 0:
            raise RecipeError('ternary: weight decay would close the learnt thresholds; take decay = "weights"')
        chosen = layers(model, own.float_layers)
        if not chosen:
            raise RecipeError(f'ternary: float_layers = "{own.float_layers}" leaves no layer of {len(layers(model))}')
        for name, layer in chosen.items():
            if parametrize.is_parametrized(layer, "weight"):
                raise ModelError(f"ternary: the weight of {name} is parametrised already; remove that first")
        with_weight = [module for module in model.modules() if isinstance(module, LAYERS)]
        self._layers = [[m for m in with_weight if shadow(m) is shadow(layer)] for layer in chosen.values()]
        for sharing in self._layers:
            weight = shadow(sharing[0])
            made = MaxTernary(own.beta) if own.variant == "max" else GaussianTernary(weight, own.beta)
            for layer in sharing:
                parametrize.register_parametrization(layer, "weight", made)

    def finish(self, model: nn.Module) -> nn.Module:
        """Leave the ternary values as plain weights."""
        for sharing in self._layers:
            value = sharing[0].weight
            for layer in sharing:
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
                bias = layer.bias  # behind the weight again, as a new layer has it
                del layer.bias
                layer.register_parameter("bias", bias)  # type: ignore[arg-type]
            shadow(sharing[0]).copy_(value)  # type: ignore[arg-type]
        return model
