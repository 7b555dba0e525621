"""What a sparsify step is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgewise.sparse.beginnings import Beginning
from edgewise.sparse.layerwise import RIDGE, Scheme, Support
from edgewise.sparse.masks import Criterion, Scope
from edgewise.sparse.nettrim import Form


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Set weights to zero, in one go: single ones, n of every m, or whole blocks.

    The weights of convolutions and linear layers, no biases or normalisations. The tensors keep their shapes: what is
    stored, and every MAC, stays as it is in a runtime without sparse kernels. `nonzero` is what goes down.

    Args:
        sparsity: the share of these weights that becomes zero, in (0, 1).
        pattern: instead of a share "n:m", such as "2:4": of every m neighbouring inputs n stay, wherever the weight is.
        tile: whole blocks of [outputs, inputs] go, with all kernel positions; -1 is all of them. [1, -1] are filters.
        exclude: the names of layers that are left alone, such as a first one with 3 inputs.
        criterion: "l1" takes the smallest magnitudes, "random" any, the baseline. "snip", "grasp" and "synflow" are for
            a network that was not trained yet.
        images: of the training split, that "snip" and "grasp" look at.
        scope: "local" takes that share of every layer, "global" of all layers in one ranking.

    Raises:
        ValueError: a sparsity out of range.

    Reference: Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, arXiv
    1506.02626, prunes by magnitude; the four kinds are those of torch.nn.utils.prune.
    """

    kind: Literal["sparsify"] = "sparsify"
    sparsity: float | None = None
    pattern: str = ""
    tile: tuple[int, int] | None = None
    exclude: tuple[str, ...] = ()
    criterion: Criterion | Beginning = "l1"
    scope: Scope = "global"
    images: int = 512

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (not self.pattern):
            raise ValueError('say how much goes: sparsity = 0.5, or pattern = "2:4"')
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity = {self.sparsity}: a share of the weights lies in (0, 1)")
        if self.pattern:
            n, m = self.n_of_m
            if not 1 <= n < m:
                raise ValueError(f'pattern = "{self.pattern}": n:m with 1 <= n < m, such as "2:4"')
            if self.tile is not None or self.criterion == "synflow":
                raise ValueError(f'pattern = "{self.pattern}": goes with no tile, and not with "synflow"')
        if self.images < 1:
            raise ValueError(f"images = {self.images}: at least 1")

    @property
    def n_of_m(self) -> tuple[int, int]:
        """The numbers of the pattern; 0, 0 for what is none."""
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True, kw_only=True)
class NetTrim:
    """Give each layer the fewest weights with which it still computes, on some images, what it computed.

    Nothing is trained: each layer is a problem of its own, followed by least squares on the weights that are left.

    Args:
        gamma: how far a layer's outputs may be off, as a share of their norm, in (0, 1).
        images: of the training split, without their labels.
        scheme: "parallel": every layer on the inputs that it has in the dense network; "cascade": on those that the
            layers before it, sparse already, make.
        form: "convex" has the least sum of magnitudes; "log_sum" fewer weights, in several rounds; "rows" takes whole
            inputs.
        rounds: of "log_sum".
        support: "solved": the weights that the solver keeps. "magnitude": as many of each layer's largest, followed by
            the same least squares, the baseline. "better": of the two the one that is nearer, layer by layer.
        ridge: of the least squares towards the solver's weights. 0 refuses images that do not determine them.
        exclude: the names of layers that are left alone.

    Raises:
        ValueError: a value out of range.

    Reference: Aghasi, Abdi, Nguyen, Romberg, Net-Trim, NIPS 2017; SIAM J. Math. Data Sci. 2020, arXiv 1806.06457.
    """

    kind: Literal["net_trim"] = "net_trim"
    gamma: float = 0.1
    images: int = 512
    scheme: Scheme = "parallel"
    form: Form = "convex"
    rounds: int = 4
    support: Support = "solved"
    ridge: float = RIDGE
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma = {self.gamma}: a share of the outputs' norm lies in (0, 1)")
        for name, value in (("images", self.images), ("rounds", self.rounds)):
            if value < 1:
                raise ValueError(f"{name} = {value}: at least 1")
        if self.ridge < 0:
            raise ValueError(f"ridge = {self.ridge}: at least 0")
