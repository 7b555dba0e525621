"""Trains with a checkpoint and kills itself: python training_to_kill.py CASE CHECKPOINT STEP."""

import os
import signal
import sys
from pathlib import Path

import torch

from edgewise.distill import Distill, Distillation
from edgewise.prune import Dhspg, DhspgPruning, Hesso, HessoPruning
from edgewise.quantize.ternary import Ternarization, Ternary
from edgewise.sparse import (
    FlipOut,
    FlipOutPruning,
    Gradual,
    GradualPruning,
    HoyerSparsity,
    HoyerSquare,
    KeepZeros,
    PeLasso,
    PeLassoPruning,
    ZerosKept,
    keep_masks,
    masked,
    prunable,
    score,
)
from edgewise.train import TrainConfig, TrainingMethod
from train.tiny import tiny_net

CASES = {
    "sgd, average, distillation": TrainConfig(epochs=4, batch=32, lr=0.05, ema=0.9),
    "adamw, bfloat16, mixup": TrainConfig(
        epochs=4, batch=32, optimizer="adamw", lr=0.01, precision="bfloat16", augment=("crop", "mixup")
    ),
    "hesso, average": TrainConfig(epochs=4, batch=32, lr=0.05, ema=0.9),
    "dhspg, distillation": TrainConfig(epochs=4, batch=32, lr=0.05),
    "keep_zeros": TrainConfig(epochs=4, batch=32, lr=0.05),
    "flipout, average": TrainConfig(epochs=4, batch=32, lr=0.05, ema=0.9),
    "gradual": TrainConfig(epochs=4, batch=32, optimizer="adamw", lr=0.01),
    "hoyer": TrainConfig(epochs=4, batch=32, lr=0.05),
    "ternary max, pe_lasso, distillation, average": TrainConfig(epochs=4, batch=32, lr=0.05, ema=0.9),
    "pe_lasso, ternary gaussian": TrainConfig(epochs=4, batch=32, optimizer="adamw", lr=0.01),
}


def network(case: str) -> torch.nn.Module:
    """Make what the case trains."""
    model = tiny_net()
    return masked(model, keep_masks(score(prunable(model), "l1"), 0.7, "global")) if "keep_zeros" in case else model


def methods(case: str) -> list[TrainingMethod]:
    """Make the case's methods."""
    example = torch.zeros(1, 3, 8, 8)
    made: list[TrainingMethod] = []
    if "distillation" in case:
        made.append(Distillation([tiny_net(seed=5)], Distill()))
    if "hesso" in case:  # killed in the middle of its second period, resumed in that of its first
        made.append(HessoPruning(example, Hesso(sparsity=0.5, start=0.1, duration=0.5, periods=2)))
    if "dhspg" in case:  # resumed when three of four channels are zero
        made.append(DhspgPruning(example, Dhspg(sparsity=0.5, start=0.1, penalty=1.6)))
    if "keep_zeros" in case:
        made.append(ZerosKept(KeepZeros()))
    if "flipout" in case:  # killed after its second event, with the noise still on
        made.append(FlipOutPruning(FlipOut(sparsity=0.8, events=4)))
    if "gradual" in case:
        made.append(GradualPruning(Gradual(sparsity=0.8, criterion="random", events=5)))
    if "hoyer" in case:
        made.append(HoyerSparsity(HoyerSquare(strength=1e-2, threshold=1e-2)))
    if "ternary" in case:
        made.append(Ternarization(Ternary(variant="max" if "max" in case else "gaussian", float_layers="first")))
    if "pe_lasso" in case:  # killed and resumed before its zeros are frozen in one case, after it in the other
        freeze_at = 0.5 if "max" in case else 0.2
        made.append(PeLassoPruning(PeLasso(tile=(1, 1), strength=0.05, freeze_at=freeze_at, spare="first")))
    return made[::-1] if case.startswith("pe_lasso") else made


if __name__ == "__main__":
    from edgewise.train import fit
    from train.tiny import TASK, tiny_split

    _, name, path, last = sys.argv

    def die(what: str, done: int, total: int) -> None:
        """End without any clean-up, as a machine that loses its power."""
        if done == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    fit(network(name), TASK, tiny_split(100), CASES[name], methods=methods(name), checkpoint=Path(path), progress=die)
