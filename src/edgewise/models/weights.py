"""Weights from a file into a network, key for key."""

import copy
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from edgewise.errors import ModelError, one_line

CHECKPOINT_KEYS = ("state_dict", "model")  # under which a training's checkpoint holds the weights
PREFIXES = ("_orig_mod.", "module.")  # what torch.compile and DataParallel put before every name
BACKBONE = "backbone."  # the part of a detector that is a classifier without its last layers


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy a network and give the copy the weights of a file; the network itself is left as it was.

    Every tensor must fit by name and shape. Three things are not taken for a misfit: the prefixes of wrapped
    networks; the counters of batch normalisations, which old files lack and inference does not read; and the same
    matrix as a 1x1 convolution's ``[O, I, 1, 1]`` and a linear layer's ``[O, I]``. Numbers are converted to the
    network's own types.

    Args:
        model: the network the weights were saved from, or one built alike.
        path: a ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, bare or under "state_dict" or
            "model". Only tensors are read from it, no code.

    Raises:
        ModelError: no such file, not a weights file, objects other than tensors inside, tensors that do not fit or
            hold NaN or infinity.
    """
    return _loaded(model, Path(path))[0]


def load_pretrained(model: nn.Module, path: str | Path, classes: int) -> tuple[nn.Module, str]:
    """Give a copy of a network weights that it is trained further from, of as many classes as there may be.

    As `load_weights`, but where the file's classifier has other outputs, and nothing else differs, the network keeps
    its own. And where the network has a part called "backbone" and the file is of a classifier, all tensors of the
    backbone must be in the file; the network keeps its own of all other parts, and what else is in the file is left.

    Args:
        model: the network that will be trained.
        path: the weights.
        classes: how many the network tells apart; only a layer of so many outputs is taken for its classifier.

    Returns:
        The copy, and the names of the layers or parts that it keeps, with commas between; empty where all weights fit.

    Raises:
        ModelError: as `load_weights`.
    """
    return _loaded(model, Path(path), classes)


def _loaded(model: nn.Module, file: Path, classes: int | None = None) -> tuple[nn.Module, str]:
    """Copy the weights that fit, refuse any that do not, and name the classifier if it was left out."""
    expected = model.state_dict()
    found = _without_prefixes(_tensors(_read(file), file), expected)
    kept = ""
    if classes is not None and (of_backbone := _of_backbone(found, expected)):
        found = of_backbone
        kept = ", ".join(dict.fromkeys(key.partition(".")[0] for key in expected if not key.startswith(BACKBONE)))
        expected = {key: tensor for key, tensor in expected.items() if key.startswith(BACKBONE)}
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    shared = [key for key in found if key in expected]
    misshaped = [key for key in shared if _matrix(found[key].shape) != _matrix(expected[key].shape)]
    if classes is not None and _is_classifier(misshaped, found, expected, classes):
        kept = misshaped[0].rpartition(".")[0]
        shared, misshaped = [key for key in shared if key not in misshaped], []
    shapes = [f"{key} {list(found[key].shape)} for {list(expected[key].shape)}" for key in misshaped]
    broken = [key for key in shared if not found[key].to(expected[key].dtype).isfinite().all()]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "not finite": broken}
    if any(problems.values()):
        counts = ", ".join(f"{len(keys)} {what} ({_first(keys)})" for what, keys in problems.items() if keys)
        raise ModelError(
            f"the weights in {file} do not fit the network: {counts}; "
            f"build it with the name, classes, channels, size and width that they were trained with"
        )
    loaded = copy.deepcopy(model)
    loaded.load_state_dict({key: found[key].reshape(expected[key].shape) for key in shared}, strict=False)
    return loaded, kept


def _read(file: Path) -> object:
    """Read a weights file of either kind."""
    if not file.is_file():
        raise ModelError(f"no such weights file: {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        read: object = torch.load(file, map_location="cpu", weights_only=True)
        return read
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise ModelError(f"{file} is not a weights file (torch.load cannot read it)") from error
        raise ModelError(
            f"{file} holds a Python object ({refused[1]}), and only tensors are read: "
            f"save it again with torch.save(network.state_dict(), ...)"
        ) from error
    except Exception as error:
        raise ModelError(f"{file} is not a weights file, or is damaged: {one_line(error)}") from error


def _tensors(read: object, file: Path) -> dict[str, Tensor]:
    """Return the state dict in what a file held."""
    for key in CHECKPOINT_KEYS:
        if isinstance(read, Mapping) and isinstance(read.get(key), Mapping):
            read = read[key]
    if not isinstance(read, Mapping):
        raise ModelError(f"{file} holds an object of type {type(read).__name__}, not weights by name")
    found = {key: value for key, value in read.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if others := [str(key) for key in read if key not in found]:
        raise ModelError(f"{file} holds more than tensors: {_first(others)}; weights are a dict of names and tensors")
    if not found:
        raise ModelError(f"{file} holds no weights")
    return found


def _without_prefixes(found: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away the prefixes that every name has in a file of a wrapped network and none has in the network."""
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in found) and not any(key.startswith(prefix) for key in expected):
            found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found


def _of_backbone(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of a classifier's tensors that a detector's backbone has, by its names; none of any other file."""
    if any(key in expected for key in found):
        return {}
    return {name: tensor for key, tensor in found.items() if (name := BACKBONE + key) in expected}


def _matrix(shape: Size) -> tuple[int, ...]:
    """Return the shape of a weight, that of a 1x1 convolution as the linear layer's that it is."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)


def _is_classifier(
    misshaped: list[str], found: Mapping[str, Tensor], expected: Mapping[str, Tensor], classes: int
) -> bool:
    """Whether tensors that do not fit are those of one layer, which has so many outputs and had others."""
    layers = {key.rpartition(".")[0] for key in misshaped}
    return len(layers) == 1 and all(tuple(expected[key].shape) == (classes, *found[key].shape[1:]) for key in misshaped)


def _first(names: Iterable[str], most: int = 3) -> str:
    """List the first few names."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
