"""Memory that is kept for a while and given back."""

import resource
import sys

import psutil
import pytest
import torch

from edgewise.prune.memory import kept_memory

NUMBERS = 32 * 1024 * 1024  # 128 MiB, over every threshold
PAGES = NUMBERS * 4 // resource.getpagesize()


def faults() -> int:
    """Count the pages that a large tensor got fresh from the system."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is left to the C library")
def test_large_tensors_get_the_same_pages_again_until_the_system_gets_them_back() -> None:
    with kept_memory():
        found = [faults() for _ in range(8)]
        held = psutil.Process().memory_info().rss
    assert sum(found[4:]) < 0.1 * PAGES
    assert psutil.Process().memory_info().rss < held - NUMBERS * 3
    with pytest.raises(RuntimeError), kept_memory():
        raise RuntimeError
    assert faults() > 0.9 * PAGES
