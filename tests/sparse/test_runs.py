"""Whole runs of networks with few values: what is proved, packed, told of it, and read back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import small_run
from edgewise import cli
from edgewise.check import check
from edgewise.context import read_result
from edgewise.errors import RecipeError, UserError
from edgewise.export import network
from edgewise.export.packed import unpack
from edgewise.export.verify import compare_float
from edgewise.files import read_json
from edgewise.recipe import read
from edgewise.run import compress
from edgewise.sparse import on_array, prunable
from edgewise.units import format_fraction

TRAIN = """
model = "{folder}/network.py:tiny"
data = "pack:{folder}/pack"
[[step]]
kind = "train"
epochs = 3
batch = 64
lr = 0.05
"""
SHIP = """
[[step]]
kind = "export"
pack = true
[[step]]
kind = "measure"
seconds = 0.2
"""
TERNARY = """
[[step]]
kind = "train"
epochs = 3
batch = 64
lr = 0.02
[[step.method]]
kind = "ternary"
float_layers = "first"
[[step.method]]
kind = "pe_lasso"
tile = [2, 2]
strength = 1.0
spare = "first"
[[step.method]]
kind = "distill"
"""
SHARED = """
[[step]]
kind = "train"
epochs = 1
batch = 64
lr = 0.01
[[step.method]]
kind = "share_weights"
bits = 3
gradient = "mean"
"""
FLIPOUT = """
[[step]]
kind = "train"
epochs = 3
batch = 64
lr = 0.05
[[step.method]]
kind = "flipout"
sparsity = 0.8
"""
GROUPS_AND_WEIGHTS = """
[[step]]
kind = "train"
epochs = 4
batch = 64
lr = 0.05
[[step.method]]
kind = "hesso"
sparsity = 0.25
start = 0.1
duration = 0.4
periods = 2
[[step.method]]
kind = "gradual"
sparsity = 0.6
events = 4
[[step]]
kind = "prune"
allocate = "zero"
"""
KEPT = """
[[step]]
kind = "train"
epochs = 1
[[step.method]]
kind = "keep_zeros"
"""
TRIMMED = """
[[step]]
kind = "net_trim"
gamma = 0.3
images = 128
"""


@pytest.fixture(scope="module")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("runs")
    small_run.write(where, train=320)
    return where


def ran(folder: Path, name: str, steps: str) -> tuple[Path, dict[str, Any]]:
    file = folder / f"{name}.toml"
    file.write_text(TRAIN.format(folder=folder) + steps)
    out = folder / name
    if not out.exists():
        compress(read(file), out)
    return out, read_json(out / "results.json")


def notes(results: dict[str, Any]) -> str:
    return "\n".join(note for row in results["rows"] for note in row["notes"])


def test_ternary_blocks_are_packed_read_back_and_counted_on_the_array(folder: Path) -> None:
    run, results = ran(folder, "ternary", TERNARY + SHIP)
    model = network.load(run)
    weights = list(prunable(model).values())[1:]  # the first layer is float
    assert all(len(weight.detach().abs().unique()) <= 2 for weight in weights)
    packed = run / "model.packed"
    row = results["rows"][-1]
    assert row["file_bytes"] == packed.stat().st_size < 0.5 * (run / "model.safetensors").stat().st_size
    assert all(torch.equal(tensor, network.tensors(model)[name]) for name, tensor in unpack(packed).items())
    array = on_array(model, torch.zeros(1, *results_shape(run)), (2, 2))
    assert f"runs {array.run} of {array.tiles} tiles: {array.cycles:,} cycles of {array.dense_cycles:,}" in notes(
        results
    )
    assert "times less by 16 / (1 - s)" in notes(results)
    assert "NOT SMALLER than the dense float file" in notes(results)
    assert "bytes, only the packed one is" in notes(results)
    assert f"read back in a new process: accuracy {format_fraction(row['accuracy'])}, every bit" in notes(results)
    effective = sum(
        layer["before"]["macs"] * float(module.weight.count_nonzero()) / module.weight.numel()
        for layer in results["layers"]
        if hasattr(module := model.get_submodule(layer["name"]), "weight")
    )
    assert row["effective_macs"] == pytest.approx(effective, abs=1)
    assert effective < 0.95 * row["macs"]
    told = read_result(run / "steps" / "03-export")["array"]
    assert sum(layer["cycles"] for layer in told) == array.cycles
    page = (run / "report.html").read_text()
    assert " M effective" in page or " k effective" in page
    assert "On an array of processing elements" in page
    assert "What the packed file holds" in page
    proofs = {item.name: item.passed for item in check(run)}
    assert proofs["packed file reads back in a new process"]
    assert all(proofs.values())


def results_shape(run: Path) -> tuple[int, ...]:
    return tuple(network.example(run).shape[1:])


def test_the_dense_network_is_the_one_before_its_weights_become_few(folder: Path) -> None:
    run, results = ran(folder, "ternary", TERNARY + SHIP)
    dense = results["rows"][0]
    assert dense["step"] == "dense"
    assert len(list(prunable(network.load(run / "dense")).values())[1].unique()) > 100


def test_given_weights_are_the_dense_network_of_a_training_that_makes_them_few(folder: Path) -> None:
    """As an arm of `edgewise reproduce` starts: from a dense arm's weights, with those as the teacher."""
    first, _ = ran(folder, "ternary", TERNARY + SHIP)
    given = first / "dense" / "model.safetensors"
    start = TRAIN.format(folder=folder)[: TRAIN.format(folder=folder).index("[[step]]")]
    file = folder / "given.toml"
    file.write_text(f'{start}weights = "{given}"\n{TERNARY}{SHIP}')
    done = compress(read(file), folder / "given")
    teacher, dense = (list(prunable(network.load(each)).values()) for each in (first / "dense", done.folder / "dense"))
    assert all(torch.equal(one, other) for one, other in zip(teacher, dense, strict=True))
    assert len(list(prunable(network.load(done.folder)).values())[1].abs().unique()) <= 2


