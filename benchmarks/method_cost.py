"""What a pruning method adds to a training step: its time over that of the same step without it; the goal is 1.05.

Batches of random images of CIFAR's size, SGD with Nesterov momentum. All trainings live in one process
and make a step each in turn, so that whatever else the machine does falls on all of them alike; the figure is the
ratio of the medians. A method is timed where it has the most to do all along (HESSO scaling channels, with a choice
of channels every ten steps; DHSPG penalising) and, for HESSO, once it only holds its zeros.

Usage: python benchmarks/method_cost.py [--model resnet20] [--batch 128] [--rounds 60] [--device cpu]
    [--precision float32] [--threads 1]
The last line of stdout is JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import edgewise as ew
from edgewise.prune import Dhspg, DhspgPruning, Hesso, HessoPruning
from edgewise.train import TrainConfig, TrainingMethod
from edgewise.train.forward import autocast, image_layout, weight_layout
from edgewise.train.optimizer import build_optimizer
from train_loop import processor

SIDE, STEPS_PER_EPOCH = 32, 1000
EXAMPLE = torch.zeros(1, 3, SIDE, SIDE)
CONFIG = TrainConfig(epochs=1, lr=0.05)
METHODS: dict[str, TrainingMethod | None] = {
    "none": None,
    "hesso": HessoPruning(EXAMPLE, Hesso(sparsity=0.5, start=0.0, duration=1.0, periods=STEPS_PER_EPOCH // 10)),
    "hesso, zeros held": HessoPruning(EXAMPLE, Hesso(sparsity=0.5, start=0.0, duration=0.001, periods=1)),
    "dhspg": DhspgPruning(EXAMPLE, Dhspg(sparsity=0.5, start=0.0)),
}


def steps(name: str, method: TrainingMethod | None, images: Tensor, labels: Tensor, precision: str) -> Iterator[None]:
    """Train a step at a time, as the loop does."""
    torch.manual_seed(0)
    model = weight_layout(ew.models.build(name).to(images.device), torch.channels_last).train()
    if method:
        method.start(model, CONFIG, STEPS_PER_EPOCH)
    optimizer = build_optimizer(model, CONFIG)
    step = 0
    while True:
        with autocast(images.device, precision):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            if method:
                method.gradients(model)
            optimizer.step()
            if method:
                method.after_step(model, step, CONFIG.lr)
        step += 1
        yield


def seconds(training: Iterator[None], device: str) -> float:
    """Time one step, the GPU's queue included."""
    started = time.perf_counter()
    next(training)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(
    running: Mapping[str, Iterator[None]], rounds: int, device: str, threads: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, Any]]:
    """Time steps of several kinds in turn, after three of each; print on what.

    Returns:
        By kind the seconds of every round, and their median; and what they were measured on.
    """
    for _ in range(3):
        for each in running.values():
            next(each)
    times: dict[str, list[float]] = {name: [] for name in running}
    before = os.getloadavg()[0]
    for _ in range(rounds):
        for name, each in running.items():
            times[name].append(seconds(each, device))
    machine = torch.cuda.get_device_name() if device == "cuda" else processor()
    load = (before, os.getloadavg()[0])
    print(f"{machine}; {threads} threads; torch {torch.__version__}; load {load[0]:.1f} to {load[1]:.1f}")
    about = {"machine": machine, "threads": threads, "load": load, "torch": torch.__version__}
    return times, {name: statistics.median(found) for name, found in times.items()}, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = image_layout(torch.randn(given.batch, 3, SIDE, SIDE).to(given.device))
    labels = torch.randint(10, (given.batch,)).to(given.device)
    trainings = {name: steps(given.model, method, images, labels, given.precision) for name, method in METHODS.items()}
    times, medians, about = in_turn(trainings, given.rounds, given.device, given.threads)
    print(f"{given.model}, batch {given.batch}, {given.precision}, {given.rounds} rounds")
    ratios = {name: median / medians["none"] for name, median in medians.items()}
    for name, median in medians.items():
        low, _, high = statistics.quantiles(times[name], n=4)
        middle = f"middle half {low * 1e3:.1f} to {high * 1e3:.1f}"
        print(f"{name:<20}{median * 1e3:8.2f} ms ({middle}){ratios[name]:8.3f}")
    result = {
        "benchmark": "method_cost",
        "model": given.model,
        "batch": given.batch,
        "ratios": ratios,
        "goal": 1.05,
        "step_s": medians,
        **about,
        "precision": given.precision,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
