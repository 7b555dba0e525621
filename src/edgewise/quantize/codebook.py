"""Weights that share a few values: each is a code, and a layer's codebook says what the codes stand for.

The values come from k-means, or are zero and one magnitude, or powers of two; of k-means and of ternary weights they
can be trained further, with the codes as they are.

References: Han et al., Deep Compression, ICLR 2016, arXiv 1510.00149, section 3: k-means from linear initialisation,
trained centroids. Li and Liu, Ternary Weight Networks, 2016, arXiv 1605.04711. Zhou et al., Incremental Network
Quantization, ICLR 2017, arXiv 1702.03044: powers of two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.errors import RecipeError, nearest
from edgewise.export.huffman import huffman_bits
from edgewise.sparse.masks import prunable
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod

FEWEST_BITS, MOST_BITS = 2, 8  # of a code
MOST_STEPS = 10_000  # of Lloyd's; it ends by itself, mostly after some tens
TWN_THRESHOLD = 0.7  # of the mean magnitude, Li and Liu eq. (6)

Floats = NDArray[np.float64]


class Shared(NamedTuple):
    """A layer's weights as codes.

    Args:
        values: what the codes stand for, ``[k]``, rising.
        codes: int32, in the weights' shape.
    """

    values: Tensor
    codes: Tensor

    @property
    def weight(self) -> Tensor:
        """The weights: each the value of its code."""
        return self.values[self.codes.long()]

    @property
    def counts(self) -> Tensor:
        """How many weights have each code, ``[k]``."""
        return torch.bincount(self.codes.flatten(), minlength=len(self.values))

    @property
    def fixed_bits(self) -> int:
        """What codes of one width take, the values apart."""
        return self.codes.numel() * max(0, len(self.values) - 1).bit_length()

    @property
    def huffman_bits(self) -> int:
        """What Huffman codes take, the values and the codes' lengths apart."""
        return huffman_bits(self.counts.tolist())


def kmeans(weight: Tensor, bits: int, zero: bool = False) -> Shared:
    """Share weights among the centroids of k-means, ``2 ** bits`` of them or fewer.

    Lloyd's steps from centroids at equal distances between the lowest and the highest weight, until no weight changes
    its centroid. In one dimension a cluster is a stretch of the sorted weights, so that a step costs ``k log n``; one
    without weights stays where it is, and is left out in the end. A weight in the middle goes to the lower centroid.

    Args:
        weight: finite, of any shape.
        bits: 2 to 8.
        zero: hold the centroid that begins nearest to 0 there, so that a weight of 0 stays 0; the smallest others
            become 0 as well.

    Returns:
        The centroids, and a code for each weight. Where there are no more different weights than centroids, they are
        the centroids.

    Raises:
        ValueError: bits out of range, no weights, NaN or infinity.

    >>> kmeans(torch.tensor([0.0, 1.0, 2.0, 9.0, 10.0, 20.0]), bits=2).values.tolist()
    [1.0, 9.5, 20.0]
    """
    _hold(weight, bits)
    flat = weight.detach().cpu().double().flatten().numpy()
    ordered = np.sort(flat)
    distinct = ordered[np.flatnonzero(np.diff(ordered, prepend=-np.inf))] + 0.0
    centroids = distinct if len(distinct) <= 1 << bits else _lloyd(ordered, 1 << bits, zero)
    codes = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, flat)
    return _shared(centroids, codes, weight)


def _lloyd(ordered: Floats, count: int, zero: bool) -> Floats:
    """Return the centroids that have weights when Lloyd's steps have come to rest.

    Args:
        ordered: weights ``[n]``, rising.
        count: of the centroids.
        zero: as in `kmeans`.
    """
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], count)
    held = int(np.abs(centroids).argmin())
    ends = members = np.empty(0, np.int64)
    for _ in range(MOST_STEPS):
        if zero:
            centroids[held] = 0.0
        before, inner = ends, np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
        ends = np.concatenate([[0], inner, [len(ordered)]])
        members = np.diff(ends)
        if np.array_equal(ends, before):
            break
        centroids = np.where(members > 0, np.diff(sums[ends]) / np.maximum(members, 1), centroids)
    return centroids[members > 0]


def ternary(weight: Tensor, threshold: float = TWN_THRESHOLD) -> Shared:
    """Share weights among 0, a and -a.

    ``|w| > threshold * mean|w|`` tells which are not 0, and a is the mean magnitude of those.

    Args:
        weight: finite, of any shape.
        threshold: at least 0.

    Returns:
        The values, without those that no weight has.

    Raises:
        ValueError: no weights, NaN or infinity.

    Reference: Li and Liu, Ternary Weight Networks, eq. (5) and (6).

    >>> ternary(torch.tensor([0.1, -1.0, 3.0, 0.0])).weight.tolist()
    [0.0, -2.0, 2.0, 0.0]
    """
    _hold(weight)
    flat = weight.detach().cpu().double().flatten().numpy()
    large = np.abs(flat) > threshold * np.abs(flat).mean()
    scale = np.abs(flat[large]).mean() if large.any() else 0.0
    return _used(np.array([-scale, 0.0, scale]), 1 + np.sign(flat).astype(np.int64) * large, weight)


