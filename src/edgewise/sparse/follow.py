"""What follows each layer of a network: a BatchNorm, a ReLU, or anything else.

The network runs once on an example, and it is watched which function reads which tensor: modules and functional calls
alike. A tensor that is changed in place is another one afterwards. What is not known is taken for a reader of values,
so that a layer is never thought to be rectified that is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from edgewise.graph.trace import evaluating, tensors_in
from edgewise.sparse.masks import LAYERS
from edgewise.train.forward import forward

RELUS = ("relu", "relu_", "relu6")
CLAMPS = {"hardtanh": -1.0, "hardtanh_": -1.0, "clamp": None, "clamp_": None, "clamp_min": None, "clamp_min_": None}
SHAPES = ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_contiguous", "__len__")
SAME = ("dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous", "clone", "detach")  # dropouts while evaluating


@dataclass(frozen=True)
class Followed:
    """A layer in its network.

    Args:
        name: of its module.
        norm: the name of the BatchNorm that alone reads its output, with fixed statistics and a bias to write to.
        rectified: whether nothing but ReLUs (or clamps at 0 from below) read what comes out of both.
        calls: how often it ran.
    """

    name: str
    norm: str | None
    rectified: bool
    calls: int


def followed(model: nn.Module, example: Tensor) -> dict[str, Followed]:
    """Return what follows the convolutions and linear layers, by name, in the order in which they run.

    Args:
        model: left as it was.
        example: some images that it takes.

    Raises:
        ModelError: the forward raises, or does not return one tensor.
    """
    watch = _Watch({id(m.running_mean): name for name, m in model.named_modules() if _fixed(m)})
    outputs: dict[str, list[int]] = {}

    def entering(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.setdefault(name, []).append(watch.value(output))

        return note

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    hooks = [module.register_forward_hook(entering(name)) for name, module in layers]
    try:
        with torch.no_grad(), evaluating(model):
            with watch:
                out = forward(model, example)
            watch.read(out, _Reader("output"))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: watch.after(name, values) for name, values in outputs.items()}


@dataclass(frozen=True)
class _Reader:
    kind: str  # "norm", "relu", "same", "output" or "other"
    norm: str | None = None
    result: int = -1  # the value that it makes


class _Watch(TorchFunctionMode):
    """Gives every tensor a number, a new one after each function that returns it, and notes who reads it.

    Args:
        norms: the names of the BatchNorms, by the identity of their running means.
    """

    def __init__(self, norms: dict[int, str]) -> None:
        super().__init__()
        self.norms = norms
        self.seen: dict[int, tuple[Tensor, int]] = {}  # tensors are told apart by their address: kept alive
        self.readers: dict[int, list[_Reader]] = {}
        self.norm_calls: dict[str, int] = {}
        self.numbers = count()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in SHAPES or (name == "__get__" and not isinstance(result, Tensor)):
            return result
        read = {id(tensor): tensor for tensor in tensors_in((args, kwargs))}
        values = [self.value(tensor) for tensor in read.values()]
        made = [self.renew(tensor) for tensor in tensors_in(result)]
        first = args[0] if args else kwargs.get("input")
        reader = self._reader(name, args, kwargs, made[0] if made else -1)
        for tensor, value in zip(read.values(), values, strict=True):
            self.readers.setdefault(value, []).append(reader if tensor is first else _Reader("other"))
        return result

    def _reader(self, name: str, args: Any, kwargs: dict[str, Any], result: int) -> _Reader:
        if name == "batch_norm":
            stored = [self.norms[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self.norms]
            if stored:
                self.norm_calls[stored[0]] = self.norm_calls.get(stored[0], 0) + 1
                return _Reader("norm", stored[0], result)
        if name in RELUS or (name in CLAMPS and _lowest(args, kwargs, CLAMPS[name]) == 0):
            return _Reader("relu", result=result)
        off = not name.startswith("dropout") or not (args[2] if len(args) > 2 else kwargs.get("training", True))
        return _Reader("same" if name in SAME and off else "other", result=result)

    def value(self, tensor: Tensor) -> int:
        """Return a tensor's number; one that no function made gets its first."""
        return self.seen[id(tensor)][1] if id(tensor) in self.seen else self.renew(tensor)

    def renew(self, tensor: Tensor) -> int:
        """Give a tensor the next number."""
        number = next(self.numbers)
        self.seen[id(tensor)] = tensor, number
        return number

    def read(self, tensor: Tensor, reader: _Reader) -> None:
        """Note a reader that is no function."""
        self.readers.setdefault(self.value(tensor), []).append(reader)

    def after(self, name: str, values: list[int]) -> Followed:
        """Say what follows a layer with these outputs, one for each time it ran."""
        if len(values) != 1:
            return Followed(name, None, False, len(values))
        readers, norm = self._past_same(values[0]), None
        if len(readers) == 1 and readers[0].norm is not None and self.norm_calls[readers[0].norm] == 1:
            norm = readers[0].norm
            readers = self._past_same(readers[0].result)
        return Followed(name, norm, bool(readers) and all(reader.kind == "relu" for reader in readers), 1)

    def _past_same(self, value: int) -> list[_Reader]:
        """Return a value's readers; behind a function that changes nothing, those of its result."""
        while len(readers := self.readers.get(value, [])) == 1 and readers[0].kind == "same":
            value = readers[0].result
        return readers


def _fixed(module: nn.Module) -> bool:
    """Say whether it is a BatchNorm that is an affine function of each channel, with a bias."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.affine


def _lowest(args: Any, kwargs: dict[str, Any], default: float | None) -> Any:
    """Return what a clamp raises everything to."""
    for key in ("min", "min_val"):
        if key in kwargs:
            return kwargs[key]
    found = args[1] if len(args) > 1 else default
    return found if isinstance(found, int | float) else None
