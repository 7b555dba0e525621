"""At equal measured int8 latency, how accurate is what pruning leaves? Ours beside Torch-Pruning.

From the same dense weights both sides are pruned until their int8 file runs within a share of the dense int8 file's
time in ONNX Runtime (one thread, batch 1): ours by asking for it, Torch-Pruning by going on with its steps (widths that
are multiples of 8, 16 and 32) until a measured file is within. Then the same recovery with distillation, the same
quantiser, and all files of a share measured in one process, interleaved. The last line is JSON.

Every stage leaves its file in the work folder and is skipped when it is there: the script can be stopped at any time.
"""

import argparse
import copy
import json
import platform
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from edgewise import data, models
from edgewise.cost import cost_of
from edgewise.data import normalize
from edgewise.devices.measure import measure
from edgewise.distill.distillation import Distill, Distillation
from edgewise.export.onnx import export
from edgewise.export.verify import outputs
from edgewise.graph import trace
from edgewise.prune import Prune, prune
from edgewise.quantize import Quantize, quantize_static
from edgewise.tasks.classification import Classification
from edgewise.train import TrainConfig, evaluate, gradients, recalibrate
from resnet20_chain import trained

ROUND_TO = (8, 16, 32)
END = "end-of-Torch-Pruning-"
VARIED = ("seeds", "shares", "work")  # options that leave what is done already as it is


def same_options(path: Path, options: dict[str, str]) -> None:
    """Refuse a work folder whose stages were made under other options."""
    if path.exists() and (was := json.loads(path.read_text())) != options:
        changed = {name: (was.get(name), value) for name, value in options.items() if was.get(name) != value}
        raise SystemExit(f"{path.parent} was begun with other options (was, is): {changed}; take another --work")
    path.write_text(json.dumps(options))


class Chain:
    """The data, the dense network, and where files go."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.work = options.work / f"{options.model}-{seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        same_options(self.work / "options.json", {k: str(v) for k, v in vars(options).items() if k not in VARIED})
        self.images = data.load(options.data)
        if options.images:
            self.images = data.fewer(self.images, options.images, seed)
        self.task = Classification(self.images.mean, self.images.std, len(self.images.classes))
        self.example = torch.zeros(1, *self.images.input_shape)
        every = len(self.images.train) // 512
        self.calibration = normalize(self.images.train.images[::every][:512], self.images.mean, self.images.std)
        torch.manual_seed(seed)
        fresh = models.build(options.model, classes=len(self.images.classes), size=self.images.size)
        if options.weights:
            fresh, _ = models.load_pretrained(fresh, options.weights, len(self.images.classes))
        self.dense = self.trained("dense", fresh, options.epochs, ())

    def trained(self, name: str, model: nn.Module, epochs: int, methods: tuple) -> nn.Module:
        """Train, or take the weights of a training that is done."""
        config = TrainConfig(epochs=epochs, lr=self.options.lr, batch=128, precision=self.options.precision)
        return trained(self.work / name, model, self.task, self.images, config, methods)

    def int8(self, name: str, model: nn.Module) -> Path:
        """Write the int8 file of a network."""
        path = export(model.eval(), self.example, self.work / f"{name}.onnx")
        return quantize_static(path, self.work / f"{name}.int8.onnx", self.calibration, Quantize())

    def share(self, model: nn.Module) -> float:
        """Measure the int8 latency of a network as a share of the dense one's."""
        files = [self.int8("dense", self.dense), self.int8("candidate", model)]
        dense, found = measure(files, threads=1, seconds=4.0)
        return found.latency_s / dense.latency_s

    def ours(self, share: float) -> nn.Module:
        """Prune to a share of the int8 latency."""
        config = Prune(
            importance="taylor",  # in one unit over all groups, so that it adds up over layers and branches
            reduce="sum",
            normalize="none",
            allocate="knapsack",
            keep_latency=share,
            precision="int8",
        )
        batches = gradients(self.dense, self.task, self.images.train, images=config.calibration, seed=self.seed)
        return prune(self.dense, self.example, config, gradients=batches).model

    def theirs(self, round_to: int, share: float) -> nn.Module | None:
        """Prune with Torch-Pruning, by steps, until the int8 latency is within a share; None where it never is.

        Where its last step ends is kept in a file of the work folder.
        """
        last = 1.0
        for model in self.steps(round_to):
            last = self.share(model)
            if last <= share and (last := max(last, self.share(model))) <= share:  # twice, as ours are
                return model
        print(f"Torch-Pruning round_to={round_to} ends at {last:.3f} of the dense int8 latency", flush=True)
        (self.work / f"{END}{round_to}.json").write_text(json.dumps(last))
        return None

    def steps(self, round_to: int) -> Iterator[nn.Module]:
        """Yield what Torch-Pruning's steps leave, each network of other widths once."""
        import torch_pruning as tp

        model = copy.deepcopy(self.dense).eval()
        outputs_layer = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            model,
            self.example,
            tp.importance.GroupMagnitudeImportance(p=2),
            ignored_layers=[outputs_layer],
            pruning_ratio=0.95,
            iterative_steps=60,
            global_pruning=True,
            isomorphic=True,
            round_to=round_to,
        )
        seen = cost_of(trace(model, self.example)).params
        for _ in range(60):
            pruner.step()
            params = cost_of(trace(model, self.example)).params
            if params < seen:
                seen = params
                yield copy.deepcopy(model)


