"""Runs side by side: which of them no other beats in accuracy, size and latency at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.files import write_bytes
from edgewise.layout import RESULTS
from edgewise.page import (
    LESS,
    SIZE,
    SPEED,
    Told,
    change,
    conditions,
    display_name,
    gain,
    page,
    ratio,
    read_run,
)
from edgewise.units import DASH, format_bytes, format_count, format_fraction, format_seconds

if TYPE_CHECKING:
    from edgewise.charts import Point

Row = Mapping[str, Any]

COSTS = ("file_bytes", "latency_s")  # of the front; beside them stands accuracy
COLUMNS = ("accuracy", "file_bytes", "latency_s", "macs", "params", "nonzero", "weight_bytes", "peak_activation_bytes")
CELLS = {  # of the page's table: (its name, how it reads, what a change is called)
    "file_bytes": ("file", format_bytes, SIZE),
    "latency_s": ("latency", format_seconds, SPEED),
    "macs": ("MACs", format_count, LESS),
    "params": ("params", format_count, LESS),
    "peak_activation_bytes": ("peak act.", format_bytes, LESS),
}
NONZERO = {"nonzero": ("nonzero", format_count, LESS)}  # where some run has zeros


def pareto(points: Sequence[Mapping[str, float | None]]) -> list[bool]:
    """Say of each point whether it is on the front: no other is as good in everything and better in something.

    Accuracy is the better the higher, `file_bytes` and `latency_s` the lower. A cost that is unknown counts as the
    worst there is, since what was not measured cannot be claimed; a point without an accuracy is on no front. Points
    that are equal stand or fall together.

    >>> small = {"accuracy": 0.90, "file_bytes": 100, "latency_s": 0.002}
    >>> quick = {"accuracy": 0.90, "file_bytes": 120, "latency_s": 0.001}
    >>> worse = {"accuracy": 0.89, "file_bytes": 120, "latency_s": None}
    >>> pareto([small, quick, worse])
    [True, True, False]
    """
    keys = [_badness(point) for point in points]
    known = [point.get("accuracy") is not None for point in points]
    return [
        is_known and not any(_dominates(other, key) for other in keys)
        for key, is_known in zip(keys, known, strict=True)
    ]


def _badness(point: Mapping[str, float | None]) -> tuple[float, ...]:
    """Return what is to be minimised; infinite where unknown."""
    accuracy, costs = point.get("accuracy"), (point.get(cost) for cost in COSTS)
    unknown = float("inf")
    return (unknown if accuracy is None else -accuracy, *(unknown if cost is None else cost for cost in costs))


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def compare(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one row a run: its result, what that is of its dense network's, and whether it is on the front.

    Fronts are drawn among runs on the same data, and the dense networks take part in them: a run that its own dense
    network beats is on no front.

    Raises:
        RunFolderError: a folder holds no finished run.
    """
    rows = [_row(run, read_run(run, RESULTS)) for run in runs]
    for _, group in _by_data(rows):
        rivals = [*group, *(row["dense"] for row in group)]
        for row, on_front in zip(group, pareto(rivals), strict=False):
            row["pareto"] = on_front
    return rows


def _row(run: Path, results: Row) -> dict[str, Any]:
    dense, last, small = results["rows"][0], results["rows"][-1], results["compressed"]
    budget, measurements = results["budget"], results["measurements"]
    return {
        "run": str(run),
        **{key: results[key] for key in ("recipe", "model", "data", "seed")},
        "metric": results.get("metric", "accuracy"),
        **{column: last[column] for column in COLUMNS},
        **{key: small[key] for key in ("drop_pt", "size_ratio", "speedup")},
        "budget_met": all(limit["met"] for limit in budget.values()) if budget else None,
        "measured": conditions(measurements[0]) if measurements else None,
        "dense": {column: dense[column] for column in COLUMNS},
        "pareto": False,
    }


