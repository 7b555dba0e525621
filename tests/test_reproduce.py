"""Systems: a tiny one end to end, stopped and gone on with; what the registered ones are made of."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgewise.check import check
from edgewise.cost import CostModel
from edgewise.errors import RunFolderError, UnknownName, UserError
from edgewise.export.encodings import Plain, Ternary
from edgewise.export.packed import pack
from edgewise.files import read_json, sha256
from edgewise.graph import trace
from edgewise.models import build
from edgewise.recipe import Prune, Train, read, shipped
from edgewise.record_table import COLUMNS, cells, columns, hidden, notes
from edgewise.reproduce import Loaded, OutOfTime, Watch, place, plan, record_into, reproduce, take_over, weight_bits
from edgewise.run import compress
from edgewise.systems import SYSTEMS, Arm, Published, Study, System

ROOT = Path(__file__).resolve().parents[1]
TINY = ("model=resnet20", "width=0.5", "data=fashion-mnist", "size=16", "images=200", "step.0.precision=float32")
USUAL = Arm(
    label="tiny usual",
    recipe="train-prune-retrain",
    changes=(*TINY, "step.0.epochs=2", "step.2.epochs=1", "step.2.precision=float32", "step.4.seconds=0.2"),
    dense="tiny dense",
    from_dense=True,
)
SYSTEM = System(
    about="for tests",
    citation="Nobody, Nothing, 2026",
    published=(Published(setting="VGG-16", accuracy_note="without loss", params_cut=0.7),),
    arms=(),
    small=(
        Arm(label="tiny dense", recipe="dense", changes=(*TINY, "step.0.epochs=2")),
        USUAL,
        Arm(
            label="tiny PA",
            recipe="complexity",
            changes=(
                *TINY[:-1],
                *("step.1.precision=float32", "step.1.epochs=1", "step.3.seconds=0.2"),
                *("step.0.keep_macs=", "step.0.keep_params=0.5", "step.0.complexity.mode=params"),
            ),
            dense="tiny dense",
            against="tiny usual",
        ),
    ),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "tiny", SYSTEM)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny system in as many pieces as there are epochs and runs to stop at."""
    out = tmp_path_factory.mktemp("reproduce") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SYSTEMS, "tiny", SYSTEM)
        for _ in range(12):
            found = reproduce("tiny", out, small=True, resume=True, minutes=0)
            with (out / "left.txt").open("a") as file:
                file.write(found.left + "\n")
            if not found.left:
                break
    return out


def test_pieces_stop_at_epochs_and_runs_until_all_is_done(done: Path) -> None:
    assert (done / "left.txt").read_text().splitlines() == [
        "tiny dense has done 1 of 2 epochs; 0 of 3 runs are done",
        "tiny dense has done 2 of 2 epochs; 0 of 3 runs are done",
        "tiny usual comes next; 1 of 3 runs are done",
        "tiny usual has done 1 of 1 epochs; 1 of 3 runs are done",
        "tiny PA comes next; 2 of 3 runs are done",
        "tiny PA has done 1 of 1 epochs; 2 of 3 runs are done",
        "",
    ]


def test_the_record_has_what_was_published_and_what_was_measured(done: Path) -> None:
    record = read_json(done / "tiny-small.json")
    assert record["published"] == [
        {
            "setting": "VGG-16",
            "accuracy": None,
            "accuracy_note": "without loss",
            "params_cut": 0.7,
            "nonzero_cut": None,
            "macs_cut": None,
            "memory_cut": None,
            "file_cut": None,
            "weights_ratio": None,
            "visible_params_cut": None,
            "visible_macs_cut": None,
            "latency_s": None,
            "source": "abstract only",
        }
    ]
    dense, usual, pa = record["rows"]
    assert [row["label"] for row in record["rows"]] == ["tiny dense", "tiny usual", "tiny PA"]
    assert (record["scale"], record["missing"], record["refused"]) == ("small", [], {})
    assert [row["epochs"] for row in record["rows"]] == [[2], [2, 1], [1]]
    assert dense["params_cut"] == dense["macs_cut"] == 0
    assert 0.5 <= usual["macs_cut"] < 0.6
    assert 0.5 <= pa["params_cut"] < 0.6
    assert usual["dense_accuracy"] == pa["dense_accuracy"] == dense["accuracy"]
    assert usual["latency_ratio"] == pytest.approx(
        usual["latency_s"] / read_json(done / "tiny-usual" / "results.json")["rows"][0]["latency_s"]
    )
    assert pa["data_note"] == "trained on 200 of 9,500 images"
    assert pa["versions"].keys() == {"edgewise", "torch", "onnxruntime"}
    assert dense["latency_ratio"] is None


