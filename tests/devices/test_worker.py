"""The fresh process: its inputs, its protocol, and that little else is in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices.files import dense_file
from edgewise.devices.runtimes import TensorSpec
from edgewise.devices.worker import load, random_input, resolve_shape
from edgewise.errors import MeasurementFailed, UserError


def python(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("dims", "given", "shape"),
    [
        (["batch", 3, 32, 32], None, (1, 3, 32, 32)),
        (["batch", 3, 32, 32], (3, 32, 32), (1, 3, 32, 32)),
        (["batch", 3, "h", "w"], (3, 24, 32), (1, 3, 24, 32)),
        ([None, None, None, None], (1, 28, 28), (1, 1, 28, 28)),
        ([4, 3, 32, 32], None, (4, 3, 32, 32)),
        ([4, 3, 32, 32], (3, 32, 32), (4, 3, 32, 32)),
        (["batch", 32, 24, 3], (3, 32, 24), (1, 32, 24, 3)),
        ([1, None, None, 3], (3, 32, 24), (1, 32, 24, 3)),
        ([-1, 10], None, (1, 10)),
        (["batch"], None, (1,)),
    ],
)
def test_open_axes_are_filled_in(dims: list, given: tuple | None, shape: tuple[int, ...]) -> None:
    assert resolve_shape(dims, given, "net.onnx") == shape


@pytest.mark.parametrize(
    ("dims", "given", "message"),
    [
        (["batch", 3, "h", "w"], None, "net.onnx: its input [batch, 3, h, w] leaves axes open; give their lengths"),
        (["batch", 3, 32, 32], (1, 32, 32), "net.onnx: its input is [batch, 3, 32, 32], which 1x32x32 does not fit"),
        (["batch", 10], (3, 32, 32), "net.onnx: its input is [batch, 10], which 3x32x32 does not fit"),
        ([None, 9, 9, 3], (3, 9, 8), "net.onnx: its input is [?, 9, 9, 3], which 3x9x8 does not fit"),
    ],
)
def test_shapes_that_are_unknown_or_do_not_fit(dims: list, given: tuple | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_shape(dims, given, "net.onnx")
    assert str(caught.value).startswith(message)


def test_random_inputs_are_normal_and_always_the_same() -> None:
    first = random_input(TensorSpec(("batch", 3, 64, 64), "float32"), None, Path("net.onnx"))
    assert (first.shape, first.dtype) == ((1, 3, 64, 64), np.float32)
    assert abs(first.mean()) < 0.05
    assert abs(first.std() - 1) < 0.05
    assert np.array_equal(first, random_input(TensorSpec((1, 3, 64, 64), "float32"), None, Path("o.onnx")))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_integer_inputs(dtype: str) -> None:
    found = random_input(TensorSpec((1, 100), dtype), None, Path("net.onnx"))
    assert found.dtype == np.dtype(dtype)
    assert (found.min(), found.max()) >= (0, 100)


def test_an_input_that_is_no_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"net\.onnx: an input is tensor\(string\), measuring knows float32, "):
        random_input(TensorSpec((1,), "tensor(string)"), None, Path("net.onnx"))


@pytest.mark.parametrize(("runtime", "title"), [("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_a_file_that_loads_but_does_not_run_is_named(runtime: str, title: str, tmp_path: Path) -> None:
    path = dense_file(tmp_path / "net.onnx", 4, dims=("batch", "channels", 8, 8))
    load(path, runtime, 1, (3, 8, 8))()
    with pytest.raises(MeasurementFailed, match=rf"net\.onnx: {title} cannot run it: ") as caught:
        load(path, runtime, 1, (5, 8, 8))
    assert "\n" not in str(caught.value)


def test_the_peak_rises_with_what_was_held() -> None:
    """In a process of its own, whose peak is not already higher than what it holds."""
    done = python(
        "-c",
        "import numpy as np; from edgewise.devices.worker import peak_resident_bytes as peak\n"
        "before = peak(); held = np.ones(8_000_000); print(peak() - before)",
    )
    assert 60_000_000 < int(done.stdout) < 100_000_000, done.stderr


def test_torch_is_not_in_its_memory() -> None:
    code = "import edgewise.devices.worker as worker, sys; print('torch' in sys.modules, 'openvino' in sys.modules)"
    done = python("-c", f"{code}; worker.RUNTIMES['openvino'].imported(); print('torch' in sys.modules)")
    assert done.stdout == "False False\nFalse\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process")
def test_it_is_pinned_to_as_many_cores_as_threads() -> None:
    done = python(
        "-c", "import os; from edgewise.devices.worker import pin; pin(1); print(len(os.sched_getaffinity(0)))"
    )
    assert done.stdout == "1\n", done.stderr


def test_the_protocol_is_json_lines_with_the_answer_last(tmp_path: Path) -> None:
    request = {
        "task": "latency",
        "artifacts": [str(dense_file(tmp_path / "net.onnx", 4))],
        "runtimes": ["onnxruntime"],
        "threads": 1,
        "seconds": 0.01,
        "rounds": 3,
        "input_shape": None,
    }
    done = python("-m", "edgewise.devices.worker", stdin=json.dumps(request))
    *progress, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(message.keys() == {"passed_s"} for message in progress)
    (samples,) = last["answer"]["samples_s"]
    assert len(samples) % 5 == 0
    assert len(samples) >= 15
    assert all(round(sample, 9) == sample > 0 for sample in samples)
