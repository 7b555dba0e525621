"""How much a network may cost: limits on the static quantities, as fractions of the dense network or as amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from numpy.typing import ArrayLike

from edgewise.cost.static import CostModel

AMOUNTS = ("file_bytes", "latency_s")  # what only a measured network could be a share of


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits on what a network costs; up to 1 a fraction of the dense network's, above 1 an amount.

    Args:
        macs: multiply-accumulates of one image.
        params: stored elements.
        weight_bytes: the parameters as stored.
        peak_activation_bytes: the largest sum of live activations at batch 1.
        file_bytes: the artifact's, as foretold by the cost model; always an amount.
        latency_s: seconds on a runtime, as foretold by the cost model; always an amount.
        memory_bytes: of weights and operators' outputs, as a cost model that knows it weighs them.

    >>> Budget(macs=0.5).names
    ['macs']
    """

    macs: float | None = None
    params: float | None = None
    weight_bytes: float | None = None
    peak_activation_bytes: float | None = None
    file_bytes: float | None = None
    latency_s: float | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"a budget needs at least one limit: {', '.join(field.name for field in fields(self))}")
        for name in self.names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: a budget is positive")

    @property
    def names(self) -> list[str]:
        """The quantities that are limited."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def limits(self, model: CostModel) -> dict[str, float]:
        """Return the limits as amounts, given the dense network."""
        dense = model.graph.sizes
        amounts = {}
        for name in self.names:
            value = getattr(self, name)
            is_share = value <= 1 and name not in AMOUNTS
            amounts[name] = float(value * model.quantity(name, dense)) if is_share else value
        return amounts


def exceeded(model: CostModel, widths: ArrayLike, limits: Mapping[str, float]) -> list[str]:
    """Name the quantities in which these widths ``[G]`` are over their limits."""
    return [name for name, limit in limits.items() if model.quantity(name, widths) > limit]
