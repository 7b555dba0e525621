"""Kneedle: where a curve turns down, for the rate at which a group of channels is pruned.

Reference: Satopää et al., Finding a "Kneedle" in a Haystack: Detecting Knee Points in System Behavior, ICDCS workshops
2011. In Combine-Net: Wang et al., Combine-Net: An Improved Filter Pruning Algorithm, Information 12(7):264, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgewise.prune.judge import Arithmetic

Floats = NDArray[np.float64]
Smoothing = Literal["minimum", "isotonic", "none"]


@dataclass(frozen=True, kw_only=True)
class Knee:
    """How sensitivity curves are measured and what is read from them.

    Combine-Net's own grid, images and threshold are not known; these are ours.

    Args:
        rates: shares of a group's channels that are removed in turn, ascending; 0 comes first by itself. A knee is
            relative to the curve's ends, so another last rate moves it.
        calibration: training images that BatchNorm's statistics are measured on.
        images: held-out images that the accuracy is measured on.
        sensitivity: Kneedle's S, of how many steps of the grid a curve must fall behind a knee.
        tolerance: accuracy points. A curve without a knee, or that never falls by more, gives the largest rate that
            loses no more.
        smoothing: what makes curves fall: their running "minimum", the nearest "isotonic" curve (least squares), or
            "none".
        order: the rates of all groups from curves of the dense network ("at_once"), or those of each group from
            curves of the network that the groups before it left ("one_by_one", in the network's order).
        arithmetic: of the curves; "auto" is bfloat16 where the processor computes in it, which halves the time.
    """

    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    calibration: int = 2000
    images: int = 500
    sensitivity: float = 1.0
    tolerance: float = 0.5
    smoothing: Smoothing = "minimum"
    order: Literal["at_once", "one_by_one"] = "at_once"
    arithmetic: Arithmetic = "auto"

    def __post_init__(self) -> None:
        ends = (0.0, *self.rates, 1.0)
        if len(self.rates) < 2 or not all(a < b for a, b in pairwise(ends)):
            raise ValueError(f"rates = {list(self.rates)}: at least two shares, ascending, between 0 and 1")
        if self.calibration < 2:
            raise ValueError(f"calibration = {self.calibration}: a number of images, at least 2")
        if self.images < 1:
            raise ValueError(f"images = {self.images}: a number of images, at least 1")
        for name in ("sensitivity", "tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: 0 or more")


def knee(x: ArrayLike, y: ArrayLike, sensitivity: float = 1.0) -> int | None:
    """Return the index of the first knee of a concave, decreasing curve; None where it has none.

    With both axes scaled to [0, 1] and the curve mirrored, the knee is the first local maximum of y - x behind which
    y - x falls by more than ``sensitivity`` mean steps of x before it rises again. Mirrored, a decreasing curve is
    walked from its right end, so its first knee is the one at the largest x.

    Args:
        x: ``[n]``, ascending; n at least 2.
        y: ``[n]``, of any unit.
        sensitivity: the paper's S.

    Reference: Satopää et al. 2011, section III, offline; equal to the package kneed on every curve.

    >>> knee([0, 1, 2, 3, 4, 5], [1.0, 0.99, 0.98, 0.95, 0.5, 0.0])
    3
    >>> knee([0, 1, 2], [1.0, 0.5, 0.0]) is None
    True
    """
    level, mirrored = _scaled(y)[::-1], (1 - _scaled(x))[::-1]
    if np.isnan(level).any():
        return None  # flat
    difference = level - mirrored
    before, after = np.append(difference[0], difference[:-1]), np.append(difference[1:], difference[-1])
    is_maximum = (difference >= before) & (difference >= after)
    is_minimum = (difference <= before) & (difference <= after)
    turns = np.flatnonzero(is_maximum | is_minimum)
    step = np.abs(np.diff(mirrored).mean())
    ends = np.append(turns[1:], len(difference) - 1)  # up to the next turn the difference only falls, or only rises
    falls = difference[ends] < difference[turns] - sensitivity * step
    found = turns[falls & is_maximum[turns] & ~is_minimum[turns]]
    return len(difference) - 1 - int(found[0]) if len(found) else None


def _scaled(values: ArrayLike) -> Floats:
    """Scale values to [0, 1]; NaN where they are all the same."""
    given = np.asarray(values, np.float64)
    span = given.max() - given.min()
    scaled: Floats = (given - given.min()) / (span if span > 0 else np.nan)
    return scaled


def smooth(accuracy: ArrayLike, smoothing: Smoothing = "minimum") -> Floats:
    """Make a curve ``[n]`` fall: accuracies of few images are noisy, and the first knee of noise means nothing.

    >>> smooth([0.9, 0.8, 0.85, 0.6]).tolist(), smooth([0.9, 0.75, 0.85, 0.6], "isotonic").round(3).tolist()
    ([0.9, 0.8, 0.8, 0.6], [0.9, 0.8, 0.8, 0.6])
    """
    curve = np.asarray(accuracy, np.float64)
    if smoothing == "minimum":
        curve = np.minimum.accumulate(curve)
    if smoothing == "isotonic":
        # The least squares fit is min over j <= i of max over k >= i of the mean of j..k (Robertson et al., 1988).
        sums, n = np.append(0.0, np.cumsum(curve)), len(curve)
        j, k = np.arange(n)[:, None], np.arange(n)
        means = np.where(k >= j, (sums[k + 1] - sums[j]) / np.maximum(k - j + 1, 1), -np.inf)
        best = np.maximum.accumulate(means[:, ::-1], axis=1)[:, ::-1]  # [j, i]: over all k >= i
        curve = np.where(j <= k, best, np.inf).min(axis=0)
    return curve


def knee_rate(rates: Sequence[float], accuracy: Sequence[float], config: Knee) -> tuple[float, bool]:
    """Choose a group's pruning rate from its sensitivity curve.

    Args:
        rates: ``[n]``, ascending from 0.
        accuracy: ``[n]``, fractions.
        config: what counts as a knee.

    Returns:
        The rate, and whether it is a knee. It is not where the curve falls by no more than the tolerance over the
        whole grid (scaled to [0, 1], that would be noise), where there is none, or where it is at the last rate:
        a curve that falls at once has its "knee" there, where all is lost. Then it is the largest rate within the
        tolerance.
    """
    curve = smooth(accuracy, config.smoothing)
    # Rounded, so that exactly half a point is within half a point.
    within = np.flatnonzero(np.round(curve[0] - curve, 9) <= config.tolerance / 100)
    found = knee(rates, curve, config.sensitivity)
    if len(within) == len(curve) or found is None or found == len(curve) - 1:
        return rates[int(within[-1])], False
    return rates[found], True
