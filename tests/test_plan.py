"""From a budget to a recipe: what is decided, and whole runs whose artifacts are within it."""

import json
import tomllib
from pathlib import Path

import pytest

import small_run
from edgewise.budget import Limits
from edgewise.errors import RecipeError, RunFolderError
from edgewise.files import read_json
from edgewise.plan import Decision, Dense, Wish, compress_within, decide, plan

FLOAT = {"latency_s": 1e-3, "file_bytes": 1000.0, "peak_activation_bytes": 400.0, "macs": 10e6, "params": 250.0}
INT8 = {**FLOAT, "latency_s": 0.5e-3, "file_bytes": 300.0, "peak_activation_bytes": 120.0}


def decided(budget: Limits, lost: float = 0.002, whole: dict[str, float] | None = None) -> Decision:
    return decide({"float32": Dense(FLOAT, 0.9), "int8": Dense(INT8 | (whole or {}), 0.9 - lost)}, budget)


@pytest.mark.parametrize(
    ("budget", "precision", "prune", "why"),
    [
        (Limits(latency="2 ms"), "float32", False, "the dense float network is within the budget; nothing is pruned"),
        (Limits(latency="60%"), "int8", False, "nearer to the budget, and loses 0.20 points"),
        (Limits(latency="0.4 ms"), "int8", True, "it is 1.25 times over, so it is pruned"),
        (Limits(size="90 %", macs="50 %"), "int8", True, "2.00 times over"),  # int8 costs as many MACs
        (Limits(memory="10%", latency="3 ms"), "int8", True, "3.00 times over"),
    ],
)
def test_the_network_that_needs_the_least_pruning_is_taken(
    budget: Limits, precision: str, prune: bool, why: str
) -> None:
    found = decided(budget)
    assert (found.precision, found.prune) == (precision, prune)
    assert why in found.notes[-1]
    assert found.notes[0].startswith("dense float32: ")
    assert "accuracy 90.00% on held-out images" in found.notes[0]


def test_int8_is_out_of_question_where_it_is_slower_or_loses_too_much() -> None:
    slower = decided(Limits(latency="50%"), whole={"latency_s": 1.2e-3})
    assert (slower.precision, slower.prune) == ("float32", True)
    assert "nearer to the budget than int8" in slower.notes[-1]
    worse = decided(Limits(latency="60%"), lost=0.02)
    assert (worse.precision, worse.prune) == ("float32", True)
    assert "int8 alone loses 2.00 points on held-out images, 1 may go" in worse.notes[-1]
    assert decided(Limits(latency="60%", drop=2.5), lost=0.02).precision == "int8"


def test_the_recipe_says_only_what_is_left_to_do() -> None:
    def kinds(precision: str, prune: bool) -> list[str]:
        wish = Wish(model="resnet20", data="fashion-mnist", budget=Limits(latency="50%"), weights="w.safetensors")
        return [step.kind for step in plan(wish, Decision(precision, prune, ("why",))).step]

    assert kinds("float32", False) == ["export", "measure"]
    assert kinds("int8", False) == ["quantize", "export", "measure"]
    assert kinds("float32", True) == ["prune", "train", "export", "measure"]
    assert kinds("int8", True) == ["prune", "train", "quantize", "export", "measure"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write(tmp_path_factory.mktemp("plan")).parent


def wish(folder: Path, **settings: object) -> Wish:
    model, data = f"{folder}/network.py:tiny", f"pack:{folder}/pack"
    return Wish(model=model, data=data, epochs=1, dense_epochs=2, name="small", **settings)


def test_bytes_are_met_and_the_dense_network_is_trained_once(folder: Path) -> None:
    out = folder / "bytes"
    rows: list[dict[str, object]] = []
    finished = compress_within(wish(folder, budget=Limits(size="9 KB", drop=60.0)), out, log=rows.append)
    assert finished.folder == out
    assert finished.budget_met
    kept = tomllib.loads((out / "recipe.toml").read_text())
    assert kept["budget"] == {"size": "9 KB", "drop": 60.0}
    assert kept["notes"][0].startswith("dense float32: file_bytes ")
    assert [step["kind"] for step in kept["step"]] == ["prune", "train", "quantize", "export", "measure"]
    assert kept["weights"] == str(folder / "bytes-dense" / "model.safetensors")
    results = read_json(out / "results.json")
    assert results["compressed"]["file_bytes"] <= 9000
    assert results["plan"] == kept["notes"]
    assert "How the recipe was chosen" in (out / "report.html").read_text()
    trained = (folder / "bytes-dense" / "manifest.json").read_bytes()

    with pytest.raises(RunFolderError, match="exists already"):
        compress_within(wish(folder, budget=Limits(size="9 KB")), out)
    assert compress_within(wish(folder, budget=Limits(size="9 KB", drop=60.0)), out, resume=True).before
    assert (folder / "bytes-dense" / "manifest.json").read_bytes() == trained


def test_where_the_dense_network_fits_nothing_is_changed(folder: Path) -> None:
    dense = folder / "bytes-dense" / "model.safetensors"
    if not dense.exists():
        test_bytes_are_met_and_the_dense_network_is_trained_once(folder)
    loose = wish(folder, budget=Limits(params="100%", memory="1 MB"), weights=str(dense))
    finished = compress_within(loose, folder / "loose")
    assert finished.budget_met
    assert [row["kind"] for row in finished.results["rows"]] == ["dense", "export", "measure"]
    assert finished.results["compressed"]["drop_pt"] == 0
    assert json.loads((folder / "loose" / "results.json").read_text())["budget"]["params"]["share"] == 1.0


def test_what_cannot_work_is_refused_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"threads = 999: this machine has \d+ cores"):
        compress_within(wish(folder, budget=Limits(latency="50%"), threads=999), folder / "refused")
    with pytest.raises(ValueError, match="epochs = 0: at least 1"):
        Wish(model="resnet20", data="fashion-mnist", budget=Limits(latency="50%"), epochs=0)
    assert not (folder / "refused-dense").exists()
