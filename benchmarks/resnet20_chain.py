"""The whole chain on ResNet-20, ours beside Torch-Pruning + ONNX Runtime, from the same dense weights.

Dense training, pruning to half of the MACs with widths that are multiples of 8 and of 16, recovery, int8, export,
latency. Both sides recover with the same training (distillation from the dense network, same epochs, same seed) and
every file is measured in one process, interleaved. What differs is the pruning and the quantiser's settings: theirs are
the ones users of ONNX Runtime take for CNNs (U8S8, per channel).

Every stage leaves its file in the work folder and is skipped when it is there: the script can be stopped at any time.
"""

import argparse
import json
import platform
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgewise import data, models
from edgewise.cost import cost_of
from edgewise.distill.distillation import Distill, Distillation
from edgewise.graph import trace
from edgewise.prune import Prune, prune
from edgewise.tasks.classification import Classification
from edgewise.train import TrainConfig, evaluate, fit, recalibrate

EXAMPLE = torch.zeros(1, 3, 32, 32)


def bar(what: str, done: int, total: int) -> None:
    """Print how far a training is, ten times in all."""
    if done * 10 // total != (done - 1) * 10 // total:
        print(f"  {what} {done}/{total}", flush=True)


def main() -> None:
    """Run what is not done yet, then print the table; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="pack:FOLDER with CIFAR-10-JPEG75, or another source of 32x32 images")
    parser.add_argument("--work", type=Path, default=Path("runs/resnet20-chain"))
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--recovery", type=int, default=8)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--round-to", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--train-only", action="store_true", help="stop before the table, to train widths side by side")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")

    images = data.load(options.data)
    task = Classification(images.mean, images.std, len(images.classes))
    torch.manual_seed(0)
    fresh = models.build("resnet20", classes=len(images.classes), size=images.size)
    config = TrainConfig(epochs=options.epochs, precision=options.precision)
    dense = trained(options.work / "dense", fresh, task, images, config)
    print(f"dense: {evaluate(dense, task, images.test):.4f}", flush=True)

    recovery = TrainConfig(epochs=options.recovery, lr=0.1, batch=256, precision=options.precision)
    networks = {"dense": dense}
    for round_to in options.round_to:
        for tool, cut in (("edgewise", ours), ("Torch-Pruning", theirs)):
            name = f"{tool} round_to={round_to}"
            small = recalibrate(cut(dense, round_to), task, images.train)
            cost = cost_of(trace(small, EXAMPLE))
            print(f"{name}: {cost.macs:,} MACs, {cost.params:,} params", flush=True)
            teacher = Distillation([dense], Distill())
            networks[name] = trained(options.work / name.replace(" ", "-"), small, task, images, recovery, [teacher])
    if not options.train_only:
        report(networks, task, images, options.work)


def trained(path: Path, model: nn.Module, task, images, config: TrainConfig, methods=()) -> nn.Module:
    """Train a network, or take the weights of a training that is done; an interrupted one goes on."""
    done = path.with_suffix(".safetensors")
    if done.exists():
        model.load_state_dict(load_file(done))
        return model
    model = fit(
        model, task, images.train, config, methods=methods, progress=bar, checkpoint=path.with_suffix(".checkpoint")
    )
    save_file(model.state_dict(), done)
    return model


def ours(dense: nn.Module, round_to: int) -> nn.Module:
    """Prune to half of the MACs."""
    return prune(dense, EXAMPLE, Prune(keep_macs=0.5, round_to=round_to)).model


def theirs(dense: nn.Module, round_to: int) -> nn.Module:
    """Prune with Torch-Pruning, stepwise until half of the MACs are left or its steps are used up."""
    import copy

    import torch_pruning as tp

    model = copy.deepcopy(dense)
    target = 0.5 * cost_of(trace(model, EXAMPLE)).macs
    pruner = tp.pruner.BasePruner(
        model,
        EXAMPLE,
        tp.importance.GroupMagnitudeImportance(p=2),
        ignored_layers=[model.linear],
        pruning_ratio=0.8,
        iterative_steps=100,
        global_pruning=True,
        isomorphic=True,
        round_to=round_to,
    )
    for _ in range(100):
        pruner.step()
        if cost_of(trace(model, EXAMPLE)).macs <= target:
            break
    return model


def report(networks: dict[str, nn.Module], task, images, work: Path) -> None:
    """Export, quantise and measure every network, and print the table."""
    from edgewise.data import normalize
    from edgewise.devices.measure import measure
    from edgewise.export.onnx import export
    from edgewise.export.verify import outputs
    from edgewise.quantize.static import Quantize, quantize_static

    calibration = normalize(images.train.images[:: len(images.train) // 512][:512], images.mean, images.std)
    test = normalize(images.test.images, images.mean, images.std)
    rows, files = [], []
    for name, model in networks.items():
        path = export(model.eval(), EXAMPLE, work / f"{name.replace(' ', '-')}.onnx")
        int8 = path.with_suffix(".int8.onnx")
        if name.startswith("Torch"):
            quantize_with_onnxruntime(path, int8, calibration)
        else:
            quantize_static(path, int8, calibration, Quantize())
        cost = cost_of(trace(model, EXAMPLE))
        rows.append(
            {
                "name": name,
                "macs": cost.macs,
                "params": cost.params,
                "float_accuracy": evaluate(model, task, images.test),
                "int8_accuracy": task.metric(outputs(int8, test), images.test.labels),
                "float_bytes": path.stat().st_size,
                "int8_bytes": int8.stat().st_size,
            }
        )
        files += [path, int8]
    measured = measure(files, threads=1, seconds=10.0, input_shape=(3, images.size, images.size))
    for row, float_, int8_ in zip(rows, measured[::2], measured[1::2], strict=True):
        row |= {"float_s": float_.latency_s, "int8_s": int8_.latency_s, "spread": max(float_.spread, int8_.spread)}
    print(f"{platform.machine()}, {measured[0].cpu}, torch {torch.__version__}, ONNX Runtime {measured[0].version}")
    print(f"{'':<26}{'MACs':>7}{'params':>9}{'float':>8}{'ms':>8}{'kB':>7}{'int8':>8}{'ms':>8}{'kB':>7}{'spread':>8}")
    for row in rows:
        print(
            f"{row['name']:<26}{row['macs'] / 1e6:>6.1f}M{row['params']:>9,}{row['float_accuracy']:>8.2%}"
            f"{row['float_s'] * 1e3:>8.3f}{row['float_bytes'] / 1e3:>7.0f}{row['int8_accuracy']:>8.2%}"
            f"{row['int8_s'] * 1e3:>8.3f}{row['int8_bytes'] / 1e3:>7.0f}{row['spread']:>8.0%}"
        )
    print(json.dumps({"data": images.name, "note": images.note, "rows": rows}))


def quantize_with_onnxruntime(path: Path, out: Path, calibration: torch.Tensor) -> None:
    """Quantise as ONNX Runtime's documentation says for CNNs on x86: QDQ, U8S8, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration.split(64))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch.numpy()}

    prepared = out.with_suffix(".pre.onnx")
    quant_pre_process(str(path), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


if __name__ == "__main__":
    main()
