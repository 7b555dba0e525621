"""Unstructured pruning: single weights that are zero, and stay so."""

from edgewise.sparse.beginnings import grasp, snip, synflow
from edgewise.sparse.config import Sparsify
from edgewise.sparse.flipout import FlipOut, FlipOutPruning
from edgewise.sparse.gradual import Gradual, GradualPruning
from edgewise.sparse.hoyer import HoyerSparsity, HoyerSquare
from edgewise.sparse.keep_zeros import KeepZeros, ZerosKept
from edgewise.sparse.masks import apply_, keep_masks, masked, prunable, score

__all__ = [
    "FlipOut",
    "FlipOutPruning",
    "Gradual",
    "GradualPruning",
    "HoyerSparsity",
    "HoyerSquare",
    "KeepZeros",
    "Sparsify",
    "ZerosKept",
    "apply_",
    "grasp",
    "keep_masks",
    "masked",
    "prunable",
    "score",
    "snip",
    "synflow",
]
