"""A recipe becomes a run folder: its content, its proof, and what a kill at any moment does to it."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import small_run
from edgewise import load
from edgewise.check import check
from edgewise.errors import RunFolderError, TrainingDiverged
from edgewise.files import read_json
from edgewise.recipe import read
from edgewise.run import compress, files

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


def test_a_run_is_checked_from_its_files(finished: Path) -> None:
    done = list(check(finished))
    assert len(done) >= 4
    assert all(item.passed for item in done)


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
    if moment == "training":  # epochs were finished before, and are not trained again
        assert any((out / "steps" / ".01-train.partial").iterdir())
    compress(read(recipe), out, resume=True)
    for name in ("model.safetensors", "structure.json", "dense/model.safetensors", "steps/02-prune/model.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert (
        read_json(out / "results.json")["compressed"]["accuracy"]
        == (read_json(finished / "results.json")["compressed"]["accuracy"])
    )
    assert all(item.passed for item in check(out))
    assert [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()].count("resume") == 1


def test_a_finished_run_is_not_run_again(recipe: Path, finished: Path) -> None:
    before = (finished / "manifest.json").read_bytes()
    again = compress(read(recipe), finished, resume=True)
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


def test_weights_to_start_from(recipe: Path, finished: Path, tmp_path: Path) -> None:
    weights = finished / "dense" / "model.safetensors"
    steps = "step=[{kind='prune', keep_macs=0.9}, {kind='export'}]"
    results = compress(read(recipe, [f"weights={weights}", steps]), tmp_path / "run").results
    assert results["rows"][0]["accuracy"] == read_json(finished / "results.json")["rows"][0]["accuracy"]
    assert results["rows"][-1]["file_bytes"] == (tmp_path / "run" / "model.onnx").stat().st_size
