"""What an export step with ``pack = true`` does: the packed file, its proof, its accuracy, and what an array skips.

Run as a module it is that proof's other half: it reads a packed network in a process of its own, and says how accurate
that is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from edgewise.context import Context, Place, Result, dicts
from edgewise.data import Split
from edgewise.errors import CheckFailed
from edgewise.export import network
from edgewise.export.pack import pack
from edgewise.export.verify import Check, require
from edgewise.recipe import Train
from edgewise.sparse import on_array, ternary_accounting
from edgewise.tasks import Task
from edgewise.train import evaluate
from edgewise.units import format_bytes, format_fraction

SAME = 1e-3  # of the images, at least one, may be told otherwise: sums may be taken in another order


def pack_artifact(context: Context, place: Place, model: nn.Module, accuracy: float) -> Result:
    """Write the network's tensors as small as they go, and say what that takes, and what an array would skip.

    Args:
        context: of the run.
        place: of the step; `place.after` holds the network already.
        model: that network.
        accuracy: of it on the test images.
    """
    tile = next((step.tile for step in reversed(context.recipe.step) if isinstance(step, Train) and step.tile), None)
    stored, same_bits = pack(model, place.after, tile)
    again = reread_accuracy(place.after, context.task, context.data.test, context.device)
    off = abs(again - accuracy)
    limit = max(SAME, 1 / len(context.data.test))
    same = Check("accuracy of the packed file, read in a new process", off <= limit, off, limit, "of the images")
    require([same_bits, same])
    size, bound = (place.after / network.PACKED).stat().st_size, sum(each.bound_bytes for each in stored)
    whole = sum(tensor.numel() * tensor.element_size() for tensor in network.tensors(model).values())
    kinds = Counter(each.encoding for each in stored if each.bytes)
    notes = [
        f"packed: {format_bytes(size)}, {whole / size:.1f} times less than the tensors as they are, "
        f"{size / bound - 1:.1%} over what must be stored by the counts ({_counted(kinds)})",
        f"read back in a new process: accuracy {format_fraction(again)}, every bit of every tensor the same",
    ]
    told: Result = {
        "packed": [each._asdict() | {"bits": each.bits} for each in stored],
        "packed_ratio": whole / size,
        "file_bytes": size,
    }
    told["checks"] = dicts([same_bits, same])
    if tile is not None:
        told |= _on_array(context, model, tile, notes)
    return {**told, "notes": notes}


def _on_array(context: Context, model: nn.Module, tile: tuple[int, int], notes: list[str]) -> Result:
    """Count ternary weights as the paper does, and what an array of the tile's size would skip; say both."""
    told: Result = {}
    ternary = ternary_accounting(model, tile)
    if ternary.ternary_layers:
        notes.append(
            f"ternary weights: {ternary.group_sparsity:.1%} in blocks of zeros, {ternary.paper_compression:.1f} times "
            f"less by 16 / (1 - s), {ternary.compression:.1f} times with scales, masks and what stays float"
        )
        told = {"group_sparsity": ternary.group_sparsity, "paper_ratio": ternary.paper_compression}
    if min(tile) < 1:  # blocks as long as a layer is wide are no array's
        return {"ternary": told}
    array = on_array(model, context.example, tile)
    faster = array.dense_cycles / max(array.cycles, 1)
    notes.append(
        f"an array of {tile[0]} x {tile[1]} runs {array.run} of {array.tiles} tiles: {array.cycles:,} cycles of "
        f"{array.dense_cycles:,}, {faster:.2f} times faster"
    )
    rows = [
        {"layer": layer.name, "tiles": layer.tiles, "skipped": layer.skipped, "loaded_bits": layer.loaded_bits}
        | {"dense_cycles": layer.dense_cycles, "cycles": layer.cycles}
        for layer in array.layers
    ]
    return {"ternary": {**told, "array_speedup": faster}, "array": rows}


def _counted(kinds: Counter[str]) -> str:
    """Say how many tensors are stored how, those of most tensors first."""
    return ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())


def reread_accuracy(folder: Path, task: Task, split: Split, device: str | torch.device = "cpu") -> float:
    """Read the packed network of a folder in a new process, and return its accuracy there.

    Raises:
        CheckFailed: the process ended without an answer.
    """
    with tempfile.TemporaryDirectory() as place:
        given = Path(place) / "given.pt"
        torch.save({"task": task, "split": asdict(split), "device": str(device)}, given)
        command = [sys.executable, "-P", "-m", "edgewise.pack_step", str(folder), str(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise CheckFailed(f"{folder / network.PACKED} could not be read in a new process: {last}")
    found: float = json.loads(done.stdout.splitlines()[-1])  # a user's network may have printed before
    return found


if __name__ == "__main__":
    given = torch.load(sys.argv[2], weights_only=False)  # the other half has just written it
    model = network.load(Path(sys.argv[1]), packed=True)
    print(json.dumps(evaluate(model, given["task"], Split(**given["split"]), device=given["device"])))