def test_training_time_is_the_whole_pipelines(done: Path) -> None:
    dense, usual, pa = read_json(done / "tiny-small.json")["rows"]
    assert dense["train_s"] == dense["seconds"]["train"]
    assert usual["train_s"] == usual["seconds"]["train"] + dense["seconds"]["train"]
    assert pa["train_s_cut"] == 1 - pa["train_s"] / usual["train_s"]
    assert dense["train_s_cut"] is None


def test_time_before_an_interruption_counts(tmp_path: Path) -> None:
    arm = SYSTEM.small[0]
    watch = Watch(0)
    with pytest.raises(OutOfTime, match="has done 1 of 2 epochs"):
        compress(plan(arm, tmp_path), tmp_path / "run", progress=watch)
    kept = tmp_path / "run" / "steps" / ".01-train.partial" / "epochs.json"
    seconds = [3600.0]  # as if that epoch had lasted an hour
    assert len(read_json(kept)) == 1
    kept.write_text(json.dumps(seconds))
    finished = compress(plan(arm, tmp_path), tmp_path / "run", resume=True)
    assert 3600 < finished.results["rows"][1]["seconds"] < 7000
    assert not [path for path in (tmp_path / "run").rglob("epochs.json")]


def test_the_retrained_arm_starts_from_the_dense_ones_weights(done: Path) -> None:
    recipe = plan(USUAL, done)
    assert [step.kind for step in recipe.step] == ["prune", "train", "export", "measure"]
    assert recipe.weights == str(done / "tiny-dense" / "model.safetensors")
    weights = read_json(done / "tiny-usual" / "steps" / "00-start" / "start.json")["weights_sha256"]
    assert weights == read_json(done / "tiny-dense" / "manifest.json")["files"]["model.safetensors"]


def test_what_is_finished_is_not_run_again(done: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file() and p.parent != done}
    rows: list[str] = []
    found = reproduce("tiny", done, small=True, resume=True, log=lambda label, row: rows.append(label))
    assert (found.left, rows) == ("", [])
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file() and p.parent != done} == before
    with pytest.raises(RunFolderError, match="take --resume to go on"):
        reproduce("tiny", done, small=True)
    with pytest.raises(RunFolderError, match="begun with another recipe"):
        reproduce("tiny", done, small=True, resume=True, data="cifar10")


def test_the_table_shows_published_and_ours(done: Path) -> None:
    record = read_json(done / "tiny-small.json")
    published, dense, usual, pa = cells({**record, "refused": {}})
    assert {len(row) for row in (published, dense, usual, pa)} == {len(columns(record))}
    assert published[:4] == ["published", "VGG-16 (abstract only)", "without loss", "70.0%"]
    assert usual[0] == "ours"
    assert usual[1] == "tiny usual, fashion-mnist, 2+1 epochs, seed 0, width=0.5"
    assert notes(record) == ["trained on 200 of 9,500 images"]
    assert pa[1] == "tiny PA, fashion-mnist, 1 epochs, seed 0, width=0.5, keep_params=0.5, complexity.mode=params"
    assert usual[8].endswith(" s")
    assert columns(record)[3:] == ("params cut", "MACs cut", "memory cut", "latency", "file", "training")
    cut = next(row["file_cut"] for row in record["rows"] if row["label"] == "tiny usual")
    assert usual[7].endswith(f" kB ({cut:.1%} less)")
    assert dense[7].endswith(" kB")
    assert "of tiny usual: 2+1 epochs, " in pa[8]
    refused = cells({**record, "refused": {"tiny LA": "latency_s was not reached"}})[-1]
    assert refused[:2] == ["ours", "tiny LA: latency_s was not reached"]


