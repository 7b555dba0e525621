"""A student that begins as a part of its teacher: blocks of the deeper network are the first weights of the other."""

from collections.abc import Iterator

import torch
from torch import nn

from edgewise.errors import ModelError

CHAINS = (nn.Sequential, nn.ModuleList)


def chosen_blocks(student: int, teacher: int) -> list[int]:
    """Return which of a teacher's blocks those of a student begin as: the first, the last, and evenly between.

    Args:
        student: how many it has, at least 1.
        teacher: likewise, at least as many.

    >>> chosen_blocks(3, 9), chosen_blocks(2, 6), chosen_blocks(1, 4), chosen_blocks(4, 4)
    ([0, 4, 8], [0, 5], [0], [0, 1, 2, 3])
    """
    return [round(place * (teacher - 1) / max(student - 1, 1)) for place in range(student)]


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> None:
    """Copy a teacher's weights and statistics into a shallower student of the same widths, in place.

    Where both have a chain of blocks, the student's are those that `chosen_blocks` names. The first block of a stage,
    which changes size and width, is among them.

    Args:
        student: on any device, of the teacher's architecture but for the number of blocks.
        teacher: stays as it is.

    Raises:
        ModelError: a part of the student has no partner, or its partner another shape; the student stays as it was.

    >>> teacher, student = (nn.Sequential(*(nn.Linear(2, 2) for _ in range(n))) for n in (5, 3))
    >>> inherit(student, teacher)
    >>> [bool((student[i].weight == teacher[j].weight).all()) for i, j in ((0, 0), (1, 2), (2, 4))]
    [True, True, True]
    """
    pairs = []
    for name, mine, theirs in _partners(student, teacher, ""):
        own, other = (dict(_own(module)) for module in (mine, theirs))
        for key, tensor in own.items():
            if key not in other or other[key].shape != tensor.shape:
                has = f"is {list(other[key].shape)}" if key in other else "is not there"
                raise ModelError(
                    f"the student's {f'{name}.{key}'.lstrip('.')} is {list(tensor.shape)}, and its partner in the "
                    f"teacher {has}; only a shallower network of the same widths can inherit: set inherit = false"
                )
            pairs.append((tensor, other[key]))
    for tensor, found in pairs:
        tensor.copy_(found)


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and buffers that a module has itself."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _partners(student: nn.Module, teacher: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield a student's modules with their names and their partners in the teacher."""
    yield name, student, teacher
    mine, theirs = dict(student.named_children()), dict(teacher.named_children())
    if isinstance(student, CHAINS) and 0 < len(mine) < len(theirs):
        blocks = list(theirs.values())
        theirs = {key: blocks[place] for key, place in zip(mine, chosen_blocks(len(mine), len(blocks)), strict=True)}
    for key, child in mine.items():
        path = f"{name}.{key}".lstrip(".")
        if key not in theirs:
            raise ModelError(
                f"the student's {path} has no partner in the teacher; only a shallower network of the same widths "
                "can inherit: set inherit = false"
            )
        yield from _partners(child, theirs[key], path)
