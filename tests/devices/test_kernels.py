"""What runtimes compute on: read from their optimised graphs."""

from pathlib import Path

import pytest

from edgewise.devices.kernels import READERS, Kernels, kernels
from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import MeasurementFailed, UserError
from edgewise.quantize import Quantizer
from export.nets import images
from quantize.nets import write_everything


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    return Quantizer(write_everything(tmp_path_factory.mktemp("kernels")), images(16))


@pytest.mark.parametrize("runtime", READERS)
def test_every_layer_of_an_int8_file_computes_on_codes(runtime: str, quantizer: Quantizer, tmp_path: Path) -> None:
    if not RUNTIMES[runtime].installed:
        pytest.skip(f"{runtime} is not installed")
    path = quantizer.write(tmp_path / "int8.onnx")
    assert kernels(path, runtime) == Kernels(integer=len(quantizer.layers), floating=0)
    assert kernels(quantizer.path, runtime) == Kernels(integer=0, floating=len(quantizer.layers))


@pytest.mark.parametrize("runtime", READERS)
def test_layers_left_out_compute_on_floats(runtime: str, quantizer: Quantizer, tmp_path: Path) -> None:
    if not RUNTIMES[runtime].installed:
        pytest.skip(f"{runtime} is not installed")
    path = quantizer.write(tmp_path / "int8.onnx", ["stem", "head"])
    assert kernels(path, runtime) == Kernels(integer=len(quantizer.layers) - 2, floating=2)


def test_a_runtime_that_does_not_show_it(quantizer: Quantizer) -> None:
    with pytest.raises(UserError, match="litert does not show which kernels it runs; these do: onnxruntime, openvino"):
        kernels(quantizer.path, "litert")


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(MeasurementFailed, match=r"broken\.onnx: ONNX Runtime cannot load it"):
        kernels(path)
