"""int8 beside the peers': networks x schemes x runtimes, as times the speed of float32 in ONNX Runtime.

Of each network (fresh weights; latency does not depend on them) the float32 file, ours of every scheme and what "auto"
keeps, ONNX Runtime's quantiser (unsigned activations and a scale a channel; its defaults; dynamic) and NNCF's, in ONNX
Runtime and in OpenVINO, and the same behind pruning to half of the MACs, ours and Torch-Pruning's: all interleaved in
one process, one thread, batch 1. torchao writes no such file: it is timed in PyTorch, behind the others. The last line
of each network is JSON.

    python benchmarks/int8_grid.py [--networks resnet20 mobilenet_v2] [--seconds 30] [--half] [--out int8_grid.json]
"""

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.cost import cost_of
from edgewise.devices.base import Measurement
from edgewise.devices.measure import measure
from edgewise.errors import BudgetError
from edgewise.export.onnx import export
from edgewise.export.quiet import quietly
from edgewise.export.verify import outputs
from edgewise.graph import trace
from edgewise.models.convnext import convnext
from edgewise.prune import Prune, prune
from edgewise.quantize import Quantizer
from edgewise.quantize.auto import choose
from edgewise.quantize.schemes import SCHEMES

IMAGES = 32
HALF = 0.5
ROUNDS = 10  # at least, in PyTorch
ROUND_TO = (8, 16, 32)
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {  # image size, network
    "resnet18": (224, lambda: models.build("resnet18", classes=1000, channels=3, size=224)),
    "mobilenet_v2": (224, lambda: models.build("mobilenet_v2", classes=1000, channels=3, size=224)),
    "convnext_like": (
        224,
        lambda: convnext((2, 2, 6, 2), (48, 96, 192, 384), classes=1000, channels=3, size=224, width=1.0),
    ),
    "resnet20": (32, lambda: models.build("resnet20", classes=10, channels=3, size=32)),
}


def theirs_static(source: Path, out: Path, images: Tensor, **settings: Any) -> Path:
    """Quantise by ONNX Runtime's quantiser."""
    from onnxruntime import quantization as ort

    class Feed(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images.split(1))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {"input": image.numpy()}

    with quietly():
        ort.quantize_static(source, out, Feed(), quant_format=ort.QuantFormat.QDQ, **settings)
    return out


def u8s8() -> dict[str, Any]:
    """Return the settings with which ONNX Runtime's quantiser is fast on x86."""
    from onnxruntime import quantization as ort

    return {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8, "per_channel": True}


def theirs_dynamic(source: Path, out: Path) -> Path:
    """Quantise dynamically by ONNX Runtime."""
    from onnxruntime import quantization as ort

    with quietly():
        ort.quantize_dynamic(source, out)
    return out


def nncf_onnx(source: Path, out: Path, images: Tensor) -> Path:
    """Quantise the ONNX file by NNCF."""
    import nncf
    import onnx

    with quietly():
        data = nncf.Dataset([{"input": image.numpy()} for image in images.split(1)])
        onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(images)), out)
    return out


def in_openvino(source: Path, out: Path) -> Path:
    """Write an ONNX file as OpenVINO's, for one image."""
    import openvino as ov

    network = ov.Core().read_model(source)
    network.reshape([1, *[dim.get_length() for dim in list(network.inputs[0].partial_shape)[1:]]])
    ov.save_model(network, out, compress_to_fp16=False)
    return out


def nncf_openvino(source: Path, out: Path, images: Tensor) -> Path:
    """Quantise in OpenVINO by NNCF."""
    import nncf
    import openvino as ov

    with quietly():
        data = nncf.Dataset([image.numpy() for image in images.split(1)])
        ov.save_model(nncf.quantize(ov.Core().read_model(source), data, subset_size=len(images)), out)
    return out


