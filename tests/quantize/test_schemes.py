"""The contract of every scheme: a smaller file that agrees with the float network; and what each one promises."""

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from edgewise.devices.base import Measurement
from edgewise.devices.measure import measure
from edgewise.errors import BudgetError
from edgewise.export.onnx import export
from edgewise.export.verify import outputs, rms_error
from edgewise.models import build
from edgewise.quantize import Quantize, Quantizer, weight_bytes
from edgewise.quantize.auto import choose, without_sensitive
from edgewise.quantize.mixed import write_mixed
from edgewise.quantize.schemes import SCHEMES
from edgewise.quantize.sensitivity import layer_errors
from edgewise.quantize_step import fixed_layers
from export.nets import images
from quantize.nets import optimized

LARGEST_ERROR = {"int4_weight": 0.35, "float16": 1e-3, "bfloat16": 0.01}
BITS = {"int4_weight": 4, "float16": 16, "bfloat16": 16}


@pytest.fixture(scope="module")
def files(quantizer: Quantizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("schemes")
    return {name: scheme.write(quantizer, folder / f"{name}.onnx") for name, scheme in SCHEMES.items()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    """A network whose file is mostly weights."""
    folder = tmp_path_factory.mktemp("large")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("resnet20", classes=10, channels=3, size=32).eval()
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Quantizer(export(model, noise[:1], folder / "float.onnx", names=True), noise)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_file_is_near_its_network_at_any_batch(scheme: str, files: dict[str, Path], quantizer: Quantizer) -> None:
    x = images(100, seed=5)
    found, expected = outputs(files[scheme], x, batch=1), outputs(quantizer.path, x)
    assert rms_error(found, expected) <= LARGEST_ERROR.get(scheme, 0.1)
    if scheme != "int8_dynamic":  # whose ranges are a batch's
        assert rms_error(outputs(files[scheme], x), found) < 1e-3
    onnx.checker.check_model(onnx.load(files[scheme]), full_check=True)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_file_is_as_small_as_its_bits(scheme: str, large: Quantizer, tmp_path: Path) -> None:
    path = SCHEMES[scheme].write(large, tmp_path / "out.onnx")
    weights = sum(int(np.prod(layer.shape)) for layer in large.layers.values())
    codes = weights * BITS.get(scheme, 8) / 8
    assert weight_bytes(path) < 1.05 * codes + (weights / 8 if scheme == "int4_weight" else 0) + 12_000
    assert path.stat().st_size < 1.05 * weight_bytes(path) + 5_000
    assert path.stat().st_size < large.path.stat().st_size


@pytest.mark.parametrize("scheme", ["int8_weight", "int4_weight", "float16", "bfloat16"])
def test_stored_weights_become_floats_when_a_file_is_loaded(
    scheme: str, files: dict[str, Path], tmp_path: Path
) -> None:
    found = optimized(files[scheme], tmp_path, "BASIC")
    assert found["Cast"] == 0
    assert found["Mul"] == 2  # the gate's, and that of hard-swish


def test_dynamic_linear_layers_are_one_kernel_each(files: dict[str, Path], tmp_path: Path) -> None:
    found = optimized(files["int8_dynamic"], tmp_path)
    assert (found["DynamicQuantizeMatMul"], found["Conv"] + found["FusedConv"], found["MatMulInteger"]) == (3, 5, 0)


# -- mixed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.22, 0.19, 0.17])
def test_mixed_bits_meet_a_size(size: float, large: Quantizer, tmp_path: Path) -> None:
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    path, bits = write_mixed(large, tmp_path / "mixed.onnx", size, x)
    whole = large.path.stat().st_size
    assert 0.98 * size <= path.stat().st_size / whole <= size
    assert set(bits.values()) == {4, 8}
    stored = Counter(c.data_type for c in onnx.load(path).graph.initializer)
    assert stored[onnx.TensorProto.INT4] == sum(width == 4 for width in bits.values())


def test_four_bit_weights_are_computed_with_in_integers(large: Quantizer, tmp_path: Path) -> None:
    path, bits = write_mixed(large, tmp_path / "mixed.onnx", 0.17, large.images[:4])
    found = optimized(path, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["Cast"]) == (19, 0, 0)
    simulated = large.simulated(bits=bits)
    with torch.no_grad():
        assert rms_error(outputs(path, large.images), simulated(large.images)) < 0.02


def test_a_size_below_four_bits_is_refused(large: Quantizer, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"size = 0.1: with 4 bits everywhere the file "):
        write_mixed(large, tmp_path / "mixed.onnx", 0.1, large.images[:4])


def test_a_size_that_eight_bits_meet_takes_no_bit_away(large: Quantizer, tmp_path: Path) -> None:
    _, bits = write_mixed(large, tmp_path / "mixed.onnx", 0.5, large.images[:4])
    assert set(bits.values()) == {8}


# -- sensitive layers, and the best scheme ----------------------------------------------------------------------------


def test_the_layer_with_ruined_codes_is_the_most_sensitive(float_file: Path) -> None:
    """An input range that is fifty times too wide leaves a layer five codes."""
    quantizer = Quantizer(float_file, images(64, seed=1))
    layer = quantizer.sites().layers["gated.conv"]
    low, high = quantizer.ranges[quantizer.sites().scales[layer.input]]
    quantizer.ranges[quantizer.sites().scales[layer.input]] = type(quantizer.ranges[layer.input])(50 * low, 50 * high)
    errors = layer_errors(quantizer, images(32, seed=6))
    assert next(iter(errors)) == "gated.conv"
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert set(errors) == set(quantizer.sites().layers)


def agreement(quantizer: Quantizer, images_: torch.Tensor) -> object:
    expected = outputs(quantizer.path, images_).argmax(1)
    return lambda path: (outputs(path, images_).argmax(1) == expected).double().mean().item()


def test_sensitive_layers_are_left_out_until_it_holds(float_file: Path, tmp_path: Path) -> None:
    quantizer, x = Quantizer(float_file, images(64, seed=1)), images(400, seed=7)
    sites = quantizer.sites()
    for name in ("gated.conv", "mixer.up"):
        source = sites.scales[sites.layers[name].input]
        low, high = quantizer.ranges[source]
        quantizer.ranges[source] = type(quantizer.ranges[source])(2000 * low, 2000 * high)
    accuracy = agreement(quantizer, x)
    found, curve = without_sensitive(
        quantizer,
        tmp_path / "int8.onnx",
        accuracy=accuracy,  # type: ignore[arg-type]
        least=0.97,
        images=x,
    )
    assert found.accuracy >= 0.97 > curve[0].accuracy
    assert {"gated.conv", "mixer.up"} <= set(found.excluded)
    assert len(curve) == len(found.excluded) + 1
    assert curve[-1].accuracy == found.accuracy == accuracy(found.path)  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_the_best_scheme_is_the_fastest_that_holds(quantizer: Quantizer, tmp_path: Path) -> None:
    x = images(200, seed=7)

    def side_by_side(paths: Sequence[Path]) -> list[Measurement]:
        return measure(paths, seconds=1.0)

    choice = choose(
        quantizer,
        tmp_path,
        accuracy=agreement(quantizer, x),  # type: ignore[arg-type]
        allowed_pt=10.0,
        images=x,
        measure=side_by_side,
    )
    assert choice.tried[0].scheme == "float32"
    assert {each.scheme for each in choice.tried[1:]} == set(SCHEMES)
    held = [each for each in choice.tried[1:] if each.speed is not None]
    assert all(each.accuracy >= 0.9 and each.file_bytes < choice.tried[0].file_bytes for each in held)
    fastest = max(each.speed or 0 for each in held)
    kept = choice.kept
    if kept.scheme != "float32":
        assert kept in choice.tried
        assert (kept.speed or 0) >= max(0.98, 0.98 * fastest)
    else:
        assert fastest < 0.98


def test_of_equally_fast_files_the_smallest_does_not_spend_the_whole_allowance(
    quantizer: Quantizer, tmp_path: Path
) -> None:
    accuracies = {"int4_weight": 0.98, "int8_weight": 0.995, "float16": 1.0}

    def found(path: Path) -> float:
        return 1.0 if path == quantizer.path else accuracies.get(path.stem, 0.5)

    def side_by_side(paths: Sequence[Path]) -> list[Measurement]:
        """Take the first file for all: they are equally fast."""
        (one,) = measure(paths[:1], seconds=0.2)
        return [replace(one, artifact=str(path), file_bytes=path.stat().st_size) for path in paths]

    settings = {"accuracy": found, "images": images(8, seed=7), "measure": side_by_side}
    kept = choose(quantizer, tmp_path, allowed_pt=2.5, **settings).kept  # type: ignore[arg-type]
    assert kept.scheme == "int8_weight"
    kept = choose(quantizer, tmp_path, allowed_pt=5.0, **settings).kept  # type: ignore[arg-type]
    assert kept.scheme == "int4_weight"


def test_where_nothing_holds_the_float_file_is_kept(quantizer: Quantizer, tmp_path: Path) -> None:
    whole = quantizer.path
    choice = choose(
        quantizer,
        tmp_path,
        accuracy=lambda path: 1.0 if path == whole else 0.5,
        allowed_pt=1.0,
        images=images(32, seed=7),
        measure=lambda paths: measure(paths, seconds=0.2),
    )
    assert choice.kept.scheme == "float32"
    assert len(choice.curve) == len(quantizer.sites().layers) + 1


def test_calibrating_takes_seconds_not_minutes(large: Quantizer) -> None:
    started = time.perf_counter()
    Quantizer(large.path, torch.randn(64, 3, 32, 32)).simulated()
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "mixed"}, 'size = None: "mixed" needs it'),
        ({"size": 0.2}, 'size = 0.2: "mixed" needs it'),
        ({"scheme": "mixed", "size": 1.5}, "size = 1.5: a share of the float file's bytes"),
        ({"max_drop": -1.0}, "max_drop = -1.0: accuracy points"),
        ({"scheme": "qat", "epochs": 0}, "epochs = 0"),
        ({"scheme": "float16", "rounding": "adaround"}, 'rounding = "adaround": of "auto", "int8_static" and "mixed"'),
        ({"rounding_iterations": 0}, "rounding_iterations = 0, rounding_images = 64: at least 1, and at least 8"),
        ({"rounding_images": 7}, "rounding_images = 7: at least 1, and at least 8"),
    ],
)
def test_settings_that_mean_nothing(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**values)  # type: ignore[arg-type]


