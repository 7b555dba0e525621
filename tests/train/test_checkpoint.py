"""A training that is killed and goes on ends with the very bytes of one that was left alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.distill import Distill, Distillation
from edgewise.errors import RunFolderError
from edgewise.train import TrainConfig, TrainingMethod, fit
from train import training_to_kill
from train.tiny import TASK, same, tiny_net, tiny_split
from train.training_to_kill import CASES, methods, network

SPLIT = tiny_split(100)
CONFIG = TrainConfig(epochs=3, batch=32, lr=0.05)  # 3 steps an epoch


class StoppedError(Exception):
    """Ends a training in the middle."""


def stop_at(step: int) -> Callable[[str, int, int], None]:
    def stop(what: str, done: int, total: int) -> None:
        if done == step:
            raise StoppedError

    return stop


def interrupted(path: Path, config: TrainConfig = CONFIG, step: int = 5, **arguments: Any) -> Path:
    """Train until a step of the second epoch; return the checkpoint."""
    with pytest.raises(StoppedError):
        fit(tiny_net(), TASK, SPLIT, config, checkpoint=path, progress=stop_at(step), **arguments)
    return path


@pytest.mark.parametrize("case", CASES)
def test_killed_in_its_second_epoch_it_ends_with_the_same_bytes(case: str, tmp_path: Path) -> None:
    path = tmp_path / "step" / "checkpoint"
    script = Path(training_to_kill.__file__)
    killed = subprocess.run(
        [sys.executable, script, case, path, "5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])},  # this very edgewise
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    steps: list[tuple[str, int]] = []
    resumed = fit(
        *(network(case), TASK, SPLIT, CASES[case]),
        methods=methods(case),
        checkpoint=path,
        progress=lambda what, done, total: steps.append((what, done)),
    )
    assert [done for what, done in steps if what == "train"] == list(range(4, 13))  # from the second epoch's first step
    assert [done for what, done in steps if what == "epochs"] == [2, 3, 4]
    assert same(resumed, fit(network(case), TASK, SPLIT, CASES[case], methods=methods(case)))


@pytest.mark.parametrize("step", [4, 5, 6, 9])
def test_wherever_it_stops_it_goes_on_to_the_same_bytes(step: int, tmp_path: Path) -> None:
    path = interrupted(tmp_path / "checkpoint", step=step)
    undisturbed = fit(tiny_net(), TASK, SPLIT, CONFIG)
    assert same(fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path), undisturbed)


class Masked(TrainingMethod):
    """Zeroes a random half of a weight's live entries after every epoch: state, random numbers, exact zeros."""

    def __init__(self) -> None:
        self.mask = torch.ones(0)

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        self.mask = torch.ones_like(model[-1].weight)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        model[-1].weight.mul_(self.mask)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        self.mask.mul_(torch.rand_like(self.mask) < 0.5)
        model[-1].weight.mul_(self.mask)

    def state(self) -> dict[str, Tensor]:
        return {"mask": self.mask}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.mask.copy_(state["mask"])


def test_two_methods_with_states_go_on_together(tmp_path: Path) -> None:
    def both() -> list[TrainingMethod]:
        return [Distillation([tiny_net(seed=5)], Distill(alpha=0.5)), Masked()]

    config = replace(CONFIG, ema=0.5)
    path = interrupted(tmp_path / "checkpoint", config, methods=both())
    resumed = fit(tiny_net(), TASK, SPLIT, config, methods=both(), checkpoint=path)
    assert same(resumed, fit(tiny_net(), TASK, SPLIT, config, methods=both()))


def test_a_finished_training_comes_back_at_once_with_its_history(tmp_path: Path) -> None:
    path, losses, again, steps = tmp_path / "checkpoint", [], [], []  # type: ignore[var-annotated]
    trained = fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path, log=losses.append)
    came_back = fit(
        *(tiny_net(), TASK, SPLIT, CONFIG),
        checkpoint=path,
        log=again.append,
        progress=lambda *step: steps.append(step),
    )
    assert same(trained, came_back)
    assert again == losses
    assert len(losses) == 3
    assert steps == []


