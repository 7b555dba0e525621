"""What runs leave behind, made up but true to life: a good one, a poor one, one without figures, and a large one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from edgewise.devices.base import NOISY
from edgewise.files import write_json

STAGES = ((16, 28), (32, 14), (64, 7))  # channels and size of ResNet-20's stages on 28x28 images
INNER = (8, 16, 40)  # of the pruned one


def layer(
    name: str, kind: str, widths: tuple[int, int], size: int, kernel: int, new: tuple[int, int]
) -> dict[str, Any]:
    """Return a layer's costs before and after, int8 in the end."""

    def costs(inputs: int, outputs: int, width: int) -> dict[str, int]:
        params = inputs * outputs * kernel**2
        return {
            "params": params,
            "macs": params * size**2,
            "weight_bytes": params * width,
            "activation_bytes": outputs * size**2 * width,
        }

    return {"name": name, "kind": kind, "before": costs(*widths, 4), "after": costs(*new, 1)}


def resnet_layers(blocks: int = 3) -> list[dict[str, Any]]:
    """Return the layers of a CIFAR ResNet whose inner widths were pruned."""
    layers = [layer("conv1", "convolution", (1, 16), 28, 3, (1, 16))]
    inputs = 16
    for stage, ((width, size), inner) in enumerate(zip(STAGES, INNER, strict=True), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            layers.append(layer(f"{name}.conv1", "convolution", (inputs, width), size, 3, (inputs, inner)))
            layers.append(layer(f"{name}.bn1", "batch_norm", (1, width), 1, 1, (1, inner)))
            layers.append(layer(f"{name}.conv2", "convolution", (width, width), size, 3, (inner, width)))
            inputs = width
    return [*layers, layer("fc", "addmm", (64, 10), 1, 1, (64, 10))]


def row(index: int, kind: str, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """Return a row of results.json: the dense network's figures, changed."""
    figures = {
        "index": index,
        "step": f"{index:02d}-{kind}" if index else "dense",
        "kind": kind,
        "label": kind if index else "dense float32",
        "accuracy": accuracy,
        "params": 271_818,
        "nonzero": 271_818,
        "macs": 31_021_696,
        "weight_bytes": 1_087_272,
        "peak_activation_bytes": 150_528,
        "activation_bytes": 1_103_872,
        "file_bytes": None,
        "latency_s": None,
        "resident_bytes": None,
        "seconds": 0.4,
        "notes": [],
    }
    return {**figures, **changes}


def samples(center: float, width: float, count: int = 900) -> list[float]:
    """Return latencies with a long tail, the same every time."""
    uniform = [(math.sin(i * 12.9898) * 43758.5453) % 1 for i in range(4 * count)]
    noise = [sum(uniform[i : i + 4]) / 2 - 1 for i in range(0, 4 * count, 4)]
    return [center * (1 + width * n + (0.9 * u if u > 0.97 else 0)) for n, u in zip(noise, uniform, strict=False)]


def measurement(artifact: str, center: float, width: float, file_bytes: int) -> dict[str, Any]:
    """Return a measurement around a latency in seconds, with a relative width."""
    found = samples(center, width)
    ordered = sorted(found)
    quarter = len(ordered) // 4
    spread = (ordered[-quarter] - ordered[quarter]) / ordered[len(ordered) // 2]
    return {
        "artifact": artifact,
        "runtime": "onnxruntime",
        "version": "1.31.1",
        "threads": 1,
        "cpu": "AMD EPYC 7B13",
        "samples_s": found,
        "resident_bytes": 31_000_000 - 4_000_000 * (artifact == "model.onnx"),
        "file_bytes": file_bytes,
        "latency_s": ordered[len(ordered) // 2],
        "spread": spread,
        "noisy": spread > NOISY,
    }


def sensitivity() -> dict[str, Any]:
    """Return the curves of two groups: one with a knee, one that nothing harms."""
    rates = [0.0, 0.3, 0.6, 0.9]
    knee = {"rate": rates, "accuracy": [0.9, 0.89, 0.87, 0.4], "knee": 0.6, "found": True}
    flat = {"rate": rates, "accuracy": [0.9, 0.9, 0.898, 0.899], "knee": 0.9, "found": False}
    return {"layer1.0.conv1": knee, "layer3.2.conv1": flat}


def good() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return results and manifest as a run of the demo recipe leaves them."""
    pruned = {"params": 118_400, "nonzero": 118_400, "macs": 12_480_000, "weight_bytes": 473_600}
    pruned |= {"peak_activation_bytes": 112_896, "activation_bytes": 702_464}
    int8 = {**pruned, "weight_bytes": 123_020, "peak_activation_bytes": 28_224, "activation_bytes": 175_616}
    exported = {**int8, "file_bytes": 106_840}
    dense, small = (
        measurement("dense.onnx", 4.91e-4, 0.09, 1_092_310),
        measurement("model.onnx", 1.98e-4, 0.12, 106_840),
    )
    rows = [
        row(0, "dense", 0.9105, file_bytes=1_092_310, latency_s=dense["latency_s"], resident_bytes=31_000_000),
        row(1, "train", 0.9105, seconds=61.2),
        row(2, "prune", 0.7421, **pruned, seconds=1.3, notes=['the width of "fc" is written into the forward']),
        row(3, "train", 0.9085, **pruned, seconds=58.9),
        row(4, "quantize", 0.9075, **exported, seconds=6.1),
        row(5, "export", 0.9075, **exported, seconds=0.7),
        row(6, "measure", 0.9075, **exported, latency_s=small["latency_s"], resident_bytes=27_000_000, seconds=8.2),
    ]
    epochs = list(range(1, 9))
    results = {
        "recipe": "demo",
        "model": "resnet20",
        "data": "fashion-mnist",
        "data_note": "",
        "classes": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"],
        "input_shape": [1, 28, 28],
        "mean": [0.286],
        "std": [0.353],
        "seed": 0,
        "rows": rows,
        "layers": resnet_layers(),
        "measurements": [dense, small],
        "budget": {
            "size": {"limit": 120_000, "value": 106_840, "unit": "bytes", "met": True},
            "latency": {"limit": 0.00025, "value": small["latency_s"], "unit": "s", "met": True},
            "drop": {"limit": 1.0, "value": 0.3, "unit": "points", "met": True},
        },
        "curves": {
            "01-train": {"epoch": epochs, "loss": [0.98, 0.55, 0.43, 0.36, 0.31, 0.26, 0.21, 0.18]},
            "03-train": {"epoch": epochs[:6], "loss": [0.74, 0.58, 0.49, 0.43, 0.38, 0.35]},
        },
        "sensitivity": {"02-prune": sensitivity()},
        "compressed": {
            **{key: rows[-1][key] for key in ("accuracy", "file_bytes", "latency_s", "params", "macs")},
            "drop_pt": 0.3,
            "size_ratio": 106_840 / 1_092_310,
            "speedup": dense["latency_s"] / small["latency_s"],
        },
    }
    check = {"passed": True, "detail": ""}
    manifest = {
        "edgewise": "0.1.0",
        "created": "2026-11-21T10:14:03+00:00",
        "machine": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_bytes": 8_340_000_000, "system": "Linux 6.1 x86_64"},
        "training": {"device": "NVIDIA H100 80GB HBM3", "torch_threads": 2},
        "seed": 0,
        "versions": {"python": "3.11.2", "torch": "2.13.0", "onnx": "1.22.0", "onnxruntime": "1.31.1"},
        "data": {"name": "fashion-mnist", "checksum": "sha256:" + "3f1c" * 16},
        "checks": [
            {
                "step": "dense",
                "name": "ONNX equals network",
                "value": 8.1e-7,
                "limit": 1e-4,
                "unit": "relative error",
                **check,
            },
            {
                "step": "02-prune",
                "name": "shrunk equals silenced",
                "value": 1.2e-6,
                "limit": 1e-4,
                "unit": "relative error",
                **check,
            },
            {
                "step": "04-quantize",
                "name": "top-1 agreement",
                "value": 0.988,
                "limit": 0.95,
                "unit": "of 256 images",
                **check,
            },
            {
                "step": "04-quantize",
                "name": "logit error",
                "value": 0.041,
                "limit": 0.1,
                "unit": "relative error",
                **check,
            },
        ],
        "files": {"model.onnx": "ab" * 32},
    }
    return results, manifest


def poor() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run that went wrong: larger, slower, noisy, over budget, with a check that fails."""
    results, manifest = copy.deepcopy(good())
    dense, small = measurement("dense.onnx", 4.9e-4, 0.1, 1_092_310), measurement("model.onnx", 6.4e-4, 0.7, 1_310_000)
    results["measurements"] = [dense, small]
    results["rows"][0]["latency_s"] = dense["latency_s"]
    results["rows"][-1] |= {"latency_s": small["latency_s"], "file_bytes": 1_310_000, "accuracy": 0.871}
    results["compressed"] |= {
        "accuracy": 0.871,
        "drop_pt": 3.95,
        "size_ratio": 1_310_000 / 1_092_310,
        "speedup": dense["latency_s"] / small["latency_s"],
        "file_bytes": 1_310_000,
        "latency_s": small["latency_s"],
    }
    results["budget"]["size"] |= {"value": 1_310_000, "met": False}
    results["budget"]["latency"] |= {"value": small["latency_s"], "met": False}
    results["budget"]["drop"] |= {"value": 3.95, "met": False}
    results["budget"]["memory"] = {"limit": 64_000, "value": None, "unit": "bytes", "met": False}
    results["data_note"] = "CIFAR-10-JPEG75: not the original pixels"
    manifest["checks"][1]["passed"] = False
    return results, manifest


def unmeasured() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run that only trained and pruned: no artifact, no measurement, no budget, an untrained dense network."""
    results, manifest = copy.deepcopy(good())
    results["rows"] = results["rows"][:3]
    for each in results["rows"]:
        each |= {"file_bytes": None, "latency_s": None, "resident_bytes": None}
    results["rows"][0]["accuracy"] = None
    results |= {"measurements": [], "budget": None, "curves": {}, "sensitivity": {}, "layers": []}
    results["compressed"] |= {
        "drop_pt": None,
        "size_ratio": None,
        "speedup": None,
        "file_bytes": None,
        "latency_s": None,
    }
    manifest["checks"] = []
    return results, manifest


def large() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run of a network with many layers and long names."""
    results, manifest = copy.deepcopy(good())
    results["layers"] = resnet_layers(blocks=9)
    for each in results["layers"]:
        each["name"] = f"backbone.features.{each['name']}"
    results["classes"] = [f"class {i}" for i in range(100)]
    return results, manifest


def leave(run: Path, results: dict[str, Any], manifest: dict[str, Any]) -> Path:
    """Write a run folder's two files."""
    run.mkdir(parents=True)
    write_json(run / "results.json", results)
    write_json(run / "manifest.json", manifest)
    return run