def in_pytorch(model: nn.Module, example: Tensor, dense: Measurement, seconds: float) -> list[dict[str, Any]]:
    """Time the float network and torchao's int8 in PyTorch, in turn, one thread."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    small = copy.deepcopy(model)
    with quietly():
        quantize_(small, Int8DynamicActivationInt8WeightConfig())
    networks = {"float32 in PyTorch": model, "torchao dynamic in PyTorch": small}
    samples: dict[str, list[float]] = {name: [] for name in networks}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(samples["float32 in PyTorch"]) < ROUNDS:
            for name, network in networks.items():
                started = time.perf_counter()
                network(example)
                samples[name].append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return [
        {
            "name": name,
            "runtime": "torch",
            "spread": float(np.subtract(*np.percentile(taken, [75, 25])) / np.median(taken)),
            "latency_s": float(np.median(taken)),
            "speed": dense.latency_s / float(np.median(taken)),
            "file_bytes": None,
        }
        for name, taken in samples.items()
    ]


def ours_at_half(model: nn.Module, example: Tensor, round_to: int, allocate: str) -> nn.Module | None:
    """Prune to half of the MACs; None where no aligned widths have so few."""
    config = Prune(importance="l2", allocate=allocate, keep_macs=HALF, round_to=round_to)  # type: ignore[arg-type]
    try:
        return prune(model, example, config).model
    except BudgetError:
        return None


def theirs_at_half(model: nn.Module, example: Tensor, round_to: int) -> nn.Module | None:
    """Prune by Torch-Pruning, step by step, until half of the MACs are left; None where they never are."""
    import torch_pruning as tp

    model = copy.deepcopy(model).eval()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        tp.importance.GroupMagnitudeImportance(p=2),
        ignored_layers=[last],
        pruning_ratio=0.95,
        iterative_steps=100,
        global_pruning=True,
        isomorphic=True,
        round_to=round_to,
    )
    whole = cost_of(trace(model, example)).macs
    for _ in range(100):
        pruner.step()
        if cost_of(trace(model, example)).macs <= HALF * whole:
            return model
    return None


def files_of(model: nn.Module, folder: Path, images: Tensor, peers: bool) -> dict[str, Path]:
    """Write a network by everybody, by the name of whoever made it."""
    source = export(model, images[:1], folder / "float32.onnx")
    quantizer = Quantizer(source, images)
    made: dict[str, Callable[[Path], Path]] = {
        f"ours {name}": partial(scheme.write, quantizer) for name, scheme in SCHEMES.items()
    }
    made |= {
        "ours without first": lambda out: quantizer.write(out, list(quantizer.layers)[:1]),
        "ours in OpenVINO": lambda out: in_openvino(quantizer.write(out), out.with_suffix(".xml")),
    }
    if peers:
        made |= {
            "ORT U8S8": lambda out: theirs_static(source, out, images, **u8s8()),
            "ORT defaults": lambda out: theirs_static(source, out, images),
            "ORT dynamic": lambda out: theirs_dynamic(source, out),
            "NNCF": lambda out: nncf_onnx(source, out, images),
            "float32 in OpenVINO": lambda out: in_openvino(source, out.with_suffix(".xml")),
            "ORT U8S8 in OpenVINO": lambda out: in_openvino(
                theirs_static(source, out, images, **u8s8()), out.with_suffix(".xml")
            ),
            "NNCF in OpenVINO": lambda out: nncf_openvino(source, out.with_suffix(".xml"), images),
        }
    found = {"float32": source}
    for name, write in made.items():
        try:
            path = write(folder / f"{name.replace(' ', '-')}.onnx")
            outputs(path, images[:1])  # some of the peers' files cannot be run
            found[name] = path
        except Exception as error:  # a peer's, whatever it is
            print(f"{name}: {str(error).splitlines()[0][:150] if str(error) else type(error).__name__}", flush=True)
    return found


def row(name: str, found: Measurement, dense: Measurement) -> dict[str, Any]:
    """Return what is kept of a measurement."""
    figures = {"latency_s": found.latency_s, "speed": found.ratio(dense), "file_bytes": found.file_bytes}
    return {"name": name, "runtime": found.runtime, "spread": found.spread, **figures}


def told(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    for each in sorted(rows, key=lambda each: -each["speed"]):
        file = f"file {each['file_bytes'] / rows[0]['file_bytes']:5.1%}" if each["file_bytes"] else "no file    "
        print(f"  {each['name']:36} {each['speed']:6.2f}x  {file}  spread {each['spread']:.0%}", flush=True)


def grid(network: str, seconds: float, half: bool) -> dict[str, Any]:
    """Measure everything of one network."""
    size, build = NETWORKS[network]
    torch.manual_seed(0)
    model = build().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # a layer scale of a trained network, not the 1e-6 it starts from
            nn.init.uniform_(parameter, 0.1, 0.6)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((IMAGES, 3, size, size), dtype=np.float32))
    with TemporaryDirectory(prefix="edgewise-") as temporary:
        folder = Path(temporary)
        files = files_of(model, folder, images, peers=True)
        if half:
            for round_to in ROUND_TO:
                arms = {
                    f"ours {a} {round_to}": partial(ours_at_half, model, images[:1], round_to, a)
                    for a in ("uniform", "isomorphic")
                }
                arms[f"Torch-Pruning {round_to}"] = partial(theirs_at_half, model, images[:1], round_to)
                for arm, cut in arms.items():
                    small = cut()
                    if small is None:
                        print(f"{arm}: half of the MACs are out of its reach", flush=True)
                        continue
                    inside = folder / arm.replace(" ", "-")
                    inside.mkdir()
                    source = export(small.eval(), images[:1], inside / "float32.onnx")
                    if arm.startswith("ours"):
                        quantizer = Quantizer(source, images)
                        path = quantizer.write(inside / "int8.onnx")
                        first = quantizer.write(inside / "first.onnx", list(quantizer.layers)[:1])
                        files[f"half: {arm} without first"] = first
                    else:
                        path = theirs_static(source, inside / "int8.onnx", images, **u8s8())
                    files[f"half: {arm}"] = path
                    files[f"half: {arm} in OpenVINO"] = in_openvino(path, inside / "int8.xml")
        found = dict(zip(files, measure(list(files.values()), threads=1, seconds=seconds), strict=True))
        rows = [row(name, each, found["float32"]) for name, each in found.items()]
        rows += in_pytorch(model, images[:1], found["float32"], seconds / 8)
        print(
            f"{network}@{size}: {found['float32'].cpu}, float32 {found['float32'].latency_s * 1e3:.3f} ms", flush=True
        )
        told(rows)
        candidates = folder / "auto"
        candidates.mkdir()
        choice = choose(
            Quantizer(files["float32"], images),
            candidates,
            accuracy=lambda path: 1.0,
            allowed_pt=1.0,
            images=images,
            measure=partial(measure, threads=1, seconds=seconds / 2),
        )
    print(f"  auto keeps {choice.kept.label}: {choice.kept.speed:.2f}x", flush=True)
    auto = {
        "label": choice.kept.label,
        "speed": choice.kept.speed,
        "share": choice.kept.file_bytes / rows[0]["file_bytes"],
    }
    return {"network": network, "size": size, "cpu": found["float32"].cpu, "rows": rows, "auto": auto}


def main() -> None:
    """Print a table and a line of JSON for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--out", type=Path, help="a JSON file, in which the rows of other networks stay")
    parser.add_argument("--half", action="store_true", help="also after pruning to half of the MACs")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for network in options.networks:
        found = grid(network, options.seconds, options.half)
        if options.out is None:
            print(json.dumps(found), flush=True)
            continue
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
        kept = [each for each in kept if each["network"] != network]
        options.out.write_text(json.dumps([*kept, found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
