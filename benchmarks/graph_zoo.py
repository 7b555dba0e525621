"""How many of timm's networks the channel graph can follow, and whether what it removes is exact.

For each network of `zoo.txt` (a line for each of timm's families, by the leading letters of their names): trace it,
remove half of the channels of every exact group at random, and compare the shrunk network with the silenced original
on a random image in float64, and once more in float32; then the same with every second of the branches gone that can
go. Of a network with inexact groups alone, remove those and see that it runs. Networks that run matrix products of
activations (attention) are counted apart from the convolutional ones. Torch-Pruning prunes the first network of 45
families, with its defaults, 30 seconds each, in the same run; the last line is JSON.
"""

import torchvision_stub  # noqa: F401 - before timm, which imports torchvision

# isort: split
import argparse
import collections
import json
import multiprocessing
import platform
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgewise.cost import CostModel
from edgewise.errors import EdgewiseError
from edgewise.graph import shrink, silence, trace

ZOO = Path(__file__).with_name("zoo.txt")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative
STATES = ("exact", "inexact", "wrong", "nothing")
ATTENTION = {"bmm", "baddbmm", "_softmax", "_safe_softmax"}


@dataclass(frozen=True)
class Row:
    """What became of one network; `status` is one of `STATES`, or why it was refused."""

    name: str
    kind: str
    status: str
    trace_s: float = 0.0
    rigid_s: float = 0.0
    groups: int = 0
    inexact: int = 0
    rigid: int = 0
    macs: float = 1.0
    error: float = 0.0
    error_float32: float = 0.0
    branches: int = 0
    branches_s: float = 0.0
    branches_error: float = 0.0


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def kind(model: nn.Module, x: torch.Tensor) -> str:
    with torch.no_grad(), Operators() as operators:
        model(x)
    mixes = operators.names & ATTENTION or any("attention" in name for name in operators.names)
    return "attention" if mixes else "convolutional"


def trained_looking(name: str) -> nn.Module:
    """Make a network whose scales, shifts and statistics are not all alike, as after training."""
    torch.manual_seed(0)
    model = timm.create_model(name).double().eval()
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() != 1 or not tensor.is_floating_point():
                continue
            if "running_mean" in key or key.endswith("bias"):
                tensor.normal_(0, 0.1)
            elif "weight" in key or "gamma" in key or "running_var" in key:
                tensor.uniform_(0.5, 1.5)
    return model


def ours(name: str) -> Row:
    model = trained_looking(name)
    channels, *size = model.default_cfg.get("input_size") or (3, 224, 224)
    try:  # a small image serves as well, where the network takes it
        x = torch.randn(1, channels, 128, 128, dtype=torch.float64)
        what = kind(model, x)
    except Exception:
        x = torch.randn(1, channels, *size, dtype=torch.float64)
        what = kind(model, x)
    started = time.perf_counter()
    try:
        graph = trace(model, x)
        traced = time.perf_counter()
        rigid = graph.rigid
        found = time.perf_counter()
    except EdgewiseError as error:
        return Row(name, what, str(error))
    rng = np.random.default_rng(0)
    groups = graph.prunable() or graph.prunable(inexact=True)
    exact = all(group.exact for group in groups)
    keep = {g.name: np.sort(rng.permutation(g.size)[: (g.size + 1) // 2]) for g in groups if g.size > 1}
    widths = np.array([len(keep.get(g.name, range(g.size))) for g in graph.groups])
    cost = CostModel(graph)
    figures = {
        "trace_s": traced - started,
        "rigid_s": found - traced,
        "groups": len(graph.groups),
        "inexact": sum(not g.exact for g in graph.groups),
        "rigid": len(rigid),
        "macs": cost.macs(widths) / max(1, cost.macs(graph.sizes)),
    }
    if not keep:
        return Row(name, what, "nothing", **figures)
    silenced, small = silence(model, graph, keep), shrink(model, graph, keep)
    if not exact:
        with torch.no_grad():
            return Row(name, what, "inexact" if small(x).isfinite().all() else "wrong", **figures)
    started = time.perf_counter()
    names = {group.name for group in groups}
    branches = [name for name, branch in graph.branches.items() if names.issuperset(branch.groups)]
    figures |= {"branches": len(branches), "branches_s": time.perf_counter() - started}
    shallow = keep | {name: np.arange(0) for name in branches[::2]}
    without = relative_error(silence(model, graph, shallow), shrink(model, graph, shallow), x)
    errors = {dtype: relative_error(silenced.to(dtype), small.to(dtype), x.to(dtype)) for dtype in TOLERANCE}
    exact = without <= TOLERANCE[torch.float64] and all(errors[dtype] <= most for dtype, most in TOLERANCE.items())
    return Row(
        name,
        what,
        "exact" if exact else "wrong",
        **figures,
        error=errors[torch.float64],
        error_float32=errors[torch.float32],
        branches_error=without,
    )


def relative_error(expected: nn.Module, found: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        y = expected(x)
        return float((found(x) - y).abs().max() / y.abs().max().clamp_min(1e-30))


def theirs(name: str) -> None:
    import torch_pruning as tp

    model = timm.create_model(name).eval()
    x = torch.zeros(1, *(model.default_cfg.get("input_size") or (3, 224, 224)))
    classifiers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.num_classes]
    before, _ = tp.utils.count_ops_and_params(model, x)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    tp.pruner.BasePruner(model, x, importance, ignored_layers=classifiers, pruning_ratio=0.5).step()
    with torch.no_grad():
        out = model(x)
    after, _ = tp.utils.count_ops_and_params(model, x)
    raise SystemExit(0 if out.shape == (1, model.num_classes) and after < before else 1)


def timed(function, name: str, seconds: float) -> tuple[bool, float]:
    """Run a function in a process of its own; return whether it ended well in time, and the seconds it took."""
    started = time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=function, args=(name,))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return False, seconds
    return process.exitcode == 0, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; by default the first of every line of zoo.txt")
    parser.add_argument("--all", action="store_true", help="the second network of each family too")
    parser.add_argument("--skip-theirs", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    families = [line.split() for line in ZOO.read_text().splitlines()]
    zoo = [name for family in families for name in (family if options.all else family[:1])]
    print(f"torch {torch.__version__}, timm {timm.__version__}, {platform.machine()}, 1 thread", flush=True)
    rows = []
    for name in options.names or zoo:
        row = ours(name)
        rows.append(row)
        print(
            f"{row.name:<40}{row.kind:<15}{row.trace_s:7.2f}{row.rigid_s:7.2f} s{row.groups:5} groups"
            f"{row.inexact:4} inexact{row.rigid:4} rigid  MACs {row.macs:.2f}  {row.status} {row.error:.0e}"
            f" {row.error_float32:.0e}{row.branches:5} branches{row.branches_s:6.1f} s {row.branches_error:.0e}",
            flush=True,
        )
    counts = collections.Counter((r.kind, r.status if r.status in STATES else "refused") for r in rows)
    peers = []
    if not options.skip_theirs and not options.names:
        for name, *_ in families[:: len(families) // 45][:45]:
            done, seconds = timed(theirs, name, 30)
            peers.append({"name": name, "pruned": done, "seconds": seconds})
            print(f"Torch-Pruning {name:<40}{'pruned' if done else 'failed':>8}{seconds:7.1f} s", flush=True)
    print(
        {f"{k} {s}": n for (k, s), n in sorted(counts.items())},
        f"Torch-Pruning {sum(p['pruned'] for p in peers)}/{len(peers)}",
    )
    print(json.dumps({"ours": [asdict(row) for row in rows], "theirs": peers}))


if __name__ == "__main__":
    main()