def powers_of_two(weight: Tensor, bits: int, largest: float | None = None) -> Shared:
    """Share weights among 0 and plus and minus some powers of two: shifts do for multiplications.

    The exponents go from ``n1 = floor(log2(4 s / 3))`` down to ``n1 + 1 - 2 ** (bits - 2)``. A weight becomes the
    power b with ``3/4 b <= |w| < 3/2 b``, but the lowest from ``|w| >= b / 2`` on.

    Args:
        weight: finite, of any shape.
        bits: 2 to 8; one of the codes' bits is for 0.
        largest: s, the largest magnitude, or that of the weights when their exponents were chosen.

    Returns:
        The values, without those that no weight has.

    Raises:
        ValueError: bits out of range, no weights, NaN or infinity.

    Reference: Zhou et al., Incremental Network Quantization, eq. (1) to (4).

    >>> powers_of_two(torch.tensor([1.0, -0.8, 0.3, 0.25, 0.2]), bits=3).weight.tolist()
    [1.0, -1.0, 0.5, 0.5, 0.0]
    """
    _hold(weight, bits)
    flat = weight.detach().cpu().double().flatten().numpy()
    count = 1 << (bits - 2)
    largest = float(np.abs(flat).max()) if largest is None else largest
    highest = _exponents(np.array([largest]))[0] if largest else 0
    lowest = highest + 1 - count
    steps = np.where(np.abs(flat) < 2.0 ** (lowest - 1), 0, np.clip(_exponents(flat), lowest, highest) - lowest + 1)
    values = 2.0 ** np.arange(lowest, highest + 1)
    return _used(np.concatenate([-values[::-1], [0.0], values]), count + np.sign(flat).astype(np.int64) * steps, weight)


def _exponents(numbers: Floats) -> NDArray[np.int64]:
    """Return ``floor(log2(4 |x| / 3))``; that of 0 is of no use."""
    return np.frexp(np.abs(numbers) * 4 / 3)[1].astype(np.int64) - 1


def _hold(weight: Tensor, bits: int = FEWEST_BITS) -> None:
    """Refuse what no codebook can be made of."""
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"bits = {bits}: {FEWEST_BITS} to {MOST_BITS}")
    if not weight.numel() or not bool(weight.isfinite().all()):
        raise ValueError("a codebook is made of finite weights, at least one; these are none, or hold NaN or infinity")


def _used(values: Floats, codes: NDArray[np.int64], weight: Tensor) -> Shared:
    """Return the values that weights have, rising, and their codes."""
    known = np.bincount(codes, minlength=len(values)) > 0
    return _shared(values[known], (np.cumsum(known) - 1)[codes], weight)


def _shared(values: Floats, codes: NDArray[np.int64], weight: Tensor) -> Shared:
    """Return values and codes of a weight's type and shape, where it is."""
    places = torch.from_numpy(codes.astype(np.int32)).reshape(weight.shape)
    return Shared(torch.from_numpy(values).to(weight), places.to(weight.device))


@dataclass(frozen=True, kw_only=True)
class ShareWeights:
    """Let each layer's weights share a few values, and train these.

    The weights of convolutions and linear layers, no biases or normalisations. The tensors keep their shapes and types;
    what becomes smaller is the network's packed file.

    Args:
        values: "kmeans", the centroids of `kmeans`; "ternary", 0 and one magnitude.
        bits: of a code of "kmeans", 2 to 8; those of "ternary" take 2, whatever is said here.
        zero: of "kmeans": a centroid that is 0 and stays 0, for networks that are sparse.
        layers: names of the layers, as `named_modules` tells them; empty: all.
        gradient: a value has the "sum" of its weights' gradients, which is its own; the "mean" moves it as far as a
            single weight would be moved, whatever their number, so that a learning rate suits both.

    Raises:
        ValueError: bits out of range.
    """

    kind: Literal["share_weights"] = "share_weights"
    values: Literal["kmeans", "ternary"] = "kmeans"
    bits: int = 4
    zero: bool = False
    layers: tuple[str, ...] = ()
    gradient: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not FEWEST_BITS <= self.bits <= MOST_BITS:
            raise ValueError(f"bits = {self.bits}: {FEWEST_BITS} to {MOST_BITS}")

    def of(self, weight: Tensor) -> Shared:
        """Return the codebook and the codes of a layer's weights."""
        return VALUES[self.values](weight, self)


VALUES: dict[str, Callable[[Tensor, ShareWeights], Shared]] = {
    "kmeans": lambda weight, config: kmeans(weight, config.bits, config.zero),
    "ternary": lambda weight, config: ternary(weight),
}


