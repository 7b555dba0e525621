"""How long a network takes to pack and to unpack in every encoding, and how many bytes; the goal is 5 s each.

The weights are a ResNet-50's with the initialisation of seed 0 (25.6 M parameters), made fit for each encoding; what
is no weight of a layer is stored plain. Each file is written and read once before what counts; the figure is the
median of the rounds. Both go to and come from the disk that holds the system's temporary folder.

Usage: python benchmarks/packed.py [--model resnet50] [--rounds 3] [--only ternary]
The last line of stdout is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import edgewise as ew
from edgewise.export.encodings import Codebook, Encoding, Plain, Sparse, Ternary
from edgewise.export.integers import Integers
from edgewise.export.packed import pack, smallest, stored_bytes, unpack, write
from edgewise.sparse import prunable


def same(weight: Tensor) -> Tensor:
    return weight


def ternary(weight: Tensor) -> Tensor:
    """TWN's threshold, and every fourth tile of 1 x 16 at 0."""
    kept = weight.abs() > 0.7 * weight.abs().mean()
    tiles = torch.arange(-(-weight.shape[0] * weight.shape[1] // 16)) % 4 > 0
    tiles = tiles.repeat_interleave(16)[: weight.shape[0] * weight.shape[1]].reshape(weight.shape[:2])
    kept &= tiles.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
    return torch.where(kept, weight.sign() * weight.abs().mean(), torch.zeros(()))


def sparse(weight: Tensor, sparsity: float) -> Tensor:
    """Keep the largest magnitudes."""
    threshold = weight.abs().flatten().kthvalue(max(1, int(sparsity * weight.numel()))).values
    return torch.where(weight.abs() > threshold, weight, torch.zeros(()))


def integers(weight: Tensor, bits: int) -> Tensor:
    scale = weight.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round() * scale


def shared(weight: Tensor, bits: int) -> Tensor:
    """Steps of the standard deviation, so that codes are used unevenly, as those of k-means are."""
    step = 6 * weight.std() / 2**bits
    return (weight / step).round().clamp(
        -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    ) * step + 0.0  # no -0.0, which would be one more


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Encoding | None]] = {
    "plain": (same, Plain()),
    "ternary": (ternary, Ternary()),
    "ternary, tiles": (ternary, Ternary((1, 16))),
    "sparse 50 %, bitmap": (lambda weight: sparse(weight, 0.5), Sparse()),
    "sparse 95 %, gaps": (lambda weight: sparse(weight, 0.95), Sparse()),
    "sparse 80 % of 4 bits": (lambda weight: shared(sparse(weight, 0.8), 4), Sparse(Codebook())),
    "codebook 4 bits": (lambda weight: shared(weight, 4), Codebook(codes="fixed")),
    "codebook 5 bits, huffman": (lambda weight: shared(weight, 5), Codebook(codes="huffman")),
    "codebook 8 bits, huffman": (lambda weight: shared(weight, 8), Codebook(codes="huffman")),
    "int4": (lambda weight: integers(weight, 4), Integers(4)),
    "int8": (lambda weight: integers(weight, 8), Integers(8)),
    "smallest of plain": (same, None),
    "smallest of ternary": (ternary, None),
    "smallest of int8": (lambda weight: integers(weight, 8), None),
}


def timed(call: Callable[[], object], rounds: int) -> float:
    """Return the median of some calls, in seconds, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases that begin so")
    told = parser.parse_args()

    torch.manual_seed(0)
    model = ew.models.build(told.model, classes=1000)
    weights = set(prunable(model))
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "network.packed"
        for name, (made, encoding) in CASES.items():
            if not name.startswith(told.only):
                continue
            tensors = {
                key: made(found).clone() if key in weights else found for key, found in model.state_dict().items()
            }
            encodings = {key: encoding if encoding and key in weights else Plain() for key in tensors}

            def packing(
                tensors: dict[str, Tensor] = tensors,
                encodings: dict[str, Encoding] = encodings,
                given: bool = encoding is not None,
            ) -> None:
                if given:
                    pack(tensors, encodings, path)
                else:
                    write({key: smallest(found, (1, 16)) for key, found in tensors.items()}, path)

            pack_s = timed(packing, told.rounds)
            unpack_s = timed(lambda: unpack(path), told.rounds)
            back = unpack(path)
            exact = all(
                found.contiguous().flatten().view(torch.uint8).equal(back[key].flatten().view(torch.uint8))
                for key, found in tensors.items()
            )
            listed = stored_bytes(path)
            over = sum(row.bytes for row in listed) / sum(row.bound_bytes for row in listed) - 1
            size = path.stat().st_size
            row = {"case": name, "pack_s": pack_s, "unpack_s": unpack_s, "file_bytes": size, "over": over}
            print(f"{name:26} {pack_s:6.2f} s {unpack_s:6.2f} s {size / 1e6:8.2f} MB {over:8.3%} {exact}", flush=True)
            rows.append({**row, "exact": exact})
    count = sum(found.numel() for found in model.state_dict().values())
    print(json.dumps({"model": told.model, "numbers": count, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
