"""Factors of what is counted, found from what was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HELD = 1e-3  # weight of the factors' distance from the expected ones beside that of one relative error


def fit(features: Floats, amounts: Floats, prior: Floats) -> Floats:
    """Find factors by least squares of relative errors, held near the expected ones where little was measured.

    Args:
        features: ``[n, F]``, what was counted of each network.
        amounts: ``[n]``, what was measured of it.
        prior: ``[F]``, the factors to expect.

    Returns:
        Factors ``[F]`` such that ``features @ factors`` is near `amounts`; some may be negative.
    """
    contribution = features.mean(axis=0) / amounts.mean()  # so that no feature's unit matters
    held = np.sqrt(HELD) * np.diag(contribution)
    rows = np.concatenate([features / amounts[:, None], held])
    wanted = np.concatenate([np.ones(len(amounts)), held @ prior])
    factors: Floats = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return factors
