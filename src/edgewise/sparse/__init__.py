"""Unstructured pruning: single weights that are zero, and stay so."""

from edgewise.sparse.config import Sparsify
from edgewise.sparse.keep_zeros import KeepZeros, ZerosKept
from edgewise.sparse.layerwise import TrimmedLayer, sparsify_layers
from edgewise.sparse.masks import apply_, keep_masks, masked, prunable, score
from edgewise.sparse.nettrim import Refitted, Trimmed, least_residual, refit, trim

__all__ = [
    "KeepZeros",
    "Refitted",
    "Sparsify",
    "Trimmed",
    "TrimmedLayer",
    "ZerosKept",
    "apply_",
    "keep_masks",
    "least_residual",
    "masked",
    "prunable",
    "refit",
    "score",
    "sparsify_layers",
    "trim",
]
