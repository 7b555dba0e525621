"""A run without data: what it reads and when, what stands in for images, and that everything after it still works."""

from pathlib import Path

import pytest

import small_run
from edgewise.check import check
from edgewise.errors import DataError, RecipeError
from edgewise.files import read_json
from edgewise.recipe import parse, read
from edgewise.run import compress

STUDENT = """
model = "{folder}/network.py:tiny"
data = "pack:{data}"
[[step]]
kind = "train"
epochs = 2
batch = 32
lr = 0.05
augment = []
[[step.method]]
kind = "data_free"
teachers = ["{folder}/teacher", "{folder}/teacher"]
steps = 3
noise = 16
[[step]]
kind = "prune"
keep_macs = 0.6
round_to = 8
[[step]]
kind = "quantize"
calibration = 64
[[step]]
kind = "export"
[[step]]
kind = "measure"
seconds = 0.2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network, its data and a run that trained a teacher."""
    folder = tmp_path_factory.mktemp("unseen")
    recipe = small_run.write(folder)
    changes = [f"step.{index}=" for index in (5, 4, 3, 2, 1)]
    compress(read(recipe, ["budget=", *changes]), folder / "teacher")
    return folder


def student(folder: Path, data: Path) -> Path:
    path = folder / "student.toml"
    path.write_text(STUDENT.format(folder=folder, data=data))
    return path


def test_nothing_of_the_data_is_read_before_the_network_is_trained(folder: Path) -> None:
    missing, out = folder / "later", folder / "student"
    recipe = read(student(folder, missing))
    with pytest.raises(DataError, match="later is no folder"):
        compress(recipe, out)
    assert len(list(out.rglob("checkpoint*"))) == 1  # all epochs are done
    (folder / "pack").rename(missing)
    try:
        finished = compress(recipe, out, resume=True)
        assert all(found.passed for found in check(out))
    finally:
        missing.rename(folder / "pack")
    results = finished.results
    assert [row["step"] for row in results["rows"]][1:3] == ["01-train", "02-prune"]
    assert results["generated"].startswith("data:image/webp;base64,")
    judged = results["judged"]
    assert judged["step"] == [0, 15, 30]  # of 5 to one of the generator, of which an epoch has 3
    assert judged["accuracy"][-1] == results["rows"][1]["accuracy"]
    assert not list(out.rglob("snapshots"))  # they were judged
    assert "of the data set the test split alone is used" in results["data_note"]
    assert "no image of the data set was read" in " ".join(results["rows"][1]["notes"])
    assert results["rows"][-1]["latency_s"] > 0
    assert "judged when the training was over" in (out / "report.html").read_text()
    assert "What it learnt from" in (out / "report.html").read_text()
    assert (
        read_json(out / "manifest.json")["data"]["checksum"]
        == read_json(folder / "teacher/manifest.json")["data"]["checksum"]
    )


def test_what_fails_after_the_judging_can_be_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = read(student(folder, folder / "pack"), [f"step.{step}=" for step in (4, 3, 2, 1)]), folder / "full"

    def full(path: Path, value: object) -> Path:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("edgewise.steps.write_json", full)
        with pytest.raises(OSError, match="No space"):
            compress(recipe, out)
    results = compress(recipe, out, resume=True).results
    assert results["judged"]["step"] == [0, 15, 30]
    assert not list(out.rglob("snapshots"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": ["flip"]}, "generated images are not augmented, so augment = "),
        ({"undo_if_worse": True}, "no images that distill or undo_if_worse could ask about"),
        ({"method": [{"kind": "data_free", "teachers": []}]}, "teachers is empty"),
    ],
)
def test_what_makes_no_sense_without_data_is_refused(change: dict[str, object], message: str) -> None:
    step = {"kind": "train", "augment": [], "method": [{"kind": "data_free", "teachers": ["a"]}]} | change
    with pytest.raises(RecipeError, match=message):
        parse({"model": "resnet20", "data": "fashion-mnist", "step": [step]})


def test_a_training_on_data_goes_not_together_with_one_without(folder: Path) -> None:
    free = {"kind": "train", "augment": [], "method": [{"kind": "data_free", "teachers": ["a"]}]}
    for steps, message in (
        ([{"kind": "train"}, free], "put it first"),
        ([free, {"kind": "train"}], "was to do without"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse({"model": "resnet20", "data": "fashion-mnist", "step": steps})


def test_the_first_teacher_must_say_what_images_there_are(folder: Path) -> None:
    recipe = read(student(folder, folder / "pack"), ["step.0.method.0.teachers=['resnet20:nowhere.th']"])
    with pytest.raises(RecipeError, match="the first one must be a run folder"):
        compress(recipe, folder / "none")
    with pytest.raises(RecipeError, match=r'size = 64: without data the images are as teacher ".*" knows them, 28 pix'):
        compress(read(student(folder, folder / "pack"), ["size=64"]), folder / "none")
    assert not (folder / "none").exists()
