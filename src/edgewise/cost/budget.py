"""How much a network may cost: limits on the static quantities, as fractions of the dense network or as amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from numpy.typing import ArrayLike

from edgewise.cost.static import CostModel

AMOUNTS = ("file_bytes", "latency_s")  # what only a measured network could be a share of


@dataclass(frozen=True)
class Limit:
    """An upper limit: an amount, or a share of what the dense float network has of it.

    >>> Limit(0.5, of_dense=True).amount(4.0), Limit(3.0).amount(4.0)
    (2.0, 3.0)
    """

    value: float
    of_dense: bool = False

    def amount(self, dense: float) -> float:
        """Return the limit as an amount, given the dense network's."""
        return self.value * dense if self.of_dense else self.value


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits on what a network costs: each a `Limit`, or a number: up to 1 a share of the dense network's.

    Args:
        macs: multiply-accumulates of one image.
        params: stored elements.
        weight_bytes: the parameters as stored.
        peak_activation_bytes: the largest sum of live activations at batch 1.
        file_bytes: the artifact's, as foretold by the cost model: a number is always an amount.
        latency_s: seconds on a runtime, as foretold by the cost model: a number is always an amount.
        memory_bytes: of weights and operators' outputs, as a cost model that knows it weighs them.

    >>> Budget(macs=0.5).names
    ['macs']
    """

    macs: float | Limit | None = None
    params: float | Limit | None = None
    weight_bytes: float | Limit | None = None
    peak_activation_bytes: float | Limit | None = None
    file_bytes: float | Limit | None = None
    latency_s: float | Limit | None = None
    memory_bytes: float | Limit | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"a budget needs at least one limit: {', '.join(field.name for field in fields(self))}")
        for name in self.names:
            value = getattr(self, name)
            if not (value.value if isinstance(value, Limit) else value) > 0:
                raise ValueError(f"{name} = {value}: a budget is positive")

    @property
    def names(self) -> list[str]:
        """The quantities that are limited."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def limits(self, model: CostModel) -> dict[str, float]:
        """Return the limits as amounts, given the dense network."""
        amounts = {}
        for name in self.names:
            value = getattr(self, name)
            limit = value if isinstance(value, Limit) else Limit(value, value <= 1 and name not in AMOUNTS)
            dense = float(model.quantity(name, model.graph.sizes)) if limit.of_dense else 0.0
            amounts[name] = limit.amount(dense)
        return amounts


def exceeded(model: CostModel, widths: ArrayLike, limits: Mapping[str, float]) -> list[str]:
    """Name the quantities in which these widths ``[G]`` are over their limits."""
    return [name for name, limit in limits.items() if model.quantity(name, widths) > limit]
