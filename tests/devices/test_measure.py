"""What is asked of a device and what is made of its answer; then this machine, for real."""

from pathlib import Path

import onnxruntime
import pytest

from devices.files import coded_file, dense_file, openvino_file
from edgewise.devices import RUNTIMES, Job, Measurement, Samples, measure
from edgewise.devices.base import Progress
from edgewise.devices.local import available_cores
from edgewise.devices.measure import measure_until_quiet
from edgewise.errors import MeasurementFailed, UnknownName, UserError


class FakeDevice:
    """Answers every job with samples of 1, 2, 3 ... seconds."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, job: Job, progress: Progress = None) -> list[Samples]:
        self.jobs.append(job)
        return [Samples((1.0 + i, 1.0 + i), 100 * i, "9.9", "a fake") for i in range(len(job.artifacts))]


def test_a_noisy_measurement_is_made_again_and_the_least_noisy_counts() -> None:
    def found(*samples_s: float) -> list[Measurement]:
        common = {"artifact": "a", "runtime": "r", "version": "1", "threads": 1, "cpu": "c", "resident_bytes": 1}
        return [Measurement(**common, samples_s=each, file_bytes=1) for each in ((1.0, 1.0), samples_s)]

    slow_but_steady, noisy, noisier = found(9.0, 9.0), found(1.0, 4.0), found(1.0, 9.0)

    def measured(*answers: list[Measurement]) -> list[list[Measurement]]:
        left = list(answers)
        return measure_until_quiet(lambda: left.pop(0))

    assert measured(slow_but_steady, noisy) == [slow_but_steady], "the first is steady"
    assert measured(noisy, slow_but_steady, noisier) == [slow_but_steady, noisy]
    assert measured(noisier, noisy, noisier, slow_but_steady) == [noisy, noisier, noisier], "three at most"


def test_a_device_is_asked_once_for_all_artifacts(tmp_path: Path) -> None:
    paths = [dense_file(tmp_path / "a.onnx", 4), dense_file(tmp_path / "b.onnx", 8)]
    device = FakeDevice()
    found = measure(paths, threads=3, seconds=2.0, rounds=7, input_shape=(3, 8, 8), device=device)
    assert device.jobs == [Job(tuple(paths), ("onnxruntime",) * 2, 3, 2.0, 7, (3, 8, 8))]
    assert found[1] == Measurement(
        artifact=str(paths[1]),
        runtime="onnxruntime",
        version="9.9",
        threads=3,
        cpu="a fake",
        samples_s=(2.0, 2.0),
        resident_bytes=100,
        file_bytes=paths[1].stat().st_size,
    )
    assert [m.ratio(found[0]) for m in found] == [1.0, 0.5]


def test_this_machine_runs_them_and_keeps_every_sample(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, large = dense_file(tmp_path / "small.onnx", 4), dense_file(tmp_path / "large.onnx", 2000)
    told: list[tuple[str, int, int]] = []
    found = measure([small, large], seconds=0.5, rounds=2, progress=lambda *state: told.append(state))
    assert capfd.readouterr() == ("", "")
    a, b = found
    assert (Path(a.artifact), Path(b.artifact)) == (small, large)
    assert len(a.samples_s) == len(b.samples_s) >= 10
    assert min(a.samples_s + b.samples_s) > 0
    assert b.file_bytes == large.stat().st_size > 16_000_000
    assert b.resident_bytes - a.resident_bytes > 10_000_000  # its weights
    assert told[-1] == ("measure", 500, 500)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert a.version == onnxruntime.__version__


def test_files_of_several_formats_are_compared_in_one_run(tmp_path: Path) -> None:
    floats, codes = dense_file(tmp_path / "float.onnx", 300), coded_file(tmp_path / "int8.onnx")
    theirs = openvino_file(floats)
    found = measure([floats, theirs, codes], seconds=0.2, rounds=2)
    assert [m.runtime for m in found] == ["onnxruntime", "openvino", "onnxruntime"]
    assert [m.version for m in found] == [RUNTIMES[m.runtime].version() for m in found]
    assert len({len(m.samples_s) for m in found}) == 1, "they took their turns together"
    assert found[1].file_bytes == theirs.stat().st_size + theirs.with_suffix(".bin").stat().st_size
    assert found[1].file_bytes > 4 * 300 * 300, "the weights lie beside the network"
    assert min(m.resident_bytes for m in found) > 0
    found = measure([floats, codes], runtime="openvino", seconds=0.2, rounds=2)
    assert [m.runtime for m in found] == ["openvino", "openvino"]


def test_a_network_without_its_weights_is_named(tmp_path: Path) -> None:
    path = openvino_file(dense_file(tmp_path / "net.onnx", 4))
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"net\.bin: no such file"):
        measure([path])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"runtime": "onnxruntme"}, UnknownName, 'runtime "onnxruntme" is unknown; did you mean "onnxruntime"?'),
        ({"runtime": "litert"}, UserError, "a.onnx: litert does not take .onnx files"),
        ({"threads": 0}, UserError, "threads = 0: this machine has "),
        ({"threads": 10**6}, UserError, "threads = 1000000: this machine has "),
        ({"seconds": 0.0}, ValueError, "seconds = 0.0, rounds = 20: both must be positive"),
        ({"rounds": 0}, ValueError, "seconds = 3.0, rounds = 0: both must be positive"),
        ({"input_shape": (3, 9, 9)}, UserError, "a.onnx: its input is [batch, 3, 8, 8], which 3x9x9 does not fit"),
    ],
)
def test_what_cannot_be_asked(settings: dict, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = dense_file(tmp_path / "a.onnx", 4)
    with pytest.raises(error) as caught:
        measure([path], **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_broken_are_named_in_one_line(tmp_path: Path) -> None:
    good, broken = dense_file(tmp_path / "good.onnx", 4), tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"nowhere\.onnx: no such file"):
        measure([good, tmp_path / "nowhere.onnx"])
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="no such file"):
        measure([tmp_path / "folder.onnx"])
    with pytest.raises(MeasurementFailed, match=r"broken\.onnx: ONNX Runtime cannot load it: ") as caught:
        measure([good, broken])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    with pytest.raises(ValueError, match="artifacts is empty"):
        measure([])


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
