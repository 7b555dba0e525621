from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise.export.onnx import export
from export.nets import images, tiny_net


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait longer for a second thread than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def model(one_thread: None) -> nn.Module:
    return tiny_net()


@pytest.fixture(scope="package")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, images(1), tmp_path_factory.mktemp("onnx") / "tiny.onnx")
