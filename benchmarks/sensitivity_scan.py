"""How long a whole sensitivity scan takes: every group of a network, every rate of the default grid.

Images and weights are random: the time does not depend on them. Candidates are resumed where their group's channels
are summed over; with --plain also one group, shrunk, recalibrated and evaluated whole, for the ratio. The last line is
JSON.
"""

import argparse
import json
import time

import torch

from edgewise.data import Split
from edgewise.devices.local import cpu_name
from edgewise.graph import shrink, trace
from edgewise.models import build
from edgewise.prune import Knee, make_judge, score
from edgewise.prune.sensitivity import scan, without
from edgewise.tasks import Classification
from edgewise.train import evaluate, recalibrate

TASK = Classification((0.5,) * 3, (0.25,) * 3, 10)


def split(images: int) -> Split:
    return Split(torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (images,)))


def main() -> None:
    defaults = Knee()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vgg16_bn")
    parser.add_argument("--step", type=float, help="of the grid; by default Knee's own")
    parser.add_argument("--calibration", type=int, default=defaults.calibration)
    parser.add_argument("--images", type=int, default=defaults.images)
    parser.add_argument("--arithmetic", default=defaults.arithmetic)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plain", action="store_true", help="also the plain way, of the middle group")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build(options.model)
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    rates = defaults.rates
    if options.step:
        rates = tuple(i * options.step for i in range(1, round(1 / options.step)))
    names = [group.name for group in graph.prunable()]
    scores = score(graph, "l1")

    started, cpu = time.perf_counter(), time.process_time()
    judge = make_judge(
        model,
        TASK,
        split(options.calibration),
        split(options.images),
        calibration=options.calibration,
        images=options.images,
        arithmetic=options.arithmetic,
    )
    scan(graph, judge, scores=scores, rates=(0.0, *rates), groups=names)
    row = {"model": options.model, "groups": len(names), "rates": len(rates), "calibration": options.calibration}
    row |= {"images": options.images, "dtype": str(judge.dtype).removeprefix("torch."), "threads": options.threads}
    row |= {"scan_s": time.perf_counter() - started, "scan_cpu_s": time.process_time() - cpu}

    if options.plain:
        name = names[len(names) // 2]
        started = time.perf_counter()
        for rate in rates:
            small = shrink(model, graph, {name: without(graph, scores, name, rate)})
            small = recalibrate(small, TASK, judge.calibration, images=options.calibration)
            evaluate(small, TASK, judge.held)
        row["plain_s_of_one_group"] = time.perf_counter() - started
    print(f"torch {torch.__version__}, {cpu_name()}")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
