"""Weights that are zero where they stand and stay so: single ones, or blocks that hardware skips."""

from edgewise.sparse.beginnings import grasp, snip, synflow
from edgewise.sparse.config import NetTrim, Sparsify
from edgewise.sparse.flipout import FlipOut, FlipOutPruning
from edgewise.sparse.gradual import Gradual, GradualPruning
from edgewise.sparse.hoyer import HoyerSparsity, HoyerSquare
from edgewise.sparse.keep_zeros import KeepZeros, ZerosKept
from edgewise.sparse.layerwise import TrimmedLayer, sparsify_layers
from edgewise.sparse.masks import apply_, keep_masks, keep_n_of_m, masked, prunable, score
from edgewise.sparse.nettrim import Refitted, Trimmed, least_residual, refit, trim
from edgewise.sparse.pe import PeLasso, PeLassoPruning
from edgewise.sparse.pe_array import OnArray, TernaryAccounting, on_array, ternary_accounting

__all__ = [
    "FlipOut",
    "FlipOutPruning",
    "Gradual",
    "GradualPruning",
    "HoyerSparsity",
    "HoyerSquare",
    "KeepZeros",
    "NetTrim",
    "OnArray",
    "PeLasso",
    "PeLassoPruning",
    "Refitted",
    "Sparsify",
    "TernaryAccounting",
    "Trimmed",
    "TrimmedLayer",
    "ZerosKept",
    "apply_",
    "grasp",
    "keep_masks",
    "keep_n_of_m",
    "least_residual",
    "masked",
    "on_array",
    "prunable",
    "refit",
    "score",
    "snip",
    "sparsify_layers",
    "synflow",
    "ternary_accounting",
    "trim",
]