def _by_data(rows: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group rows by their data: accuracies on different data are not to be compared."""
    ordered = sorted(rows, key=lambda row: str(row["data"]))
    return [(data, list(group)) for data, group in groupby(ordered, key=lambda row: str(row["data"]))]


def write_comparison(
    runs: Sequence[Path], path: Path, *, series: Mapping[Path, str] | None = None, title: str = "", cost: str = ""
) -> Path:
    """Write the comparison of some runs as one HTML page that needs no other file, and return its path.

    Args:
        runs: folders of finished runs.
        path: the page.
        series: what each run is one of; runs of one series share a colour and a line in the chart.
        title: of the page; by default it says how many runs there are.
        cost: the column that the chart of series shows first.

    Raises:
        RunFolderError: a folder holds no finished run.
    """
    return write_bytes(path, render_comparison(compare(runs), series, title, cost).encode())


def render_comparison(
    rows: Sequence[dict[str, Any]], series: Mapping[Path, str] | None = None, title: str = "", cost: str = ""
) -> str:
    """Return the comparison page of the rows that `compare` gives; the same rows give the same bytes."""
    from edgewise import charts

    specs, groups = {}, []
    shown = {**CELLS, **NONZERO} if any(row["nonzero"] != row["params"] for row in rows) else CELLS
    for number, (data, group) in enumerate(_by_data(rows)):
        group = _relative(group) if series else group
        points = _families(group, series) if series else _points(group)
        # Runs in series lie beside each other, so that their names tell them apart.
        named = [{**row, "run": name} for row, name in zip(group, _names(group), strict=True)] if series else group
        costs = charts.known_costs(points, charts.RELATIVE if series else charts.COST, cost)
        chart, metric = f"plane{number}" if costs else None, group[0]["metric"]
        if chart and series:
            specs[chart] = charts.families(points, f"{metric} on {data} against cost, one point a run.", cost, metric)
        elif chart:
            specs[chart] = charts.plane(points, {}, f"{metric} on {data} against cost, one bubble a run.", metric)
        groups.append(
            {
                "data": data,
                "metric": metric,
                "chart": chart,
                "costs": costs,
                "dense": _dense_rows(named, shown),
                "rows": [_cells(row, shown) for row in named],
            }
        )
    return page(
        "comparison.html.j2",
        specs,
        title=title or f"{len(rows)} runs side by side",
        groups=groups,
        series=bool(series),
        columns=[name for name, *_ in shown.values()],
        conditions=sorted({row["measured"] for row in rows if row["measured"]}),
    )


def _names(rows: Sequence[Row]) -> list[str]:
    """Return short names of the runs: the folder's, or its whole path where that is not enough."""
    short = [Path(row["run"]).name or row["run"] for row in rows]
    return [name if short.count(name) == 1 else row["run"] for name, row in zip(short, rows, strict=True)]


def _points(rows: Sequence[Row]) -> list[Point]:
    """Return the runs and their dense networks as points of the plane, each run joined to its own."""
    from edgewise.charts import COST, Point

    points = []
    for name, row in zip(_names(rows), rows, strict=True):
        costs = {column: row[column] for column in COST}
        dense = {column: row["dense"][column] for column in COST}
        points.append(Point(f"{name}, dense", "dense", name, "dense", row["dense"]["accuracy"], dense))
        points.append(Point(name, name, name, "result" if row["pareto"] else "beaten", row["accuracy"], costs))
    return points


def _relative(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return runs with their latency as a share of their own dense network's, and with the front by that.

    A run's two latencies come from one process. Another run's, at another time, may be half as much again for the very
    same network, where a machine has other work.
    """
    shares = [ratio(row["latency_s"], row["dense"]["latency_s"]) for row in rows]
    runs = [{**row, "latency_s": share} for row, share in zip(rows, shares, strict=True)]
    dense = [
        {**row["dense"], "latency_s": None if share is None else 1.0} for row, share in zip(rows, shares, strict=True)
    ]
    front = pareto([*runs, *dense])
    return [
        {**row, "latency_ratio": share, "pareto": on_front}
        for row, share, on_front in zip(rows, shares, front, strict=False)
    ]


def _families(rows: Sequence[Row], series: Mapping[Path, str]) -> list[Point]:
    """Return the runs as points of their series."""
    from edgewise.charts import RELATIVE, Point

    return [
        Point(
            name,
            name,
            f"{row['model']} {series[Path(row['run'])]}",
            "result" if row["pareto"] else "beaten",
            row["accuracy"],
            {column: row[column] for column in RELATIVE},
            series[Path(row["run"])],
            display_name(row["model"]),
        )
        for name, row in zip(_names(rows), rows, strict=True)
    ]


def _dense_rows(rows: Sequence[Row], shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the dense networks for the page's table, each once: runs often share theirs but for its latency."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        dense = row["dense"]
        key = (row["model"], *(dense[column] for column in COLUMNS if column != "latency_s"))
        cells = [(form(dense[column]), ("", "")) for column, (_, form, _) in shown.items()]
        about = f"{display_name(row['model'])}, of {row['run']}"
        found.setdefault(
            key, {"run": "dense", "about": about, "accuracy": format_fraction(dense["accuracy"]), "cells": cells}
        )
    return list(found.values())


def _cells(row: Row, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's row of the page's table: each figure, and what it is of the dense network's."""
    cells: list[tuple[str, Told]] = [
        (form(row[column]), change(ratio(row[column], row["dense"][column]), words))
        for column, (_, form, words) in shown.items()
    ]
    budget: dict[bool | None, Told] = {True: ("met", "good"), False: ("missed", "bad"), None: (DASH, "")}
    return {
        "run": row["run"],
        "about": f"{display_name(row['model'])}, seed {row['seed']}",
        "accuracy": format_fraction(row["accuracy"]),
        "gain": gain(None if row["drop_pt"] is None else -row["drop_pt"]),
        "cells": cells,
        "budget": budget[row["budget_met"]],
        "front": "front" if row["pareto"] else DASH if row["accuracy"] is None else "beaten",
    }
