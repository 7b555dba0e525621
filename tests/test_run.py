"""A recipe becomes a run folder: its content, its proof, and what a kill at any moment does to it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import small_run
from edgewise import context, load
from edgewise.budget import Limits, verdict
from edgewise.check import check
from edgewise.context import Context, read_result
from edgewise.data import Dataset, Split
from edgewise.devices.runtimes import RUNTIMES
from edgewise.errors import AlignmentError, BudgetError, RunFolderError, TrainingDiverged, UserError
from edgewise.export.network import Builder
from edgewise.files import locked, read_json, sha256, write_json
from edgewise.folder import choose, held
from edgewise.graph import trace
from edgewise.prune_step import removal_checks
from edgewise.quantize import activation_cost
from edgewise.recipe import read, shipped
from edgewise.results import _compressed, _measurements, files, sealed
from edgewise.run import check_steps, compress, prepare
from edgewise.train import evaluate

STEPS = ["01-train", "02-prune", "03-train", "04-quantize", "05-export", "06-measure"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    """One undisturbed run, which the tests only read."""
    return compress(read(recipe), recipe.parent / "undisturbed").folder


def test_the_folder_is_as_promised(finished: Path) -> None:
    top = {path.name for path in finished.iterdir()}
    assert top == {
        "recipe.toml", "manifest.json", "results.json", "events.jsonl", "report.html", "model.onnx",
        "model.safetensors", "structure.json", "builder", "dense", "steps",
    }  # fmt: skip
    assert sorted(path.name for path in (finished / "steps").iterdir()) == ["00-start", *STEPS]
    assert not [path for path in finished.rglob("*") if "partial" in path.name or "checkpoint" in path.name]


def test_the_results_have_a_row_a_step_and_the_dense_row_first(finished: Path) -> None:
    results = read_json(finished / "results.json")
    rows = results["rows"]
    assert [row["step"] for row in rows] == ["dense", *STEPS]
    dense, last = rows[0], rows[-1]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[2]["macs"] <= 0.6 * dense["macs"]
    assert dense["file_bytes"] == (finished / "dense" / "model.onnx").stat().st_size
    assert last["file_bytes"] == (finished / "model.onnx").stat().st_size < dense["file_bytes"]
    assert last["weight_bytes"] < last["params"] * 1.5, "int8 codes take a byte each"
    memory = activation_cost(finished / "model.onnx")
    assert last["peak_activation_bytes"] == memory.peak_activation_bytes < rows[3]["peak_activation_bytes"]
    assert last["latency_s"] > 0
    assert dense["latency_s"] > 0
    assert results["compressed"]["speedup"] == dense["latency_s"] / last["latency_s"]
    assert results["compressed"]["drop_pt"] == pytest.approx((dense["accuracy"] - last["accuracy"]) * 100)
    assert results["budget"]["size"]["met"]
    assert len(results["curves"]["01-train"]["loss"]) == 3
    assert sum(layer["before"]["macs"] for layer in results["layers"]) == dense["macs"]
    assert sum(layer["after"]["params"] for layer in results["layers"]) == last["params"]


def test_every_equality_is_in_the_manifest(finished: Path) -> None:
    manifest = read_json(finished / "manifest.json")
    steps = [item["step"] for item in manifest["checks"]]
    assert {"dense", "02-prune", "04-quantize", "05-export"} <= set(steps)
    assert all(item["passed"] for item in manifest["checks"])
    assert set(manifest["files"]) == set(files(finished))
    assert manifest["data"]["checksum"].startswith("sha256:")
    assert manifest["training"] == {"device": f"cpu: {manifest['machine']['cpu']}", "torch_threads": 1}
    assert manifest["weights_sha256"] is None
    assert {"torch", "onnxscript", "onnx-ir", "scipy", "safetensors"} <= set(manifest["versions"])


def test_a_run_is_checked_from_its_files(finished: Path) -> None:
    done = list(check(finished))
    assert [item.name for item in done] == [
        *("files unchanged", "same images", "dense: exported equals network"),
        *("02-prune: weights are the kept ones", "02-prune: shrunk equals silenced"),
        *("int8 agrees with network", "int8 logits near network's", "same accuracy"),
    ]
    assert all(item.passed for item in done)


def reseal(folder: Path) -> None:
    """Make a changed folder look as if the run had written it so."""
    manifest = read_json(folder / "manifest.json")
    manifest["files"] = {name: sha256(folder / name) for name in files(folder)}
    write_json(folder / "manifest.json", sealed(manifest))


def test_one_image_of_a_small_test_split_may_fall_otherwise_but_not_two(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    results = read_json(copy / "results.json")
    accuracy = results["compressed"]["accuracy"]
    for moved, passes in ((1, True), (2, False)):  # of 120
        results["compressed"]["accuracy"] = accuracy - moved / 120
        write_json(copy / "results.json", results)
        reseal(copy)
        *_, last = check(copy)
        assert (last.name, last.value, last.passed) == ("same accuracy", moved, passes)


def test_a_folder_sealed_over_another_network_does_not_pass(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    pruned = copy / "steps" / "02-prune" / "model.safetensors"
    tensors = load_file(pruned)
    tensors["0.weight"] *= 1.01  # of the first convolution
    save_file(tensors, pruned)
    shutil.copyfile(copy / "model.onnx", copy / "dense" / "model.onnx")
    reseal(copy)
    failed = [item.name for item in check(copy) if not item.passed]
    assert failed == ["dense: exported equals network", "02-prune: weights are the kept ones"]


def test_where_some_removals_are_inexact_the_others_are_proved() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    images = torch.randn(4, 3, 5, 5)
    graph = trace(net, images)
    assert [group.exact for group in graph.groups] == [False, True]
    keep = {group.name: np.arange(2) for group in graph.groups}
    (proof,) = removal_checks(net, graph, keep, images)
    assert proof.passed
    assert removal_checks(net, graph, {"0": np.arange(2)}, images) == []


def test_a_changed_byte_anywhere_is_found_and_the_file_named(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    for name in [*files(copy), "manifest.json"]:
        path = copy / name
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(RunFolderError, match=f"{name}: was changed after the run"):
                next(check(copy))
        path.write_bytes(content)
    next(check(copy))
    (copy / "manifest.json").write_bytes((copy / "manifest.json").read_bytes() + b" ")
    with pytest.raises(RunFolderError, match=r"manifest\.json: was changed"):
        next(check(copy))


def test_a_missing_and_a_foreign_file_are_named(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "steps" / "extra.txt").write_text("x")
    with pytest.raises(RunFolderError, match=r"extra\.txt: the run did not write it"):
        next(check(copy))
    (copy / "steps" / "extra.txt").unlink()
    (copy / "model.onnx").unlink()
    with pytest.raises(RunFolderError, match=r"model\.onnx: missing"):
        next(check(copy))
    (copy / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match="not finished"):
        next(check(copy))


def test_the_network_loads_in_a_new_process_from_the_folder_alone(finished: Path, tmp_path: Path) -> None:
    """Neither the user's file nor the recipe is there; the pruned structure comes from its record."""
    alone = shutil.copytree(finished, tmp_path / "elsewhere")
    x = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, edgewise\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r}, weights_only=True)\n"
        f"with torch.no_grad(): torch.save(edgewise.load({str(alone)!r})(x), {str(tmp_path / 'y.pt')!r})\n"
    )
    structure = json.loads((alone / "structure.json").read_text())
    assert structure["attributes"], "the network was pruned, so its record says where"
    assert structure["builder"]["model"] == "builder/network.py:tiny"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = load(finished)(x)
    assert torch.equal(torch.load(tmp_path / "y.pt", weights_only=True), expected)


