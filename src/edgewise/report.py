"""A run folder becomes a page that people read: report.html.

One file, no network, nothing but what results.json and manifest.json say. What is not known is a dash; what got
worse is said as plainly as what got better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.comparison import compare, pareto, write_comparison
from edgewise.files import write_bytes
from edgewise.layout import MANIFEST, REPORT, RESULTS
from edgewise.page import (
    LESS,
    SIZE,
    SPEED,
    Told,
    change,
    conditions,
    display_data,
    display_name,
    facts,
    fewer,
    gain,
    page,
    ratio,
    read_run,
)
from edgewise.units import DASH, format_bytes, format_count, format_fraction, format_ratio, format_seconds

if TYPE_CHECKING:
    from edgewise.charts import Point

__all__ = [
    "compare",
    "format_bytes",
    "format_count",
    "format_seconds",
    "headline",
    "pareto",
    "render",
    "write",
    "write_comparison",
]

Row = Mapping[str, Any]

FIGURES = {  # column of results.json: (its name, how it reads, what a change is called, the limit that holds it)
    "file_bytes": ("file", format_bytes, SIZE, "size"),
    "latency_s": ("latency", format_seconds, SPEED, "latency"),
    "peak_activation_bytes": ("peak activations", format_bytes, LESS, "memory"),
    "macs": ("MACs", format_count, LESS, "macs"),
    "params": ("params", format_count, LESS, "params"),
}
PRINT_BOXES = """for x1, y1, x2, y2, score, label in boxes[0]:  # in pixels of the inputs, the best first
    if score > 0.3:
        print(classes[int(label)], float(score), (x1, y1, x2, y2))"""
STEP_COLUMNS = {  # of the step table, beside accuracy and time
    "params": ("params", format_count),
    "macs": ("MACs", format_count),
    "weight_bytes": ("weights", format_bytes),
    "peak_activation_bytes": ("peak activations", format_bytes),
    "file_bytes": ("file", format_bytes),
    "latency_s": ("latency", format_seconds),
}


def write(run: Path) -> Path:
    """Write a run folder's report.html, whole or not at all, and return its path.

    Raises:
        RunFolderError: results.json or manifest.json is missing or cannot be read.
    """
    return write_bytes(run / REPORT, render(read_run(run, RESULTS), read_run(run, MANIFEST)).encode())


def render(results: Row, manifest: Row) -> str:
    """Return a run's report as one HTML page that needs no other file; the same input gives the same bytes.

    Args:
        results: what results.json holds.
        manifest: what manifest.json holds. The fingerprints of the run's files have no part in the report, so that
            it can be one of those files.
    """
    from edgewise import charts

    rows, measurements, curves = results["rows"], results["measurements"], results["curves"]
    points, limits = _points(results), _limits(results)
    costs, name = charts.known_costs(points), metric(results)
    specs = {}
    if costs:
        about = f"{headline(results)}. {beginning(name)} against cost, step by step."
        specs["plane"] = charts.plane(points, limits, about, name)
    if results["layers"]:
        specs["layers"] = charts.layer_bars(results["layers"])
    if measurements:
        specs["latency"] = charts.latency_strips(_samples(measurements))
    if any(curve["epoch"] for curve in curves.values()):
        specs["curves"] = charts.training_curves(curves)
    if judged := results.get("judged"):
        specs["judged"] = charts.accuracy_curves({results["model"]: judged})
    if sensitivity := _sensitivity(results):
        specs["sensitivity"] = charts.sensitivity_curves(sensitivity)
    exclusion = [point for points in results.get("exclusion", {}).values() for point in points]
    if exclusion:
        specs["exclusion"] = charts.exclusion_curve(exclusion)
    packed, array = results.get("packed", []), results.get("array", [])
    if array:
        specs["array"] = charts.array_bars(array)
    return page(
        "report.html.j2",
        specs,
        title=headline(results),
        metric=name,
        beginning=beginning,
        subject=_subject(results),
        claims=_claims(results),
        results=results,
        manifest=manifest,
        figures=_figures(results),
        missed=_missed(results),
        costs=costs,
        limits=limits,
        layer_costs=charts.LAYER_COST,
        layer_choices={column: name for column, (name, _) in charts.LAYER_COST.items()},
        step_columns=[name for name, _ in STEP_COLUMNS.values()],
        steps=[_step(row, rows[max(i - 1, 0)], rows[0]) for i, row in enumerate(rows)],
        sparse=any(row.get("effective_macs", row["macs"]) < row["macs"] for row in results["rows"]),
        latencies=_latencies(measurements),
        sensitivity=[_curve(group, curve) for group, curve in sensitivity.items()],
        tried=[_candidate(row) for rows in results.get("tried", {}).values() for row in rows],
        exclusion=[_exclusion(count, point) for count, point in enumerate(exclusion)],
        packed=[_stored(row) for row in packed],
        pictures=results.get("pictures", []),
        generated=results.get("generated"),
        classes=results["classes"],
        array=[_on_array(row) for row in array],
        strip_samples=charts.STRIP_SAMPLES,
        hidden=_hidden_samples(measurements),
        checks=[
            {**check, "value": f"{check['value']:.3g}", "limit": f"{check['limit']:.3g}"}
            for check in manifest["checks"]
        ],
        machine=facts(
            {k: v for k, v in manifest["machine"].items() if k != "versions"} | {"training": manifest["training"]}
        ),
        versions=facts({"edgewise": manifest["edgewise"], **manifest["versions"]}),
        snippets=_snippets(results),
        notes=[(row["step"], note) for row in rows for note in row["notes"]],
    )


# -- what came out --------------------------------------------------------------------------------------------------


def headline(results: Row) -> str:
    """Say in one line what came out: how much smaller, how much faster, at what price in accuracy."""
    return f"{_subject(results)}: {', '.join(text for text, _ in _claims(results))}"


def metric(results: Row) -> str:
    """Return what "accuracy" is in a run, such as mAP@0.5 for a detector."""
    name: str = results.get("metric", "accuracy")
    return name


def beginning(name: str) -> str:
    """Write a name as a sentence begins; one with capitals of its own, such as mAP@0.5, stays.

    >>> beginning("accuracy"), beginning("mAP@0.5"), beginning("1 - P_E")
    ('Accuracy', 'mAP@0.5', '1 - P_E')
    """
    return name.capitalize() if name.islower() else name


def _subject(results: Row) -> str:
    return f"{display_name(results['model'])} on {display_data(results['data'])}"


def _claims(results: Row) -> list[Told]:
    """Return what changed against the dense network; where no file or latency is known, params or MACs stand in."""
    small, dense, last = results["compressed"], results["rows"][0], results["rows"][-1]
    size, time = small["size_ratio"], ratio(1, small["speedup"])
    claims = [
        change(ratio(last["params"], dense["params"]), fewer("params")) if size is None else change(size, SIZE),
        change(ratio(last["macs"], dense["macs"]), fewer("MACs")) if time is None else change(time, SPEED),
        gain(None if small["drop_pt"] is None else -small["drop_pt"]),
    ]
    return [claim for claim in claims if claim[0] != DASH]


def _figures(results: Row) -> list[dict[str, Any]]:
    """Return the figures at the top: the compressed network's, beside the dense network's and the budget."""
    dense, last, drop = results["rows"][0], results["rows"][-1], results["compressed"]["drop_pt"]
    told = {column: change(ratio(last[column], dense[column]), words) for column, (_, _, words, _) in FIGURES.items()}
    told["accuracy"] = gain(None if drop is None else -drop)
    reads = {"accuracy": (metric(results), format_fraction, "drop")}
    reads |= {column: (name, form, limit) for column, (name, form, _, limit) in FIGURES.items()}
    return [
        {
            "name": beginning(name),
            "drops": column == "accuracy",
            "value": form(last[column]),
            "dense": form(dense[column]),
            "change": told[column],
            "limit": _limit(limit, results),
        }
        for column, (name, form, limit) in reads.items()
    ]


def _limit(name: str, results: Row) -> dict[str, Any] | None:
    """Return a limit of the budget in words, what was found, and whether it was met; None where there is none."""
    limit = (results["budget"] or {}).get(name)
    if limit is None:
        return None
    if name == "drop":
        what, most, found = f"{metric(results)} drop", f"{limit['limit']:g} pt", f"{limit['value'] or 0:.3g} pt"
    else:
        what, form = next((title, form) for title, form, _, owner in FIGURES.values() if owner == name)
        most, found = form(limit["limit"]), form(limit["value"])
        if "share" in limit:
            most += f" ({100 * limit['share']:.4g}%)"
    return {"what": what, "limit": most, "found": "unknown" if limit["value"] is None else found, "met": limit["met"]}


def _missed(results: Row) -> list[dict[str, Any]]:
    """Return the limits of the budget that were missed."""
    limits = [_limit(name, results) for name in results["budget"] or {}]
    return [limit for limit in limits if limit and not limit["met"]]


# -- what was paid for it -------------------------------------------------------------------------------------------


def _points(results: Row) -> list[Point]:
    """Return a run's rows as points of the plane."""
    from edgewise.charts import COST, Point

    rows = results["rows"]
    last = len(rows) - 1
    return [
        Point(
            name=row["step"],
            label="dense" if i == 0 else "result" if i == last else f"{row['index']} {row['kind']}",
            line="run",
            role="dense" if i == 0 else "result" if i == last else "step",
            accuracy=row["accuracy"],
            costs={column: row[column] for column in COST},
        )
        for i, row in enumerate(rows)
    ]


