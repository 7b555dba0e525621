"""What every observer, scheme and option keeps to, on every kind of network: a row for each new one.

It runs, what it computes is finite and near the float network, the same input gives the same bytes, the float file is
left as it is, and the settings' documentation names it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from edgewise.export.onnx import export
from edgewise.export.verify import outputs, relative_error, rms_error
from edgewise.quantize import Quantize, Quantizer
from edgewise.quantize.mixed import write_mixed
from edgewise.quantize.observe import OBSERVERS
from edgewise.quantize.schemes import SCHEMES
from edgewise.quantize.simulate import integer_outputs
from export.nets import images
from quantize.nets import on_codes

WIDTH = 8


class Residual(nn.Module):
    """Adds what two convolutions make of a map to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu(self.a(x))))


class Concat(nn.Module):
    """Two branches behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(WIDTH, WIDTH // 2, 1), nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.a(x)), nn.functional.leaky_relu(self.b(x))], 1)


class Attention(nn.Module):
    """Every place looks at all others; a normalisation before, a sum behind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(rows)).chunk(3, -1)
        looked = torch.softmax(q @ k.transpose(1, 2) * WIDTH**-0.5, -1) @ v
        return (rows + self.out(looked)).transpose(1, 2).reshape(x.shape)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU()),
    "residual": Residual,
    "concat": Concat,
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH), nn.ReLU6(), nn.Conv2d(WIDTH, WIDTH, 1)
    ),
    "grouped": lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, groups=2), nn.Hardswish()),
    "attention": Attention,
}
QUICK = {"rounding_iterations": 20, "rounding_images": 8}
OPTIONS = {
    **{f"observer {name}": Quantize(observer=name) for name in OBSERVERS},  # type: ignore[arg-type]
    "adaround": Quantize(rounding="adaround", **QUICK),  # type: ignore[arg-type]
    "equalize": Quantize(equalize=True),
    "both": Quantize(rounding="adaround", equalize=True, **QUICK),  # type: ignore[arg-type]
    "uncorrected": Quantize(correct_bias=False),
    "reduce_range": Quantize(reduce_range=True),
    "bit_exact": Quantize(bit_exact=True),
}
LARGEST_ERROR = {"int4_weight": 0.35}


@pytest.fixture(scope="module", params=list(BLOCKS))
def source(request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stem, a block, and a classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem, head = nn.Conv2d(3, WIDTH, 3), nn.Linear(WIDTH, 4)
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(stem, nn.ReLU(), BLOCKS[request.param](), *pool, head).eval()
    return export(model, images(1), tmp_path_factory.mktemp(request.param) / "float.onnx", names=True)


@pytest.fixture(scope="module")
def shared(source: Path) -> Quantizer:
    return Quantizer(source, images(16, seed=1))


def holds(source: Path, make: Callable[[Path], Path], folder: Path, largest: float) -> None:
    before, x = source.read_bytes(), images(64, seed=2)
    paths = [make(folder / f"{time}.onnx") for time in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert source.read_bytes() == before
    found = outputs(paths[0], x)
    assert torch.isfinite(found).all()
    assert rms_error(found, outputs(source, x)) < largest


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_schemes(scheme: str, source: Path, shared: Quantizer, tmp_path: Path) -> None:
    holds(source, lambda out: SCHEMES[scheme].write(shared, out), tmp_path, LARGEST_ERROR.get(scheme, 0.12))


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_observers_and_options(option: str, source: Path, tmp_path: Path) -> None:
    calibration = images(16, seed=1)
    before = calibration.clone()
    holds(source, lambda out: Quantizer(source, calibration, OPTIONS[option]).write(out), tmp_path, 0.15)
    assert torch.equal(calibration, before)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_integers_are_the_same_everywhere(runtime: str, source: Path, tmp_path: Path) -> None:
    """Weights have 7 bits, so that no processor saturates; OpenVINO's normalisations are not ONNX Runtime's."""
    quantizer = Quantizer(source, images(16, seed=1), Quantize(bit_exact=True, reduce_range=True))
    simulated = quantizer.simulated()
    x = on_codes(simulated, images(256, seed=2))
    found = outputs(quantizer.write(tmp_path / "int8.onnx", simulated=simulated), x, runtime=runtime)
    floats = runtime == "openvino" and source.parent.name.startswith("attention")
    assert relative_error(found, integer_outputs(simulated, x, batch=64)) < (0.05 if floats else 1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "adaround"])
def test_four_bit_weights(rounding: str, source: Path, tmp_path: Path) -> None:
    def make(out: Path) -> Path:
        quantizer = Quantizer(source, images(16, seed=1), Quantize(rounding=rounding, **QUICK))  # type: ignore[arg-type]
        return quantizer.write(out, simulated=quantizer.simulated(bits=4))

    holds(source, make, tmp_path, 0.6)


def test_mixed(source: Path, shared: Quantizer, tmp_path: Path) -> None:
    size = shared.write(tmp_path / "int8.onnx").stat().st_size / source.stat().st_size
    holds(source, lambda out: write_mixed(shared, out, size - 1e-3, images(8, seed=3))[0], tmp_path, 0.6)


class Deaf(nn.Module):
    """Its layer reads one number, whatever the image."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.conv, self.value = nn.Conv2d(3, 2, 1), value

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * 0 + self.value)


@pytest.fixture(scope="module", params=[0.0, -3.0, 1e-30])
def deaf(request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return export(Deaf(request.param), images(1), tmp_path_factory.mktemp("deaf") / "float.onnx", names=True)


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_what_never_changes_is_named_and_not_divided_by(observer: str, deaf: Path, tmp_path: Path) -> None:
    quantizer = Quantizer(deaf, images(8), Quantize(observer=observer))  # type: ignore[arg-type]
    assert quantizer.constant == ["conv"]
    found = outputs(quantizer.write(tmp_path / "int8.onnx"), images(4))
    torch.testing.assert_close(found, outputs(deaf, images(4)), rtol=0.03, atol=0.03)


def test_the_settings_know_and_document_every_one() -> None:
    hints, documented = get_type_hints(Quantize), Quantize.__doc__ or ""
    assert set(get_args(hints["observer"])) == set(OBSERVERS)
    assert set(get_args(hints["scheme"])) == {*SCHEMES, "auto", "qat", "mixed"}
    for setting in ("scheme", "observer", "rounding"):
        assert all(f'"{value}"' in documented for value in get_args(hints[setting]))
    assert all(f"{setting}:" in documented for setting in hints if setting != "kind")
