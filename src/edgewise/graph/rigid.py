"""Widths that are written into a network's forward: found by running it with fewer channels.

A width can be stated where the channel graph does not see it: a reshape to a literal, an attribute, a scale
``h * h.shape[1] ** -0.5``, a branch that depends on it. So the network is shrunk, run on meta tensors, and must
compute the same: the same operators in the same order with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial

import numpy as np
import torch

from edgewise.graph.groups import Graph, Group
from edgewise.graph.rules import RULES
from edgewise.graph.surgery import Keep, shrunk_shapes
from edgewise.graph.trace import Atoms, Operators, Programme, enter_step, evaluating


def rigid_groups(graph: Graph, keep: Keep | None = None) -> tuple[str, ...]:
    """Name the groups that cannot shrink as asked, because the forward states or uses their width.

    All others can, together. Where the shrunk network stops, or turns from what the whole one computes, the group
    whose tensors were used last before it is suspected first.

    Args:
        graph: the traced network.
        keep: the channels to keep, by group name; by default half of every group.
    """
    keep = half(graph.groups) if keep is None else keep
    uses = {g.name: sorted(graph.tracer.first_use.get(m.tensor, 0) for m in g.members) for g in graph.groups}
    whole = len(graph.tracer.programme)

    @cache
    def reached(names: frozenset[str]) -> int:
        return _steps(graph, {name: keep[name] for name in names})

    flexible = frozenset(keep)
    while flexible and (step := reached(flexible)) < whole:
        last_use = {name: max((use for use in uses[name] if use <= step), default=-1) for name in flexible}
        suspects = sorted(flexible, key=lambda name: (-last_use[name], name))
        count = _least(len(suspects), lambda n: reached(flexible.difference(suspects[:n])) > step)  # noqa: B023
        flexible = flexible.difference(suspects[count - 1 : count] if count else suspects)
    return tuple(group.name for group in graph.groups if group.name in keep and group.name not in flexible)


def half(groups: Iterable[Group]) -> dict[str, Atoms]:
    """Keep the first half of the channels of each group."""
    return {group.name: np.arange((group.size + 1) // 2) for group in groups if group.size > 1}


def _least(limit: int, enough: Callable[[int], bool]) -> int:
    """Return the least count of 1 to `limit` that is enough, found by doubling and halving; 0 where none is."""
    high = 1
    while not enough(high):
        if high == limit:
            return 0
        high = min(2 * high, limit)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _steps(graph: Graph, keep: Keep) -> int:
    """Run the shrunk network on shapes alone; return for how many operators it computes what the whole one does."""
    ran: Programme = []
    whole = graph.tracer.programme
    listen = Operators(RULES, partial(enter_step, ran), lambda: "a shrunk network")
    x = torch.empty_like(graph.example)
    lent = shrunk_shapes(graph, keep)
    with torch.inference_mode(False), torch.no_grad(), lent as small, evaluating(small), suppress(Exception), listen:
        small(x)
        if ran == whole:
            return len(whole)
    # Whatever the forward raised, the shape is what changed.
    turned = (step for step, (a, b) in enumerate(zip(ran, whole, strict=False)) if a != b)
    return next(turned, min(len(ran), len(whole) - 1))
