from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("edgewise", deadline=None)  # no test asserts wall time, on however busy a machine
settings.load_profile("edgewise")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and bit-for-bit comparisons need one number of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
