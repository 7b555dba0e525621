"""Runtimes: which one takes a file, what it computes, and what is said of one that is not there.

OpenVINO and ONNX Runtime are always run here, the others where they are installed.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from devices.files import coded_file, dense_file, flat_file, openvino_file
from edgewise.devices import RUNTIMES, measure
from edgewise.devices.runtimes import TensorSpec, channels_last, infer, open_session, runtime_of
from edgewise.errors import MeasurementFailed, MissingExtra, UnknownName, UserError

OPTIONAL = [("executorch", ".pte"), ("litert", ".tflite")]
HERE = ["onnxruntime", "openvino"]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


# -- which one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted", "runtime"),
    [
        ("net.onnx", "onnxruntime", "onnxruntime"),
        ("net.ONNX", "openvino", "openvino"),
        ("net.xml", "onnxruntime", "openvino"),
        ("net.pte", "openvino", "executorch"),
        ("net.tflite", "litert", "litert"),
    ],
)
def test_the_suffix_decides_and_the_wanted_one_among_several(name: str, wanted: str, runtime: str) -> None:
    assert runtime_of(Path(name), wanted) == runtime


@pytest.mark.parametrize(
    ("name", "wanted", "error", "message"),
    [
        ("net.onnx", "openvin", UnknownName, 'runtime "openvin" is unknown; did you mean "openvino"?'),
        (
            "net.onnx",
            "litert",
            UserError,
            "net.onnx: litert does not take .onnx files, these do: onnxruntime, openvino",
        ),
        (
            "net.h5",
            "onnxruntime",
            UserError,
            'net.h5: no runtime takes files with the suffix ".h5"; known: .onnx (onnxruntime), .xml (openvino), '
            ".onnx (openvino), .pte (executorch), .tflite (litert)",
        ),
        ("net", "onnxruntime", UserError, 'net: no runtime takes files with the suffix ""; known: '),
    ],
)
def test_files_that_none_takes_are_named_with_those_that_are_known(
    name: str, wanted: str, error: type[UserError], message: str
) -> None:
    with pytest.raises(error) as caught:
        runtime_of(Path(name), wanted)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# -- what it computes -----------------------------------------------------------------------------------------------


def test_openvino_computes_what_onnx_runtime_does(tmp_path: Path) -> None:
    path, images = dense_file(tmp_path / "net.onnx", 200), random(5, 3, 8, 8)
    expected = infer(open_session(path, "onnxruntime", 1), images)
    for file in (path, openvino_file(path)):
        found = infer(open_session(file, "openvino", 1), images)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("runtime", HERE)
def test_an_int8_file_by_hand(runtime: str, tmp_path: Path) -> None:
    """1.0, 2.0, 3.0 and 100.0, which the codes hold as 63.5: (1 - 3 + 63.5, 4 + 0.75 + 63.5)."""
    session = open_session(coded_file(tmp_path / "net.onnx"), runtime, 1)
    found = infer(session, np.float32([1.0, 2.0, 3.0, 100.0]).reshape(1, 1, 2, 2))
    assert found.tolist() == [[61.5, 68.25]]


@pytest.mark.parametrize("runtime", HERE)
def test_a_session_says_what_it_takes_and_gives(runtime: str, tmp_path: Path) -> None:
    session = open_session(dense_file(tmp_path / "net.onnx", 7, dims=(2, 3, 8, 8)), runtime, 1)
    assert session.inputs == (TensorSpec((2, 3, 8, 8), "float32"),)
    assert session.outputs == (TensorSpec((2, 7), "float32"),)
    (spec,) = open_session(dense_file(tmp_path / "open.onnx", 7), runtime, 1).inputs
    assert spec.dims[0] in ("batch", None)
    assert spec.dims[1:] == (3, 8, 8)


@pytest.mark.parametrize("runtime", HERE)
def test_an_open_batch_takes_any_number_and_outputs_are_the_callers(runtime: str, tmp_path: Path) -> None:
    session = open_session(dense_file(tmp_path / "net.onnx", 50), runtime, 1)
    images = random(5, 3, 8, 8)
    whole = infer(session, images)
    parts = [infer(session, images[start : start + 2]) for start in (0, 2, 4)]  # two, two and one
    assert np.allclose(np.concatenate(parts), whole, atol=1e-5)


@pytest.mark.parametrize("runtime", HERE)
@pytest.mark.parametrize("dims", [("batch", 3, 8, 8), (1, 3, 8, 8)])
@pytest.mark.parametrize("shape", [(1, 3, 9, 9), (1, 5, 8, 8), (1, 3, 8)])
def test_a_shape_that_is_not_the_files_is_refused(
    runtime: str, dims: tuple[int | str, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """OpenVINO would change the network, and numpy would broadcast."""
    session = open_session(dense_file(tmp_path / "net.onnx", 4, dims=dims), runtime, 1)
    with pytest.raises(Exception, match=r"Expected: |the file takes \["):
        session(np.zeros(shape, np.float32))


@pytest.mark.parametrize("runtime", HERE)
def test_a_type_that_is_not_the_files_is_refused(runtime: str, tmp_path: Path) -> None:
    session = open_session(dense_file(tmp_path / "net.onnx", 4), runtime, 1)
    with pytest.raises(Exception, match=r"float64|double"):
        session(np.zeros((1, 3, 8, 8)))


def test_openvino_keeps_float32_and_the_threads_it_was_given(tmp_path: Path) -> None:
    session = open_session(dense_file(tmp_path / "net.onnx", 4, dims=(1, 3, 8, 8)), "openvino", 1)
    compiled = session._request.get_compiled_model()  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")


@pytest.mark.parametrize("runtime", HERE)
def test_images_are_given_with_their_channels_where_the_file_has_them(runtime: str, tmp_path: Path) -> None:
    images = random(2, 3, 4, 5)
    first = open_session(flat_file(tmp_path / "first.onnx", ("batch", 3, 4, 5)), runtime, 1)
    last = open_session(flat_file(tmp_path / "last.onnx", ("batch", 4, 5, 3)), runtime, 1)
    assert np.array_equal(infer(first, images), images.reshape(2, -1))
    assert np.array_equal(infer(last, images), images.transpose(0, 2, 3, 1).reshape(2, -1))
    assert not channels_last(("batch", 3, 3, 3), (3, 3, 3)), "where both fit, they come first"


@pytest.mark.parametrize("runtime", HERE)
def test_floats_are_no_codes_where_no_scale_says_so(runtime: str, tmp_path: Path) -> None:
    session = open_session(flat_file(tmp_path / "net.onnx", (1, 3, 2, 2), TensorProto.UINT8), runtime, 1)
    codes = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    assert np.array_equal(session(codes)[0], codes.reshape(1, 12))
    with pytest.raises(ValueError, match="an input is uint8 without a scale"):
        infer(session, codes.astype(np.float32))


def test_codes_are_half_a_step_away_at_most_and_saturate() -> None:
    spec = TensorSpec((None, 100), "int8", scale=0.02, zero_point=-5)
    numbers = np.linspace(-2.4, 2.6, 100, dtype=np.float32)  # codes from -125 to 125
    assert spec.encode(numbers).dtype == np.int8
    assert np.abs(spec.decode(spec.encode(numbers)) - numbers).max() <= 0.02 / 2 + 1e-6
    assert spec.encode(np.float32([-99, 99])).tolist() == [-128, 127]
    assert spec.decode(np.int8([-5])).tolist() == [0.0]


def test_half_floats_are_made_of_floats() -> None:
    found = TensorSpec((2,), "float16").encode(np.float32([0.5, 0.1]))
    assert (found.dtype, found.tolist()) == (np.float16, [0.5, 0.0999755859375])


@pytest.mark.shared
def test_an_int8_tensorflow_lite_file_gives_and_takes_floats_like_the_float_one() -> None:
    """MLPerf Tiny's person detector, channels last, on images of blocks; its probabilities have steps of 1/256."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "weights" / "mlperf-tiny"
    if not folder.is_dir() or not RUNTIMES["litert"].installed:
        pytest.skip("the files are not beside the repository, or litert is not installed")
    coarse = np.random.default_rng(1).random((16, 3, 6, 6), dtype=np.float32)
    images = coarse.repeat(16, axis=2).repeat(16, axis=3)
    floats, codes = (open_session(folder / f"vww_96_{kind}.tflite", "litert", 1) for kind in ("float", "int8"))
    assert [floats.inputs[0].dtype, codes.inputs[0].dtype] == ["float32", "int8"]
    expected, found = infer(floats, images), infer(codes, images)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(axis=1), 1.0, atol=1 / 128)
    assert np.abs(found - expected).max() < 0.15
    assert np.array_equal(infer(codes, images[3:4]), found[3:4]), "batches of one"


