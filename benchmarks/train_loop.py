"""Speed of `fit` over that of the same training written bare in PyTorch; the goal is at least 0.97.

ResNet-20 on the embedded images: batches of 128, crop and flip, SGD with Nesterov momentum under one-cycle, bfloat16
autocast and channels_last on both sides. Each pair runs one epoch of `fit` and one of the bare loop, in turn first;
the ratio of a pair is seconds(bare) / seconds(fit), and the figure is the median over the pairs. Before anything is
timed the two are shown to be one training: from the same seed they end with the same weights, bit for bit.

Usage: python benchmarks/train_loop.py [--pairs 8] [--images 3840] [--device cpu] [--precision bfloat16] [--threads 2]
The last line of stdout is JSON.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import edgewise as ew
from edgewise.train.randomness import mixed_seed

BATCH, LR, MOMENTUM, DECAY, WARMUP = 128, 0.2, 0.9, 5e-4, 0.2
IMAGES_STREAM = 1  # of `fit`, so that both see the same images in the same order


def bare(model: nn.Module, data: ew.data.Dataset, split: ew.data.Split, device: str, precision: str) -> nn.Module:
    """Train one epoch as one would write it in a script."""
    net = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
    images, labels = split.images.to(device), split.labels.to(device)
    steps = len(images) // BATCH
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, nesterov=True, foreach=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
    )
    generator = torch.Generator(device).manual_seed(mixed_seed(0, IMAGES_STREAM, 0))
    order = torch.randperm(len(images), generator=generator, device=device)
    total = torch.zeros((), device=device)
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        batch = ew.data.flip(ew.data.crop(images[index], images.shape[-1] // 8, generator), generator)
        inputs = ew.data.normalize(batch, data.mean, data.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(net(inputs).float(), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
        total += loss.detach()
    float(total)
    return net


def seconds(run: Callable[[], nn.Module], device: str) -> float:
    """Time one run, the GPU's queue included."""
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Show that the two trainings are one, time them in turn, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, precision = given.device, given.precision

    data = ew.data.load("fashion-mnist")
    split = ew.data.Split(data.train.images[: given.images], data.train.labels[: given.images])
    task = ew.tasks.Classification(data.mean, data.std, len(data.classes))
    config = ew.train.TrainConfig(
        epochs=1, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, warmup=WARMUP, batch=BATCH, precision=precision
    )
    torch.manual_seed(0)
    model = ew.models.build("resnet20", classes=len(data.classes), channels=data.channels, size=data.size)
    torch.backends.cudnn.deterministic = True  # as inside `fit`

    def run_fit() -> nn.Module:
        return ew.train.fit(model, task, split, config, device=device)

    def run_bare() -> nn.Module:
        return bare(model, data, split, device, precision)

    ours, theirs = run_fit().state_dict(), run_bare().state_dict()  # the warm-up as well
    equal = all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in theirs)

    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    print(f"{name}; {torch.get_num_threads()} threads; torch {torch.__version__}; Python {platform.python_version()}")
    print(f"ResNet-20, {len(split)} images {data.input_shape}, batch {BATCH}, {precision}; same weights: {equal}")
    times: list[tuple[float, float]] = []
    for pair in range(given.pairs):
        if pair % 2:
            bare_s = seconds(run_bare, device)
            fit_s = seconds(run_fit, device)
        else:
            fit_s = seconds(run_fit, device)
            bare_s = seconds(run_bare, device)
        times.append((fit_s, bare_s))
        print(f"pair {pair + 1}: fit {fit_s:.3f} s, bare {bare_s:.3f} s, ratio {bare_s / fit_s:.3f}", flush=True)
    ratios = [bare_s / fit_s for fit_s, bare_s in times]
    ratio, (low, _, high) = statistics.median(ratios), statistics.quantiles(ratios, n=4)
    print(f"speed of fit over bare PyTorch: {ratio:.3f} (middle half {low:.3f} to {high:.3f})")
    result = {
        "benchmark": "train_loop",
        "ratio": ratio,
        "goal": 0.97,
        "same_weights": equal,
        "fit_s": [fit_s for fit_s, _ in times],
        "bare_s": [bare_s for _, bare_s in times],
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
    }
    print(json.dumps(result))


def processor() -> str:
    """Name the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
