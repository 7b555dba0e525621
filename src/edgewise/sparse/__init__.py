"""Unstructured pruning: single weights that are zero, and stay so."""

from edgewise.sparse.config import Sparsify
from edgewise.sparse.keep_zeros import KeepZeros, ZerosKept
from edgewise.sparse.masks import apply_, keep_masks, masked, prunable, score

__all__ = [
    "KeepZeros",
    "Sparsify",
    "ZerosKept",
    "apply_",
    "keep_masks",
    "masked",
    "prunable",
    "score",
]
