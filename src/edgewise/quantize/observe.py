"""Observers: what range a tensor's codes shall cover, found on what it holds while images pass.

Each sees the blocks that share a scale as rows, batch after batch, in memory that does not grow with their number.

- ``minmax``: all that was seen.
- ``mean``: the average of the images' minima and maxima.
- ``moving``: an average of the batches' minima and maxima.
- ``percentile``: all but a share of the numbers on either side.
- ``mse``: the range whose codes are nearest to the numbers, by the mean square.
- ``entropy``: the range whose codes keep the most information: the least Kullback-Leibler divergence between the
  numbers' histogram and that of their codes (Migacz, 8-bit Inference with TensorRT, GTC 2017).

The last three keep a histogram; what they find is exact to a bin, 1/1024 of the range at the coarsest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.quantize.affine import WHOLE, QParams, QSpec, choose, fake_quantize

BINS = 2048  # on either side of 0
LEAST_EXPONENT = -126  # of float32; a block of nothing but 0 has it
UNSEEN = 1e-9  # the share of a bin that no code stands for
SHRINKS = 80  # ranges that are tried: so many shares of all that was seen, the least of them 1/SHRINKS


class Range(NamedTuple):
    """The smallest and the largest number of each block, ``[*grid]`` float32, with 0 between them."""

    low: Tensor
    high: Tensor


class Observer(ABC):
    """Sees tensors batch by batch, and says what range their codes shall cover.

    Args:
        spec: which numbers share a scale, and which codes there are.
    """

    def __init__(self, spec: QSpec) -> None:
        self.spec = spec
        self._grid: tuple[int, ...] | None = None
        self._first: Tensor | None = None
        self._same = True

    def update(self, x: Tensor) -> None:
        """See a tensor; all must have as many blocks as the first."""
        grid = self.spec.grid(x.shape)
        if self._grid not in (None, grid):
            raise ValueError(f"a tensor of {list(grid)} blocks, after one of {list(self._grid or ())}")
        first = x.detach().flatten()[:1].clone() if self._first is None else self._first
        self._same = self._same and bool((x == first).all())
        self._grid, self._first = grid, first
        self._see(self.spec.rows(x.detach().float()))

    def range(self) -> Range:
        """Return what the codes shall cover.

        Raises:
            ValueError: nothing was seen.
        """
        if self._grid is None:
            raise ValueError("nothing was seen yet")
        low, high = self._range()
        return Range(low.clamp(max=0).reshape(self._grid), high.clamp(min=0).reshape(self._grid))

    @property
    def constant(self) -> bool:
        """Whether all numbers that were seen are one and the same."""
        return self._grid is not None and self._same

    @abstractmethod
    def _see(self, rows: Tensor) -> None:
        """See the blocks as rows ``[blocks, numbers]``."""

    @abstractmethod
    def _range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest number to cover, ``[blocks]`` each."""


class MinMax(Observer):
    """Covers all that was seen."""

    def __init__(self, spec: QSpec) -> None:
        super().__init__(spec)
        self._seen: tuple[Tensor, Tensor] | None = None

    def _see(self, rows: Tensor) -> None:
        low, high = rows.aminmax(dim=1)
        if self._seen is not None:
            low, high = torch.minimum(self._seen[0], low), torch.maximum(self._seen[1], high)
        self._seen = low, high

    def _range(self) -> tuple[Tensor, Tensor]:
        assert self._seen is not None
        return self._seen


class Mean(Observer):
    """Covers the average extremes of the images, which are the first dimension: what is rare within one is cut off.

    Where an image has a single number for each channel, as pooled ones have, its extremes are what tells it from
    others, and all that was seen is covered.
    """

    def __init__(self, spec: QSpec) -> None:
        super().__init__(spec)
        self._extremes: tuple[Tensor, Tensor] | None = None
        self._images = 0

    def update(self, x: Tensor) -> None:
        """See a map's images one by one."""
        self._averages = x.dim() > 2 and x.numel() > x.shape[0] * x.shape[1 if x.dim() == 4 else -1]
        for part in torch.split(x, 1) if self._averages else [x]:
            super().update(part)

    def _see(self, rows: Tensor) -> None:
        low, high = (end.double() for end in rows.aminmax(dim=1))
        if self._extremes is not None:
            before = self._extremes
            if self._averages:
                low, high = before[0] + low, before[1] + high
            else:
                low, high = torch.minimum(before[0], low), torch.maximum(before[1], high)
        self._extremes = low, high
        self._images = self._images + 1 if self._averages else 1

    def _range(self) -> tuple[Tensor, Tensor]:
        assert self._extremes is not None
        low, high = self._extremes
        return (low / self._images).float(), (high / self._images).float()


