"""A whole run of a steganalyser: the filters that are given stay while everything around them is compressed."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgewise
from data.test_stego import encode, smooth, write
from edgewise.check import check
from edgewise.recipe import parse
from edgewise.run import compress


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stego")
    pack = write(folder / "gray.npz", [encode(smooth(seed)) for seed in range(24)])
    train = {"kind": "train", "epochs": 2, "batch": 4, "optimizer": "adamw", "lr": 0.002, "augment": ["flip"]}
    table = {
        "model": "xunet_jpeg",
        "width": 0.25,
        "data": f"stego:{pack}?method=nsf5&payload=1.0&quality=75",
        "held": 0.2,
        "step": [
            train,
            {"kind": "prune", "keep_macs": 0.7, "round_to": 4},
            {**train, "epochs": 1, "method": [{"kind": "distill"}]},
            {"kind": "quantize", "calibration": 8},
            {"kind": "export"},
            {"kind": "measure", "seconds": 0.2},
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEWISE_CACHE", str(folder / "cache"))
        finished = compress(parse(table), folder / "run").folder
        assert all(found.passed for found in check(finished))
    return finished


def test_every_step_is_taken_and_named_by_its_figure(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["metric"] == "1 - P_E"
    assert results["classes"] == ["cover", "stego"]
    assert [row["kind"] for row in results["rows"]] == [
        *("dense", "train", "prune", "train", "quantize", "export", "measure")
    ]
    assert 0.5 <= results["rows"][-1]["accuracy"] <= 1
    assert results["rows"][-1]["macs"] < 0.75 * results["rows"][0]["macs"]


def test_the_bank_is_the_same_floats_in_every_file(run: Path) -> None:
    bank = edgewise.load(run).get_buffer("dct.weight").numpy()
    for name in ("dense/model.onnx", "model.onnx"):
        held = [numpy_helper.to_array(constant) for constant in onnx.load(run / name).graph.initializer]
        assert any(array.shape == bank.shape and np.array_equal(array, bank) for array in held), name
    notes = " ".join(row["notes"][0] for row in json.loads((run / "results.json").read_text())["rows"] if row["notes"])
    assert "filters that no training made stay floats: dct" in notes
