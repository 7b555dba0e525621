"""How large an artifact gets and how much memory it takes, foretold for any widths from a few that were made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from edgewise.cost.fitting import Floats, fit
from edgewise.cost.static import CostModel

# Bytes of a weight, and of an element of the vectors beside it: of a BatchNorm's two one bias is left; in int8 it is
# stored with its scale and that of the channel's weights.
EACH = {"float32": (4.0, 2.0), "int8": (1.0, 6.0)}


class FileModel:
    """Foretells an artifact's bytes: so many a weight, so many a channel, and those of the operators and names.

    Args:
        cost: the network's cost model.
        precision: of the artifact, "float32" or "int8".
        made: artifacts that were made: the widths ``[G]`` of each, and its bytes.
    """

    def __init__(self, cost: CostModel, precision: str, made: Sequence[tuple[ArrayLike, float]] = ()) -> None:
        self.cost, self.precision, self.made = cost, precision, tuple(made)
        self._matrices = np.array([parameter.dim() > 1 for parameter in cost.parameters], np.float64)
        self._factors = np.array([*EACH[precision], 0.0])
        if made:
            rows = np.array([self._features(widths) for widths, _ in made])
            self._factors = fit(rows, np.array([size for _, size in made]), self._factors)

    def __call__(self, widths: ArrayLike) -> float | Floats:
        """Return the bytes at widths ``[G]``, or of each candidate at ``[n, G]``."""
        found: Floats = self._features(widths) @ self._factors
        return float(found) if np.ndim(widths) == 1 else found

    def corrected(self, widths: ArrayLike, size: float) -> FileModel:
        """Return a model that knows one more artifact."""
        return FileModel(self.cost, self.precision, (*self.made, (widths, size)))

    def _features(self, widths: ArrayLike) -> Floats:
        """Return ``[..., 3]``: elements of matrices and filters, elements of vectors, and 1."""
        stored = self.cost.stored(widths)
        return np.stack([stored @ self._matrices, stored @ (1 - self._matrices), np.ones(stored.shape[:-1])], axis=-1)


class MemoryModel:
    """Foretells an artifact's peak of activations: the network's, times what the last artifact's was of its own.

    Args:
        cost: the network's cost model.
        precision: of the artifact, "float32" or "int8".
        factor: the share that an artifact's peak is of its network's; by default that of its elements' bytes.
    """

    def __init__(self, cost: CostModel, precision: str, factor: float | None = None) -> None:
        self.cost, self.precision = cost, precision
        self.factor = (1.0 if precision == "float32" else 0.25) if factor is None else factor

    def __call__(self, widths: ArrayLike) -> float | Floats:
        """Return the bytes at widths ``[G]``, or of each candidate at ``[n, G]``."""
        found: Floats = self.factor * self.cost.quantity("peak_activation_bytes", widths)
        return float(found) if np.ndim(widths) == 1 else found

    def corrected(self, widths: ArrayLike, peak: float) -> MemoryModel:
        """Return a model that knows how much the artifact at these widths takes."""
        return MemoryModel(self.cost, self.precision, peak / float(self.cost.quantity("peak_activation_bytes", widths)))