def test_a_network_of_several_files_loads_from_the_folder_alone(recipe: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    head, block = small_run.NETWORK.split("def tiny")
    (mine / "blocks.py").write_text(head)
    (mine / "network.py").write_text(f"from torch import nn\nfrom blocks import Block\n\ndef tiny{block}")
    steps = "step=[{kind='prune', keep_macs=0.6}, {kind='export'}]"
    out = compress(read(recipe, [f"model={mine}/network.py:tiny", steps]), tmp_path / "run").folder
    shutil.rmtree(mine)
    code = "import sys, edgewise; print(sum(p.numel() for p in edgewise.load(sys.argv[1]).parameters()))"
    alone = subprocess.run([sys.executable, "-c", code, str(out)], check=True, cwd=tmp_path, capture_output=True)
    assert int(alone.stdout) == read_json(out / "results.json")["compressed"]["params"]
    assert "builder/blocks.py" in read_json(out / "manifest.json")["files"]
    assert all(item.passed for item in check(out))


KILLED = """
import os, signal, sys
from pathlib import Path
from edgewise import files
from edgewise.quantize import activation_cost
from edgewise.recipe import read
from edgewise.run import compress

moment, recipe, out = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(what, done, total):
    if moment == "training" and what == "train" and total > 20 and done == 17:  # in the third of three epochs
        die()

def log(row):
    if moment == "between" and row["step"] == "02-prune":
        die()

replace = os.replace
def dying(source, target):
    if moment == "writing" and "03-train" in str(source) and str(target).endswith("structure.json"):
        die()  # the tensors are in place, the structure is not
    replace(source, target)
files.os.replace = dying

compress(read(Path(recipe)), out, progress=progress, log=log)
"""


@pytest.mark.parametrize("moment", ["training", "between", "writing"])
def test_a_killed_run_resumes_to_the_same_bytes(recipe: Path, finished: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, str(recipe), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    begun = {path.name for path in (out / "steps").iterdir()}
    expected = {"training": ".01-train.partial", "between": "02-prune", "writing": ".03-train.partial"}[moment]
    assert expected in begun
    trained: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "train" and total == 21:  # three epochs of seven steps
            trained.append(done)

    compress(read(recipe), out, resume=True, progress=progress)
    assert trained == (list(range(15, 22)) if moment == "training" else []), "finished epochs are not trained again"
    for name in (
        *("model.safetensors", "structure.json", "model.onnx"),
        *("dense/model.safetensors", "dense/model.onnx", "steps/02-prune/model.safetensors"),
    ):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert (
        read_json(out / "results.json")["compressed"]["accuracy"]
        == (read_json(finished / "results.json")["compressed"]["accuracy"])
    )
    assert all(item.passed for item in check(out))
    assert [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()].count("resume") == 1


def test_a_finished_run_is_not_run_again_nor_its_data_read(recipe: Path, finished: Path) -> None:
    before = (finished / "manifest.json").read_bytes()
    pack = recipe.parent / "pack"
    away = pack.rename(recipe.parent / "away")
    try:
        again = compress(read(recipe), finished, resume=True)
    finally:
        away.rename(pack)
    assert again.before
    assert again.results == read_json(finished / "results.json")
    assert (finished / "manifest.json").read_bytes() == before


def test_a_folder_that_is_taken_is_refused(recipe: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="exists already; take --resume"):
        compress(read(recipe), finished)
    with pytest.raises(RunFolderError, match="begun with another recipe: seed was 0 and is 5"):
        compress(read(recipe, ["seed=5"]), finished, resume=True)
    with pytest.raises(RunFolderError, match="no run to resume"):
        compress(read(recipe), tmp_path / "nothing", resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="a file of that name"):
        compress(read(recipe), tmp_path / "file")


def test_a_folder_is_one_processs_at_a_time(recipe: Path, tmp_path: Path) -> None:
    plan, out = read(recipe), tmp_path / "run"
    with held(out, plan, resume=False), pytest.raises(RunFolderError, match=f"process {os.getpid()} is at work in it"):
        compress(plan, out, resume=True)
    with locked(out) as free:
        assert free, "whoever held it let go"


def test_what_a_kill_leaves_before_the_recipe_is_written_is_no_run(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / ".recipe.toml.partial").write_text("model =")
    with pytest.raises(RunFolderError, match="no run to resume; leave --resume out"):
        choose(read(recipe), tmp_path, resume=True)
    assert choose(read(recipe), tmp_path, resume=False) == tmp_path
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RunFolderError, match="exists already"):
        choose(read(recipe), tmp_path, resume=False)


def test_resuming_compares_only_what_was_begun_and_works_from_anywhere(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = "step=[{kind='train', epochs=1, batch=64, lr=0.01}, {kind='prune', keep_macs=0.6}, {kind='export'}]"
    monkeypatch.chdir(recipe.parent)
    plan, out = read(recipe, ["model=network.py:tiny", "data=pack:pack", steps]), tmp_path / "run"

    def interrupt(row: dict[str, object]) -> None:
        if row["step"] == "01-train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(plan, out, log=interrupt)
    monkeypatch.chdir(tmp_path)
    kept = out / "recipe.toml"
    with pytest.raises(RunFolderError, match=r"another recipe: step\.0\.lr was 0\.01 and is 0\.02"):
        compress(read(kept, ["step.0.lr=0.02"]), out, resume=True)
    done = compress(read(kept, ["step.1.keep_macs=0.9", "budget.size=1 KB"]), out, resume=True)
    assert not done.budget_met
    assert read(kept).step[1].keep_macs == 0.9
    with pytest.raises(RunFolderError, match=r"step\.1\.keep_macs was 0\.9 and is 0\.6"):
        compress(read(kept, ["step.1.keep_macs=0.6"]), out, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["step.5.threads=999"], r"step\.5\.threads = 999: this machine has \d+ cores"),
        (["step.1.keep_macs=0.001"], r"step\.1 \(prune\): macs cannot go down to"),
        (["step.1.keep_latency=0.001"], r"step\.1 \(prune\): latency_s cannot go down to"),
        (["step.1.budget=true", "budget.size=200 B"], r"step\.1 \(prune\): file_bytes cannot go down to 200 bytes"),
        (["step.4.format=executorch"], r"ExecuTorch, or .*, is not installed: pip install 'edgewise\[executorch\]'"),
    ],
)
def test_what_must_fail_later_is_refused_before_training(
    recipe: Path, tmp_path: Path, changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "executorch", replace(RUNTIMES["executorch"], module="nowhere"))
    with pytest.raises(UserError, match=message):
        compress(read(recipe, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "code", "message"),
    [
        (["keep_macs=0.2", "round_to=32"], AlignmentError, 3, "widths between those multiples could meet it"),
        (
            ["keep_macs=0.2", "whole=['0', '3.a']"],
            BudgetError,
            2,
            "none of its 2 groups can shrink so",
        ),
        (["keep_macs=0.6", "importance=bn_scale"], BudgetError, 2, "it has no scores"),
    ],
)
def test_before_the_training_a_prune_step_is_tried_as_it_will_be(
    recipe: Path, changes: list[str], error: type[UserError], code: int, message: str
) -> None:
    without_norms = ["model=convnext_atto"] if "importance=bn_scale" in changes else []
    changed = read(recipe, [*without_norms, *(f"step.1.{change}" for change in changes)])
    with pytest.raises(error, match=message) as found:
        prepare(changed)
    assert type(found.value) is error
    assert found.value.exit_code == code


