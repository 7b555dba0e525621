"""Snapshots: what a network was along its training, whole or resumed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise.quantize.ternary import Ternarization, Ternary
from edgewise.train import Snapshots, TrainConfig, TrainingMethod, fit
from train.tiny import TASK, same, tiny_net, tiny_split

SPLIT = tiny_split(96)
CONFIG = TrainConfig(epochs=4, batch=32, lr=0.05, augment=())


class KilledError(Exception):
    pass


def copies(snapshots: Snapshots, trained: nn.Module) -> dict[int, dict[str, torch.Tensor]]:
    return {
        epoch: {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for epoch, network in snapshots.networks_in_turn(trained)
    }


class Watch(TrainingMethod):
    """Notes the network after each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def test_they_are_the_network_at_its_start_and_after_the_epochs_before_the_last(tmp_path: Path) -> None:
    net, snapshots, watch = tiny_net(), Snapshots(tmp_path / "kept", 10), Watch()
    trained = fit(net, TASK, SPLIT, CONFIG, methods=[watch, snapshots])
    found = copies(snapshots, trained)
    assert list(found) == snapshots.epochs == [0, 1, 2, 3]
    for epoch, expected in enumerate([net.state_dict(), *watch.seen[:3]]):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found[epoch].items())
    assert same(trained, fit(net, TASK, SPLIT, CONFIG))  # they take no part in it


def test_a_resumed_training_keeps_the_same(tmp_path: Path) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if what == "epochs" and done == 2:
            raise KilledError

    whole = Snapshots(tmp_path / "whole", 10)
    trained = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[whole])
    resumed, file = Snapshots(tmp_path / "resumed", 10), tmp_path / "checkpoint"
    with pytest.raises(KilledError):
        fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[resumed], checkpoint=file, progress=kill)
    fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[resumed], checkpoint=file)
    for one, other in zip(copies(whole, trained).values(), copies(resumed, trained).values(), strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_another_method_makes_of_the_weights_is_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 1)
    trained = fit(tiny_net(), TASK, SPLIT, CONFIG, methods=[Ternarization(Ternary()), snapshots])
    ternary = [name for name, weight in trained.named_parameters() if len(weight.abs().unique()) <= 2]
    assert ternary
    found = copies(snapshots, trained)
    assert list(found) == [0, 2]
    assert all(len(kept[name].abs().unique()) <= 2 for kept in found.values() for name in ternary)
    assert not torch.equal(found[0][ternary[0]], found[2][ternary[0]])
