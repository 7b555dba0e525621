"""From a budget to a recipe: what is decided, and whole runs whose artifacts are within it."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import small_run
from edgewise.budget import Limits
from edgewise.errors import BudgetError, ModelError, RunFolderError
from edgewise.files import read_json
from edgewise.plan import TRAININGS, Decision, Dense, Wish, _after_a_drop, compress_within, decide, plan
from edgewise.recipe import Recipe, read
from edgewise.run import Finished

FLOAT = {"latency_s": 1e-3, "file_bytes": 1000.0, "peak_activation_bytes": 400.0, "macs": 10e6, "params": 250.0}
INT8 = {**FLOAT, "latency_s": 0.5e-3, "file_bytes": 300.0, "peak_activation_bytes": 120.0}


def decided(budget: Limits, lost: float = 0.002, whole: dict[str, float] | None = None) -> Decision:
    return decide({"float32": Dense(FLOAT, 0.9), "int8": Dense(INT8 | (whole or {}), 0.9 - lost)}, budget)


@pytest.mark.parametrize(
    ("budget", "precision", "prune", "why"),
    [
        (Limits(latency="2 ms"), "float32", False, "the dense float network is within the budget; nothing is pruned"),
        (Limits(latency="60%"), "int8", False, "nearer to the budget, and loses 0.20 points"),
        (Limits(latency="0.4 ms"), "int8", True, "1.27 times what it may take, so it is pruned"),
        (Limits(size="90 %", macs="50 %"), "int8", True, "2.00 times what"),  # int8 costs as many MACs
        (Limits(memory="10%", latency="3 ms"), "int8", True, "3.00 times what"),
        (Limits(macs="50 %", latency="80 %"), "int8", True, "2.00 times what"),  # as far over, but then nearer
        (Limits(macs="50 %"), "float32", True, "int8 is no nearer to the budget; 2.00 times what"),
        (Limits(params="50 %", drop=0.5), "float32", True, "int8 is no nearer to the budget; 2.00 times what"),
    ],
)
def test_the_network_that_needs_the_least_pruning_is_taken(
    budget: Limits, precision: str, prune: bool, why: str
) -> None:
    found = decided(budget)
    assert (found.precision, found.prune) == (precision, prune)
    assert why in found.notes[-1]
    assert found.notes[0].startswith("dense float32: ")
    assert "accuracy 90.00% on held-out training images" in found.notes[0]


def test_int8_is_out_of_question_where_it_is_slower_or_loses_too_much() -> None:
    slower = decided(Limits(latency="50%"), whole={"latency_s": 1.2e-3})
    assert (slower.precision, slower.prune) == ("float32", True)
    assert "nearer to the budget than int8" in slower.notes[-1]
    worse = decided(Limits(latency="60%"), lost=0.02)
    assert (worse.precision, worse.prune) == ("float32", True)
    assert "int8 alone loses 2.00 points on held-out training images, 1 may go" in worse.notes[-1]
    assert decided(Limits(latency="60%", drop=2.5), lost=0.02).precision == "int8"
    assert decided(Limits(latency="60%", drop=2.0), lost=0.92 - 0.90).precision == "int8"  # 2.0000000000000018
    far = decided(Limits(size="10%"), lost=0.02)  # nothing was said of accuracy
    assert far.precision == "int8"
    assert "loses 2.00 points on held-out training images, while float would have to be cut 10." in far.notes[-1]
    assert decided(Limits(size="10%", drop=1.0), lost=0.02).precision == "float32"


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
    return Wish(model=model, data=data, **({"epochs": 1, "dense_epochs": 2, "name": "small"} | settings))


def test_bytes_are_met_and_the_dense_network_is_trained_once(folder: Path) -> None:
    out = folder / "bytes"
    rows: list[dict[str, object]] = []
    small = wish(folder, budget=Limits(size="9 KB", drop=60.0), images=400)
    finished = compress_within(small, out, log=rows.append)
    assert finished.folder == out
    assert finished.budget_met
    kept = tomllib.loads((out / "recipe.toml").read_text())
    assert kept["budget"] == {"size": "9 KB", "drop": 60.0}
    assert kept["images"] == 400
    assert kept["notes"][0].startswith("dense float32: size ")
    assert [step["kind"] for step in kept["step"]] == ["prune", "train", "quantize", "export", "measure"]
    assert kept["weights"] == str(folder / "bytes-dense" / "model.safetensors")
    results = read_json(out / "results.json")
    assert results["compressed"]["file_bytes"] <= 9000
    assert results["plan"] == kept["notes"]
    assert "How the recipe was chosen" in (out / "report.html").read_text()
    trained = (folder / "bytes-dense" / "manifest.json").read_bytes()

    with pytest.raises(RunFolderError, match="exists already"):
        compress_within(small, out)
    with pytest.raises(RunFolderError, match=r"another budget: size was '9 KB' and is '8 KB'"):
        compress_within(replace(small, budget=Limits(size="8 KB", drop=60.0)), out, resume=True)
    assert compress_within(small, out, resume=True).before
    assert (folder / "bytes-dense" / "manifest.json").read_bytes() == trained
    shutil.rmtree(out)
    with pytest.raises(RunFolderError, match=r"bytes-dense: .* images was 400 and is 300; take another --out"):
        compress_within(replace(small, images=300), out)


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


def test_pretrained_weights_of_other_classes_are_trained_further(folder: Path) -> None:
    dense = folder / "bytes-dense" / "model.safetensors"
    if not dense.exists():
        test_bytes_are_met_and_the_dense_network_is_trained_once(folder)
    weights = load_file(dense)
    classifier = [name for name in weights if len(weights[name].shape) and len(weights[name]) == 10]
    assert len(classifier) == 2
    save_file(weights | {name: torch.cat([weights[name]] * 2) for name in classifier}, folder / "other.safetensors")
    given = {"budget": Limits(params="100%"), "pretrained": str(folder / "other.safetensors"), "dense_epochs": 1}
    compress_within(wish(folder, **given), folder / "further")
    recipe = read(folder / "further-dense" / "recipe.toml")
    assert (recipe.weights, recipe.step[0].lr) == (given["pretrained"], TRAININGS["classification"][1]["lr"])
    notes = read_json(folder / "further-dense" / "results.json")["rows"][1]["notes"]
    assert notes[0].endswith("begins anew: the weights are of other classes")
    start = load_file(folder / "further-dense" / "steps" / "00-start" / "model.safetensors")
    kept = [name for name in weights if name not in classifier]
    assert all(torch.equal(start[name], weights[name]) for name in kept)
    with pytest.raises(ValueError, match="pretrained: the dense network is trained from these"):
        wish(folder, **given, weights="w.safetensors")
    with pytest.raises(ModelError, match="do not fit the network: 2 of another shape"):
        compress_within(wish(folder, budget=Limits(params="100%"), weights=given["pretrained"]), folder / "misfit")


def test_what_cannot_work_is_refused_before_anything_is_trained(folder: Path) -> None:
    for settings, message in (
        ({"threads": 999}, r"threads = 999: this machine has \d+ cores"),
        ({"runtime": "tvm"}, 'runtime = "tvm": known: onnxruntime'),
        ({"epochs": 0}, "epochs = 0: at least 1"),
        ({"budget": Limits(drop=1.0)}, "what may be lost, not what must be gained"),
    ):
        with pytest.raises(ValueError, match=message):
            wish(folder, **({"budget": Limits(latency="50%")} | settings))
    with pytest.raises(BudgetError, match=r"^params cannot go down to 10: the least possible is \d+") as error:
        compress_within(wish(folder, budget=Limits(params=10)), folder / "refused")
    assert error.value.exit_code == 2
    with pytest.raises(RunFolderError, match="no run to resume"):
        compress_within(wish(folder, budget=Limits(latency="50%")), folder / "refused", resume=True)
    for budget, message in (
        (Limits(size="200 B"), r"^file_bytes cannot go down to 200 bytes: the least possible is \d+ bytes"),
        (Limits(memory="100 B"), r"^peak_activation_bytes cannot go down to 100 bytes: the least possible is"),
        (Limits(latency="0.01 us"), r"^latency_s cannot go down to"),
    ):
        with pytest.raises(BudgetError, match=message):
            compress_within(wish(folder, budget=budget), folder / "refused")
    assert not list(folder.glob("refused*"))


class Machine:
    """Stands for a machine whose finished artifacts take what a test says, run after run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *latencies_s: float | Exception) -> None:
        self.latencies_s, self.recipes, self.told = list(latencies_s), [], []
        dense = {"float32": Dense(FLOAT, 0.9), "int8": Dense(INT8, 0.9)}
        monkeypatch.setattr("edgewise.plan.survey", lambda *_: dense)
        monkeypatch.setattr("edgewise.plan.compress", self.compress)

    def compress(self, recipe: Recipe, place: Path, **_: object) -> Finished:
        self.recipes.append(recipe)
        found = self.latencies_s.pop(0)
        if isinstance(found, Exception):
            raise found
        limit = {"limit": 1e-4, "value": found, "unit": "s", "met": found <= 1e-4}
        return Finished(place, {"budget": {"latency": limit}})

    def run(self, folder: Path) -> str:
        budget = Limits(latency="0.1 ms", params="90 %")
        made = compress_within(wish(folder, budget=budget), folder / "stood", tell=self.told.append)
        return made.folder.name