def test_a_budgets_shares_are_of_the_dense_network_in_every_step_that_prunes(recipe: Path, tmp_path: Path) -> None:
    prune = "{kind='prune', keep_macs=0.7, recalibrate=0, round_to=1}"
    within = "{kind='prune', budget=true, recalibrate=0, round_to=1}"
    steps = f"step=[{{kind='train', epochs=1, batch=64, lr=0.01}}, {prune}, {within}, {{kind='export'}}]"
    changes = [steps, "budget={macs='50%', params='60%'}"]
    out = tmp_path / "run"
    finished = compress(read(recipe, changes), out)
    dense, compressed = finished.results["rows"][0], finished.results["compressed"]
    used = max(compressed["macs"] / dense["macs"] / 0.5, compressed["params"] / dense["params"] / 0.6)
    assert finished.budget_met
    assert used > 0.96
    (out / "manifest.json").unlink()
    with pytest.raises(RunFolderError, match=r"budget\.macs was '50%' and is '40%'"):  # it was pruned for the other
        compress(read(recipe, [*changes, "budget.macs=40%"]), out, resume=True)


def test_a_measurement_counts_only_for_the_artifact_it_was_made_of(finished: Path) -> None:
    folders = [finished / "steps" / name for name in STEPS]
    measured = read_result(folders[-1])["measurements"]
    assert _measurements(folders) == measured
    assert _measurements([folders[-1], folders[-2]]) == measured, "exported once more, to the same bytes"
    assert _measurements([*folders, finished / "dense"]) == [], "another network came after"
    assert _measurements([*folders, folders[1]]) == [], "and that one was not exported"
    assert _measurements(folders[:-1]) == []