def test_the_command_makes_an_onnx_file_of_the_packed_one(folder: Path, tmp_path: Path) -> None:
    run, _ = ran(folder, "ternary", TERNARY + SHIP)
    out = tmp_path / "again.onnx"
    done = CliRunner().invoke(cli.app, ["export", str(run), str(out)])
    assert done.exit_code == 0, done.output
    assert "model.packed" in done.output
    images = torch.randn(8, *results_shape(run), generator=torch.Generator().manual_seed(0))
    assert compare_float(network.load(run), out, images).passed
    small = tmp_path / "codes.onnx"
    assert CliRunner().invoke(cli.app, ["export", str(run), str(small), "--codes"]).exit_code == 0
    assert small.stat().st_size < 0.7 * out.stat().st_size
    assert compare_float(network.load(run), small, images).passed
    refused = CliRunner().invoke(cli.app, ["export", str(run), str(tmp_path / "again.pte")])
    assert isinstance(refused.exception, UserError)
    assert "the suffix must be .onnx" in str(refused.exception)


def test_codes_stay_codes_in_the_onnx_file_that_runs(folder: Path) -> None:
    """The step's own check holds it against the network, and the measure step says what it costs."""
    run, results = ran(folder, "codes", TERNARY + SHIP.replace("pack", "codes"))
    from onnx import TensorProto, load

    stored = {each.data_type for each in load(run / "model.onnx").graph.initializer}
    assert TensorProto.INT2 in stored
    assert "weights as codes that the runtime turns into floats at every run: " in notes(results)
    assert results["rows"][-1]["file_bytes"] == (run / "model.onnx").stat().st_size
    assert all(item.passed for item in check(run))