# -- what is broken or missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", HERE)
@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" + bytes(range(40))])
def test_a_corrupt_onnx_file_is_named_in_one_line(runtime: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(MeasurementFailed) as caught:
        open_session(path, runtime)
    assert str(caught.value).startswith(f"{path}: {RUNTIMES[runtime].title} cannot load it: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda xml: xml.write_bytes(b""),
        lambda xml: xml.write_bytes(xml.read_bytes()[:500]),
        lambda xml: xml.with_suffix(".bin").write_bytes(b""),
        lambda xml: xml.with_suffix(".bin").write_bytes(xml.with_suffix(".bin").read_bytes()[:-100]),
    ],
    ids=["empty", "cut", "no weights", "cut weights"],
)
def test_a_corrupt_file_of_openvinos_is_named_in_one_line(damage: Callable[[Path], object], tmp_path: Path) -> None:
    path = openvino_file(dense_file(tmp_path / "net.onnx", 50))
    damage(path)
    with pytest.raises(MeasurementFailed, match=r"net\.xml: OpenVINO cannot load it: ") as caught:
        open_session(path, "openvino")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("runtime", "suffix"), OPTIONAL)
def test_a_corrupt_file_of_the_others(runtime: str, suffix: str, tmp_path: Path) -> None:
    if not RUNTIMES[runtime].installed:
        pytest.skip(f"{runtime} is not installed")
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"no model")
    with pytest.raises(MeasurementFailed, match=f"{RUNTIMES[runtime].title} cannot load it: "):
        measure([path])