def test_a_file_that_nothing_made_smaller_is_said_to_be_the_dense_networks(recipe: Path, tmp_path: Path) -> None:
    changes = ["budget=", "step.0.epochs=1", *(f"step.{index}=" for index in (3, 2, 1))]
    (*_, measured) = compress(read(recipe, changes), tmp_path / "run").results["rows"]
    notes = " ".join(measured["notes"])
    assert "the file is the dense float network's" in notes
    assert "NOT SMALLER" not in notes


def test_a_drop_exactly_at_its_limit_is_met() -> None:
    names = ("params", "nonzero", "macs", "weight_bytes", "peak_activation_bytes", "file_bytes", "latency_s")
    figures = dict.fromkeys((*names, "resident_bytes"), 1)
    found = _compressed({**figures, "accuracy": 0.91}, {**figures, "accuracy": 0.90})
    assert (0.91 - 0.90) * 100 > 1, "a float's last bit would miss it"
    assert verdict(Limits(drop=1.0), found, figures)["drop"]["met"]
    assert not verdict(Limits(drop=0.999), found, figures)["drop"]["met"]


def test_equalities_are_checked_on_every_class_though_the_images_lie_in_its_order(recipe: Path) -> None:
    labels = torch.arange(10).repeat_interleave(100)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    split = Split(images, labels)
    ordered = Dataset("ordered", tuple("0123456789"), split, split, split, (0.0,), (1.0,), "sha256:")
    context = Context(read(recipe), recipe.parent, ordered, Builder("resnet20", 10, 1, 8), torch.device("cpu"))
    seen, counts = (context.checked()[:, 0, 0, 0] * 255).round().long().unique(return_counts=True)
    assert seen.tolist() == list(range(10))
    assert 25 <= counts.min() <= counts.max() <= 26


