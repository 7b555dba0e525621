"""Codes of few bits in an ONNX file: which weights fit, and that no bit of them is lost."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgewise.export.few_bits import on_grid
from edgewise.export.onnx import export
from edgewise.export.verify import compare_float

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(values: list[float]) -> nn.Module:
    """A network of such values times a scale of each layer, behind normalisations that scale every output."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 20, 3, bias=False),
        nn.BatchNorm2d(20),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 30),
    ).eval()
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
        if isinstance(module, nn.Conv2d | nn.Linear):
            drawn = torch.tensor(values)[torch.randint(len(values), module.weight.shape)]
            module.weight.data = 0.037 * drawn
    return net


def codes(path: Path) -> dict[int, int]:
    """Count the weights of a file by the type that they are stored in."""
    found: dict[int, int] = {}
    for each in onnx.load(path).graph.initializer:
        if len(each.dims) > 1:
            found[each.data_type] = found.get(each.data_type, 0) + int(np.prod(each.dims))
    return found


@pytest.mark.parametrize(
    ("values", "kind", "bits"),
    [
        ([-1.0, 0.0, 1.0], onnx.TensorProto.INT2, 2),
        ([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0], onnx.TensorProto.INT4, 4),
    ],
)
def test_they_are_kept_as_codes_and_compute_the_same(values: list[float], kind: int, bits: int, tmp_path: Path) -> None:
    net = network(values)
    plain = export(net, IMAGES, tmp_path / "plain.onnx")
    small = export(net, IMAGES, tmp_path / "small.onnx", codes=True)
    assert codes(small) == {kind: 3 * 16 * 9 + 16 * 20 * 9 + 20 * 30}
    saved = plain.stat().st_size - small.stat().st_size
    assert saved > 0.9 * (4 - bits / 8) * codes(small)[kind]
    check = compare_float(net, small, IMAGES)
    assert check.passed
    assert check.value < 1e-6


def test_weights_that_do_not_fit_stay_as_they_are(tmp_path: Path) -> None:
    net = network([-1.0, 0.0, 1.0])
    nn.init.normal_(net[3].weight)  # type: ignore[index]
    path = export(net, IMAGES, tmp_path / "net.onnx", codes=True)
    assert codes(path) == {onnx.TensorProto.INT2: 3 * 16 * 9 + 20 * 30, onnx.TensorProto.FLOAT: 16 * 20 * 9}
    assert compare_float(net, path, IMAGES).passed
    plain = nn.Sequential(nn.Conv2d(3, 16, 3)).eval()
    whole = export(plain, IMAGES, tmp_path / "whole.onnx", codes=True)
    assert whole.read_bytes() == export(plain, IMAGES, tmp_path / "plain.onnx").read_bytes()


def test_the_grid_of_an_output_has_a_step_of_its_own() -> None:
    rows = np.float32([[0.0, 0.0, 0.0], [0.3, -0.3, 0.0], [1.5, -12.0, 10.5]])
    found = on_grid(rows, 0)
    assert found is not None
    assert found[0].tolist() == [[0, 0, 0], [1, -1, 0], [1, -8, 7]]
    assert found[1].tolist() == [1.0, np.float32(0.3), 1.5]
    assert found[2] == 4
    assert on_grid(rows, 1) is None
    assert on_grid(rows.T.copy(), 1) is not None
    assert on_grid(np.float32([[1.0, 8.0]]), 0) is None  # a code more than 4 bits hold
    assert on_grid(np.float32([[1.0, 1.0000001]]), 0) is None  # almost is not the same