@pytest.mark.parametrize(("runtime", "suffix"), OPTIONAL)
def test_a_runtime_that_is_not_installed_is_named_with_the_line_that_installs_it(
    runtime: str, suffix: str, tmp_path: Path
) -> None:
    if RUNTIMES[runtime].installed:
        pytest.skip(f"{runtime} is installed")
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"never read")
    message = f"{RUNTIMES[runtime].title} is not installed: pip install 'edgewise[{runtime}]'"
    for run in (lambda: open_session(path, runtime), lambda: measure([path]), RUNTIMES[runtime].version):
        with pytest.raises(MissingExtra) as caught:
            run()
        assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_a_runtime_that_is_installed_but_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "halfway"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text("raise OSError('libodd.so:\\n no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = replace(RUNTIMES["litert"], module="halfway.interpreter")
    with pytest.raises(MissingExtra) as caught:
        broken.imported()
    assert str(caught.value) == (
        "LiteRT cannot be imported (OSError: libodd.so: no such file): pip install 'edgewise[litert]'"
    )
    assert broken.installed
    assert not replace(broken, module="nowhere.interpreter").installed
    sys.modules.pop("halfway")


def test_versions_and_what_is_there() -> None:
    assert RUNTIMES["onnxruntime"].version() == onnxruntime.__version__
    assert RUNTIMES["openvino"].version().startswith("20")
    assert all(RUNTIMES[name].installed for name in HERE)
    assert RUNTIMES["onnxruntime"].install == "pip install onnxruntime"
