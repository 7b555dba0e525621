"""What the data tests share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Make uint8 noise of a shape, other each time."""
    random = np.random.default_rng(0)
    return lambda *shape: random.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def write_pack() -> Callable[..., None]:
    """Write one file of a pack from encoded images and labels."""

    def write(file: Path, encoded: list[bytes], labels: object, **more: object) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        data = np.frombuffer(b"".join(encoded), np.uint8)
        offsets = np.cumsum([0, *map(len, encoded)])
        np.savez(file, **{"data": data, "offsets": offsets, "labels": np.asarray(labels), **more})

    return write
