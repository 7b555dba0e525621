"""How long it takes to trace, group, score and shrink a network, beside Torch-Pruning, in one run.

Two tables. Once: trace + groups + l2 scores + removal of half of the channels, each tool on the same network, in turn.
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

import numpy as np
import timm
import torch
import torch_pruning as tp
from torch import nn

from edgewise.cost import Budget, cost_of
from edgewise.graph import shrink, trace
from edgewise.prune import allocate, score

MODELS = ["resnet50", "mobilenetv2_100", "densenet121", "convnext_tiny", "efficientnet_b0", "regnety_008"]


def ours_once(model: nn.Module, example: torch.Tensor) -> nn.Module:
    graph = trace(model, example)
    scores = score(graph, "l2")
    keep = {
        group.name: np.sort(np.argsort(-scores[group.name].numpy())[: group.size - group.size // 2])
        for group in graph.prunable(inexact=True)
    }
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
    print(f"{'once':<18}{'ours s':>9}{'theirs s':>10}{'ratio':>8}{'MACs ours':>11}{'theirs':>8}")
    once, half = [], []
    for name in MODELS:
        model = timm.create_model(name).eval()
        timed(ours_once, model, example), timed(theirs_once, model, example)  # warm up
        pairs = [(timed(ours_once, model, example), timed(theirs_once, model, example)) for _ in range(options.rounds)]
        ours, theirs = (float(np.median([pair[side][0] for pair in pairs])) for side in (0, 1))
        dense = macs(model, example)
        kept = [macs(pairs[-1][side][1], example) / dense for side in (0, 1)]
        once.append({"model": name, "ours_s": ours, "theirs_s": theirs, "ratio": ours / theirs})
        print(f"{name:<18}{ours:>9.3f}{theirs:>10.3f}{ours / theirs:>8.2f}{kept[0]:>11.3f}{kept[1]:>8.3f}", flush=True)
    mean = math.exp(np.mean([math.log(row["ratio"]) for row in once]))
    print(f"{'geometric mean':<37}{mean:>8.2f}")
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
    print(json.dumps({"once": once, "geometric_mean": mean, "half": half}))


if __name__ == "__main__":
    main()