def shares(machine: Machine) -> list[float]:
    steps = [next(step for step in recipe.step if step.kind == "prune") for recipe in machine.recipes]
    return [pytest.approx(step.budget_share) for step in steps]


@pytest.mark.parametrize(
    ("latencies_s", "name", "asked"),
    [
        ([0.09e-3], "stood", [1.0]),
        ([0.102e-3, 0.09e-3], "stood.attempt-2", [1.0, 0.97 / 1.02]),
        ([0.101e-3, 0.2e-3, 0.15e-3], "stood", [1.0, 0.97 / 1.01, 0.97**2 / 1.01 / 2]),
        ([0.102e-3, BudgetError("too narrow")], "stood", [1.0, 0.97 / 1.02]),
        ([0.102e-3, RunFolderError("taken")], "stood", [1.0, 0.97 / 1.02]),
    ],
)
def test_a_missed_latency_is_tried_again_and_the_best_is_returned(
    latencies_s: list, name: str, asked: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.plan.check_precisions", lambda *_: None)
    monkeypatch.setattr("edgewise.plan.train_dense", lambda *_: None)
    monkeypatch.setattr("edgewise.models.load_weights", lambda model, _: model)
    machine = Machine(monkeypatch, *latencies_s)
    assert machine.run(folder) == name
    assert shares(machine) == asked
    assert "nearer to the budget" in machine.told[2]
    assert len(machine.told) >= 2 + len(asked)


def test_what_was_not_pruned_and_misses_is_pruned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.plan.check_precisions", lambda *_: None)
    monkeypatch.setattr("edgewise.plan.train_dense", lambda *_: None)
    monkeypatch.setattr("edgewise.models.load_weights", lambda model, _: model)
    machine = Machine(monkeypatch, 0.101e-3, 0.09e-3)
    fast = {**INT8, "latency_s": 0.09e-3, "params": 200.0}
    monkeypatch.setattr("edgewise.plan.survey", lambda *_: {"float32": Dense(FLOAT, 0.9), "int8": Dense(fast, 0.9)})
    assert machine.run(folder) == "stood.attempt-2"
    assert ["prune" in [step.kind for step in recipe.step] for recipe in machine.recipes] == [False, True]
    assert (
        machine.recipes[1].notes[-1] == "measured at 1.010 times the latency that is allowed, so it is pruned after all"
    )


def test_another_runs_attempt_in_the_way_is_refused_at_once(folder: Path) -> None:
    (folder / "blocked.attempt-3" / "steps").mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"blocked\.attempt-3: exists already"):
        compress_within(wish(folder, budget=Limits(params="50%")), folder / "blocked")
    assert not (folder / "blocked-dense").exists()