def test_the_history_is_whole_after_an_interruption(tmp_path: Path) -> None:
    undisturbed, resumed = [], []  # type: ignore[var-annotated]
    fit(tiny_net(), TASK, SPLIT, CONFIG, log=undisturbed.append)
    path = interrupted(tmp_path / "checkpoint")
    fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path, log=resumed.append)
    assert resumed == undisturbed


def test_a_checkpoint_changes_nothing_in_the_training(tmp_path: Path) -> None:
    with_one = fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=tmp_path / "checkpoint")
    assert same(with_one, fit(tiny_net(), TASK, SPLIT, CONFIG))


def test_it_is_one_file_of_tensors_and_json(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "checkpoint", replace(CONFIG, ema=0.9))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    names = set(load_file(path))
    assert {"network.0.weight", "network.1.num_batches_tracked", "optimizer.0.momentum_buffer", "method.0.0"} <= names
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert len(json.loads(header["losses"])) == 1
    assert json.loads(header["made_by"])["epochs"] == 3


def given(**changes: Any) -> dict[str, Any]:
    """The arguments of the interrupted training, some of them changed."""
    arguments = {"model": tiny_net(), "task": TASK, "split": SPLIT, "config": CONFIG, "methods": [], "seed": 0}
    return {**arguments, **changes}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"config": replace(CONFIG, lr=0.1)}, "lr was 0.05 and is 0.1"),
        ({"config": replace(CONFIG, epochs=4)}, "epochs was 3 and is 4"),
        ({"config": replace(CONFIG, augment=())}, r"augment was \['crop', 'flip'\] and is \[\]"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"task": replace(TASK, mean=(0.5, 0.5, 0.5))}, "task was Classification"),
        ({"methods": [Distillation([tiny_net()], Distill())]}, r"methods was \[\] and is"),
        ({"split": tiny_split(100, seed=1)}, "data was sha256"),
        ({"model": tiny_net(seed=2)}, "network was sha256"),
    ],
    ids=["lr", "epochs", "augment", "seed", "task", "methods", "data", "network"],
)
def test_another_trainings_checkpoint_is_refused_by_the_difference(
    changes: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    path = interrupted(tmp_path / "checkpoint")
    with pytest.raises(RunFolderError, match=f"another training wrote this checkpoint: {difference}"):
        fit(**given(**changes), checkpoint=path)


def test_a_methods_setting_is_part_of_the_training(tmp_path: Path) -> None:
    teacher = tiny_net(seed=5)
    path = interrupted(tmp_path / "checkpoint", methods=[Distillation([teacher], Distill(temperature=2.0))])
    with pytest.raises(RunFolderError, match=r"temperature=2\.0.*temperature=4\.0"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Distillation([teacher], Distill())], checkpoint=path)


def test_a_methods_teacher_is_part_of_the_training(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "checkpoint", methods=[Distillation([tiny_net(seed=5)], Distill())])
    with pytest.raises(RunFolderError, match="networks of the methods was"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Distillation([tiny_net(seed=6)], Distill())], checkpoint=path)


def test_an_unreadable_checkpoint_is_named(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "checkpoint")
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"no checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(RunFolderError, match="checkpoint: not a readable checkpoint"):
            fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(RunFolderError, match="its format is None"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path)


def test_a_checkpoint_without_one_of_its_tensors_is_named(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "checkpoint")
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    kept = {name: tensor for name, tensor in load_file(path).items() if name != "network.8.bias"}
    save_file(kept, path, header)
    with pytest.raises(RunFolderError, match=r"checkpoint: does not fit the network \('network\.8\.bias'\)"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path)


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = interrupted(tmp_path / "checkpoint")
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(RunFolderError, match="checkpoint cannot be written: No space left on device"):
        fit(tiny_net(), TASK, SPLIT, CONFIG, checkpoint=path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_the_same_data_elsewhere_in_memory_is_the_same_training(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "checkpoint")
    copied = Split(SPLIT.images.flip(0).flip(0), SPLIT.labels.clone())
    strided = tiny_net().to(memory_format=torch.channels_last)
    resumed = fit(strided, TASK, copied, CONFIG, checkpoint=path)
    assert same(resumed, fit(tiny_net(), TASK, SPLIT, CONFIG))
