"""How long it takes to trace, group, score and shrink a network, beside Torch-Pruning, in one run.

Two tables. Once: trace + groups + l2 scores + removal of half of the channels, each tool on the same network, in turn;
and the same with the search for widths that the forward states, which has no counterpart there.
Half: down to half of the MACs with widths that are multiples of 8; Torch-Pruning has no MACs target, so its steps are
repeated until the MACs are there, as its users do. The last line is JSON.
"""

import torchvision_stub  # noqa: F401 - before timm, which imports torchvision

# isort: split
import argparse
import copy
import json
import math
import platform
import time
import warnings
from collections.abc import Sequence

import numpy as np
import timm
import torch
import torch_pruning as tp
from torch import nn

from edgewise.cost import Budget, cost_of
from edgewise.graph import Graph, Group, shrink, trace
from edgewise.prune import allocate, score

MODELS = ["resnet50", "mobilenetv2_100", "densenet121", "convnext_tiny", "efficientnet_b0", "regnety_008"]


def ours_once(model: nn.Module, example: torch.Tensor) -> nn.Module:
    graph = trace(model, example)
    return _halved(model, graph, graph.groups)


def ours_sure(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Also find the widths that the forward states, which `prune` always does and Torch-Pruning never."""
    graph = trace(model, example)
    return _halved(model, graph, graph.prunable(inexact=True))


def _halved(model: nn.Module, graph: Graph, groups: Sequence[Group]) -> nn.Module:
    scores = score(graph, "l2")
    keep = {g.name: np.sort(np.argsort(-scores[g.name].numpy())[: g.size - g.size // 2]) for g in groups}
    return shrink(model, graph, keep)


def theirs_once(model: nn.Module, example: torch.Tensor) -> nn.Module:
    pruner = _pruner(model, example, pruning_ratio=0.5)
    pruner.step()
    return model


def ours_half(model: nn.Module, example: torch.Tensor) -> nn.Module:
    graph = trace(model, example)
    names = [group.name for group in graph.prunable(inexact=True)]
    keep = allocate(graph, scores=score(graph, "l2"), budget=Budget(macs=0.5), round_to=8, groups=names)
    return shrink(model, graph, keep)


def theirs_half(model: nn.Module, example: torch.Tensor) -> nn.Module:
    dense, _ = tp.utils.count_ops_and_params(model, example)
    pruner = _pruner(
        model, example, pruning_ratio=0.8, iterative_steps=100, global_pruning=True, isomorphic=True, round_to=8
    )
    for _ in range(100):
        pruner.step()
        if tp.utils.count_ops_and_params(model, example)[0] <= 0.5 * dense:
            break
    return model


def _pruner(model: nn.Module, example: torch.Tensor, **settings: object) -> "tp.pruner.BasePruner":
    classifiers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    return tp.pruner.BasePruner(model, example, importance, ignored_layers=classifiers, **settings)


def macs(model: nn.Module, example: torch.Tensor) -> int:
    return cost_of(trace(model, example)).macs


def timed(function, model: nn.Module, example: torch.Tensor) -> tuple[float, nn.Module]:
    fresh = copy.deepcopy(model)  # Torch-Pruning works in place; ours gets a copy too
    started = time.perf_counter()
    result = function(fresh, example)
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-half", action="store_true", help="only the first table; the second takes a minute")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    example = torch.zeros(1, 3, 224, 224)
    print(f"torch {torch.__version__}, Torch-Pruning {tp.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"{platform.machine()} {platform.processor()}")
    print(f"{'once':<18}{'ours s':>9}{'and rigid':>10}{'theirs s':>10}{'ratio':>8}{'rigid':>7}", end="")
    print(f"{'MACs ours':>11}{'theirs':>8}")
    once, half = [], []
    for name in MODELS:
        model = timm.create_model(name).eval()
        tools = ours_once, ours_sure, theirs_once
        for tool in tools:  # warm up
            timed(tool, model, example)
        turns = [[timed(tool, model, example) for tool in tools] for _ in range(options.rounds)]
        ours, sure, theirs = (float(np.median([turn[side][0] for turn in turns])) for side in range(3))
        dense = macs(model, example)
        kept = [macs(turns[-1][side][1], example) / dense for side in (0, 2)]
        row = {"model": name, "ours_s": ours, "ours_with_rigid_s": sure, "theirs_s": theirs}
        once.append({**row, "ratio": ours / theirs, "ratio_with_rigid": sure / theirs})
        print(
            f"{name:<18}{ours:>9.3f}{sure:>10.3f}{theirs:>10.3f}{ours / theirs:>8.2f}{sure / theirs:>7.2f}"
            f"{kept[0]:>11.3f}{kept[1]:>8.3f}",
            flush=True,
        )
    mean, mean_rigid = (
        math.exp(np.mean([math.log(row[name]) for row in once])) for name in ("ratio", "ratio_with_rigid")
    )
    print(f"{'geometric mean':<47}{mean:>8.2f}{mean_rigid:>7.2f}")
    if not options.skip_half:
        print(f"{'half the MACs':<18}{'ours s':>9}{'theirs s':>10}{'ratio':>8}{'MACs ours':>11}{'theirs':>8}")
        for name in MODELS:
            model = timm.create_model(name).eval()
            dense = macs(model, example)
            (ours, small), (theirs, other) = timed(ours_half, model, example), timed(theirs_half, model, example)
            kept = [macs(m, example) / dense for m in (small, other)]
            half.append({"model": name, "ours_s": ours, "theirs_s": theirs, "ratio": ours / theirs})
            print(
                f"{name:<18}{ours:>9.3f}{theirs:>10.2f}{ours / theirs:>8.3f}{kept[0]:>11.3f}{kept[1]:>8.3f}", flush=True
            )
    print(json.dumps({"once": once, "geometric_mean": mean, "geometric_mean_with_rigid": mean_rigid, "half": half}))


if __name__ == "__main__":
    main()
