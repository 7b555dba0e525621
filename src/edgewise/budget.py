"""What the device charges: limits in bytes, seconds and accuracy points, held against what was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
SECONDS = {"S": 1.0, "MS": 1e-3, "US": 1e-6}
COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


def parse_quantity(text: str | float, units: dict[str, float] | dict[str, int], what: str) -> float:
    """Read a number with its unit, such as "120 KB" or "1.5 ms".

    Args:
        text: the number and the unit, in any case, with or without a space.
        units: factors of the units, by their upper-case name; a plain number is read only where "" is among them.
        what: names the quantity in the error.

    Raises:
        ValueError: no number, an unknown unit, or a number that is not positive.

    >>> parse_quantity("120 KB", BYTES, "size"), parse_quantity("1.5ms", SECONDS, "latency")
    (120000.0, 0.0015)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    names = ", ".join(f'"{unit}"' for unit in units if unit)
    if match is None:
        raise ValueError(f"{what} = {text!r}: write a number and a unit, one of {names}")
    number, unit = float(match[1]), match[2].upper()
    if unit not in units:
        raise ValueError(f"{what} = {text!r}: the unit is one of {names}")
    if not 0 < number * units[unit] < float("inf"):
        raise ValueError(f"{what} = {text!r}: a limit is positive")
    return number * units[unit]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A recipe's [budget]: checked at the end on what was measured.

    Args:
        size: of the artifact on disk, such as "120 KB" (1,000 bytes) or "120 KiB" (1,024).
        latency: median of the measure step, such as "1 ms".
        memory: peak activation bytes, such as "64 KB".
        macs: multiply-accumulates, such as "20 M".
        params: stored elements, such as "100 k".
        drop: accuracy points under this run's dense network.
    """

    size: str | None = None
    latency: str | None = None
    memory: str | None = None
    macs: str | float | None = None
    params: str | float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise ValueError("a budget needs at least one limit: size, latency, memory, macs, params or drop")
        if self.drop is not None and not self.drop >= 0:
            raise ValueError(f"drop = {self.drop}: accuracy points that may be lost, 0 or more")
        self.amounts()

    def amounts(self) -> dict[str, tuple[float, str, str]]:
        """Return each limit as (amount, unit, the column of results.json it is held against)."""
        found: dict[str, tuple[float, str, str]] = {}
        for name, (column, unit, units) in COLUMNS.items():
            value = getattr(self, name)
            if value is not None and units is not None:
                found[name] = (parse_quantity(value, units, name), unit, column)
            elif value is not None:
                found[name] = (float(value), unit, column)
        return found


COLUMNS: dict[str, tuple[str, str, Any]] = {
    "size": ("file_bytes", "bytes", BYTES),
    "latency": ("latency_s", "s", SECONDS),
    "memory": ("peak_activation_bytes", "bytes", BYTES),
    "macs": ("macs", "MACs", COUNTS),
    "params": ("params", "params", COUNTS),
    "drop": ("drop_pt", "points", None),
}


def verdict(limits: Limits, compressed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hold what was measured against the limits.

    Args:
        limits: the recipe's budget.
        compressed: the final network's figures by column; one that was not measured is missing or None.

    Returns:
        For each limit its amount, the value, the unit and whether it was met; a value that is missing is not met.
    """
    rows = {}
    for name, (limit, unit, column) in limits.amounts().items():
        value = compressed.get(column)
        rows[name] = {"limit": limit, "value": value, "unit": unit, "met": value is not None and value <= limit}
    return rows
