"""A network in as few bytes as its numbers need, beside its other files, and the proof that it comes back.

Run as a module it reads a packed file in a process of its own and prints a digest of each tensor.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import CheckFailed
from edgewise.export import network
from edgewise.export.packed import Stored, smallest, stored_bytes, stream, write
from edgewise.export.verify import Check


def pack(model: nn.Module, folder: Path, tile: tuple[int, int] | None = None) -> tuple[list[Stored], Check]:
    """Write a network's tensors to a folder, each in the encoding that takes the fewest bytes and loses no bit.

    Args:
        model: the network; `edgewise.export.network.save` has written it there.
        folder: gets `model.packed`.
        tile: [outputs, inputs] of the blocks that were pruned, if some were.

    Returns:
        What each tensor takes, and the check that a process that knows nothing else reads the same bits.
    """
    tensors = network.tensors(model)
    path = write({name: smallest(tensor, tile) for name, tensor in tensors.items()}, folder / network.PACKED)
    return stored_bytes(path), reread(path, tensors)


def reread(path: Path, tensors: Mapping[str, Tensor]) -> Check:
    """Read a packed file in a new process, and count the tensors that differ in any bit.

    Raises:
        CheckFailed: the process ended without an answer.
    """
    command = [sys.executable, "-P", "-m", "edgewise.export.pack", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise CheckFailed(f"{path} could not be read in a new process: {last}")
    found: dict[str, str] = json.loads(done.stdout)
    expected = {name: _digest(tensor) for name, tensor in tensors.items()}
    other = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    detail = ", ".join(other[:3]) or f"{len(expected)} tensors, {path.stat().st_size} bytes"
    return Check("packed file reads back in a new process", not other, len(other), 0, "tensors that differ", detail)


def _digest(tensor: Tensor) -> str:
    """Return the SHA-256 of type, shape and bytes."""
    content = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    content.update(np.ascontiguousarray(tensor.contiguous().flatten().view(torch.uint8).numpy()).tobytes())
    return content.hexdigest()


if __name__ == "__main__":
    print(json.dumps({name: _digest(tensor) for name, tensor in stream(sys.argv[1])}))
