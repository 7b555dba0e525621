"""Write docs/results.md, and a chart of each published system, from the figures in docs/results/ and results.md.j2.

Usage: python scripts/results_page.py [--check]; with --check it only says whether the page is what it should be.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import jinja2
import torch
import vl_convert

from edgewise.charts import RELATIVE, Point, accuracy_curves, families
from edgewise.cost.visible import visible
from edgewise.models import build
from edgewise.record_table import cells, columns, hidden, metric
from edgewise.systems import SYSTEMS
from edgewise.units import format_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES, CHARTS = ROOT / "docs" / "results.md", ROOT / "docs" / "results", ROOT / "docs" / "charts"
TITLES = {
    "convnext_like": "ConvNeXt-like",
    "convnext_tiny": "ConvNeXt-Tiny",
    "convnextv2_atto": "ConvNeXt V2",
    "densenet121": "DenseNet-121",
    "efficientnet_b0": "EfficientNet-B0",
    "gmlp_ti16_224": "gMLP",
    "mambaout_femto": "MambaOut",
    "mobilenet_v2": "MobileNetV2",
    "mobilenetv2_100": "MobileNetV2",
    "regnety_008": "RegNetY-008",
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet50": "ResNet-50",
}


def percent(share: float, digits: int = 0) -> str:
    """Write a share in per cent.

    >>> percent(0.8713, 2)
    '87.13 %'
    """
    return f"{100 * share:.{digits}f} %"


def aligned(name: str) -> str:
    """Set off the alignment in a row's name.

    >>> aligned("edgewise round_to=8")
    'edgewise, `round_to = 8`'
    """
    tool, _, alignment = name.partition(" round_to=")
    return f"{tool}, `round_to = {alignment}`" if alignment else tool


def settings(rows: list[dict[str, Any]]) -> list[str]:
    """Say what the rows were trained and measured on, each setting once."""
    return list(dict.fromkeys(_setting(row) for row in rows))


def _setting(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    note = f" ({row['data_note']})" if row["data_note"] else ""
    return f"{row['data']}{note}; trained on {row['trained_on']}, measured on {row['cpu']}; {versions}."


def sides(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest of ours and of the peers', by where it runs and whether it was pruned first."""
    found = []
    for half in (False, True):
        for place in ("ONNX Runtime", "OpenVINO"):
            alike = [
                row
                for row in rows
                if row["name"].startswith("half") == half
                and row["runtime"] == place.lower().replace(" ", "")
                and "float32" not in row["name"]
            ]
            if alike:
                ours, theirs = (
                    max((row for row in alike if ("ours" in row["name"]) == own), key=lambda row: row["speed"])
                    for own in (True, False)
                )
                found.append({"what": f"{'half of the MACs, ' * half}{place}", "ours": ours, "theirs": theirs})
    return found


def plain(name: str) -> str:
    """Write a row's name without where it runs, which its column says.

    >>> plain("half: ours uniform 32 in OpenVINO")
    'ours uniform 32'
    """
    return name.removeprefix("half: ").removesuffix(" in OpenVINO")


def training(options: dict[str, Any]) -> str:
    """Say how the networks of `benchmarks/equal_latency.py` were trained."""
    model = TITLES.get(options["model"], options["model"])
    images = f", {int(options['images']):,} of its images" if options.get("images", "None") != "None" else ""
    start = " from ImageNet's weights" if options["weights"] != "None" else ""
    seeds = len(json.loads(options["seeds"]))
    of = f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed"
    return (
        f"{model} on {options['data']}{images}: {options['epochs']} epochs dense{start}, "
        f"{options['recovery']} of recovery, lr {options['lr']}; {of}."
    )


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average the rows of one share and name over the seeds; accuracies with their standard deviation, as text."""
    arms: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        arms.setdefault((row["share"], row["name"]), []).append(row)
    return [
        {"share": share, "name": f"{name}{f', {len(alike)} of the seeds' * (len(alike) < len(arms[share, 'dense']))}"}
        | {column: mean(row[column] for row in alike) for column in ("latency_ratio", "macs", "int8_bytes")}
        | {column: _spread([row[column] for row in alike]) for column in ("int8_accuracy", "float_accuracy")}
        for (share, name), alike in arms.items()
    ]


def _spread(shares: list[float]) -> str:
    return percent(mean(shares), 2) + (f" ± {100 * stdev(shares):.2f}" if len(shares) > 1 else "")


def in_linear_layers(model: str, classes: int, side: int) -> tuple[float, float]:
    """Return the shares of a network's parameters and MACs that a module counter loses to dynamic quantisation."""
    with torch.device("meta"):
        network = build(model, classes=classes, size=side)
    example = torch.zeros(1, 3, side, side)
    whole, seen = visible(network, example), visible(network, example, packed=True)
    return 1 - seen.params / whole.params, 1 - seen.macs / whole.macs


