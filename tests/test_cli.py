"""The command as a person runs it: what it prints, one-line errors, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import small_run
from devices.files import openvino_file
from edgewise.devices import RUNTIMES

ROOT = Path(__file__).resolve().parents[1]
MODEL = ["resnet20", "--data", "fashion-mnist"]


def edgewise(*arguments: object, cwd: Path = ROOT, prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{prelude}\nimport sys; sys.argv[0] = 'edgewise'\nfrom edgewise.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    out = recipe.parent / "run"
    done = edgewise("compress", recipe, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "of the dense float file" in done.stdout
    assert "budget" in done.stdout
    assert "met" in done.stdout
    assert "06-measure" in done.stdout
    return out


def refused(done: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    """Expect one line on stderr with these parts, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("edgewise: ")
    for part in parts:
        assert part in done.stderr


def test_check_passes_and_names_a_changed_file(run: Path, tmp_path: Path) -> None:
    done = edgewise("check", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok ") >= 4
    assert json.loads(edgewise("check", run, "--json").stdout)[0]["passed"]
    copy = shutil.copytree(run, tmp_path / "copy")
    report = copy / "report.html"
    report.write_bytes(report.read_bytes()[:-2] + b"x\n")
    refused(edgewise("check", copy), "report.html: was changed after the run")


def test_json_is_one_document_and_nothing_else(run: Path, recipe: Path, tmp_path: Path) -> None:
    done = edgewise("compress", recipe, "--out", tmp_path / "run", "--json", "--set", "budget.size=1 KB")
    assert done.returncode == 3, "a missed budget"
    assert done.stderr == ""
    assert json.loads(done.stdout)["budget"]["size"]["met"] is False


def test_measure_compares_with_the_first(run: Path) -> None:
    files = [run / "dense" / "model.onnx", run / "model.onnx"]
    rows = json.loads(edgewise("measure", *files, "--seconds", 0.2, "--json").stdout)
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["file_bytes"] < rows[0]["file_bytes"]
    assert len(rows[1]["samples_s"]) >= 10
    table = edgewise("measure", files[0], run, "--seconds", 0.2)  # a run stands for its artifact
    assert table.returncode == 0
    assert "1.00x" in table.stdout


def test_measure_compares_runtimes(run: Path, tmp_path: Path) -> None:
    files = [shutil.copy(run / "dense" / "model.onnx", tmp_path / "float.onnx"), run / "model.onnx"]
    theirs = openvino_file(files[0])
    done = edgewise("measure", *files, theirs, "--seconds", 0.2, "--json")
    assert done.stderr == ""
    rows = json.loads(done.stdout)
    assert [row["runtime"] for row in rows] == ["onnxruntime", "onnxruntime", "openvino"]
    assert rows[2]["ratio"] == rows[0]["latency_s"] / rows[2]["latency_s"]
    table = edgewise("measure", *files, "--runtime", "openvino", "--seconds", 0.2).stdout
    assert table.count(f"openvino {rows[2]['version']}") == 2
    assert "onnxruntime" not in table


@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_a_runtimes_refusal_is_a_failure_and_no_wrong_word(name: str, tmp_path: Path) -> None:
    for file in (name, "net.bin"):
        (tmp_path / file).write_bytes(b"no model")
    refused(edgewise("measure", tmp_path / name), f"{name}: ", "cannot load it: ", code=1)


def test_a_runtime_that_is_not_installed_is_the_users_to_install(tmp_path: Path) -> None:
    if RUNTIMES["executorch"].installed:
        pytest.skip("it is installed")
    (tmp_path / "net.pte").write_bytes(b"never read")
    install = "pip install 'edgewise[executorch]'"
    refused(edgewise("measure", tmp_path / "net.pte"), f"edgewise: ExecuTorch is not installed: {install}\n")
    about = {row["name"]: row["about"] for row in json.loads(edgewise("list", "runtimes", "--json").stdout)}
    assert about["executorch"].endswith(f"; not installed: {install}")
    assert about["openvino"].endswith("; installed")


def test_compare_shows_the_pareto_front_and_writes_a_page(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = edgewise("compare", run, run, "--html", page)
    assert done.returncode == 0, done.stderr
    assert "Pareto" in done.stdout
    assert page.stat().st_size > 1000
    assert len(json.loads(edgewise("compare", run, "--json").stdout)) >= 1
    nowhere = tmp_path / "missing" / "page.html"
    refused(edgewise("compare", run, "--html", nowhere), f"edgewise: {nowhere}: No such file or directory\n")


def test_profile_shows_where_the_cost_sits(run: Path) -> None:
    found = json.loads(edgewise("profile", "resnet20", "--input", "3x32x32", "--json").stdout)
    assert found["cost"]["params"] == 269722
    assert sum(layer["macs"] for layer in found["layers"]) == found["cost"]["macs"]
    text = edgewise("profile", "mobilenet_v2", "--input", "3x224x224", "--classes", 1000).stdout
    assert "features.18.0" in text
    assert "3.50 M params" in text
    small = json.loads(edgewise("profile", run, "--json").stdout)  # at the run's own size
    assert small["cost"]["macs"] == json.loads((run / "results.json").read_text())["compressed"]["macs"]


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("models", "resnet20"),
        ("data", "fashion-mnist"),
        ("methods", "importance: l1"),
        ("runtimes", "onnxruntime"),
        ("runtimes", "litert"),
        ("recipes", "recipes/demo.toml"),
        ("systems", "complexity"),
    ],
)
def test_list(what: str, name: str) -> None:
    assert name in edgewise("list", what).stdout
    assert name in [row["name"] for row in json.loads(edgewise("list", what, "--json").stdout)]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["compress", "none.toml"], ["none.toml: no such recipe"]),
        (["compress", "recipes/demo.toml", "--set", "step.0.epoch=3"], ['did you mean "step.0.epochs"?']),
        (["compress", "recipes/demo.toml", "--set", "model=resnet21"], ['"resnet21"', 'did you mean "resnet']),
        (["compress", "recipes/demo.toml", "--set", "data=fashion-mnits"], ["fashion-mnist"]),
        (["compress", "recipes/demo.toml", "--set", "data=pack:nowhere"], ["pack:nowhere"]),
        (["compress", "recipes/demo.toml", "--set", "data=cifar10:nowhere"], ["nowhere"]),
        (["compress", "recipes/demo.toml", "--set", "weights=none.pth"], ["none.pth"]),
        (["compress", "recipes/demo.toml", "--set", "device=warp"], ["warp"]),
        (["compress", "recipes/demo.toml", "--set", "budget.latency='3'"], ["latency = '3'", "the unit is one of"]),
        (["compress", "resnet20", "--max-latency", "60%"], ["say what it sees with --data"]),
        (["compress", "resnet20", "--data", "fashion-mnist"], ["say what it must fit: --max-latency"]),
        (["compress", *MODEL, "--max-latency", "60"], ["--max-latency = '60': the unit is one of"]),
        (["compress", *MODEL, "--max-drop", "-1"], ["--max-drop = -1.0: accuracy points that may be lost"]),
        (["compress", *MODEL, "--max-size", "1KB", "--epochs", "0"], ["--epochs = 0: at least 1"]),
        (["compress", *MODEL, "--max-size", "1KB", "--threads", "999"], ["--threads = 999: this machine has"]),
        (["compress", *MODEL, "--max-size", "1KB", "--runtime", "tvm"], ['--runtime = "tvm": known: onnxruntime']),
        (["compress", *MODEL, "--max-drop", "1"], ["limit something else too"]),
        (["compress", "recipes/demo.toml", "--threads", "2"], ["--threads goes with a model"]),
        (["compress", *MODEL, "--max-size", "1KB", "--set", "seed=1"], ["--set changes a recipe's settings"]),
        (["compress", "resnet21", "--data", "fashion-mnist", "--max-size", "1KB"], ['did you mean "resnet']),
        (["compress", "recipes/demo.toml", "--max-size", "1KB"], ["--max-... goes with a model"]),
        (["compress", "recipes/demo.toml", "--epochs", "1"], ["--epochs goes with a model"]),
        (["compress", "recipes/demo.toml", "--set", "step.1.whole=['conv']"], ['no group is called "conv"']),
        (["reproduce", "eagle"], ['did you mean "eagleeye"?']),
        (["profile", "resnet21"], ['did you mean "resnet']),
        (["profile", "resnet20", "--input", "32x32"], ["channels, height and width as 3x32x32"]),
        (["measure", "none.onnx"], ["none.onnx"]),
        (["measure", "recipes/demo.toml"], ['demo.toml: no runtime takes files with the suffix ".toml"; known: .onnx']),
        (["measure", "none.onnx", "--runtime", "onnxruntim"], ["onnxruntime"]),
        (["measure", "none.onnx", "--runtime", "executorch"], ["executorch does not take .onnx files, these do: onnx"]),
        (["measure", "none.pte"], ["none.pte: no such file"]),
        (["measure", "recipes"], ["recipes: a folder without model.onnx"]),
        (["measure", "none.onnx", "--seconds", "0"], ["--seconds = 0.0: more than 0, at most 600"]),
        (["measure", "none.onnx", "--seconds", "nan"], ["--seconds = nan"]),
        (["compress", "recipes/demo.toml", "--out", "/proc/x"], ["/proc/x: No such file or directory"]),
        (["compress", "recipes/demo.toml", "--out", "x" * 300], ["xxx: File name too long"]),
        (["check", "recipes"], ["manifest.json: missing; no run folder"]),
        (["compare", "recipes"], ["recipes"]),
        (["list", "model"], ['did you mean "models"']),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_exit_code_2(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    refused(edgewise(*arguments, cwd=tmp_path), *parts)
    assert os.listdir(tmp_path) == ["recipes"], "nothing was written"


def test_too_little_memory_is_said_in_one_line() -> None:
    refused(edgewise("profile", "resnet20", "--input", "3x999999x999999"), "out of memory", code=1)


def test_nothing_is_written_for_a_recipe_that_cannot_start(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(edgewise("compress", recipe, "--out", out, "--set", "model=resnet21"), "resnet21")
    assert not out.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import torch\ndef net(): raise ValueError('my own words')", "my own words"),
        ("import torch\ndef net(): return torch.nn.Conv2d(3, 10, 3)", "[2, 10, 26, 26]"),
        ("import torch\nclass N(torch.nn.Module):\n def forward(self, x): raise KeyError('lost')\n"
         "def net(): return N()", "lost"),
        ("import torch\ndef net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 10))", "2352"),
        ("import torch\nclass N(torch.nn.Module):\n"
         " def __init__(self):\n  super().__init__(); self.f = torch.nn.Linear(2352, 10)\n"
         " def forward(self, x): return self.f(x.flatten(1).sort(1).values)\ndef net(): return N()",
         "aten.sort"),
        ("def other(): pass", "net"),
    ],
)  # fmt: skip
def test_a_network_of_the_users_that_does_not_work(recipe: Path, tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    done = edgewise("compress", recipe, "--out", tmp_path / "run", "--set", f"model={tmp_path}/mine.py:net")
    refused(done, message)
    assert not (tmp_path / "run").exists()


def test_an_image_folder_with_one_class_or_a_broken_image(recipe: Path, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / "images" / kind / f"{number}.png")
    (tmp_path / "images" / "dog" / "3.png").write_bytes(b"no image")
    arguments = ("compress", recipe, "--out", tmp_path / "run", "--set", f"data=folder:{tmp_path}/images")
    refused(edgewise(*arguments), "3.png")
    for path in (tmp_path / "images" / "dog").iterdir():
        path.unlink()
    (tmp_path / "images" / "dog").rmdir()
    refused(edgewise(*arguments), "class")
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_name_the_keys(recipe: Path, run: Path, tmp_path: Path) -> None:
    weights = run / "model.safetensors"  # pruned: other shapes
    done = edgewise("compress", recipe, "--out", tmp_path / "run", "--set", f"weights={weights}")
    refused(done, "1.bias [8] for [16]")


def test_an_existing_folder_needs_resume(recipe: Path, run: Path) -> None:
    refused(edgewise("compress", recipe, "--out", run), "exists already; take --resume")


def test_a_loss_that_diverges_ends_with_exit_code_1(recipe: Path, tmp_path: Path) -> None:
    done = edgewise("compress", recipe, "--out", tmp_path / "run", "--json", "--set", "step.0.lr=1e30")
    refused(done, "step 01-train", "epoch 1", code=1)


def test_a_checkpoint_that_must_be_deleted_is_named_where_it_lies(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["compress", recipe, "--out", out, "--json"]
    room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    refused(edgewise(*arguments, prelude=room), "the checkpoint cannot be written")
    stale = out / "steps/.01-train.partial/checkpoint.safetensors"
    stale.write_bytes(b"nothing")
    refused(edgewise(*arguments, "--resume"), f"{stale}: not a readable checkpoint", "delete it to train anew")
    stale.unlink()
    resumed = edgewise(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr


def test_a_full_disk_is_said_in_one_line_and_leaves_no_half_file(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["compress", recipe, "--out", out, "--json"]
    room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
    for size, file in ((20_000, "00-start/model.safetensors: the disk is full"), (60_000, "01-train/checkpoint")):
        done = edgewise(*arguments, prelude=room.format(size))
        refused(done, f"{out}/steps/{file}", f"go on with: edgewise compress {recipe} --out {out} --json --resume")
        assert ".partial" not in done.stderr
        arguments += ["--resume"] if "--resume" not in arguments else []
    assert not [p for p in out.rglob("*") if p.is_file() and ".partial" in p.name and p.suffix == ".partial"]
    resumed = edgewise("compress", recipe, "--out", out, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr


def started(*arguments: object) -> subprocess.Popen[str]:
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # in a background job it is deaf
    code = f"{listen}; import sys; sys.argv[0] = 'edgewise'; from edgewise.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_names_the_way_to_go_on(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    process = started("compress", recipe, "--out", out)
    assert process.stdout is not None
    assert "01-train" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == f"edgewise: interrupted; go on with: edgewise compress {recipe} --out '{out}' --resume\n"
    assert not (out / "manifest.json").exists()


def test_a_reader_that_goes_away_does_not_end_the_run(recipe: Path, tmp_path: Path) -> None:
    steps = "step=[{kind='train', epochs=1, batch=64, lr=0.01}, {kind='prune', keep_macs=0.6}]"
    process = started("compress", recipe, "--out", tmp_path / "run", "--set", steps)
    assert process.stdout is not None
    assert process.stderr is not None
    assert "01-train" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 3, "no artifact, so its size is not known"
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_finished_run_says_so(recipe: Path, run: Path) -> None:
    done = edgewise("compress", recipe, "--out", run, "--resume")
    assert done.returncode == 0
    assert "was finished already" in done.stdout


def test_without_arguments_it_helps() -> None:
    done = edgewise()
    assert "compress" in done.stdout
    assert "Traceback" not in done.stderr
