"""The quantise step in whole runs: every kind of scheme, what it leaves behind, and what the report shows of it."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import edgewise
import small_run
from edgewise import cli, recipe
from edgewise.check import check as check_run
from edgewise.devices.local import sums_saturate

STEPS = """
model = "{folder}/network.py:tiny"
data = "pack:{folder}/pack"
weights = "{weights}"
[[step]]
kind = "quantize"
calibration = 64
{settings}
[[step]]
kind = "export"
[[step]]
kind = "measure"
seconds = 0.2
"""


@pytest.fixture(scope="module")
def trained(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network's source, its images, and a run that trained it."""
    folder = tmp_path_factory.mktemp("quantize")
    small_run.write(folder)
    source = STEPS[: STEPS.index("weights")].format(folder=folder)
    (folder / "train.toml").write_text(f'{source}[[step]]\nkind = "train"\nepochs = 4\nlr = 0.05\nbatch = 64\n')
    edgewise.compress(recipe.read(folder / "train.toml"), folder / "trained")
    return folder


def finished(trained: Path, settings: str, name: str, changes: tuple[str, ...] = ()) -> tuple[Path, dict[str, Any]]:
    weights = trained / "trained" / "model.safetensors"
    file = trained / f"{name}.toml"
    file.write_text(STEPS.format(folder=trained, weights=weights, settings=settings))
    out = trained / name
    edgewise.compress(recipe.read(file, changes), out)
    return out, json.loads((out / "results.json").read_text())


def test_auto_keeps_what_was_measured_and_tells_what_it_tried(trained: Path) -> None:
    out, results = finished(trained, 'scheme = "auto"\nmax_drop = 3.0', "auto")
    (tried,) = results["tried"].values()
    assert [row["label"] for row in tried][:2] == ["float32", "int8_static"]
    dense, row = results["rows"][0], results["rows"][-1]
    assert row["file_bytes"] < dense["file_bytes"]
    note = next(note for row in results["rows"] for note in row["notes"] if "tried" in note or "float32 stays" in note)
    assert "times float32" in note or "float32 stays" in note
    assert "What was tried to take fewer bits" in (out / "report.html").read_text()
    assert not list(out.rglob("candidates"))


def test_training_for_int8_is_proved_against_what_was_trained(trained: Path) -> None:
    out, results = finished(trained, 'scheme = "qat"\nepochs = 1', "qat")
    manifest = json.loads((out / "manifest.json").read_text())
    names = [check["name"] for check in manifest["checks"]]
    assert any("int8 trained logits equal the simulation's" in name for name in names)
    exact = [check for check in manifest["checks"] if "computes the codes of its simulation" in check["name"]]
    assert [check["value"] > 0.98 for check in exact] == ([] if sums_saturate() else [True])
    assert any("training for int8" in note for row in results["rows"] for note in row["notes"])


def test_layers_are_left_in_floats_until_the_drop_holds(trained: Path) -> None:
    out, results = finished(trained, "max_drop = 0.0", "held")
    graph = onnx.load(out / "model.onnx").graph
    assert any(node.op_type == "QuantizeLinear" for node in graph.node) or results["exclusion"]
    (tried,) = results["tried"].values()
    dense, kept = tried
    points = [point for curve in results["exclusion"].values() for point in curve]
    if points:
        assert kept["accuracy"] == max(point["accuracy"] for point in points)
        assert "until the accuracy held" in (out / "report.html").read_text()
    else:
        assert kept["accuracy"] >= dense["accuracy"]


@pytest.mark.parametrize(("scheme", "bits"), [("float16", 16), ("int8_weight", 8), ("int8_dynamic", 8)])
def test_stored_weights_are_called_by_their_name(scheme: str, bits: int, trained: Path) -> None:
    out, results = finished(trained, f'scheme = "{scheme}"', scheme)
    before, after = results["rows"][0], results["rows"][-1]
    assert after["weight_bytes"] < before["weight_bytes"] * bits / 32 + 1000
    assert (out / "model.onnx").stat().st_size < (out / "dense" / "model.onnx").stat().st_size


def test_mixed_bits_are_told_layer_by_layer(trained: Path) -> None:
    _, results = finished(trained, 'scheme = "mixed"\nsize = 0.25', "mixed")
    assert any(note.startswith("4 bits: ") for row in results["rows"] for note in row["notes"])
    dense = results["rows"][0]["file_bytes"]
    assert results["rows"][-1]["file_bytes"] <= 0.25 * dense


def test_learnt_rounding_and_equalised_channels_are_told(trained: Path) -> None:
    settings = 'scheme = "mixed"\nsize = 0.25\nrounding = "adaround"\nrounding_iterations = 20\nequalize = true'
    _, results = finished(trained, settings, "rounded")
    notes = [note for row in results["rows"] for note in row["notes"]]
    assert any(note.startswith("4 bits: ") for note in notes)
    assert "pairs of layers that were equalised: 1" in notes
    assert results["rows"][-1]["file_bytes"] <= 0.25 * results["rows"][0]["file_bytes"]


def test_what_is_shipped_for_openvino_is_held_against_the_onnx_file_and_measured_there(trained: Path) -> None:
    changes = ("step.1.format=openvino", "step.2.runtime=openvino")
    out, results = finished(trained, "", "openvino", changes)
    assert {"model.onnx", "model.xml", "model.bin"} <= {path.name for path in out.iterdir()}
    assert cli.artifact_of(out) == out / "model.xml"
    sizes = [(out / name).stat().st_size for name in ("model.xml", "model.bin")]
    assert results["rows"][-1]["file_bytes"] == sum(sizes)
    assert [measured["runtime"] for measured in results["measurements"]] == ["openvino", "openvino"]
    names = [check["name"] for check in json.loads((out / "manifest.json").read_text())["checks"]]
    assert any("openvino int8 logits equal the ONNX file's" in name for name in names)
    assert all(check.passed for check in check_run(out))
    kernels = json.loads((out / "steps" / "01-quantize" / "result.json").read_text())["kernels"]
    assert kernels == {"integer": 4, "floating": 0}


def test_a_layer_that_a_runtime_computes_on_floats_is_said(trained: Path) -> None:
    _, results = finished(trained, 'exclude = ["7"]', "excluded")
    assert any(
        "1 of 4 layers compute on floats in ONNX Runtime" in note for row in results["rows"] for note in row["notes"]
    )
