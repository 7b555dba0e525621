from pathlib import Path

import pytest
from torch import nn

from edgewise.export.onnx import export
from export.nets import images, tiny_net


@pytest.fixture(scope="package")
def model(one_thread: None) -> nn.Module:
    return tiny_net()


@pytest.fixture(scope="package")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, images(1), tmp_path_factory.mktemp("onnx") / "tiny.onnx")
