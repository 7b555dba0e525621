"""A system's record as a table: what was published beside what was measured, column by column."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgewise.systems import SYSTEMS
from edgewise.units import format_bytes, format_count, format_seconds

Row = dict[str, Any]
OWN = ("width=", "method.", "knee.", "complexity.", "keep_")  # settings worth a reader's eye where an arm changes them


def _percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{share:.{digits}%}"


def _cut(name: str) -> tuple[Callable[[Row], str], Callable[[Row, list[Row]], str]]:
    """Return how a share that went reads, published and ours."""
    return lambda row: _percent(row.get(name), 1), lambda row, rows: _percent(row.get(name), 1)


def _published_file(row: Row) -> str:
    return "-" if row.get("file_cut") is None else f"{row['file_cut']:.1%} less"


def _file(row: Row, rows: list[Row]) -> str:
    cut = row.get("file_cut")
    return format_bytes(row["file_bytes"]) + (f" ({cut:.1%} less)" if cut else "")


def _latency(row: Row, rows: list[Row]) -> str:
    return "-" if row["latency_ratio"] is None else f"{row['latency_ratio']:.2f} of dense"


def _published_latency(row: Row) -> str:
    return "-" if row.get("latency_s") is None else format_seconds(row["latency_s"])


def _times(ratio: float | None, what: str = "") -> str:
    return "-" if ratio is None else f"{ratio:.1f} times{what}"


def _bits(row: Row, rows: list[Row]) -> str:
    """Say what a weight takes in the packed file, and in the layers of the fewest and the most bits."""
    if not (of_layer := row.get("layer_bits")):
        return "-"
    return f"{row['weight_bits']:.2f} ({min(of_layer.values()):.2f}-{max(of_layer.values()):.2f})"


def _training(row: Row, rows: list[Row]) -> str:
    return f"{row['train_s']:.0f} s" + _saved(row, rows)


def _saved(row: Row, rows: list[Row]) -> str:
    """Say how much less time a training took than the one it is compared with, and what that one did."""
    if row["train_s_cut"] is None:
        return ""
    other = next(each for each in rows if each["label"] == row["against"])
    did = f"{'+'.join(map(str, other['epochs']))} epochs, {_percent(other['macs_cut'])} of the MACs cut"
    return f" ({-row['train_s_cut']:+.0%} of {row['against']}: {did})"


def _own(column: str, form: Callable[[float], str]) -> tuple[Callable[[Row], str], Callable[[Row, list[Row]], str]]:
    """Return how an amount reads that stands for itself; nothing of the kind is published."""
    return lambda row: "-", lambda row, rows: "-" if row[column] is None else form(row[column])


# By name: how it reads in a published row, and in ours, which is given all of our rows too.
COLUMNS: dict[str, tuple[Callable[[Row], str], Callable[[Row, list[Row]], str]]] = {
    "params": _own("params", format_count),
    "MACs": _own("macs", format_count),
    "milliseconds": _own("latency_s", lambda seconds: f"{1000 * seconds:.2f} ms"),
    "params cut": _cut("params_cut"),
    "nonzero cut": _cut("nonzero_cut"),
    "MACs cut": _cut("macs_cut"),
    "memory cut": _cut("memory_cut"),
    "latency": (_published_latency, _latency),
    "file": (_published_file, _file),
    # Of the packed file, the tensors' bytes as they are over it, with everything that stays float.
    "packed": (lambda row: "-", lambda row, rows: _times(row.get("packed_ratio"), " less")),
    "bits a weight": (lambda row: "-", _bits),
    "zero blocks": (lambda row: "-", lambda row, rows: _percent(row.get("group_sparsity"), 1)),
    "16/(1-s)": (lambda row: _times(row.get("weights_ratio")), lambda row, rows: _times(row.get("paper_ratio"))),
    "PE array": (lambda row: "-", lambda row, rows: _times(row.get("array_speedup"), " faster")),
    "training": (lambda row: "-", _training),
    "visible params cut": _cut("visible_params_cut"),
    "visible MACs cut": _cut("visible_macs_cut"),
}


def columns(record: Row) -> tuple[str, ...]:
    """Return the names of a record's columns."""
    return ("", "setting", metric(record), *SYSTEMS[record["system"]].columns)


def metric(record: Row) -> str:
    """Return what "accuracy" is in a record."""
    named: str = next((row["metric"] for row in record["rows"] if "metric" in row), "accuracy")
    return named


def cells(record: Row) -> list[list[str]]:
    """Write a record's rows for a table of `columns`: what was published first, marked with its source."""
    shown = [COLUMNS[name] for name in SYSTEMS[record["system"]].columns]
    published = [
        [
            "published",
            f"{row['setting']} ({row['source']})",
            row["accuracy_note"] or _percent(row["accuracy"], 2),
            *(told(row) for told, _ in shown),
        ]
        for row in record["published"]
    ]
    ours = [
        [
            "ours",
            f"{row['label']}, {row['data']}, {'+'.join(map(str, row['epochs']))} epochs, seed {row['seed']}"
            + "".join(f", {change}" for change in _changed(row["changes"]))
            + (f", from {row['pretrained']}" if row.get("pretrained") else ""),
            f"{_percent(row['accuracy'], 2)} of {_percent(row['dense_accuracy'], 2)}",
            *(told(row, record["rows"]) for _, told in shown),
        ]
        for row in record["rows"]
    ]
    refused = [["ours", f"{label}: {why}", "-", *("-" for _ in shown)] for label, why in record["refused"].items()]
    return [*published, *ours, *refused]


def _changed(changes: list[str]) -> list[str]:
    """Return what an arm changes of its network and its method, without the number of the method's step.

    >>> _changed(["width=0.5", "images=9", "step.0.keep_macs=", "step.2=", "step.0.complexity.mode=params"])
    ['width=0.5', 'complexity.mode=params']
    """
    own = [re.sub(r"^step\.\d+\.", "", change) for change in changes]
    return [change for change in own if change.startswith(OWN) and not change.endswith("=")]


def notes(record: Row) -> list[str]:
    """Say what must be known of the data that a record's rows come from, each thing once, and of how it counts."""
    about_data = list(dict.fromkeys(row["data_note"] for row in record["rows"] if row["data_note"]))
    return [*about_data, *hidden(record)]


def hidden(record: Row) -> list[str]:
    """Say what dynamic quantisation hid from a counter of modules: of the arm in which it did nothing else."""
    rows = [row for row in record["rows"] if row.get("packed")]
    if not rows:
        return []
    row = min(rows, key=lambda row: (row["params_cut"], row["label"]))
    return [
        f"{row['label']}: a counter of PyTorch's modules sees {row['visible_params_cut']:.1%} of the parameters and "
        f"{row['visible_macs_cut']:.1%} of the MACs go, because dynamic quantisation packs linear layers out of its "
        f"sight. {row['params_cut']:.1%} of the stored parameters and {row['macs_cut']:.1%} of the executed MACs went; "
        f"what is gained is bytes: the file is {row['file_cut']:.1%} smaller."
    ]
