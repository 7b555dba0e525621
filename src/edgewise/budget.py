"""What the device charges: limits in bytes, seconds and accuracy points, held against what was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from edgewise.cost.budget import Limit

BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
SECONDS = {"S": 1.0, "MS": 1e-3, "US": 1e-6}
COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


def parse_limit(text: str | float, units: dict[str, float] | dict[str, int], what: str) -> Limit:
    """Read a limit: a number with its unit, or a share of the dense float network's such as "60 %".

    >>> parse_limit("60%", SECONDS, "latency"), parse_limit("2 ms", SECONDS, "latency")
    (Limit(value=0.6, of_dense=True), Limit(value=0.002, of_dense=False))
    """
    if not str(text).rstrip().endswith("%"):
        return Limit(parse_quantity(text, units, what))
    number = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", str(text))
    if number is None or not float(number[1]) > 0:
        raise ValueError(f"{what} = {text!r}: a share of the dense network's is a number and %, such as 60%")
    return Limit(float(number[1]) / 100, of_dense=True)


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

    Each but the drop may also be a share of the dense float network's, such as "60 %".

    Args:
        size: of the artifact on disk, such as "120 KB" (1,000 bytes) or "120 KiB" (1,024).
        latency: median of the measure step, such as "1 ms"; a share is of the dense network's in the same process.
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
        if self.drop is not None and not 0 <= self.drop < float("inf"):
            raise ValueError(f"drop = {self.drop}: accuracy points that may be lost, 0 or more")
        self.limits()

    def limits(self) -> dict[str, Limit]:
        """Return each limit by its name."""
        given = {name: getattr(self, name) for name in COLUMNS if getattr(self, name) is not None}
        return {
            name: Limit(float(value)) if (units := COLUMNS[name].units) is None else parse_limit(value, units, name)
            for name, value in given.items()
        }

    def by_column(self) -> dict[str, Limit]:
        """Return each limit on what an artifact costs, by the column of results.json it is held against."""
        return {COLUMNS[name].column: limit for name, limit in self.limits().items() if name != "drop"}


class Column(NamedTuple):
    """What a limit is held against: the column of results.json, the unit it is in, and the units it may be given in."""

    column: str
    unit: str
    units: dict[str, float] | dict[str, int] | None


COLUMNS: dict[str, Column] = {
    "size": Column("file_bytes", "bytes", BYTES),
    "latency": Column("latency_s", "s", SECONDS),
    "memory": Column("peak_activation_bytes", "bytes", BYTES),
    "macs": Column("macs", "MACs", COUNTS),
    "params": Column("params", "params", COUNTS),
    "drop": Column("drop_pt", "points", None),
}


def verdict(limits: Limits, compressed: dict[str, Any], dense: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hold what was measured against the limits.

    Args:
        limits: the recipe's budget.
        compressed: the final network's figures by column; one that was not measured is missing or None.
        dense: those of the dense float network, which shares refer to.

    Returns:
        For each limit its amount, the value, the unit and whether it was met; a value that is missing is not met. The
        amount is None for a share of what was not measured.
    """
    rows = {}
    for name, limit in limits.limits().items():
        column, unit, _ = COLUMNS[name]
        value, whole = compressed.get(column), dense.get(column)
        amount = None if limit.of_dense and whole is None else limit.amount(whole or 0.0)
        met = value is not None and amount is not None and value <= amount
        rows[name] = {"limit": amount, "value": value, "unit": unit, "met": met}
        if limit.of_dense:
            rows[name]["share"] = limit.value
    return rows