def test_a_finished_record_is_kept_in_the_repository(done: Path, tmp_path: Path) -> None:
    found = reproduce("tiny", done, small=True, resume=True)
    with pytest.raises(UserError, match="run it in edgewise's repository"):
        record_into(tmp_path, found)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    assert read_json(record_into(tmp_path, found)) == found.record
    assert (tmp_path / "docs" / "results" / "tiny-small.json").exists()
    unfinished = replace(found, record={**found.record, "missing": ["tiny PA"]})
    with pytest.raises(UserError, match="tiny PA are not finished yet"):
        record_into(tmp_path, unfinished)


def test_a_budget_that_cannot_be_met_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Arm(**{**vars(SYSTEM.small[2]), "changes": (*SYSTEM.small[2].changes, "step.0.keep_params=0.001")})
    monkeypatch.setitem(SYSTEMS, "tiny", replace(SYSTEM, small=(narrow,)))
    found = reproduce("tiny", tmp_path / "out", small=True)
    assert found.record["rows"] == found.record["missing"] == []
    assert "params cannot go down" in found.record["refused"]["tiny PA"]


def test_an_arm_that_fails_does_not_keep_the_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = SYSTEM.small[0]
    wild = replace(dense, label="tiny wild", changes=(*dense.changes, "step.0.lr=1e18", "step.0.epochs=1"))
    monkeypatch.setitem(SYSTEMS, "tiny", replace(SYSTEM, small=(wild, dense)))
    found = reproduce("tiny", tmp_path / "out", small=True)
    assert "NaN or infinit" in found.record["refused"]["tiny wild"]
    assert [row["label"] for row in found.record["rows"]] == ["tiny dense"]
    assert read_json(tmp_path / "out" / "tiny-small.json") == found.record
    (tmp_path / "out" / "tiny-wild").rename(tmp_path / "wild")
    again = reproduce("tiny", tmp_path / "out", small=True, resume=True)  # in the next piece it is not tried again
    assert again.record["refused"] == found.record["refused"]
    assert not (tmp_path / "out" / "tiny-wild").exists()