def test_shared_values_are_codes_in_the_packed_file(folder: Path) -> None:
    run, results = ran(folder, "shared", SHARED + SHIP)
    for weight in prunable(network.load(run)).values():
        assert len(weight.unique()) <= 8
    kinds = [row["encoding"] for row in read_result(run / "steps" / "03-export")["packed"]]
    assert any("codebook" in kind for kind in kinds)
    assert results["rows"][-1]["file_bytes"] < 0.4 * (run / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("name", "steps"), [("flipout", FLIPOUT), ("trimmed", TRIMMED)])
def test_a_sparse_run_says_what_its_zeros_buy(name: str, steps: str, folder: Path) -> None:
    run, results = ran(folder, name, steps + SHIP)
    row = results["rows"][-1]
    said = notes(results)
    assert f"{1 - row['nonzero'] / row['params']:.1%} of the parameters are 0; in ONNX Runtime that buys" in said
    assert "of the dense latency" in said
    assert f"packed: {row['file_bytes'] / 1000:.1f} kB" in said or "packed: " in said
    assert row["file_bytes"] < (run / "model.onnx").stat().st_size


def test_channels_that_training_zeroes_go_and_single_weights_of_the_others(folder: Path) -> None:
    """HESSO takes whole channels and a gradual schedule single weights, in one training; the first are removed."""
    run, results = ran(folder, "both", GROUPS_AND_WEIGHTS + SHIP)
    dense, last = results["rows"][0], results["rows"][-1]
    assert last["params"] < dense["params"]
    weights = torch.cat([weight.detach().flatten() for weight in prunable(network.load(run)).values()])
    assert 0.3 < float((weights == 0).float().mean()) < 0.7
    assert last["nonzero"] < last["params"]
    assert last["accuracy"] == results["rows"][-4]["accuracy"]  # of the training: what goes afterwards is zero
    assert all(item.passed for item in check(run))


def test_what_was_trimmed_is_told_layer_by_layer(folder: Path) -> None:
    run, _ = ran(folder, "trimmed", TRIMMED + SHIP)
    rows = read_result(run / "steps" / "02-net_trim")["trimmed"]
    found = {name.removesuffix(".weight"): int((w != 0).sum()) for name, w in prunable(network.load(run)).items()}
    assert {row["layer"]: row["nonzero"] for row in rows} == found
    assert all(row["residual"] <= row["epsilon"] * 1.01 for row in rows)


@pytest.mark.parametrize("scheme", ["int8_static", "qat"])
def test_zeros_are_codes_of_zero_in_int8(scheme: str, folder: Path) -> None:
    """FlipOut, then int8 without and with training: its zeros are still zeros."""
    quantize = f'[[step]]\nkind = "quantize"\nscheme = "{scheme}"\ncalibration = 64\n'
    quantize += "epochs = 1\n" if scheme == "qat" else ""
    run, results = ran(folder, f"flipout-{scheme}", FLIPOUT + quantize)
    from onnx import load, numpy_helper

    codes = [numpy_helper.to_array(c) for c in load(run / "model.onnx").graph.initializer if c.data_type == 3]
    weights = [code for code in codes if code.ndim > 1]
    zeros = sum(int((code == 0).sum()) for code in weights) / sum(code.size for code in weights)
    assert zeros >= 0.79
    assert results["rows"][-1]["accuracy"] > results["rows"][-2]["accuracy"] - 0.1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "sparsity = 0.3\ntile = [-1, -1]",
            r"of 9,808 weights none would become 0 with .* in whole blocks of \[-1, -1\]",
        ),
        ('sparsity = 0.5\nexclude = ["0", "3.a", "3.b", "7"]', "no layer is left to take weights from: exclude fewer"),
        ("sparsity = 0.999999", "of 9,808 weights all would become 0 with sparsity = 0.999999"),
    ],
)
def test_a_share_that_cannot_be_taken_is_refused(steps: str, message: str, folder: Path) -> None:
    file = folder / "share.toml"
    file.write_text(TRAIN.format(folder=folder) + f'[[step]]\nkind = "sparsify"\nscope = "local"\n{steps}\n')
    with pytest.raises(UserError, match=message):
        compress(read(file), folder / steps.replace("\n", ""))