def test_stored_numbers_are_what_they_were(files: dict[str, Path], quantizer: Quantizer) -> None:
    """Of float16 weights each is the nearest to the float32 one."""
    stored = [numpy_helper.to_array(c) for c in onnx.load(files["float16"]).graph.initializer if c.data_type == 10]
    floats = [numpy_helper.to_array(c) for c in onnx.load(quantizer.path).graph.initializer if c.data_type == 1]
    by_shape = {array.shape: array for array in floats}
    assert len(stored) >= 5
    for array in stored:
        if array.shape in by_shape and array.shape == (16, 3, 3, 3):
            np.testing.assert_array_equal(array, by_shape[array.shape].astype(np.float16))


class Bank(nn.Module):
    """Filters that are given, not learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_filters_that_no_training_made_stay_as_they_are(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = {"bank": Bank(), "act": nn.ReLU(), "conv": nn.Conv2d(8, 16, 3), "pool": nn.AdaptiveAvgPool2d(1)}
    net = nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "head": nn.Linear(16, 4)})).eval()
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    file = export(net, x[:1], tmp_path / "net.onnx", names=True)
    fixed = fixed_layers(net, file)
    assert fixed == ["bank"]
    small = tmp_path / "small.onnx"
    SCHEMES[scheme].write(Quantizer(file, x, Quantize(calibration=16, exclude=tuple(fixed))), small)
    held = [numpy_helper.to_array(constant) for constant in onnx.load(small).graph.initializer]
    bank = layers["bank"].weight.numpy()
    assert any(array.shape == bank.shape and np.array_equal(array, bank) for array in held)
