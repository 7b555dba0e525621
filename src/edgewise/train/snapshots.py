"""What a network was along its training, kept as files for judges who may look only afterwards."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from edgewise.files import write_bytes
from edgewise.graph.trace import evaluating
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


@final
class Snapshots(TrainingMethod):
    """Keeps the network as it starts and after evenly spaced epochs; the last epoch's is the result itself.

    It comes after the other methods, so that what they make of the weights is kept. A resumed training writes the same
    files. With `TrainConfig.ema` the snapshots are of the weights, not of their average.

    Args:
        folder: of the files; it is made when the training starts.
        count: how many epochs, at most; the start is kept besides.

    Attributes:
        epochs: after how many a network is kept, in turn; 0 is the start.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.epochs: list[int] = []

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Keep the network as it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.epochs = [0, *spaced(config.epochs, self.count)]
        self._write(0, model)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Keep the network where its turn has come."""
        if epoch + 1 in self.epochs:
            self._write(epoch + 1, model)

    def networks_in_turn(self, trained: nn.Module) -> Iterator[tuple[int, nn.Module]]:
        """Yield after how many epochs a network was kept, and the network: one copy of `trained`, changed each time.

        Args:
            trained: what the training returned; it stays as it is.
        """
        from safetensors.torch import load_file

        network = copy.deepcopy(trained)
        own = network.state_dict()
        for epoch in self.epochs:
            kept = load_file(self._file(epoch))
            for name, tensor in own.items():
                tensor.copy_(kept[name])
            yield epoch, network

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05}.safetensors"

    def _write(self, epoch: int, model: nn.Module) -> None:
        from safetensors.torch import save

        tensors = {name: each.detach().cpu().contiguous().clone() for name, each in plain_tensors(model).items()}
        write_bytes(self._file(epoch), save(tensors))


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and buffers, parametrised ones as the forward sees them in eval mode, by name."""
    tensors: dict[str, Tensor] = model.state_dict()
    with torch.no_grad(), evaluating(model):
        for place, module in model.named_modules():
            if is_parametrized(module):
                assert isinstance(module.parametrizations, nn.ModuleDict)
                tensors |= {f"{place}.{name}".lstrip("."): getattr(module, name) for name in module.parametrizations}
    return tensors


def spaced(epochs: int, count: int) -> list[int]:
    """Return at most `count` epochs before the last, evenly spaced.

    >>> spaced(8, 10), spaced(240, 4), spaced(1, 5), spaced(6, 0)
    ([1, 2, 3, 4, 5, 6, 7], [48, 96, 144, 192], [], [])
    """
    places = {round(epochs * (place + 1) / (count + 1)) for place in range(count)} if count < epochs else range(epochs)
    return [place for place in sorted(places) if 0 < place < epochs]