def test_blocks_as_long_as_a_layer_are_packed_and_on_no_array(folder: Path) -> None:
    run, results = ran(folder, "filters", TERNARY.replace("[2, 2]", "[1, -1]") + SHIP)
    assert "times less by 16 / (1 - s)" in notes(results)
    assert "an array of" not in notes(results)
    assert all(item.passed for item in check(run))


def test_codes_that_fit_no_layer_are_told(folder: Path) -> None:
    _, results = ran(folder, "uncoded", SHIP.replace("pack", "codes"))
    assert "codes = true changes nothing" in notes(results)


def test_images_that_do_not_determine_the_weights_are_refused_without_a_ridge(folder: Path) -> None:
    file = folder / "few.toml"
    file.write_text(TRAIN.format(folder=folder) + TRIMMED.replace("images = 128", "images = 4\nridge = 0.0") + SHIP)
    with pytest.raises(UserError, match=r"net_trim: layer 0: .* samples are of rank \d+, which does not determine its"):
        compress(read(file), folder / "few")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (TRIMMED.replace("0.3", "1.5"), r"gamma = 1\.5: a share of the outputs' norm lies in \(0, 1\)"),
        (TRIMMED + TRAIN[TRAIN.index("[[step]]") :], r"step\.2 \(train\) would fill the zeros of step\.1 \(net_trim\)"),
        (
            '[[step]]\nkind = "quantize"\n' + SHIP,
            r"step\.2 \(export\): pack = true stores the float network, and what quan",
        ),
        (SHIP.replace("pack = true", 'pack = true\nformat = "openvino"'), r'pack = true .* and format = "openvino" is'),
        (
            TERNARY + KEPT,
            r'step\.2 \(train\) would undo the values that step\.1 \(ternary\) leaves .* or add .* kind = "ternary"',
        ),
        (SHARED + TRIMMED, r"step\.2 \(net_trim\) would undo the values that step\.1 \(share_weights\) leaves"),
        (
            SHIP.replace("pack = true", 'codes = true\nformat = "litert"'),
            r'codes = true .* format = "litert" is no ONNX',
        ),
        ('[[step]]\nkind = "quantize"\n' + SHIP.replace("pack", "codes"), r"codes = true .* quantize has made codes"),
        (
            TERNARY + '[[step.method]]\nkind = "share_weights"',
            "ternary and share_weights each say which values weights have",
        ),
        (
            SHARED + '[[step.method]]\nkind = "gradual"\nsparsity = 0.5',
            "share_weights keeps its codes, and gradual would",
        ),
        (SHARED + '[[step.method]]\nkind = "keep_zeros"', "no value of 0 for what keep_zeros keeps: add zero = true"),
        (
            KEPT.replace("keep_zeros", "powers_of_two") + '[[step.method]]\nkind = "gradual"\nsparsity = 0.5',
            'gradual takes weights that "powers_of_two" has fixed: list it before that',
        ),
        (
            SHIP.replace("pack = true", "codes = true").replace("seconds", 'runtime = "openvino"\nseconds'),
            r"codes = true makes 2-bit codes, which only ONNX Runtime takes",
        ),
        (
            TERNARY + '[[step.method]]\nkind = "hesso"\nsparsity = 0.5',
            r'hesso follows the channels .* list it before "ternary"',
        ),
        (FLIPOUT.replace("0.8", "1.0"), r"sparsity is 1\.0; it must be in \(0, 1\)"),
    ],
)
def test_recipes_that_cannot_be(steps: str, message: str, folder: Path) -> None:
    file = folder / "refused.toml"
    file.write_text(TRAIN.format(folder=folder) + steps)
    with pytest.raises(RecipeError, match=message):
        read(file)