@pytest.mark.parametrize(
    ("kinds", "latency_met", "lost", "advice"),
    [
        (["dense", "prune", "train", "quantize"], True, 1.81, "0.31 points more .* more than 4 epochs .* looser limit"),
        (["dense", "quantize"], True, 1.81, "a budget that float can hold or a looser limit"),
        (["dense", "prune", "train"], False, 1.81, None),  # of the latency something else was told
        (["dense", "prune", "train"], True, 1.5, None),
        (["dense", "prune", "train"], True, None, None),
    ],
)
def test_what_may_help_where_only_accuracy_misses_is_told(
    kinds: list[str], latency_met: bool, lost: float | None, advice: str | None
) -> None:
    drop = {"limit": 1.5, "value": lost, "met": lost is not None and lost <= 1.5}
    budget = {"latency": {"limit": 1.0, "value": 2.0 - latency_met, "met": latency_met}, "drop": drop}
    finished = Finished(Path("run"), {"budget": budget, "rows": [{"kind": kind} for kind in kinds]})
    told = _after_a_drop(finished, 4)
    assert re.search(advice, told) if advice else told == ""


def test_what_a_network_is_for_is_what_its_data_are(tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.npz"
    boxes.touch()
    kinds = {"fashion-mnist": "classification", f"pack:{tmp_path}": "classification", f"pack:{boxes}": "detection"}
    kinds |= {"coco:images": "detection", "voc:images": "detection", "stego:images": "steganalysis"}
    for data, kind in kinds.items():
        assert Wish(model="own.py:net", data=data, budget=Limits(size="100 KB")).kind == kind, data
