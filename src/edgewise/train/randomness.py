"""Random numbers that depend on the seed and the epoch alone, and leave the caller's untouched."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(seed: int, *path: int) -> int:
    """Compute a 64-bit seed from a seed and where it is used, such as (epoch, stream).

    Sums would make epoch 1 of seed 0 equal epoch 0 of seed 1; NumPy's SeedSequence hashes.

    >>> mixed_seed(0, 1) != mixed_seed(1, 0)
    True
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0])


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Run what is inside with deterministic kernels, and give the global random state and flags back afterwards."""
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = flags


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of the device, and no other's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
