"""Zeros that stay zero in real trainings, and a whole run of a sparse network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import small_run
from edgewise.check import check
from edgewise.context import read_result
from edgewise.distill import Distill, Distillation
from edgewise.errors import CheckFailed, RecipeError
from edgewise.export.verify import compare_masked, require
from edgewise.files import read_json
from edgewise.prune import Hesso, HessoPruning
from edgewise.quantize.ternary import Ternarization, Ternary
from edgewise.recipe import read
from edgewise.run import compress
from edgewise.sparse import KeepZeros, ZerosKept, keep_masks, masked, prunable, score
from edgewise.train import TrainConfig, evaluate, fit
from train.tiny import TASK, same, tiny_net, tiny_split

SPLIT = tiny_split(200)
CONFIG = TrainConfig(epochs=3, batch=32, lr=0.05, augment=())


def sparse_net(sparsity: float = 0.8) -> torch.nn.Module:
    model = tiny_net()
    return masked(model, keep_masks(score(prunable(model), "l1"), sparsity, "global"))


def zeros(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight == 0 for weight in prunable(model).values()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "decay": "all"},
        {"optimizer": "adamw", "lr": 0.01, "precision": "bfloat16"},
    ],
    ids=["momentum", "average", "adamw"],
)
def test_zeros_stay_and_the_rest_learns(changes: dict[str, object]) -> None:
    start, config = sparse_net(), replace(CONFIG, **changes)
    kept = fit(start, TASK, SPLIT, config, methods=[ZerosKept(KeepZeros())])
    assert all(map(torch.equal, zeros(kept), zeros(start)))
    assert not same(kept, start)
    without = fit(start, TASK, SPLIT, config)
    assert not any(map(torch.equal, zeros(without), zeros(start)))  # what the method is for


def test_a_bias_that_begins_at_zero_learns() -> None:
    start = sparse_net()
    torch.nn.init.zeros_(start[-1].bias)
    trained = fit(start, TASK, SPLIT, CONFIG, methods=[ZerosKept(KeepZeros())])
    assert bool((trained[-1].bias != 0).all())


def test_it_learns_beside_a_teacher_and_a_method_that_makes_zeros() -> None:
    data, unseen = tiny_split(400), tiny_split(200, seed=9)
    teacher = fit(tiny_net(seed=5), TASK, data, CONFIG)
    example = torch.zeros(1, 3, 8, 8)
    start = sparse_net(0.5)
    methods = [
        Distillation([teacher], Distill(alpha=0.5)),
        ZerosKept(KeepZeros()),
        HessoPruning(example, Hesso(sparsity=0.25, start=0.1, duration=0.4, periods=2)),
    ]
    trained = fit(start, TASK, data, replace(CONFIG, epochs=6), methods=methods)
    assert all(bool(now[was].all()) for was, now in zip(zeros(start), zeros(trained), strict=True))
    assert evaluate(trained, TASK, unseen) > 0.9


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("variant", ["max", "gaussian"])
def test_zeros_stay_behind_ternary_weights(variant: str, order: int) -> None:
    methods = [ZerosKept(KeepZeros()), Ternarization(Ternary(variant=variant, float_layers="none"))]  # type: ignore[arg-type]
    start = sparse_net()
    trained = fit(start, TASK, SPLIT, replace(CONFIG, ema=0.9), methods=methods[::order])
    assert all(bool(now[was].all()) for was, now in zip(zeros(start), zeros(trained), strict=True))
    assert len(trained[3].weight.unique()) == 3


def test_a_network_without_zeros_is_refused() -> None:
    with pytest.raises(RecipeError, match="keep_zeros: no weight of the network is 0; sparsify it first"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[ZerosKept(KeepZeros())])


def test_the_proof_finds_a_weight_that_is_neither_old_nor_zero() -> None:
    whole, sparse = tiny_net(), sparse_net()
    require([compare_masked(sparse, whole)])
    with torch.no_grad():
        sparse[0].weight[0, 0, 0, 0] += 0.5
    with pytest.raises(
        CheckFailed, match=r"weights are the old ones or 0: 1 tensors that are not, limit 0 \(0\.weight\)"
    ):
        require([compare_masked(sparse, whole)])


# -- in a recipe ----------------------------------------------------------------------------------------------------

RECIPE = """
model = "{folder}/network.py:tiny"
data = "pack:{folder}/pack"
[[step]]
kind = "train"
epochs = 2
batch = 64
lr = 0.05
[[step]]
kind = "sparsify"
sparsity = 0.6
[[step]]
kind = "train"
epochs = 1
batch = 64
lr = 0.02
[[step.method]]
kind = "keep_zeros"
[[step]]
kind = "sparsify"
sparsity = 0.8
criterion = "random"
scope = "local"
[[step]]
kind = "quantize"
calibration = 64
[[step]]
kind = "export"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    small_run.write(folder, train=320)
    path = folder / "sparse.toml"
    path.write_text(RECIPE.format(folder=folder))
    return path


def test_a_run_counts_the_zeros_and_proves_where_they_are(recipe: Path, tmp_path: Path) -> None:
    run = compress(read(recipe), tmp_path / "run").folder
    rows = {row["step"]: row for row in read_json(run / "results.json")["rows"]}
    dense, first, trained, second = (rows[n] for n in ("dense", "02-sparsify", "03-train", "04-sparsify"))
    assert {row["params"] for row in rows.values()} == {dense["params"]}
    assert {row["macs"] for row in rows.values()} == {dense["macs"]}
    gone, of, count, *_ = first["notes"][0].replace(",", "").split()
    gone, count = int(gone), int(count)
    assert of == "of"
    assert gone == round(0.6 * count)
    assert dense["nonzero"] - first["nonzero"] == trained["params"] - trained["nonzero"] == gone
    assert dense["nonzero"] - second["nonzero"] == pytest.approx(0.8 * count, abs=4)  # rounded tensor by tensor
    assert [item["name"] for item in read_result(run / "steps" / "02-sparsify")["checks"]] == [
        "weights are the old ones or 0"
    ]
    proofs = {item.name: item.passed for item in check(run)}
    assert proofs["04-sparsify: weights are the old ones or 0"]
    assert all(proofs.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["step.2.method="],
            r"step\.2 \(train\) would fill the zeros of step\.1 \(sparsify\): add .* kind = \"keep_zeros\"",
        ),
        (["step.1.sparsity=1"], r"step\.1: sparsity = 1\.0: a share of the weights lies in \(0, 1\)"),
        (["step.1.sparsity="], r'say how much goes: sparsity = 0\.5, or pattern'),
        (["step.1.scope=layer"], r"step\.1\.scope"),
        (["step.4.kind=sparsify", "step.4.calibration=", "step.4.sparsity=0.5", "step.3.kind=quantize",
          "step.3.sparsity=", "step.3.criterion=", "step.3.scope="], r"step\.4 \(sparsify\) comes after quantize"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(recipe, changes)