def main() -> None:
    """Run what is not done yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="pack:FOLDER with CIFAR-10-JPEG75, or another source of images")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", type=Path, help="to start the dense training from; of any classes")
    parser.add_argument("--images", type=int, help="how many training images are used; by default all")
    parser.add_argument("--work", type=Path, default=Path("runs/equal-latency"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.5])
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--recovery", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", default="bfloat16")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = [row for seed in options.seeds for row in compare(Chain(options, seed))]
    ends = {
        path.stem.removeprefix("end-of-").replace("Pruning-", "Pruning "): json.loads(path.read_text())
        for seed in options.seeds
        for path in sorted((options.work / f"{options.model}-{seed}").glob(f"{END}*.json"))
    }
    print(json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows, "ends": ends}))


def compare(chain: Chain) -> list[dict[str, object]]:
    """Prune to each share on both sides, recover, quantise, measure."""
    rows = []
    teacher = Distillation([chain.dense], Distill())
    for share in chain.options.shares:
        arms: dict[str, nn.Module] = {"dense": chain.dense}
        cuts = {"edgewise": partial(chain.ours, share)}
        cuts |= {f"Torch-Pruning {round_to}": partial(chain.theirs, round_to, share) for round_to in ROUND_TO}
        for name, cut in cuts.items():
            key = f"{name.replace(' ', '-')}-{100 * share:.0f}"  # without a dot: suffixes follow
            small = pruned(chain, key, cut)
            if small is not None:
                arms[name] = chain.trained(f"{key}-recovered", small, chain.options.recovery, (teacher,))
        rows += measured(chain, share, arms)
    return rows


def pruned(chain: Chain, key: str, cut) -> nn.Module | None:
    """Prune, or take the network that was pruned already; None where the share is out of reach."""
    path = chain.work / f"{key}.pt"
    if not path.exists():
        model = cut()
        torch.save(None if model is None else recalibrate(model, chain.task, chain.images.train), path)
    return torch.load(path, weights_only=False)  # this script's own file


def measured(chain: Chain, share: float, arms: dict[str, nn.Module]) -> list[dict[str, object]]:
    """Measure the int8 files of a share in one process, and their accuracy."""
    files = [chain.int8(f"{name.replace(' ', '-')}-{100 * share:.0f}-final", model) for name, model in arms.items()]
    found = measure(files, threads=1, seconds=4.0 * len(files))
    test = normalize(chain.images.test.images, chain.images.mean, chain.images.std)
    rows = []
    print(f"{platform.machine()}, {found[0].cpu}, ONNX Runtime {found[0].version}; {chain.options.model}, {share}")
    for (name, model), path, one in zip(arms.items(), files, found, strict=True):
        cost = cost_of(trace(model, chain.example))
        rows.append(
            {
                "seed": chain.seed,
                "share": share,
                "name": name,
                "macs": cost.macs,
                "params": cost.params,
                "float_accuracy": evaluate(model, chain.task, chain.images.test),
                "int8_accuracy": chain.task.metric(outputs(path, test), chain.images.test.labels),
                "int8_bytes": path.stat().st_size,
                "latency_ratio": one.latency_s / found[0].latency_s,
                "spread": one.spread,
            }
        )
        last = rows[-1]
        print(
            f"{name:<20}{cost.macs / 1e6:>7.1f}M{cost.params:>9,}{last['float_accuracy']:>8.2%}"
            f"{last['int8_accuracy']:>8.2%}{last['latency_ratio']:>7.3f}{last['int8_bytes'] / 1e3:>7.0f} kB",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
