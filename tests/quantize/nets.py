"""Networks of a few hundred weights whose operators are quantised in every way there is, and their files."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edgewise.export.onnx import export
from edgewise.models.onnx import OnnxNetwork
from export.nets import images


class Mixer(nn.Module):
    """A block of ConvNeXt's kind: depthwise, normalised, two linear layers with a scale behind them, added."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.linspace(0.2, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(nn.functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Gated(nn.Module):
    """EfficientNet's kind: hard-swish, squeeze and excite with a sigmoid, a pooling and a concatenation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, width, 3, padding=1), nn.Hardswish()
        self.squeeze, self.excite = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.pool(torch.cat([y * gate, x], 1))


class Everything(nn.Module):
    """A stem, both blocks, and a classifier, on ``[N, 3, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mixer, self.gated = Mixer(), Gated()
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gated(self.mixer(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


def everything(seed: int = 0) -> nn.Module:
    """Return the network with random weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Everything().eval()


def write_everything(folder: Path) -> Path:
    """Write its float file, with the names of its layers."""
    return export(everything(), images(1), folder / "everything.onnx", names=True)


def on_codes(simulated: OnnxNetwork, x: Tensor) -> Tensor:
    """Return images whose numbers have codes: of others, runtimes round one in 100,000 to another code."""
    tap = simulated.tapped(simulated.input)
    assert tap is not None
    with torch.no_grad():
        rounded: Tensor = tap(x)
    return rounded


def optimized(path: Path, folder: Path, level: str = "EXTENDED") -> Counter[str]:
    """Count the operators that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)