def test_a_watch_stops_only_after_something_was_done() -> None:
    now = [0.0]
    told: list[tuple[str, int, int]] = []
    watch = Watch(1.0, lambda *step: told.append(step), clock=lambda: now[0])
    now[0] = 61.0
    watch.begin("a", finished=True)
    watch.begin("b", finished=False)
    watch("train", 3, 9)
    with pytest.raises(OutOfTime, match="b has done 1 of 2 epochs"):
        watch("epochs", 1, 2)
    assert told == [("train", 3, 9), ("epochs", 1, 2)]
    watch.begin("c", finished=True)
    fresh = Watch(0, clock=lambda: now[0])
    fresh.begin("refused", finished=False)
    fresh.begin("next", finished=False)  # nothing was done yet
    with pytest.raises(OutOfTime, match="d comes next"):
        watch.begin("d", finished=False)
    endless = Watch(None, clock=lambda: now[0])
    endless.begin("a", finished=False)
    endless("epochs", 1, 2)


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(UnknownName, match='no system is called "complexty"; did you mean "complexity"'):
        reproduce("complexty")


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "tiny"])
def test_every_arm_of_every_system_is_a_valid_recipe(name: str, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    assert system.published
    for arms in (system.arms, system.small):
        labels = [arm.label for arm in arms]
        assert len({place(tmp_path, label) for label in labels}) == len(labels) > 0
        for position, arm in enumerate(arms):
            assert not arm.dense or arm.dense in labels[:position]
            assert not arm.against or arm.against in labels[:position]
            assert arm.dense or not arm.from_dense
            recipe = plan(arm, tmp_path, "fashion-mnist")
            assert recipe.data == "fashion-mnist"
            assert arm.from_dense or any(isinstance(step, Train) for step in recipe.step)
            if arm.begins_as:
                first = plan(arms[labels.index(arm.begins_as)], tmp_path, "fashion-mnist")
                assert labels.index(arm.begins_as) < position
                assert recipe.step[: recipe.dense_at + 1] == first.step[: first.dense_at + 1]


# -- arms that begin alike, and weights that are given --------------------------------------------------------------

TINY_NET = """
from torch import nn


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def tiny(classes, channels):
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(channels, 8, 4, stride=4), Mixer(), Mixer(), *pooled, nn.Linear(8, classes))
"""
TINY_STUDY = Study(
    model="convnext_atto",
    train=(*TINY[2:5], "step.0.epochs=3", "step.0.precision=float32", "step.0.batch=8"),
    l1=(0.5,),
    random=(),
    kept=(),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few arms of the ConvNeXt study, on a network of a few hundred weights that is built as ConvNeXt is."""
    out = tmp_path_factory.mktemp("study") / "out"
    wanted = ("dense", "dynamic", "HESSO 0.5", "HESSO 0.5 + dynamic", "L1 global 0.5")
    recipes = tmp_path_factory.mktemp("recipes")
    for path in shipped().glob("convnext-*.toml"):  # which measure for seconds
        quick = path.read_text().replace('kind = "measure"', 'kind = "measure"\nseconds = 0.2')
        (recipes / path.name).write_text(quick)
    (recipes / "network.py").write_text(TINY_NET)
    arms = tuple(
        replace(arm, changes=(f"model={recipes / 'network.py'}:tiny", *arm.changes[1:]))
        for arm in TINY_STUDY.arms
        if arm.label.removeprefix("convnext_atto ") in wanted
    )
    assert len(arms) == len(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SYSTEMS, "study", replace(SYSTEMS["convnext-study"], small=arms))
        patch.setattr("edgewise.reproduce.shipped", lambda: recipes)
        found = reproduce("study", out, small=True)
        assert not found.left
        assert not found.record["refused"]
        assert found.page == out / "comparison.html"
    return out


@pytest.fixture
def rows(study: Path) -> dict[str, dict[str, Any]]:
    return {row["label"].removeprefix("convnext_atto "): row for row in read_json(study / "study-small.json")["rows"]}


def test_two_ways_to_count(rows: dict[str, dict[str, Any]]) -> None:
    dense, dynamic = rows["dense"], rows["dynamic"]
    assert (dynamic["params"], dynamic["macs"], dynamic["nonzero_cut"]) == (dense["params"], dense["macs"], 0)
    assert dynamic["params_cut"] == dynamic["macs_cut"] == 0
    assert dense["visible_params_cut"] == dense["visible_macs_cut"] == 0
    assert dense["visible_params"] == dense["params"]
    assert 0.5 < dynamic["visible_params_cut"] < 1
    assert 0.5 < dynamic["visible_macs_cut"] < 1
    assert dynamic["file_cut"] > 0.2
    alone, both = rows["HESSO 0.5"], rows["HESSO 0.5 + dynamic"]
    assert 0 < alone["params_cut"] == both["params_cut"] == pytest.approx(alone["visible_params_cut"])
    assert alone["nonzero_cut"] == alone["params_cut"]  # though its dense network has the channels at zero already
    # HESSO took channels of the linear layers alone, which the counter never saw.
    assert both["visible_params_cut"] == dynamic["visible_params_cut"]
    sparse = rows["L1 global 0.5"]
    assert sparse["params_cut"] == sparse["macs_cut"] == sparse["visible_params_cut"] == sparse["file_cut"] == 0
    assert 0.3 < sparse["nonzero_cut"] < 0.5  # of all parameters; biases and normalisations stay


def test_a_layers_bits_are_those_of_its_packed_weight(tmp_path: Path) -> None:
    tensors = {
        "wide.weight": torch.randn(64, 64).sign(),
        "narrow.weight": torch.randn(8, 64),
        "norm.weight": torch.ones(9),
    }
    pack(
        tensors, {"wide.weight": Ternary(), "narrow.weight": Plain(), "norm.weight": Plain()}, tmp_path / "model.packed"
    )
    found = weight_bits(tmp_path, ("wide", "narrow"))
    of_layer = found["layer_bits"]
    assert list(of_layer) == ["wide.weight", "narrow.weight"]
    assert 2 <= of_layer["wide.weight"] < 2.05
    assert of_layer["narrow.weight"] == 32
    assert found["weight_bits"] == pytest.approx(
        (8 * of_layer["wide.weight"] + of_layer["narrow.weight"]) / 9, abs=0.01
    )
    shown, tell = COLUMNS["bits a weight"]
    assert (shown({}), tell({}, []), tell(found, [])[:4]) == ("-", "-", "5.34")
    assert weight_bits(tmp_path / "none", ("wide",)) == {}


def test_the_table_says_what_is_hidden(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "study", SYSTEMS["convnext-study"])
    record = read_json(study / "study-small.json")
    table = cells(record)
    assert {len(row) for row in table} == {len(columns(record))} == {10}
    both = next(row for row in table if "OTOv3 + dynamic" in row[1])
    assert both[2:] == ["3.8 points more", "-", "-", "-", "89.7% less", "-", "95.0%", "95.0%"]
    (text,) = hidden(record)
    dynamic = next(row for row in record["rows"] if row["label"].endswith(" dynamic"))
    assert text.startswith("convnext_atto dynamic: a counter of PyTorch's modules sees ")
    assert f"{dynamic['visible_params_cut']:.1%} of the parameters" in text
    assert "0.0% of the stored parameters and 0.0% of the executed MACs went" in text
    assert text in notes(record)
    assert hidden({**record, "rows": [row for row in record["rows"] if not row["packed"]]}) == []


def test_an_arm_takes_over_the_first_steps_of_another(study: Path) -> None:
    alone, both = (study / place(study, f"convnext_atto {name}").name for name in ("HESSO 0.5", "HESSO 0.5 + dynamic"))
    for step in ("01-train", "02-prune"):
        ours, theirs = (read_json(run / "steps" / step / "result.json") for run in (both, alone))
        assert ours == theirs  # to the second that it took
    first = json.loads((both / "events.jsonl").read_text().splitlines()[0])
    assert (first["event"], first["steps"], first["of"]) == ("take over", 2, alone.name)
    assert all(item.passed for item in check(both))


def test_an_arm_takes_over_what_it_would_do_itself_and_nothing_else(study: Path, tmp_path: Path) -> None:
    other = place(study, "convnext_atto HESSO 0.5")
    recipe = read(place(study, "convnext_atto HESSO 0.5 + dynamic") / "recipe.toml")
    for changed in (
        replace(recipe, seed=1),
        replace(recipe, step=(replace(recipe.step[0], lr=0.01), *recipe.step[1:])),
    ):
        take_over(other, tmp_path / "run", changed)
        assert not (tmp_path / "run").exists()
    take_over(tmp_path / "nothing", tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()
    take_over(other, tmp_path / "run", recipe)
    assert (tmp_path / "run" / "steps" / "02-prune").is_dir()


def test_dense_trainings_start_from_given_weights(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = str(done / "tiny-dense" / "model.safetensors")
    dense, usual, _ = SYSTEM.small
    system = replace(SYSTEM, small=(dense,), tuning=("step.0.lr=1e-3",))
    monkeypatch.setitem(SYSTEMS, "tiny", system)
    out = tmp_path / "out"
    with pytest.raises(UnknownName, match=r'--weights: tiny has no network "resnet2"; did you mean "resnet20"'):
        reproduce("tiny", out, small=True, weights={"resnet2": weights})
    found = reproduce("tiny", out, small=True, weights={"resnet20": weights})
    (row,) = found.record["rows"]
    assert row["pretrained"] == "model.safetensors"
    assert cells(found.record)[-1][1].endswith("2 epochs, seed 0, width=0.5, from model.safetensors")
    begun = read_json(out / "tiny-dense" / "steps" / "00-start" / "start.json")
    assert begun["weights_sha256"] == sha256(Path(weights))
    recipe = plan(dense, out, weights={"resnet20": weights}, tuning=system.tuning)
    assert (recipe.weights, recipe.step[0].lr) == (weights, 1e-3)
    derived = plan(usual, out, weights={"resnet20": weights}, tuning=system.tuning)
    assert derived.weights == str(out / "tiny-dense" / "model.safetensors")
    assert plan(dense, out, weights={"vgg16_bn": weights}, tuning=system.tuning) == plan(dense, out)


def test_images_are_loaded_once_for_arms_of_the_same_data(tmp_path: Path) -> None:
    loaded = Loaded()
    dense, usual, _ = (plan(arm, tmp_path) for arm in SYSTEM.small)
    images = loaded(dense)
    assert loaded(usual) is images
    assert len(images.train) == 200
    assert loaded(replace(usual, images=100)) is not images


@pytest.mark.parametrize("scale", ["arms", "small"])
def test_oto_is_compared_with_the_very_same_training(scale: str, tmp_path: Path) -> None:
    arms = {arm.label: arm for arm in getattr(SYSTEMS["oto"], scale)}
    for arm in arms.values():
        if arm.dense:
            given, dense = (plan(each, tmp_path).step[0] for each in (arm, arms[arm.dense]))
            assert given.method
            assert replace(given, method=()) == dense


def test_the_modes_of_complexity_have_their_targets(tmp_path: Path) -> None:
    arms = {arm.label.removeprefix("resnet56 "): arm for arm in SYSTEMS["complexity"].arms if "resnet56" in arm.label}
    keeps = {}
    for mode in ("PA", "FA", "MA", "LA"):
        recipe = plan(arms[mode], tmp_path)
        prune = recipe.step[0]
        assert isinstance(prune, Prune)
        assert recipe.dense_at == 0
        keeps[mode] = {name: getattr(prune, name) for name in prune.keeps}
    assert keeps == {
        "PA": {"keep_params": 0.3},
        "FA": {"keep_macs": 0.5},
        "MA": {"keep_memory": 0.5},
        "LA": {"keep_latency": 0.5},
    }


def test_all_networks_of_complexity_are_trained_alike(tmp_path: Path) -> None:
    for arms in (SYSTEMS["complexity"].arms, SYSTEMS["complexity"].small):
        recipes = [plan(arm, tmp_path) for arm in arms if not arm.from_dense]
        trainings = {next(step for step in recipe.step if isinstance(step, Train)) for recipe in recipes}
        assert len(trainings) == 1


def test_published_shares_of_whole_networks_agree_with_ours() -> None:
    """EagleEye's ResNet-50 and the dense network here are counted alike: 25.5 M params, 4.1 G MACs at 224 pixels."""
    import torch

    graph = trace(build("resnet50", classes=1000, size=224), torch.zeros(1, 3, 224, 224))
    model = CostModel(graph)
    assert model.params(graph.sizes) == pytest.approx(25.5e6, rel=0.01)
    assert model.macs(graph.sizes) == pytest.approx(4.089e9, rel=0.01)


def test_the_command(done: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests'); import test_reproduce as t;"
        "from edgewise.systems import SYSTEMS; SYSTEMS['tiny'] = t.SYSTEM;"
        "from edgewise.cli import main; main()"
    )

    def edgewise(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            *(),
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        )

    shown = edgewise("reproduce", "tiny", "--small", "--out", done, "--resume")
    assert shown.returncode == 0, shown.stderr
    assert "published" in shown.stdout
    assert "tiny PA" in shown.stdout
    assert f"chart  {done / 'comparison.html'}" in shown.stdout
    page = (done / "comparison.html").read_text(encoding="utf-8")
    assert "tiny, small: 3 of 3 runs" in page
    assert '"series":"tiny PA"' in page.replace('": "', '":"')
    document = json.loads(edgewise("reproduce", "tiny", "--small", "--out", done, "--resume", "--json").stdout)
    assert [row["label"] for row in document["rows"]] == ["tiny dense", "tiny usual", "tiny PA"]
    piece = edgewise("reproduce", "tiny", "--small", "--out", tmp_path / "new", "--minutes", 0)
    assert piece.returncode == 0, piece.stderr
    assert "out of time: tiny dense has done 1 of 2 epochs" in piece.stdout
    assert "--resume" in piece.stdout
    badly = edgewise("reproduce", "tiny", "--small", "--weights", "file.safetensors")
    assert badly.returncode == 2
    assert "say of which network, as in convnext_tiny=tiny.safetensors" in badly.stderr
    wrong = edgewise("reproduce", "tinny", "--small")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
