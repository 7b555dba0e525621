"""One int8 network in every runtime: is it the same network there, how large, and how fast?

MobileNetV2 with torchvision's weights, calibrated on 100 ImageNet images and judged on the others; or a reference
network with fresh weights, on noise. Each format is held against the int8 ONNX file in ONNX Runtime, and measured
beside the float32 one there: one thread, batch 1, interleaved in one process. Runtimes that are not installed are left
out, and rows that OUT has of them stay: few environments hold them all.

    python benchmarks/int8_formats.py OUT.json [--images imagenet-sample-1000.npz --weights mobilenet_v2-b0353104.pth]
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.devices.measure import measure
from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import MissingExtra
from edgewise.export.formats import FORMATS
from edgewise.export.onnx import export
from edgewise.export.verify import outputs, rms_error
from edgewise.layout import SHIPPED
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.schemes import CODES_ONLY
from int8_agreement import CALIBRATION, load
from int8_grid import NETWORKS

NOISE = 164  # images of it


def subject(name: str, images: Path | None, weights: Path | None) -> tuple[nn.Module, Tensor]:
    """Return a network and the images that it is calibrated on and judged by."""
    size, build = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    for part, parameter in model.named_parameters():
        if part.endswith("gamma"):  # a layer scale of a trained network, not the 1e-6 it starts from
            nn.init.uniform_(parameter, 0.1, 0.6)
    if images is None or weights is None:
        noise = np.random.default_rng(0).standard_normal((NOISE, 3, size, size), dtype=np.float32)
        return model.eval(), torch.from_numpy(noise)
    return models.load_weights(model, weights).eval(), load(images)


def rows_of(model: nn.Module, images: Tensor, judged: Tensor, seconds: float) -> list[dict[str, Any]]:
    """Return a row for the float and the int8 file in each runtime that is installed."""
    with TemporaryDirectory(prefix="edgewise-") as temporary:
        folder = Path(temporary)
        source = export(model, images[:1], folder / "float32.onnx", names=True)
        int8 = Quantizer(source, images).write(folder / "int8.onnx")
        apart = Quantizer(source, images, Quantize(bit_exact=True)).write(folder / "bit_exact.onnx")
        forms = {"float32": source, "int8": int8, "int8 bit_exact": apart}
        files = {("onnxruntime", precision): path for precision, path in forms.items()}
        took = dict.fromkeys(files, 0.0)
        for runtime, form in FORMATS.items():
            for precision, onnx in forms.items():
                if onnx == apart and runtime in CODES_ONLY:  # it is the same as int8 there
                    continue
                inside = folder / runtime / precision
                inside.mkdir(parents=True)
                started = time.perf_counter()
                try:
                    files[runtime, precision] = form.write(onnx, inside / SHIPPED[runtime], images)
                except MissingExtra as error:
                    print(error, flush=True)
                    break
                took[runtime, precision] = time.perf_counter() - started
        logits = {key: outputs(path, judged) for key, path in files.items()}
        measured = dict(zip(files, measure(list(files.values()), threads=1, seconds=seconds), strict=True))
    dense = "onnxruntime", "float32"
    return [
        {
            "runtime": key[0],
            "version": RUNTIMES[key[0]].version(),
            "precision": key[1],
            "equal_to_onnxruntime": _same(found, logits["onnxruntime", key[1]]),
            "error_to_onnxruntime": rms_error(found, logits["onnxruntime", key[1]]),
            "equal_to_float": _same(found, logits[dense]),
            "error_to_float": rms_error(found, logits[dense]),
            "file_bytes": measured[key].file_bytes,
            "latency_s": measured[key].latency_s,
            "speed": measured[key].ratio(measured[dense]),
            "spread": measured[key].spread,
            "seconds": took[key],
            "cpu": measured[key].cpu,
        }
        for key, found in logits.items()
    ]


def _same(a: Tensor, b: Tensor) -> float:
    return (a.argmax(1) == b.argmax(1)).double().mean().item()


def main() -> None:
    """Print a row a file, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", choices=list(NETWORKS), default="mobilenet_v2")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model, images = subject(options.network, options.images, options.weights)
    calibration, judged = images[:CALIBRATION], images[CALIBRATION:]
    found = rows_of(model, calibration, judged, options.seconds)
    for row in found:
        row |= {"network": options.network, "judged": len(judged), "trained": options.weights is not None}
        print(
            f"{row['network']:14} {row['runtime']:12} {row['precision']:8} {row['equal_to_onnxruntime']:7.2%} as in "
            f"ONNX Runtime (error {row['error_to_onnxruntime']:.3f})  {row['equal_to_float']:7.2%} as float "
            f"(error {row['error_to_float']:.3f})  {row['file_bytes'] / 1e6:6.2f} MB  {row['speed']:5.2f}x",
            flush=True,
        )
    mine = {(row["network"], row["runtime"], row["precision"]) for row in found}
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    kept = [row for row in kept if (row["network"], row["runtime"], row["precision"]) not in mine]
    options.out.write_text(json.dumps([*kept, *found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
