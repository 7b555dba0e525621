"""What a finished run says of itself: results.json, one row a step, and manifest.json, what it was made with."""

from __future__ import annotations

import hashlib
import sys
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import edgewise
from edgewise.budget import verdict
from edgewise.context import Context, read_result
from edgewise.cost import CostModel
from edgewise.devices.local import cpu_name, machine
from edgewise.export import network
from edgewise.export.verify import network_outputs, outputs
from edgewise.files import canonical_json, read_json, sha256
from edgewise.graph import trace
from edgewise.layout import DENSE, FIRST, MANIFEST, START, STEPS, shipped, step_folder
from edgewise.page import ratio
from edgewise.pictures import detections

# What a figure may depend on, by the module's name; a manifest names those that were imported.
PACKAGES = {
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "timm": "timm",
    "torchvision": "torchvision",
    "PIL": "pillow",
    "pycocotools": "pycocotools",
    "conseal": "conseal",
    "jpeglib": "jpeglib",
}


def step_folders(context: Context) -> list[Path]:
    """Return the folder of each step."""
    return [step_folder(context.folder, index, step.kind) for index, step in enumerate(context.recipe.step)]


def step_row(folder: Path, index: int) -> dict[str, Any]:
    """Return a step's row of results.json."""
    result = read_result(folder)
    step, kind = folder.name, folder.name.partition("-")[2]
    return {
        "index": index + 1,
        "step": step,
        "kind": kind,
        "label": kind,
        **result["row"],
        "seconds": result["seconds"],
        "notes": result["notes"],
    }


def dense_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the dense network, the first."""
    return {
        "index": 0,
        "step": DENSE,
        "kind": DENSE,
        "label": "dense float32",
        **result["row"],
        "seconds": result["seconds"],
        "notes": result["notes"],
    }


def gather(context: Context, dense: Path) -> dict[str, Any]:
    """Gather results.json: one row a step, the dense row first."""
    recipe, images = context.recipe, context.data
    folders = step_folders(context)
    found = [read_result(folder) for folder in folders]
    reference = dense_row(read_result(dense))
    if recipe.dense_at == 0 and recipe.weights is None:
        reference["notes"] = [*reference["notes"], "this run never trained its dense network"]
        reference["accuracy"] = None
    rows = [reference, *(step_row(folder, index) for index, folder in enumerate(folders))]
    measurements = _measurements(folders)
    for row, measured in zip((rows[0], rows[-1]), measurements, strict=False):
        row |= {name: measured[name] for name in ("latency_s", "resident_bytes")}
    compressed = _compressed(reference, rows[-1])
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "data": recipe.data,
        "data_note": images.note,
        "plan": list(recipe.notes),
        "classes": list(images.classes),
        "kind": images.kind,
        "metric": context.task.metric_name,
        "input_shape": list(images.input_shape),
        "mean": list(images.mean),
        "std": list(images.std),
        "seed": recipe.seed,
        "rows": rows,
        "layers": _layers(context, dense, folders[-1]),
        "measurements": measurements,
        "budget": verdict(recipe.budget, compressed, reference) if recipe.budget else None,
        "curves": {f.name: r["curve"] for f, r in zip(folders, found, strict=True) if "curve" in r},
        "sensitivity": {f.name: r["sensitivity"] for f, r in zip(folders, found, strict=True) if r.get("sensitivity")},
        "tried": {f.name: r["tried"] for f, r in zip(folders, found, strict=True) if r.get("tried")},
        "exclusion": {f.name: r["exclusion"] for f, r in zip(folders, found, strict=True) if r.get("exclusion")},
        "packed": next((r["packed"] for r in reversed(found) if r.get("packed")), []),
        "array": next((r["array"] for r in reversed(found) if r.get("array")), []),
        "pictures": _pictures(context, folders[-1]) if images.kind == "detection" else [],
        "generated": next((r["generated"] for r in found if r.get("generated")), None),
        "judged": next((r["judged"] for r in found if r.get("judged")), None),
        "compressed": compressed,
    }


def _pictures(context: Context, last: Path) -> list[dict[str, Any]]:
    """Show what was found by the artifact, or by the network where there is none."""
    file = shipped(last)
    if file.exists():
        return detections(context, partial(outputs, file))
    return detections(context, partial(network_outputs, network.load(last)))


def _measurements(folders: list[Path]) -> list[dict[str, Any]]:
    """Return what the last measure step found, the dense network's first, if it measured the final artifact."""
    measured = next((folder for folder in reversed(folders) if folder.name.endswith("-measure")), None)
    final = shipped(folders[-1])
    if measured is None or not final.exists() or sha256(shipped(measured)) != sha256(final):
        return []
    found: list[dict[str, Any]] = read_result(measured)["measurements"]
    return found


def _compressed(dense: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Return the final network's figures and what they are of the dense network's; None where one is unknown."""
    columns = ("accuracy", "params", "nonzero", "macs", "weight_bytes", "peak_activation_bytes", "file_bytes")
    figures = {name: last[name] for name in (*columns, "latency_s", "resident_bytes")}

    known = dense["accuracy"] is not None
    return {
        **figures,
        # Rounded, so that exactly one point does not miss a limit of one point by a float's last bit.
        "drop_pt": round((dense["accuracy"] - last["accuracy"]) * 100, 9) if known else None,
        "size_ratio": ratio(last["file_bytes"], dense["file_bytes"]),
        "speedup": ratio(dense["latency_s"], last["latency_s"]),
    }


def _layers(context: Context, dense: Path, last: Path) -> list[dict[str, Any]]:
    """Say layer by layer where params, MACs and memory went; a layer that is gone costs nothing afterwards."""
    tables = []
    for folder in (dense, last):
        graph = trace(network.load(folder), context.example)
        tables.append({layer.name: layer for layer in CostModel(graph).layers(graph.sizes)})
    before, after = tables
    columns = ("params", "macs", "weight_bytes", "activation_bytes")
    return [
        {
            "name": name,
            "kind": layer.kind,
            "before": {c: getattr(layer, c) for c in columns},
            "after": {c: getattr(after[name], c) if name in after else 0 for c in columns},
        }
        for name, layer in before.items()
    ]


def made_with(context: Context, dense: Path) -> dict[str, Any]:
    """Say what the run was made with and from, and every equality that was checked."""
    checks = []
    for folder in (dense, *step_folders(context)):
        checks += [{"step": folder.name, **check} for check in read_result(folder)["checks"]]
    facts = machine()
    return {
        "edgewise": edgewise.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "versions": {**facts.get("versions", {}), **_imported_versions()},
        "training": {"device": _device_name(context.device), "torch_threads": torch.get_num_threads()},
        "seed": context.recipe.seed,
        **read_json(context.folder / STEPS / FIRST / START),
        "data": {"name": context.data.name, "checksum": context.data.checksum, "note": context.data.note},
        "checks": checks,
    }


def _imported_versions() -> dict[str, str]:
    """Return the versions of the packages that took part."""
    return {package: version(package) for module, package in PACKAGES.items() if module in sys.modules}


def _device_name(device: torch.device) -> str:
    """Return the name of what trained, as its maker gave it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {cpu_name()}"


def files(folder: Path) -> list[str]:
    """List every file of a run folder but the manifest, by its path inside, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the manifest's own fingerprint, so that a change to itself shows too."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return {**body, "seal": hashlib.sha256(canonical_json(body)).hexdigest()}