def _limits(results: Row) -> dict[str, float]:
    """Return the budget as limits of the plane: the most of each cost, and the least accuracy."""
    budget, dense = results["budget"] or {}, results["rows"][0]["accuracy"]
    owners = {column: owner for column, (*_, owner) in FIGURES.items() if owner in budget}
    limits = {column: most for column, owner in owners.items() if (most := budget[owner]["limit"]) is not None}
    if "drop" in budget and dense is not None:
        limits["accuracy"] = dense - budget["drop"]["limit"] / 100
    return limits


# Of a column of the step table, what is left of it without zeros, and how that reads.
SPARSE = {"params": ("nonzero", "not zero"), "macs": ("effective_macs", "effective")}


def _step(row: Row, before: Row, dense: Row) -> dict[str, Any]:
    """Return a row of the step table: what the step left, beside the row before it and the dense network."""
    known = row is not before and row["accuracy"] is not None and before["accuracy"] is not None
    text, tone = gain((row["accuracy"] - before["accuracy"]) * 100 if known else None)
    cells = []
    for column, (_, form) in STEP_COLUMNS.items():
        of_dense = None if row is dense else ratio(row[column], dense[column])
        details = [] if of_dense is None else [format_ratio(of_dense)]
        if column in SPARSE and (left := row.get(SPARSE[column][0])) is not None and left < row[column]:
            details.append(f"{format_count(left)} {SPARSE[column][1]}")
        grew = of_dense is not None and change(of_dense, SIZE)[1] == "bad"
        cells.append({"text": form(row[column]), "detail": ", ".join(details), "tone": "bad" if grew else ""})
    return {
        "step": row["step"],
        "label": row["label"] if row["label"] != row["kind"] else "",
        "accuracy": format_fraction(row["accuracy"]),
        "gain": (text.removesuffix(" points"), tone),
        "cells": cells,
        "seconds": format_seconds(row["seconds"]),
    }


