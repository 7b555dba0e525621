"""HESSO and DHSPG in real trainings: in the loop, beside distillation, under an average, and in a whole run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import small_run
from edgewise.check import check
from edgewise.context import read_result
from edgewise.distill import Distill, Distillation
from edgewise.files import read_json
from edgewise.graph import trace
from edgewise.prune import Dhspg, DhspgPruning, Hesso, HessoPruning, zero_channels
from edgewise.recipe import read
from edgewise.run import compress
from edgewise.train import TrainConfig, TrainingMethod, evaluate, fit
from train.tiny import TASK, same, tiny_net, tiny_split

EXAMPLE = torch.zeros(1, 3, 8, 8)
SPLIT = tiny_split(200)
ENOUGH = {"hesso": (4,), "dhspg": (4, 5, 6)}  # of 8 channels
CONFIG = TrainConfig(epochs=4, batch=32, lr=0.05, augment=())  # 6 steps an epoch


def method(kind: str) -> TrainingMethod:
    if kind == "hesso":
        return HessoPruning(EXAMPLE, Hesso(sparsity=0.5, start=0.1, duration=0.4, periods=2))
    return DhspgPruning(EXAMPLE, Dhspg(sparsity=0.5, start=0.1, tolerance=0.25, penalty=20.0, epsilon=0.9))


def zeros(model: torch.nn.Module) -> int:
    return sum(8 - len(kept) for kept in zero_channels(trace(model, EXAMPLE)).values())


@pytest.mark.parametrize("kind", ["hesso", "dhspg"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "decay": "all"},
        {"optimizer": "adamw", "lr": 0.01, "precision": "bfloat16"},
        {"schedule": "cosine", "warmup": 0.0, "augment": ("crop", "flip")},
    ],
    ids=["momentum", "average", "adamw", "cosine"],
)
def test_half_of_the_channels_are_zero_in_the_end(kind: str, changes: dict[str, object]) -> None:
    trained = fit(tiny_net(), TASK, SPLIT, replace(CONFIG, **changes), methods=[method(kind)])
    assert zeros(trained) in ENOUGH[kind]
    assert all(parameter.isfinite().all() for parameter in trained.parameters())


@pytest.mark.parametrize("kind", ["hesso", "dhspg"])
def test_it_learns_beside_a_teacher_in_either_order(kind: str) -> None:
    data, unseen = tiny_split(400), tiny_split(200, seed=9)
    teacher = fit(tiny_net(seed=5), TASK, data, CONFIG)
    config = replace(CONFIG, epochs=6)
    distillation = Distillation([teacher], Distill(alpha=0.5))
    first = fit(tiny_net(), TASK, data, config, methods=[distillation, method(kind)])
    second = fit(tiny_net(), TASK, data, config, methods=[method(kind), distillation])
    alone = fit(tiny_net(), TASK, data, config, methods=[method(kind)])
    assert zeros(first) in ENOUGH[kind]
    assert evaluate(first, TASK, unseen) > 0.9
    assert same(first, second)
    assert not same(first, alone)


RECIPE = """
model = "{folder}/network.py:tiny"
data = "pack:{folder}/pack"
[[step]]
kind = "train"
epochs = 2
batch = 64
lr = 0.05
[[step.method]]
kind = "hesso"
sparsity = 0.3
start = 0.2
duration = 0.5
periods = 2
[[step]]
kind = "prune"
allocate = "zero"
[[step]]
kind = "train"
epochs = 2
batch = 64
lr = 0.02
[[step.method]]
kind = "distill"
[[step.method]]
kind = "hesso"
sparsity = 0.25
start = 0.2
duration = 0.5
periods = 2
[[step]]
kind = "prune"
allocate = "zero"
[[step]]
kind = "prune"
allocate = "zero"
[[step]]
kind = "export"
"""


def test_a_run_removes_the_zeros_and_proves_it(tmp_path: Path) -> None:
    small_run.write(tmp_path, train=320)
    path = tmp_path / "oto.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    run = compress(read(path), tmp_path / "run").folder
    steps = run / "steps"
    params = [row["params"] for row in read_json(run / "results.json")["rows"]]
    assert params[0] == params[1] > params[2] == params[3] > params[4] == params[5]

    for name, note in (("02-prune", "14 of 48 channels were zero and went"), ("04-prune", "8 of 34")):
        result = read_result(steps / name)
        assert [item["name"] for item in result["checks"]] == [
            "shrunk equals silenced",
            "shrunk equals the network with zeros",
        ]
        assert all(item["passed"] for item in result["checks"])
        assert note in result["notes"][0]
    accuracy = [row["accuracy"] for row in read_json(run / "results.json")["rows"]]
    assert accuracy[1] == accuracy[2], "nothing is recalibrated"
    assert read_result(steps / "05-prune")["notes"] == ["no channel is zero: nothing went"]
    proofs = {item.name: item.passed for item in check(run)}
    assert proofs["02-prune: shrunk equals the network with zeros"]
    assert all(proofs.values())
