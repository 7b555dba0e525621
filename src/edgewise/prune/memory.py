"""Large tensors without page faults: freed memory is kept for the next tensor."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The parameters of mallopt(3), and glibc's own values; the last is where its dynamic threshold ends up at most.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = 65536, 32 * 1024 * 1024, 64 * 1024 * 1024
NEVER = 2**31 - 1


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep freed memory for a while, where it is glibc; at the end it goes back to the system.

    A tensor over 32 MB otherwise gets fresh pages from the system, each of which is zeroed when it is first written:
    a quarter of the processor's time where a thousand images pass through a network together.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # another C library
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, MMAP_MAX)
        library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)  # which otherwise never grows again, now that one was set
        library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        library.malloc_trim(0)