def chosen(model: nn.Module, layers: Collection[str]) -> dict[str, nn.Parameter]:
    """Return the weights of some convolutions and linear layers, or of all, by the parameters' names.

    Raises:
        RecipeError: no layer of such a name, or none at all.
    """
    weights = prunable(model)
    known = [name.rpartition(".")[0] for name in weights]
    for layer in layers:
        if layer not in known:
            raise RecipeError(f'layers: "{layer}" is no convolution or linear layer with weights of its own; '
                              f"{nearest(layer, known)}")  # fmt: skip
    if not weights:
        raise RecipeError("the network has no convolution or linear layer whose weights could be shared")
    return {name: weights[name] for name, layer in zip(weights, known, strict=True) if not layers or layer in layers}


def shared_weights(model: nn.Module, config: ShareWeights) -> dict[str, Shared]:
    """Return the codebooks and codes of a network's layers by the parameters' names; the network stays as it is.

    Raises:
        RecipeError: no layer of such a name.
        ValueError: a weight is NaN or infinite (its layer is named).
    """
    found = {}
    for name, weight in chosen(model, config.layers).items():
        try:
            found[name] = config.of(weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


@torch.no_grad()
def share(model: nn.Module, config: ShareWeights) -> nn.Module:
    """Return a copy of a network whose layers' weights share a few values.

    Raises:
        RecipeError, ValueError: as `shared_weights`.
    """
    copied = copy.deepcopy(model)
    parameters = dict(copied.named_parameters())
    for name, shared in shared_weights(model, config).items():
        parameters[name].copy_(shared.weight)
    return copied


class _Trained(NamedTuple):
    """A layer whose values are trained: a value is its sign times its magnitude or centroid.

    Args:
        codes: int32 ``[n]``, of the weights in C order.
        signs: of each value, float64 ``[k]``: 0 for one that stays 0, else 1, or -1 of a ternary layer.
        centroid: which number a value is made of, int64 ``[k]``; the two of a ternary layer are made of one.
        counts: of the weights that a number has, float64 ``[k]``; 1 for none.
    """

    codes: Tensor
    signs: Tensor
    centroid: Tensor
    counts: Tensor

    def sums(self, numbers: Tensor) -> Tensor:
        """Return the signed sums, float64 ``[k]``, of a number for each weight over those that share one."""
        flat = numbers.detach().flatten().double()
        each = torch.zeros_like(self.signs).index_add_(0, self.codes, flat)
        return torch.zeros_like(self.signs).index_add_(0, self.centroid, each * self.signs)

    def spread_(self, target: Tensor, numbers: Tensor) -> None:
        """Give each weight, or its gradient, its number ``[k]`` with its sign; in place."""
        values = self.signs * numbers[self.centroid] + 0.0  # no -0.0, which would be one more value
        target.copy_(values.to(target.dtype).index_select(0, self.codes).reshape(target.shape))


@final
class WeightsShared(TrainingMethod):
    """Trains the values that layers' weights share; the codes are those of the start and stay.

    All weights of a value have one gradient, the sum of theirs, and so one step of any optimizer that works weight by
    weight. After each step they get their mean: what another method or an average did to single weights ends there.
    The sum is as many times larger as there are weights of that value: it takes a small learning rate.

    Reference: Han et al., Deep Compression, section 3.3, eq. (3); that of a ternary layer's magnitude likewise.
    """

    config: ShareWeights

    def __init__(self, config: ShareWeights) -> None:
        self.config = config
        self._layers: list[tuple[nn.Parameter, _Trained]] = []

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Share the weights; a resumed training starts from the same network, so there is no state to keep.

        Raises:
            RecipeError: no layer of such a name.
            ValueError: a weight is NaN or infinite.
        """
        found, parameters = shared_weights(model, self.config), dict(model.named_parameters())
        self._layers = [(parameters[name], _trained(shared, self.config)) for name, shared in found.items()]
        with torch.no_grad():
            for name, shared in found.items():
                parameters[name].copy_(shared.weight)

    def gradients(self, model: nn.Module) -> None:
        """Give each weight the gradient of its value."""
        for weight, trained in self._layers:
            if weight.grad is not None:
                sums = trained.sums(weight.grad)
                trained.spread_(weight.grad, sums if self.config.gradient == "sum" else sums / trained.counts)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Let the weights be exactly their values."""
        for weight, trained in self._layers:
            trained.spread_(weight, trained.sums(weight) / trained.counts)

    def finish(self, model: nn.Module) -> nn.Module:
        """Let an average of the weights be values too."""
        self.after_step(model, 0, 0.0)
        return model


def _trained(shared: Shared, config: ShareWeights) -> _Trained:
    """Return how the values of a layer are trained."""
    values = shared.values
    if config.values == "ternary":
        signs, centroid = values.sign().double(), torch.zeros_like(values, dtype=torch.int64)
    else:
        held = (values == 0) & config.zero
        signs, centroid = (~held).double(), torch.arange(len(values), device=values.device)
    members = torch.zeros_like(signs).index_add_(0, centroid, shared.counts * signs.square())
    return _Trained(shared.codes.flatten(), signs, centroid, members.clamp(min=1))
