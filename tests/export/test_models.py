"""The reference networks as files: each family, since each has operators of its own."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgewise.export.onnx import export
from edgewise.export.verify import compare_float
from edgewise.models import build


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "convnext_atto", "vgg16_bn"])
def test_a_reference_network_is_exported_whole_and_with_nothing_besides(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, width=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones would vanish when folded
            module.running_mean.normal_(std=0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    path = export(model, torch.zeros(1, 3, 32, 32), tmp_path / "net.onnx")
    check = compare_float(model, path, torch.randn(4, 3, 32, 32, generator=generator))
    assert check.passed, check
    assert not {"BatchNormalization", "Identity", "Constant", "ReduceMean"} & {
        node.op_type for node in onnx.load(path).graph.node
    }
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < weights + 15_000
