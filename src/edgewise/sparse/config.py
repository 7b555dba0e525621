"""What a sparsify step is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise.sparse.beginnings import Beginning
from edgewise.sparse.masks import Criterion, Scope


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Set single weights to zero, in one go, wherever in a layer they are.

    The weights of convolutions and linear layers, no biases or normalisations. The tensors keep their shapes: what is
    stored, and every MAC, stays as it is in a runtime without sparse kernels. `nonzero` is what goes down.

    Args:
        sparsity: the share of these weights that becomes zero, in (0, 1).
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
    sparsity: float
    criterion: Criterion | Beginning = "l1"
    scope: Scope = "global"
    images: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity = {self.sparsity}: a share of the weights lies in (0, 1)")
        if self.images < 1:
            raise ValueError(f"images = {self.images}: at least 1")
