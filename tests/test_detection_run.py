"""A whole run of a detector on drawn images: trained, pruned, taught, quantised, and shipped as a file of boxes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import edgewise
from edgewise.check import check
from edgewise.cli import by_recipe
from edgewise.data import load
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.export.tail import has_tail
from edgewise.export.verify import outputs
from edgewise.plan import survey
from edgewise.recipe import Recipe, parse, shipped
from edgewise.run import compress, prepare
from edgewise.tasks import Detection, same_boxes

SIZE, TRAIN = 64, {"kind": "train", "batch": 8, "optimizer": "adamw", "lr": 0.004}
COLOURS = ((220, 40, 40), (40, 60, 230))


def write_pack(file: Path, images: int = 60) -> Path:
    """Write a pack of noisy images, each with one to three squares, red or blue, and their boxes."""
    random = np.random.default_rng(0)
    encoded, boxes = [], []
    for image in range(images):
        pixels = random.integers(90, 160, (SIZE, SIZE, 3))
        for corner in random.permutation([(4, 4), (36, 6), (6, 38), (37, 36)])[: 1 + image % 3]:
            side, label = int(random.integers(12, 22)), int(random.integers(2))
            x, y = (int(value) for value in corner)
            pixels[y : y + side, x : x + side] = COLOURS[label]
            boxes.append([image, label, x, y, x + side, y + side])
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        encoded.append(stream.getvalue())
    names = np.array([f"{image:03}" for image in range(images)])
    np.savez(
        file,
        data=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
        boxes=np.array(boxes, np.float64),
        names=names,
        classes=np.array(["red", "blue"]),
        split_train=names[:40],
        split_val=names[40:48],
        split_test=names[48:],
    )
    return file


def recipe(pack: Path, *steps: dict[str, Any], **rest: Any) -> Recipe:
    table = {"model": "centernet_tiny", "width": 0.5, "data": f"pack:{pack}", "size": SIZE, "step": list(steps)}
    return parse(table | rest)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("boxes") / "squares.npz")


@pytest.fixture(scope="module")
def run(pack: Path) -> Path:
    steps = (
        {**TRAIN, "epochs": 24},
        {"kind": "prune", "keep_macs": 0.7, "round_to": 4},
        {**TRAIN, "epochs": 8, "lr": 0.002, "method": [{"kind": "distill_detector", "hint": 0.3, "taps": ["head"]}]},
        {"kind": "quantize", "calibration": 16},
        {"kind": "export"},
        {"kind": "measure", "seconds": 0.2},
    )
    return compress(recipe(pack, *steps), pack.parent / "run").folder


def test_it_learns_and_every_step_keeps_what_it_learnt(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["metric"] == "mAP@0.5"
    assert results["rows"][0]["accuracy"] > 0.8
    assert results["rows"][-1]["accuracy"] > results["rows"][0]["accuracy"] - 0.1
    assert results["rows"][-1]["macs"] < 0.72 * results["rows"][0]["macs"]
    assert all(found.passed for found in check(run))


def test_the_files_give_the_networks_boxes(run: Path, pack: Path) -> None:
    data = load(f"pack:{pack}", size=SIZE)
    task = Detection(data.mean, data.std, len(data.classes))
    inputs, _ = task.batch(data.test, torch.arange(len(data.test)), augment=False)
    assert has_tail(run / "dense/model.onnx")
    assert has_tail(run / "model.onnx")
    with torch.no_grad():
        expected = task.answers(edgewise.load(run / "dense")(inputs))
        small = task.answers(edgewise.load(run)(inputs))
    assert same_boxes(outputs(run / "dense/model.onnx", inputs), expected) == 1
    assert task.agreement(outputs(run / "dense/model.onnx", inputs), expected, exactly=True) == 1
    assert task.agreement(expected + torch.tensor([0.0, 0, 0, 0.6, 0, 0]), expected, exactly=True) == 0
    assert task.agreement(outputs(run / "model.onnx", inputs), small) > 0.9  # in int8


def test_a_file_for_another_runtime_is_held_to_the_boxes(run: Path, pack: Path, tmp_path: Path) -> None:
    steps = ({"kind": "quantize", "calibration": 16}, {"kind": "export", "format": "openvino"})
    weights = str(run / "dense" / "model.safetensors")
    folder = compress(recipe(pack, *steps, weights=weights), tmp_path / "run").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    named = {each["name"].partition(": ")[2] or each["name"]: each for each in manifest["checks"]}
    assert named["openvino int8 file gives its ONNX file's answers"]["value"] > 0.9
    assert all(found.passed for found in check(folder))


def test_a_wish_is_decided_on_files_that_give_boxes(run: Path, pack: Path) -> None:
    weights = str(run / "dense" / "model.safetensors")
    context, model = prepare(recipe(pack, {"kind": "export"}, weights=weights))
    found = survey(context, model, 1)
    assert found["float32"].figures["file_bytes"] == (run / "dense" / "model.onnx").stat().st_size
    assert found["int8"].accuracy > found["float32"].accuracy - 0.2


def test_what_a_later_training_cannot_do_is_refused_before_the_first(pack: Path) -> None:
    prune, method = {"kind": "prune", "keep_macs": 0.7}, {"kind": "distill_detector", "hint": 1.0, "taps": ["nohead"]}
    with pytest.raises(ModelError, match=r'step.2 \(train\): the student has no module "nohead"'):
        prepare(recipe(pack, TRAIN, prune, {**TRAIN, "method": [method]}))


def test_the_report_shows_what_was_found(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert len(results["pictures"]) == 6
    picture = results["pictures"][0]
    assert picture["size"] == [SIZE, SIZE]
    assert {each["class"] for each in picture["true"]} <= {"red", "blue"}
    assert picture["found"][0]["score"] > 0.3
    page = (run / "report.html").read_text()
    assert "What it found" in page
    assert "mAP@0.5 on the test images" not in page.split("<main>")[0]
    assert "What mAP@0.5 costs" in page


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "resnet20"}, ModelError, "centernet_"),
        ({"step": [TRAIN | {"augment": ["mixup"]}]}, RecipeError, r"step.0 \(train\): .*mixup"),
        ({"step": [TRAIN, {**TRAIN, "method": [{"kind": "distill"}]}]}, RecipeError, "distill_detector"),
    ],
)
def test_what_is_for_other_data_is_refused(
    pack: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    table = {"step": [TRAIN], "weights": None} | change
    if "method" in table["step"][-1]:
        table["step"] = [TRAIN, {"kind": "prune", "keep_macs": 0.7}, table["step"][-1]]
    steps = table.pop("step")
    table = {name: value for name, value in table.items() if value is not None}
    with pytest.raises(error, match=message):
        prepare(recipe(pack, *steps, **table))


def test_bad_boxes_are_named_or_left_out_and_counted(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "bad.npz")
    with np.load(pack) as arrays:
        changed = dict(arrays)
    changed["boxes"][3, 4] = changed["boxes"][3, 2]  # no width
    np.savez(pack, **changed)
    with pytest.raises(DataError, match="row 3 of boxes"):
        prepare(recipe(pack, TRAIN))
    context, _ = prepare(recipe(pack, TRAIN, skip_bad=True))
    assert "1 " in context.data.note
    assert "box" in context.data.note


def test_the_commands_option_is_the_recipes_key() -> None:
    carried = by_recipe(shipped() / "detector.toml", ["skip_bad=false"], {"skip_bad": True})
    assert carried.args[0].skip_bad  # type: ignore[attr-defined]
