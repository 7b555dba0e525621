"""A float ONNX file of anybody's becomes a quantised one: what is written, what is said of it, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgewise.devices.kernels import Kernels
from edgewise.errors import DataError, UserError
from edgewise.export.verify import outputs, rms_error
from edgewise.quantize_file import calibration_images, quantize_file, read_inputs, settings
from export.nets import images
from quantize.nets import write_everything
from test_cli import edgewise, refused


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("file"))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_file_is_written_compared_and_measured(suffix: str, source: Path, tmp_path: Path) -> None:
    out, x = tmp_path / f"small{suffix}", images(64)
    found = quantize_file(source, out, x, settings("int8_static", bit_exact=True), seconds=0.1)
    assert (found.scheme, found.judged, found.kernels) == ("int8_static", 16, Kernels(integer=8, floating=0))
    there = outputs(out, x[:16], runtime="openvino" if suffix == ".xml" else "onnxruntime")
    assert found.error == pytest.approx(rms_error(there, outputs(source, x[:16])))
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert found.file.file_bytes == sum(sizes)
    assert found.speed > 0


def test_auto_tries_the_schemes_and_loses_no_more_than_is_allowed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    found = quantize_file(source, out, images(64), settings("auto", 0.0), seconds=0.1)
    assert found.agreement == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'out.txt: no format has the suffix ".txt"; known: .onnx, .pte, '):
        quantize_file(source, tmp_path / "out.txt", images(32), settings("auto", 1.0))
    with pytest.raises(DataError, match="there are 8 images, at least 12 are needed"):
        quantize_file(source, tmp_path / "out.onnx", images(8), settings("auto", 1.0))
    with pytest.raises(UserError, match='executorch has no kernels for scheme = "float16"; take int8_static or auto'):
        quantize_file(source, tmp_path / "out.pte", images(32), settings("float16", 1.0))
    with pytest.raises(UserError, match="the float file would be lost; write to another file"):
        quantize_file(source, source, images(32), settings("auto", 1.0))
    for scheme, message in (("mixed", "needs a recipe"), ("int8_statik", 'did you mean "int8_static"')):
        with pytest.raises(UserError, match=message):
            settings(scheme, 1.0)
    assert not list(tmp_path.iterdir())


def test_inputs_come_from_a_numpy_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "double.npy", array.astype(np.float64))
    (tmp_path / "text.npy").write_text("no array")
    assert torch.equal(read_inputs(tmp_path / "x.npy"), torch.from_numpy(array))
    with pytest.raises(DataError, match=r"it holds float64 \[4, 3, 8, 8\], it must be one float32 array"):
        read_inputs(tmp_path / "double.npy")
    with pytest.raises(DataError, match=r"text\.npy: no NumPy file"):
        read_inputs(tmp_path / "text.npy")
    with pytest.raises(DataError, match="no such file"):
        read_inputs(tmp_path / "nothing.npy")


def test_images_of_a_data_set_have_the_files_size(source: Path) -> None:
    found = calibration_images(source, "fashion-mnist", 20)
    assert found.shape == (20, 1, 8, 8)


def test_the_command_writes_and_refuses(source: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(64).numpy())
    out, given = tmp_path / "small.onnx", ("--inputs", tmp_path / "x.npy")
    done = edgewise("quantize", source, out, *given, "--scheme", "int8_static", "--seconds", 0.1)
    assert done.returncode == 0, done.stderr
    assert "kernels   8 layers on integers, 0 on floats" in done.stdout
    refused(edgewise("quantize", source, out), "give images to calibrate on: --data DATA or --inputs FILE.npy")
    refused(edgewise("quantize", out, tmp_path / "b.onnx", *given), "it is quantised already")
    refused(edgewise("quantize", source, out, "--data", "fashion-mnist"), "but", "takes float32 [N, 3, 8, 8]")
    out.write_bytes(out.read_bytes()[:100])
    refused(edgewise("quantize", out, tmp_path / "b.onnx", *given), "no ONNX file")
