from pathlib import Path

import pytest

from edgewise.quantize import Quantizer
from export.conftest import exported, model
from export.nets import images
from quantize.nets import write_everything

__all__ = ["exported", "model"]


@pytest.fixture(scope="package")
def float_file(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="package")
def quantizer(float_file: Path) -> Quantizer:
    return Quantizer(float_file, images(64, seed=1))