def _samples(measurements: Sequence[Row]) -> dict[str, list[float]]:
    """Return the latency samples by network, seconds: the dense one first, as the reference."""
    names = ["dense", "compressed", *(f"{m['artifact']} ({i})" for i, m in enumerate(measurements[2:], 3))]
    return {name: m["samples_s"] for name, m in zip(names, measurements, strict=False)}


def _latencies(measurements: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row of the latency table for each measurement; changes are to the first."""
    from edgewise.charts import quantiles

    rows: list[dict[str, Any]] = []
    for m, (name, samples) in zip(measurements, _samples(measurements).items(), strict=True):
        told = change(ratio(m["latency_s"], measurements[0]["latency_s"]), SPEED)
        rows.append(
            {
                "name": name,
                "median": format_seconds(m["latency_s"]),
                "change": told if rows else ("reference", ""),
                "spread": f"{m['spread']:.0%}",
                "noisy": m["noisy"],
                "samples": {key: format_seconds(value) for key, value in quantiles(samples).items()},
                "count": len(samples),
                "resident": format_bytes(m["resident_bytes"]),
                "where": conditions(m),
            }
        )
    return rows


def _hidden_samples(measurements: Sequence[Row]) -> str:
    """Say how many samples lie beyond the end of the latency chart, and how far."""
    from edgewise.charts import reach

    if not measurements:
        return ""
    samples = _samples(measurements).values()
    end, every = reach(samples), [sample for each in samples for sample in each]
    beyond = [sample for sample in every if sample > end]
    if not beyond:
        return ""
    return f"{len(beyond)} of {len(every)} samples lie beyond the axis, up to {format_seconds(max(beyond))}."


def _sensitivity(results: Row) -> dict[str, Row]:
    """Return the sensitivity curves by group, with the step's name where several steps measured some."""
    found = results.get("sensitivity", {})  # what runs before there were any lack
    return {
        group if len(found) == 1 else f"{step} {group}": curve
        for step, curves in found.items()
        for group, curve in curves.items()
    }


def _curve(group: str, curve: Row) -> dict[str, str]:
    """Return a row of the sensitivity table: what was chosen, and what it and the last rate cost."""
    chosen = curve["accuracy"][curve["rate"].index(curve["knee"])]
    return {
        "group": group,
        "chosen": f"{curve['knee']:.0%}",
        "why": "knee" if curve["found"] else "within the tolerance",
        "there": format_fraction(chosen),
        "whole": format_fraction(curve["accuracy"][0]),
        "end": f"{format_fraction(curve['accuracy'][-1])} at {curve['rate'][-1]:.0%}",
    }


def _candidate(row: Row) -> dict[str, str]:
    """Return a row of the table of what was tried to take fewer bits."""
    slow = row["speed"] is None
    return {
        "label": row["label"],
        "accuracy": format_fraction(row["accuracy"]),
        "file": format_bytes(row["file_bytes"]),
        "latency": "not measured: too inaccurate, or larger" if slow else format_seconds(row["latency_s"]),
        "speed": "" if slow else f"{row['speed']:.2f}x",
    }


def _exclusion(count: int, point: Row) -> dict[str, str]:
    """Return a row of the table of layers that were left in floats."""
    return {
        "count": str(count),
        "layer": point["layer"] or "all layers in int8",
        "error": f"{point['error']:.3g}" if point["layer"] else "",
        "accuracy": format_fraction(point["accuracy"]),
    }


def _stored(row: Row) -> dict[str, str]:
    """Return a row of the table of what the packed file holds."""
    over = row["bytes"] / row["bound_bytes"] - 1 if row["bound_bytes"] else 0.0
    return {
        **row,
        "bytes": format_bytes(row["bytes"]),
        "bits": f"{row['bits']:.2f}" if "bits" in row else "-",
        "over": f"{over:.1%}",
    }


def _on_array(row: Row) -> dict[str, str]:
    """Return a row of the table of the array's layers."""
    return {
        "layer": row["layer"],
        "tiles": f"{row['tiles'] - row['skipped']:,} of {row['tiles']:,}",
        "cycles": f"{row['cycles']:,}",
        "faster": f"{row['dense_cycles'] / row['cycles']:.2f}x" if row["cycles"] else "all skipped",
        "loaded": format_bytes(row["loaded_bits"] / 8),
    }


# -- how to use it --------------------------------------------------------------------------------------------------


def _snippets(results: Row) -> dict[str, str]:
    """Return code that loads the artifact in its runtime, where there is one, and the network in Python."""
    channels, height, width = results["input_shape"]
    boxes = results.get("kind") == "detection"
    mean, std = ([round(value, 6) for value in results[key]] for key in ("mean", "std"))
    network = f"""import edgewise
import torch

network = edgewise.load(".")  # the folder of this report
with torch.no_grad():
    {"outputs" if boxes else "logits"} = network(torch.zeros(1, {channels}, {height}, {width}))  # normalised
"""
    if results["compressed"]["file_bytes"] is None:
        return {"Python": network}
    artifact = f"""import json
import numpy as np
import onnxruntime as ort
from PIL import Image

session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
image = Image.open("image.png").convert("{"L" if channels == 1 else "RGB"}").resize(({width}, {height}))
pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}) / 255
inputs = (pixels - {mean}) / {std}  # as in training
inputs = inputs.transpose(2, 0, 1)[None].astype(np.float32)  # [1, {channels}, {height}, {width}]

[{"boxes" if boxes else "logits"}] = session.run(None, {{session.get_inputs()[0].name: inputs}})
classes = json.load(open("results.json", encoding="utf-8"))["classes"]
{PRINT_BOXES if boxes else "print(classes[int(logits.argmax())])"}
"""
    return {"ONNX Runtime": artifact, "Python": network}
