"""A network's forward from the middle: operators before a step are not run, what they made is handed out.

A forward is Python and cannot be entered in the middle. It is run from its beginning under a dispatch mode that counts
operators: those before the step return empty tensors of the right shape and layout at once, but for the few that a
later operator reads, which are handed out. From the step on everything runs as it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

UNCOUNTED = ("aten::alias", "aten::detach")  # torch makes these as it pleases
Key = tuple[int, int]  # the step that made a tensor, and its place among that step's results


@dataclass(frozen=True)
class Layout:
    """What an operator returned, without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def resized(self, dim: int, size: int) -> Layout:
        """Return the layout of a tensor of another size along one dimension, its dimensions in the same order."""
        shape = tuple(size if d == dim else length for d, length in enumerate(self.shape))
        stride, step = [0] * len(shape), 1
        for d in sorted(range(len(shape)), key=lambda d: (self.stride[d], -d)):
            stride[d], step = step, step * shape[d]
        return Layout(shape, tuple(stride), self.dtype, self.device)

    def empty(self) -> Tensor:
        """Make a tensor of this layout; memory that nobody writes costs next to nothing."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class State:
    """A forward that ran up to a step.

    Args:
        step: how many operators ran.
        names: of those operators.
        results: what each returned, leaf by leaf, and its structure: layouts in the place of tensors.
        held: the tensors that are read later, by who made them. To resume from a state uses it up: what comes may write
            over them.
    """

    step: int = 0
    names: Sequence[str] = ()
    results: Sequence[tuple[list[Any], TreeSpec]] = ()
    held: Mapping[Key, Tensor] = field(default_factory=dict)


class OtherOperators(BaseException):
    """A forward ran other operators than the state it was resumed from says."""


class _Reached(BaseException):
    """The step that a forward was to run to."""


class _Resumed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators from a state's step on, up to another; keeps those of their results that are wanted."""

    def __init__(self, state: State, until: int | None, wanted: Collection[Key]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state, self.until, self.wanted = state, until, wanted
        self.names, self.results = list(state.names), list(state.results)
        self.held: dict[Key, Tensor] = {key: tensor for key, tensor in state.held.items() if key in wanted}
        self.step = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in UNCOUNTED:
            return func(*args, **(kwargs or {}))
        step = self.step
        if step == self.until:
            raise _Reached
        self.step += 1
        if step < self.state.step:
            if self.names[step] != str(func):
                raise OtherOperators
            return args[0] if func._schema.is_mutable else self._handed(step)
        out = func(*args, **(kwargs or {}))
        if self.until is not None:
            self.names.append(str(func))
            leaves, structure = tree_flatten(out)
            self.results.append(([_layout(leaf) for leaf in leaves], structure))
            if not func._schema.is_mutable:
                self.held |= {(step, i): t for i, t in enumerate(leaves) if (step, i) in self.wanted}
        return out

    def _handed(self, step: int) -> Any:
        leaves, structure = self.results[step]
        held = self.state.held
        made = [
            held[step, place] if (step, place) in held else leaf.empty() if isinstance(leaf, Layout) else leaf
            for place, leaf in enumerate(leaves)
        ]
        return tree_unflatten(made, structure)


def _layout(leaf: Any) -> Any:
    return Layout(tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def advance(forward: Callable[[], Tensor], state: State, until: int, wanted: Collection[Key]) -> State:
    """Run a forward from one state to a later step.

    Args:
        forward: runs the network on its inputs, always the same ones.
        state: where it was left; `State()` is the beginning.
        until: the step to stop before, at least the state's.
        wanted: the tensors that are read from that step on.

    Raises:
        OtherOperators: the operators up to the state's step are not those that it knows.
    """
    run = _Resumed(state, until, wanted)
    try:
        with run:
            forward()
    except _Reached:
        pass
    return State(until, run.names, run.results, run.held)


def finish(forward: Callable[[], Tensor], state: State) -> Tensor:
    """Run a forward from a state to its end and return its output.

    Raises:
        OtherOperators: the operators up to the state's step are not those that it knows.
    """
    with _Resumed(state, None, ()):
        return forward()


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps everything that a forward's operators make, and who reads it last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.made: list[list[Any]] = []  # by step; copies, since later operators may write over tensors
        self._alive: list[Tensor] = []  # tensors are told apart by their address
        self._last_use: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in UNCOUNTED:
            self._alive.append(out)
            if (key := self._keys.get(id(args[0]))) is not None:
                self._keys[id(out)] = key
            return out
        step = len(self.names)
        self._read((args, kwargs), step)
        self.names.append(str(func))
        leaves = tree_leaves(out)
        self.made.append([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._alive.append(leaf)
                self._keys.setdefault(id(leaf), (step, place))
        return out

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Run a forward and return its output."""
        with self:
            out = forward()
        self._read(out, len(self.names))
        return out

    def live(self, step: int) -> set[Key]:
        """Return who made the tensors that exist before a step and are read at it or later."""
        return {key for key, last in self._last_use.items() if key[0] < step <= last}

    def _read(self, tree: Any, step: int) -> None:
        for leaf in tree_leaves(tree):
            if (key := self._keys.get(id(leaf))) is not None:
                self._last_use[key] = step
