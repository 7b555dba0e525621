"""What makes answers of outputs, appended to files of every precision."""

from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.export.onnx import export
from edgewise.export.tail import append_tail, has_tail
from edgewise.export.verify import outputs
from edgewise.quantize import Quantize
from edgewise.quantize.static import quantize_static


class Peaks(nn.Module):
    """The five highest peaks of maps ``[N, C, H, W]`` and their places, ``[N, 5, 2]``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        score = torch.sigmoid(self.scale * x)
        score = score * (score == F.max_pool2d(score, 3, 1, 1))
        best, place = torch.topk(score.flatten(1), 5, dim=1)
        return torch.stack([best, place.float()], 2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


def test_a_file_gives_what_the_tail_makes_of_its_outputs(tmp_path: Path) -> None:
    net, x = network(), torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    file = export(net, x[:1], tmp_path / "net.onnx")
    assert not has_tail(file)
    append_tail(file, Peaks())
    assert has_tail(file)
    onnx.checker.check_model(onnx.load(file))
    with torch.no_grad():
        expected = Peaks()(net(x))
    for batch in (1, 4):
        torch.testing.assert_close(outputs(file, x, batch=batch), expected)


def test_the_tail_of_a_quantised_file_computes_in_floats(tmp_path: Path) -> None:
    net, x = network(), torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = export(net, x[:1], tmp_path / "net.onnx", names=True)
    file = quantize_static(whole, tmp_path / "small.onnx", x, Quantize(calibration=16))
    before = outputs(file, x)
    append_tail(file, Peaks())
    (scores, places), expected = outputs(file, x).unbind(2), torch.sigmoid(2 * before).flatten(1)
    torch.testing.assert_close(scores, Peaks()(before)[..., 0])
    torch.testing.assert_close(scores, expected.gather(1, places.long()))  # of equal scores either may come first


def test_several_files_get_the_same_tail(tmp_path: Path) -> None:
    net, tail, x = network(), Peaks(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tail(net(x))
    for name in ("first", "second"):
        file = append_tail(export(net, x[:1], tmp_path / f"{name}.onnx"), tail)
        onnx.checker.check_model(onnx.load(file), full_check=True)
        torch.testing.assert_close(outputs(file, x), expected)