class MovingAverage(Observer):
    """Covers the average extremes of the batches, where the later ones weigh more.

    Args:
        spec: which numbers share a scale, and which codes there are.
        momentum: the share of the average that each batch replaces.
    """

    def __init__(self, spec: QSpec, momentum: float = 0.1) -> None:
        super().__init__(spec)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum = {momentum}: more than 0, at most 1")
        self.momentum = momentum
        self._average: tuple[Tensor, Tensor] | None = None

    def _see(self, rows: Tensor) -> None:
        low, high = rows.aminmax(dim=1)
        if self._average is not None:
            low, high = self._average[0].lerp(low, self.momentum), self._average[1].lerp(high, self.momentum)
        self._average = low, high

    def _range(self) -> tuple[Tensor, Tensor]:
        assert self._average is not None
        return self._average


class HistogramObserver(MinMax):
    """Counts how often numbers of each size were seen; 0, which every range represents exactly, is counted apart.

    The bins reach from -2**e to 2**e for the smallest e that holds all numbers, so that they are the same however
    the numbers came in batches: where a larger number comes, neighbouring bins are joined.
    """

    def __init__(self, spec: QSpec) -> None:
        super().__init__(spec)
        self._counts = torch.zeros(0, 2, BINS)  # [blocks, below and above 0, by distance from 0]
        self._exponents = torch.zeros(0)  # [blocks]
        self._zeros = torch.zeros(0)  # [blocks]

    def _see(self, rows: Tensor) -> None:
        super()._see(rows)
        largest = rows.abs().amax(1)
        exponents = torch.where(largest > 0, torch.frexp(largest).exponent, LEAST_EXPONENT)
        if not len(self._counts):
            self._counts = torch.zeros(len(rows), 2, BINS, dtype=torch.float64)
            self._exponents, self._zeros = exponents, torch.zeros(len(rows), dtype=torch.float64)
        self._join(torch.maximum(exponents, self._exponents))
        place = (torch.ldexp(rows.abs(), -self._exponents[:, None]) * BINS).int()
        place += BINS * ((rows > 0).int() + 2 * torch.arange(len(rows), dtype=torch.int32)[:, None])
        self._counts += torch.bincount(place.flatten(), minlength=self._counts.numel()).view_as(self._counts)
        zeros = (rows == 0).sum(1)
        self._counts[:, 0, 0] -= zeros
        self._zeros += zeros

    def _join(self, exponents: Tensor) -> None:
        """Join bins until they reach to the given exponents."""
        while bool((coarser := exponents > self._exponents).any()):
            pairs = self._counts[coarser].reshape(-1, 2, BINS // 2, 2).sum(3)
            self._counts[coarser] = F.pad(pairs, (0, BINS // 2))
            self._exponents = self._exponents + coarser.int()

    def _bins(self) -> tuple[Tensor, Tensor]:
        """Return the bins' centres and counts in ascending order, ``[blocks, 2 * BINS]`` each."""
        distance = (torch.arange(BINS) + 0.5) / BINS
        both = torch.cat([-distance.flip(0), distance]).expand(len(self._counts), -1)
        centres = torch.ldexp(both, self._exponents[:, None])
        return centres, torch.cat([self._counts[:, 0].flip(1), self._counts[:, 1]], 1)


class Percentile(HistogramObserver):
    """Covers all but a share of the numbers, half of it on either side.

    Args:
        spec: which numbers share a scale, and which codes there are.
        percentile: the share that is covered, in percent.
    """

    def __init__(self, spec: QSpec, percentile: float = 99.999) -> None:
        super().__init__(spec)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile = {percentile}: more than 50, at most 100")
        self.percentile = percentile

    def _range(self) -> tuple[Tensor, Tensor]:
        low, high = super()._range()
        centres, counts = self._bins()
        cut = ((counts.sum(1) + self._zeros) * (100 - self.percentile) / 200 + 1e-6).floor()
        kept_low = self._reach(centres[:, :BINS], counts[:, :BINS], cut)
        kept_high = self._reach(centres[:, BINS:].flip(1), counts[:, BINS:].flip(1), cut)
        return torch.maximum(low, -kept_low), torch.minimum(high, kept_high)

    def _reach(self, centres: Tensor, counts: Tensor, cut: Tensor) -> Tensor:
        """Return how far a side reaches without what is cut off of it; its bins come from the outermost on."""
        kept = counts.cumsum(1) > cut[:, None]
        outermost = centres.gather(1, kept.int().argmax(1, keepdim=True))[:, 0].abs()
        half = torch.ldexp(torch.full(kept.shape[:1], 0.5 / BINS), self._exponents)
        return torch.where(kept.any(1), outermost + half, 0.0)


class Searched(HistogramObserver):
    """Covers the range that loses the least, of many shares of all that was seen: both ends together, then each."""

    def _range(self) -> tuple[Tensor, Tensor]:
        extremes = super()._range()
        centres, counts = self._bins()
        spec = replace(self.spec, block=(1, WHOLE))
        best = extremes
        for moved in ((True, True), (False, True), (True, False)):
            tried = [
                [end * share if moves else kept for end, kept, moves in zip(extremes, best, moved, strict=True)]
                for share in torch.arange(1, SHRINKS + 1) / SHRINKS
            ]
            losses = [
                self._loss(centres, counts, choose(low[:, None], high[:, None], spec), spec) for low, high in tried
            ]
            least = torch.stack(losses).argmin(0, keepdim=True)
            low, high = (torch.stack(ends).gather(0, least)[0] for ends in zip(*tried, strict=True))
            best = low, high
        return best

    @abstractmethod
    def _loss(self, centres: Tensor, counts: Tensor, params: QParams, spec: QSpec) -> Tensor:
        """Return what codes lose of bins with these centres and counts ``[blocks, bins]``: ``[blocks]``."""


class LeastSquares(Searched):
    """Covers the range whose codes are nearest to the numbers, by the mean square."""

    def _loss(self, centres: Tensor, counts: Tensor, params: QParams, spec: QSpec) -> Tensor:
        error = fake_quantize(centres, params, spec) - centres
        return (counts * error.double().square()).sum(1)


class Entropy(Searched):
    """Covers the range whose codes tell the most about the numbers: the least Kullback-Leibler divergence.

    The numbers' distribution has what is out of range in its last bins; that of the codes has it not, and spreads each
    code's share evenly over the bins that become that code and hold something.
    """

    def _loss(self, centres: Tensor, counts: Tensor, params: QParams, spec: QSpec) -> Tensor:
        lowest, highest = spec.codes
        code = (centres / params.scale).round() + params.zero_point
        inside = (lowest <= code) & (code <= highest)
        code = (code.clamp(lowest, highest) - lowest).long()
        seen = counts * inside
        empty = torch.zeros(len(counts), highest - lowest + 1, dtype=counts.dtype)
        shared = empty.scatter_add(1, code, seen) / empty.scatter_add(1, code, (seen > 0).double()).clamp(min=1)
        coded = shared.gather(1, code) * (seen > 0)
        ends = torch.stack([inside.int().argmax(1), inside.shape[1] - 1 - inside.flip(1).int().argmax(1)], 1)
        beyond = [counts * ~inside * (centres < 0), counts * ~inside * (centres > 0)]
        numbers = seen.scatter_add(1, ends, torch.stack([side.sum(1) for side in beyond], 1))
        p, q = (each / each.sum(1, keepdim=True).clamp(min=1) for each in (numbers, coded))
        divergence: Tensor = torch.special.xlogy(p, p / q.clamp(min=UNSEEN)).sum(1)
        return divergence


OBSERVERS: dict[str, Callable[[QSpec], Observer]] = {
    "minmax": MinMax,
    "mean": Mean,
    "moving": MovingAverage,
    "percentile": Percentile,
    "mse": LeastSquares,
    "entropy": Entropy,
}


def least_squares(x: Tensor, spec: QSpec) -> QParams:
    """Return the scales whose codes are nearest to the numbers, of many shares of all that each block holds.

    What `LeastSquares` finds from histograms, for a tensor that is there at once, such as weights.
    """
    rows = replace(spec, block=(1, WHOLE))
    x = spec.rows(x.detach().float())
    low, high = x.aminmax(dim=1, keepdim=True)
    best, least = choose(low, high, rows), torch.full_like(low, torch.inf)
    for share in torch.arange(SHRINKS // 4, SHRINKS + 1) / SHRINKS:
        params = choose(share * low, share * high, rows)
        loss = (fake_quantize(x, params, rows) - x).square().sum(1, keepdim=True)
        better = loss < least
        least = torch.where(better, loss, least)
        best = QParams(*(torch.where(better, new, old) for new, old in zip(params, best, strict=True)))
    return best
