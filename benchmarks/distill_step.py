"""What distillation adds to a training step: its time over that of the student's step and the teacher's forward.

ResNet-20 learns from ResNet-56 on random images of CIFAR's size, SGD with Nesterov momentum, everything in one process
and a step each in turn, so that whatever else the machine does falls on all alike; the figures are ratios of medians::

    kd, dkd, features    a step over (the student's step alone + the teacher's forward alone); the goal is 1.05
    kept                 a step with the teacher's answers kept in memory, over the student's step; the goal is 1.05

Usage: python benchmarks/distill_step.py [--batch 128] [--rounds 40] [--device cpu] [--precision float32] [--threads 1]
The last line of stdout is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Iterator

import torch
from torch import nn

import edgewise as ew
from edgewise.data import Split
from edgewise.distill import Distill, Distillation
from edgewise.tasks import Classification
from edgewise.train import TrainConfig
from edgewise.train.forward import autocast, image_layout, weight_layout
from edgewise.train.optimizer import build_optimizer
from method_cost import in_turn

SIDE, CLASSES, GOAL = 32, 10, 1.05
TAPS = ("layer1", "layer2", "layer3")
CONFIGS = {
    "kd": Distill(),
    "dkd": Distill(loss="dkd"),
    "features": Distill(hint=1.0, attention=1.0, taps=TAPS),
    "kept": Distill(cache=True),
    "kept features": Distill(hint=1.0, attention=1.0, taps=TAPS, cache=True),
}


def network(name: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    model = ew.models.build(name, classes=CLASSES, channels=3, size=SIDE)
    return weight_layout(model.to(device), torch.channels_last)


def student_steps(
    config: Distill | None, task: Classification, split: Split, batch: int, precision: str
) -> Iterator[None]:
    """Train a step at a time, as the loop does."""
    device = split.images.device
    model, training = (
        network("resnet20", device.type).train(),
        TrainConfig(batch=batch, precision=precision, augment=()),
    )
    methods = [Distillation([network("resnet56", device.type)], config, task, split)] if config else []
    for method in methods:
        method.start(model, training, 1000)
    optimizer, index = build_optimizer(model, training), torch.arange(batch, device=device)
    inputs, targets = task.batch(split, index, augment=False)
    inputs = image_layout(inputs)
    while True:
        for method in methods:
            method.before_step(model, index)
        with autocast(device, precision):
            outputs = model(inputs)
            loss = task.loss(outputs, targets)
            for method in methods:
                loss = method.loss(model, inputs, outputs, targets, loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def teacher_forwards(task: Classification, split: Split, batch: int, precision: str) -> Iterator[None]:
    """Run the teacher, and nothing else."""
    device = split.images.device
    model = network("resnet56", device.type).eval()
    inputs = image_layout(task.batch(split, torch.arange(batch, device=device), augment=False)[0])
    while True:
        with torch.no_grad(), autocast(device, precision):
            model(inputs)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = Classification(mean=(0.5,) * 3, std=(0.25,) * 3, classes=CLASSES)
    images = torch.randint(256, (given.batch, 3, SIDE, SIDE), dtype=torch.uint8)
    split = Split(images, torch.randint(CLASSES, (given.batch,))).to(given.device)
    common = task, split, given.batch, given.precision
    running = {"student": student_steps(None, *common), "teacher": teacher_forwards(*common)}
    running |= {name: student_steps(config, *common) for name, config in CONFIGS.items()}
    times, medians, about = in_turn(running, given.rounds, given.device, given.threads)
    parts = {name: medians["student"] + (0 if config.cache else medians["teacher"]) for name, config in CONFIGS.items()}
    ratios = {name: medians[name] / parts[name] for name in CONFIGS}
    print(f"ResNet-20 from ResNet-56, batch {given.batch}, {given.precision}, {given.rounds} rounds")
    for name, median in medians.items():
        low, _, high = statistics.quantiles(times[name], n=4)
        ratio = f"{ratios[name]:8.3f}" if name in ratios else ""
        print(f"{name:<16}{median * 1e3:8.2f} ms (middle half {low * 1e3:.1f} to {high * 1e3:.1f}){ratio}")
    result = {
        "benchmark": "distill_step",
        "ratios": ratios,
        "goal": GOAL,
        "step_s": medians,
        "batch": given.batch,
        **about,
        "precision": given.precision,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
