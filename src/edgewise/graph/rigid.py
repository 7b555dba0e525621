"""Widths that are written into a network's forward: found by running it with fewer channels.

A width can be stated where the channel graph does not see it: a reshape to a literal, an attribute, a scale
``h * h.shape[1] ** -0.5``, a branch that depends on it. So the network is shrunk, run on meta tensors, and must
compute the same: the same operators in the same order with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from edgewise.graph.groups import Graph, Group
from edgewise.graph.rules import RULES
from edgewise.graph.surgery import Keep, shrunk_shapes
from edgewise.graph.trace import Operators, Programme, enter_step, evaluating


def rigid_groups(graph: Graph, keep: Keep | None = None) -> tuple[str, ...]:
    """Name the groups that cannot shrink as asked, because the forward states or uses their width.

    All others can, together: they are added in halves, and what fails beside those that ran is halved in turn.

    Args:
        graph: the traced network.
        keep: the channels to keep, by group name; by default half of every group.
    """
    keep = {g.name: np.arange((g.size + 1) // 2) for g in graph.groups if g.size > 1} if keep is None else keep
    flexible: list[Group] = []

    def find(groups: Sequence[Group]) -> tuple[str, ...]:
        if _runs(graph, {g.name: keep[g.name] for g in (*flexible, *groups)}):
            flexible.extend(groups)
            return ()
        if len(groups) == 1:
            return (groups[0].name,)
        half = len(groups) // 2
        return (*find(groups[:half]), *find(groups[half:]))

    return find([group for group in graph.groups if group.name in keep])


def _runs(graph: Graph, keep: Keep) -> bool:
    """Say whether the shrunk network runs, on shapes alone, and computes what the whole one does."""
    ran: Programme = []
    listen = Operators(RULES, partial(enter_step, ran), lambda: "a shrunk network")
    small, x = shrunk_shapes(graph, keep), torch.empty_like(graph.example)
    for parameter in small.parameters():  # as in the trace: torch takes a product apart by it
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.inference_mode(False), torch.no_grad(), evaluating(small), listen:
            small(x)
    except Exception:  # whatever the forward raises, the shape is what changed
        return False
    return ran == graph.tracer.programme