def test_the_default_folder_is_numbered_when_taken(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    only_training = read(
        recipe, ["name=mine", "step=[{kind='train', epochs=1, batch=64, lr=0.01}]", "budget.size=1 MB"]
    )
    first, second = compress(only_training), compress(only_training)
    assert (first.folder, second.folder) == (Path("runs/mine"), Path("runs/mine-2"))
    assert first.results["compressed"]["accuracy"] == second.results["compressed"]["accuracy"]
    assert not first.budget_met, "nothing was exported, so the size is not known"


def test_a_loss_that_diverges_stops_the_run_with_step_and_epoch(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingDiverged, match=r"step 01-train: .* epoch \d"):
        compress(read(recipe, ["step.0.lr=1e30"]), out)
    assert not (out / "steps" / "01-train").exists()
    assert not (out / "manifest.json").exists()


def test_the_users_file_may_change_while_the_run_lasts(recipe: Path, finished: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(small_run.NETWORK)

    def log(row: dict[str, object]) -> None:
        mine.write_text(small_run.NETWORK.replace("nn.ReLU()", "nn.Tanh()"))

    out = compress(read(recipe, [f"model={mine}:tiny"]), tmp_path / "run", log=log).folder
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert "Tanh" not in (out / "builder" / "mine.py").read_text()


def test_pruning_at_initialisation_has_no_trained_dense_network(recipe: Path, tmp_path: Path) -> None:
    steps = "step=[{kind='prune', keep_macs=0.5, importance='random'}, {kind='train', epochs=1, batch=64, lr=0.01}]"
    results = compress(read(recipe, [steps]), tmp_path / "run").results
    assert results["rows"][0]["accuracy"] is None
    assert results["compressed"]["drop_pt"] is None
    assert "never trained" in results["rows"][0]["notes"][0]


def test_weights_to_start_from(recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is evaluated twice: the dense and the pruned network as floats, then the artifact alone."""
    evaluated = []
    monkeypatch.setattr(context, "evaluate", lambda *a, **k: evaluated.append(evaluate(*a, **k)) or evaluated[-1])
    weights = finished / "dense" / "model.safetensors"
    changes = "step=[{kind='prune', keep_macs=0.9}, {kind='quantize', calibration=5000}, {kind='export'}]"
    results = compress(read(recipe, [f"weights={weights}", changes]), tmp_path / "run").results
    rows = results["rows"]
    assert rows[0]["accuracy"] == read_json(finished / "results.json")["rows"][0]["accuracy"]
    assert rows[-1]["file_bytes"] == (tmp_path / "run" / "model.onnx").stat().st_size
    assert [row["accuracy"] for row in rows[:2]] == evaluated
    assert rows[2]["notes"] == ["calibrated on all 457 training images; 5000 were asked for"]
    assert read_json(tmp_path / "run" / "manifest.json")["weights_sha256"] == sha256(weights)


def test_a_training_that_cost_accuracy_is_undone_where_that_is_asked_for(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    weights = finished / "dense" / "model.safetensors"
    wild = "step=[{kind='train', epochs=1, batch=64, lr=3.0, augment=[], undo_if_worse=%s}]"
    results = {}
    for undo in ("true", "false"):
        results[undo] = compress(read(recipe, [f"weights={weights}", wild % undo]), tmp_path / undo).results
    dense = read_json(finished / "results.json")["rows"][0]["accuracy"]
    undone, done = (results[undo]["rows"][-1] for undo in ("true", "false"))
    assert undone["accuracy"] == dense > done["accuracy"]
    assert len(undone["notes"]) == 1
    assert re.fullmatch(r"undone: on held-out images the training went from \S+% to \S+%", undone["notes"][0])
    assert done["notes"] == []
    before, after = load_file(weights), load_file(tmp_path / "true" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


JUDGED = {
    "knee": ["step.1.knee.rates=[0.25, 0.5, 0.75]", "step.1.knee.calibration=64"],
    "search": ["step.1.search.candidates=4", "step.1.search.tolerance=0.1", "step.1.search.calibration=64"],
}


@pytest.mark.parametrize("allocate", JUDGED)
def test_candidates_are_judged_on_images_of_the_training_side(allocate: str, recipe: Path, tmp_path: Path) -> None:
    """Twice the same, with the test split's labels shuffled in between: what is chosen may not depend on them."""
    text = recipe.read_text().replace(
        "keep_macs = 0.6\nround_to = 8", f'keep_macs = 0.6\nround_to = 1\nallocate = "{allocate}"'
    )
    short = tmp_path / "short.toml"
    short.write_text(text.partition('[[step]]\nkind = "train"\nepochs = 2')[0])
    first = compress(read(short, ["step.0.epochs=1", *JUDGED[allocate]]), tmp_path / "first").folder
    pack = recipe.parent / "pack"
    other = shutil.copytree(pack, tmp_path / "pack")
    test = dict(np.load(other / "test.npz"))
    np.savez(other / "test.npz", **{**test, "labels": np.roll(test["labels"], 1)})
    changes = ["step.0.epochs=1", *JUDGED[allocate], f"data=pack:{other}"]
    second = compress(read(short, changes), tmp_path / "second").folder
    found, again = (read_json(folder / "steps" / "02-prune" / "result.json") for folder in (first, second))
    assert found["keep"] == again["keep"]
    assert found["row"]["macs"] <= 0.6 * read_json(first / "results.json")["rows"][0]["macs"]
    if allocate == "search":
        assert len(found["search"]["tried"]) == 4
        assert "4 of " in found["notes"][0]
        assert found["search"] == again["search"]
    else:
        assert found["sensitivity"] == again["sensitivity"]
        assert all(len(curve["accuracy"]) == 4 for curve in found["sensitivity"].values())
        assert read_json(first / "results.json")["sensitivity"]["02-prune"] == found["sensitivity"]
        assert "What the channels are worth" in (first / "report.html").read_text()
    assert all(item.passed for item in check(first))


@pytest.mark.parametrize("path", sorted(shipped().glob("*.toml")), ids=lambda path: path.stem)
def test_what_a_shipped_recipe_asks_for_can_be_met(path: Path) -> None:
    recipe = read(path)
    channels, side, classes = (1, 28, 10) if "mnist" in recipe.data else (3, 32, 10)
    if recipe.data.startswith("stego"):
        channels, classes = 1, 2
    side = recipe.size or side
    model = Builder(recipe.model, classes, channels, side, recipe.width).build()
    check_steps(replace(recipe, weights=None), model, torch.zeros(1, channels, side, side))
