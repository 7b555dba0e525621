"""One network to several latencies, each by one `edgewise compress MODEL --max-latency`; then all files once more.

Each wish runs in a folder of its own under the work folder and is skipped when it is finished there: the script can be
stopped at any time. At the end all artifacts are measured in one process beside the dense float file. The last line is
JSON.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from edgewise.budget import Limits
from edgewise.devices.measure import measure
from edgewise.files import read_json
from edgewise.layout import ARTIFACT, DENSE, MANIFEST, RECIPE, RESULTS
from edgewise.plan import Wish, compress_within, training_precision
from edgewise.recipe import Train, read


def within(wish: Wish, share: float, work: Path) -> Path:
    """Compress to a share of the dense float latency, or take the run that did."""
    folder = work / f"x{100 * share:.0f}"
    if not (folder / MANIFEST).exists():
        wish = dataclasses.replace(wish, budget=dataclasses.replace(wish.budget, latency=f"{100 * share:g}%"))
        folder = compress_within(wish, folder, resume=(folder / RECIPE).exists(), tell=print).folder
    return folder


def row(share: float, folder: Path) -> dict[str, Any]:
    """Return what came of a run."""
    results, steps = read_json(folder / RESULTS), read(folder / RECIPE).step
    found, dense = results["compressed"], results["rows"][0]
    return {
        "asked": share,
        "epochs": sum(step.epochs for step in steps if isinstance(step, Train)),
        "steps": [step.kind for step in steps],
        **{name: found[name] for name in ("macs", "file_bytes", "accuracy", "drop_pt", "latency_s")},
        "dense_accuracy": dense["accuracy"],
        "dense_latency_s": dense["latency_s"],
        "ratio": found["latency_s"] / dense["latency_s"],
        "met": {name: limit["met"] for name, limit in results["budget"].items()},
    }


def main() -> None:
    """Run what is not done yet, then print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="pack:FOLDER with CIFAR-10-JPEG75, or another source of images")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", required=True, help="of the dense network, trained on these data")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6, 0.4, 0.25])
    parser.add_argument("--max-drop", type=float, default=1.5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("runs/three-latencies"))
    options = parser.parse_args()
    wish = Wish(
        model=options.model,
        data=options.data,
        weights=options.weights,
        budget=Limits(latency="100%", drop=options.max_drop),
        epochs=options.epochs,
        precision=training_precision(),
    )
    folders = [within(wish, share, options.work) for share in options.shares]
    rows = [row(share, folder) for share, folder in zip(options.shares, folders, strict=True)]
    dense, *found = measure([folders[0] / DENSE / ARTIFACT, *(folder / ARTIFACT for folder in folders)], seconds=20.0)
    for one, again in zip(rows, found, strict=True):
        one["ratio_again"] = again.latency_s / dense.latency_s
        print({name: one[name] for name in ("asked", "ratio", "ratio_again", "accuracy", "drop_pt", "met")})
    facts = {"model": options.model, "max_drop_pt": options.max_drop}
    print(json.dumps({**facts, "cpu": dense.cpu, "onnxruntime": dense.version, "threads": 1, "rows": rows}))


if __name__ == "__main__":
    main()
