"""This machine's description, and what becomes of a worker that does not answer."""

import json
import signal
from pathlib import Path

import pytest

from devices.files import dense_file
from edgewise.devices import machine
from edgewise.devices.local import _ended, _message, ask_worker
from edgewise.errors import MeasurementFailed


def test_the_machine_is_described_in_plain_json() -> None:
    facts = machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 2**20
    assert {"torch", "numpy", "onnx", "onnxruntime"} == facts["versions"].keys()


def test_a_worker_that_ends_without_an_answer_is_a_failed_measurement() -> None:
    request = {"task": "nonsense", "artifacts": ["a.onnx", "b.onnx"], "threads": 1}
    with pytest.raises(MeasurementFailed) as caught:
        ask_worker(request)
    assert str(caught.value) == ("a.onnx, b.onnx: the measuring process ended with exit code 1: KeyError: 'nonsense'")


def test_a_worker_that_was_killed_is_named_with_the_signal() -> None:
    found = _ended(["a.onnx"], -signal.SIGKILL, "")
    assert found == "a.onnx: the measuring process was ended by SIGKILL"


def test_a_line_cut_short_says_nothing() -> None:
    assert _message('{"answer": {"samples_s": [[0.1, 0.') == {}
    assert _message('{"passed_s": 1.5}\n') == {"passed_s": 1.5}


def test_what_else_is_printed_does_not_hide_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start-up hook of the machine's prints, in bytes that are no text, before the worker and after it."""
    before, after = "os.write(1, b'5\\n\\xff\\n')", "atexit.register(os.write, os.dup(1), b'[]\\nbye\\n')"
    (tmp_path / "sitecustomize.py").write_text(f"import atexit, os; {before}; {after}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = {"task": "memory", "artifacts": [str(dense_file(tmp_path / "net.onnx", 4))], "threads": 1}
    assert ask_worker({**request, "runtimes": ["onnxruntime"], "input_shape": None})["resident_bytes"] > 0