INK = {"ink": "#182024", "muted": "#5a676e", "line": "#e3e6e4", "panel": "#fff"}  # the page's, on white paper


def drawn(record: dict[str, Any]) -> bool:
    """Say whether a record tells the series of its rows, so that there is a chart of it."""
    return all("series" in row for row in record["rows"])


def chart(record: dict[str, Any]) -> str:
    """Draw a system's rows as its comparison page does at first, as an SVG file; students along their trainings."""
    cost, rows = SYSTEMS[record["system"]].cost, record["rows"]
    if judged := {row["label"]: row["judged"] for row in rows if "judged" in row}:
        students = {row["model"] for row in rows if "judged" in row}
        others = {row["label"]: row["accuracy"] for row in rows if "judged" not in row and row["model"] in students}
        return _svg(accuracy_curves(judged, others), "accuracy on the test images by the student's steps")
    points = [
        Point(
            name=row["label"],
            label="",
            line=f"{row['model']} {row['series']}",
            role="beaten",
            accuracy=row["accuracy"],
            costs=row,
            series=row["series"],
            model=row["model"],
        )
        for row in rows
    ]
    what, _ = RELATIVE[cost]
    spec = families(points, f"{metric(record)} against {what}.", cost, metric(record))
    return _svg(spec, f"{metric(record)} against {what}")


def _svg(spec: dict[str, Any], title: str) -> str:
    """Return a chart of the page as an SVG file."""
    spec["config"]["legend"] = {"columnPadding": 40}  # names are measured in another font than they are drawn in
    text = json.dumps(
        {
            **spec,
            "width": 760,
            "padding": {"left": 4, "top": 4, "bottom": 4, "right": 60},
            "background": "white",
            "title": title,
        }
    )
    for name, colour in INK.items():
        text = text.replace(f"var(--{name})", colour)
    svg: str = vl_convert.vegalite_to_svg(text)
    return svg


def page() -> str:
    """Return the page."""
    figures = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FIGURES.glob("*.json"))}
    systems = [found for found in figures.values() if isinstance(found, dict) and "system" in found]
    full = {system["system"] for system in systems if system["scale"] == "full"}
    not_run = {name: [arm.label for arm in system.arms] for name, system in SYSTEMS.items() if name not in full}
    figures["equal_latency"] = [run for name, run in figures.items() if name.startswith("equal_latency")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "aligned": aligned,
        "cells": cells,
        "columns": columns,
        "along": lambda record: any("judged" in row for row in record["rows"]),
        "drawn": drawn,
        "hidden": hidden,
        "format_bytes": format_bytes,
        "over_seeds": over_seeds,
        "plain": plain,
        "sides": sides,
        "median": lambda values: median(list(values)),
        "percent": percent,
        "settings": settings,
        "title_of": lambda name: TITLES.get(name, name),
        "training": training,
    }
    share_params, share_macs = in_linear_layers("convnext_small", classes=10, side=224)
    return environment.get_template("results.md.j2").render(
        **figures, systems=systems, not_run=not_run, share_params=share_params, share_macs=share_macs
    )


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        CHARTS.mkdir(exist_ok=True)
        for path in FIGURES.glob("*.json"):
            record = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record, dict) and "system" in record and drawn(record):
                (CHARTS / f"{path.stem}.svg").write_text(chart(record), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != page():
        print("docs/results.md is not what scripts/results_page.py makes of docs/results/: run make results")
        return 1
    print("docs/results.md is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
