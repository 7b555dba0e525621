"""A training that can be killed: its state after an epoch as one file, safetensors with JSON in the header.

Order, augmentation, dropout and learning rate are functions of seed, epoch and step, so no random state and no
scheduler's state is kept. No part of the file is a pickle.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgewise.data import Split
from edgewise.errors import RunFolderError, StaleFile
from edgewise.files import write_bytes
from edgewise.tasks import Task
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod

FORMAT = "edgewise training checkpoint 1"


@dataclass(frozen=True)
class Training:
    """Everything that changes while a network trains; a checkpoint holds its tensors by these names."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    methods: Sequence[TrainingMethod]


def fingerprint(
    model: nn.Module,
    task: Task,
    split: Split,
    config: TrainConfig,
    methods: Sequence[TrainingMethod],
    seed: int,
) -> dict[str, Any]:
    """Describe what a training starts from, as JSON: two trainings with one description give the same weights."""
    return {
        **asdict(config),
        "seed": seed,
        "task": repr(task),
        "methods": [f"{type(method).__name__} {method.config}" for method in methods],
        "data": _digest({"images": split.images, "labels": split.labels}),
        "network": _digest(_network_tensors(model)),
        "networks of the methods": [
            _digest(_network_tensors(each)) for method in methods for each in method.networks()
        ],
    }


def write_checkpoint(path: Path, training: Training, losses: Sequence[float], made_by: Mapping[str, Any]) -> None:
    """Write the state after len(losses) epochs, whole or not at all.

    Args:
        path: the file; its folder is made when it is missing.
        training: what to keep.
        losses: the mean loss of each finished epoch.
        made_by: the training's `fingerprint`.

    Raises:
        RunFolderError: the file cannot be written, as on a full disk.
    """
    header = {"format": FORMAT, "losses": json.dumps(list(losses)), "made_by": json.dumps(made_by)}
    # Each tensor gets memory of its own, in plain order: safetensors refuses views and channels_last.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in {**_network_and_optimizer(training), **_methods_state(training.methods)}.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save(tensors, header))
    except OSError as error:
        raise RunFolderError(f"{path}: the checkpoint cannot be written: {error.strerror or error}") from error


def read_checkpoint(path: Path, training: Training, made_by: Mapping[str, Any]) -> list[float]:
    """Give a training the state that a checkpoint holds.

    Args:
        path: the file.
        training: made as the one that was written: the methods' `start` is done, the optimizer has made no step.
        made_by: the training's `fingerprint`.

    Returns:
        The mean loss of each finished epoch.

    Raises:
        StaleFile: the file is unreadable, or another training wrote it (the first difference is named).
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')}, not {FORMAT}")
        losses, written_by = json.loads(header["losses"]), json.loads(header["made_by"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StaleFile(f"{path}: not a readable checkpoint ({error}); delete it to train anew") from error

    # Through JSON, which turns tuples into lists, as the written one went.
    for name, value in json.loads(json.dumps(made_by)).items():
        if written_by.get(name) != value:
            raise StaleFile(
                f"{path}: another training wrote this checkpoint: {name} was {written_by.get(name)} and is {value}; "
                "delete it to train anew"
            )
    try:
        _restore(training, tensors)
    except (KeyError, RuntimeError) as error:  # a tensor that is missing, or of another shape
        raise StaleFile(f"{path}: does not fit the network ({error}); delete it to train anew") from error
    return [float(loss) for loss in losses]


def _restore(training: Training, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _network_tensors(training.network).items():
            tensor.copy_(tensors[f"network.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for place, parameter in enumerate(_optimized(training.optimizer)):
        for name, tensor in _under(tensors, f"optimizer.{place}.").items():
            # In the parameter's own memory layout, as the optimizer made it.
            fits = tensor.shape == parameter.shape
            state.setdefault(place, {})[name] = torch.empty_like(parameter).copy_(tensor) if fits else tensor
    training.optimizer.load_state_dict({**training.optimizer.state_dict(), "state": state})
    for place, method in enumerate(training.methods):
        method.load_state(_under(tensors, f"method.{place}."))


def _network_and_optimizer(training: Training) -> dict[str, Tensor]:
    network = {f"network.{name}": tensor for name, tensor in _network_tensors(training.network).items()}
    optimizer = {
        f"optimizer.{place}.{name}": value
        for place, parameter in enumerate(_optimized(training.optimizer))
        for name, value in training.optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }
    return {**network, **optimizer}


def _methods_state(methods: Sequence[TrainingMethod]) -> dict[str, Tensor]:
    return {
        f"method.{place}.{name}": tensor
        for place, method in enumerate(methods)
        for name, tensor in method.state().items()
    }


def _network_tensors(model: nn.Module) -> dict[str, Tensor]:
    """List parameters and buffers by name, shared ones once, buffers that no state_dict holds included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _optimized(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """List the optimizer's parameters in the order that its state_dict counts them in."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 over names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()
