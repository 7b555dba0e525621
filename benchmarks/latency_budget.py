"""Asked for a share of the dense network's latency, what does pruning deliver?

For each network, precision and share: prune to it, then measure the pruned artifact beside the dense one once more, in
a fresh process, with one thread. "asked" and "got" are shares of the dense latency in the same precision; "first
foretold" is what the first candidate was foretold to take over what it took. Untrained weights: latency does not depend
on them. Every row is kept as it is found, and is not measured again; the last line is JSON.

Usage: python benchmarks/latency_budget.py [--models resnet20 ...] [--precisions int8] [--keep 0.5] [--rows FILE]
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import onnxruntime
import torch

from edgewise import models
from edgewise.devices.local import cpu_name
from edgewise.errors import EdgewiseError
from edgewise.prune import Prune
from edgewise.prune.candidates import Candidates
from edgewise.prune.structured import prune

MODELS = models.MODELS


def row(name: str, precision: str, share: float) -> dict[str, object]:
    torch.manual_seed(0)
    model, example = models.build(name, classes=10, size=32).eval(), torch.zeros(1, 3, 32, 32)
    config = Prune(keep_latency=share, precision=precision, allocate="knapsack")
    started = time.perf_counter()
    found = {"model": name, "precision": precision, "asked": share, "load": round(os.getloadavg()[0], 1)}
    try:
        pruned = prune(model, example, config)
    except EdgewiseError as error:
        return {**found, "error": str(error), "seconds": time.perf_counter() - started}
    seconds = time.perf_counter() - started
    again = Candidates(pruned.graph, precision=precision)
    (measured,) = again.measure([pruned.keep])
    ratios = [trial.foretold["latency_s"] / trial.measured["latency_s"] for trial in pruned.trials]
    return {
        **found,
        "got": (got := measured["latency_s"] / again.dense["latency_s"]),
        "used": got / share,
        "foretold_over_measured": ratios[-1],
        "first_foretold_over_measured": ratios[0],
        "tries": len(pruned.trials),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "int8"])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.75, 0.5, 0.25])
    parser.add_argument("--rows", type=Path, default=Path("runs/latency-budget.jsonl"), help="where they are kept")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    lines = options.rows.read_text().splitlines() if options.rows.exists() else []
    known = {(row["model"], row["precision"], row["asked"]): row for row in map(json.loads, lines)}
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()} {cpu_name()}, one thread, batch 1, 32x32", flush=True)
    print(f"{'network':<15}{'precision':<10}{'asked':>6}{'got':>7}{'first foretold':>16}{'tries':>6}{'s':>6}")
    rows = []
    for name in options.models:
        for precision in options.precisions:
            for share in options.keep:
                found = known.get((name, precision, share)) or row(name, precision, share)
                if (name, precision, share) not in known:
                    with options.rows.open("a") as file:
                        print(json.dumps(found), file=file)
                rows.append(found)
                if "error" in found:
                    print(f"{name:<15}{precision:<10}{share:>6}  {found['error']}", flush=True)
                    continue
                print(
                    f"{name:<15}{precision:<10}{share:>6}{found['got']:>7.3f}"
                    f"{found['first_foretold_over_measured']:>16.3f}{found['tries']:>6}{found['seconds']:>6.0f}",
                    flush=True,
                )
    about = {"cpu": cpu_name(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "threads": 1}
    print(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
