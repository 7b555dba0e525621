"""A network as two files without code: its tensors, and the structure that holds them.

`model.safetensors` holds parameters and buffers; `structure.json` the builder's name and options and, for a pruned
network, the attributes in which it differs from what the builder makes. Together they are the network again, in a
process that never saw the original. A network of the user's own file travels with a copy of that file and of the
neighbours it imports, in `builder/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgewise import models
from edgewise.errors import ModelError
from edgewise.export.packed import unpack
from edgewise.files import canonical_json, read_json, write_bytes
from edgewise.graph.surgery import Attributes, record, restore
from edgewise.models.sources import source_files

STRUCTURE, TENSORS, SOURCE = "structure.json", "model.safetensors", "builder"
PACKED = "model.packed"  # the tensors in as few bytes as they need, where an export step packs them
FORMAT = 1


@dataclass(frozen=True)
class Builder:
    """How a network is made: the arguments of `edgewise.models.build`."""

    model: str
    classes: int
    channels: int
    size: int
    width: float = 1.0

    def build(self) -> nn.Module:
        """Make the network, with the initialisation of the global random state."""
        return models.build(self.model, classes=self.classes, channels=self.channels, size=self.size, width=self.width)


def save(model: nn.Module, builder: Builder, folder: Path) -> Path:
    """Write a network to a folder.

    Args:
        model: what `builder` makes, or what surgery made of that.
        builder: how the unpruned network is made.
        folder: exists; gets `model.safetensors`, `structure.json` and, for a file of the user's, `builder/`.
    """
    from safetensors.torch import save as to_bytes

    source, colon, function = builder.model.rpartition(":")
    if colon and source.endswith(".py"):
        file = Path(source).expanduser().resolve()
        for path in source_files(file):
            copy = folder / SOURCE / path.relative_to(file.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(copy, path.read_bytes())
        builder = replace(builder, model=f"{SOURCE}/{file.name}:{function}")
    structure = {"format": FORMAT, "builder": asdict(builder), "attributes": _attributes(model, folder, builder)}
    write_bytes(folder / TENSORS, to_bytes(tensors(model)))
    write_bytes(folder / STRUCTURE, canonical_json(structure))
    return folder


def load(folder: Path, *, packed: bool = False) -> nn.Module:
    """Read a network back from a folder that `save` wrote, in evaluation mode.

    Args:
        folder: of the network.
        packed: read the tensors from `model.packed`, which an export step with ``pack = true`` wrote beside it.

    Raises:
        ModelError: a file is missing or unreadable, or the tensors do not fit the structure.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        structure = read_json(folder / STRUCTURE)
        found = unpack(folder / PACKED) if packed else load_file(folder / TENSORS)
        builder = Builder(**structure["builder"])
        attributes: Attributes = structure["attributes"]
    except FileNotFoundError as error:
        raise ModelError(f"{error.filename}: no such file; a network is {STRUCTURE} and {TENSORS}") from error
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: not a network edgewise wrote ({error})") from error
    return restore(_original(builder, folder), attributes, found).eval()


def example(folder: Path) -> Tensor:
    """Return an input of the shape that a network in a folder takes, ``[1, C, H, W]`` of zeros.

    Raises:
        ModelError: the structure is missing or none of ours.
    """
    try:
        builder = Builder(**read_json(folder / STRUCTURE)["builder"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / STRUCTURE}: not a network edgewise wrote ({error})") from error
    return torch.zeros(1, builder.channels, builder.size, builder.size)


def _original(builder: Builder, folder: Path) -> nn.Module:
    """Make the builder's network without disturbing the global random state."""
    if builder.model.startswith(f"{SOURCE}/"):
        builder = replace(builder, model=str(folder / builder.model))
    with torch.random.fork_rng(devices=[]):
        return builder.build()


def _attributes(model: nn.Module, folder: Path, builder: Builder) -> Attributes:
    return record(model, _original(builder, folder))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """List parameters and buffers, a shared one once, each with memory of its own."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named}
