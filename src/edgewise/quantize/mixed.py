"""Weights of 4 or 8 bits, layer by layer: the least error at the logits for a given size of the file.

Activations are 8-bit codes, and integer kernels compute as in the static scheme: 4-bit codes are widened once, when the
file is loaded. What a layer costs in accuracy is measured, that layer alone in 4 bits; which ones are chosen is an
integer programme, solved exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewise.errors import BudgetError
from edgewise.export.verify import rms_error
from edgewise.progress import Progress
from edgewise.quantize.simulate import FakeQuantize, weight_tap
from edgewise.quantize.static import Quantizer
from edgewise.units import format_quantity

FEW, MANY = 4, 8
WIDENED_BYTES = 24  # of the operator that widens a layer's codes, at most


def write_mixed(
    quantizer: Quantizer, out: Path, size: float, images: Tensor, progress: Progress | None = None
) -> tuple[Path, dict[str, int]]:
    """Write the file with the least error whose size is within the budget.

    Args:
        quantizer: of the float file.
        out: where it goes.
        size: a share of the float file's bytes.
        images: to measure errors on, ``[N, C, H, W]`` float32.
        progress: is told ("bits", done, total), in layers.

    Returns:
        The file, and the bits of each layer's weights.

    Raises:
        BudgetError: with 4 bits everywhere the file would be larger still.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    allowed = size * quantizer.path.stat().st_size
    quantizer.write(out, simulated=quantizer.simulated(rounding="nearest"))  # for its size
    names = list(quantizer.sites().layers)
    excess = out.stat().st_size - allowed
    if excess <= 0:
        return quantizer.write(out), dict.fromkeys(names, MANY)
    saved = np.array([_saved_bytes(quantizer, name) for name in names])
    if saved.sum() < excess:
        least = format_quantity("file_bytes", out.stat().st_size - saved.sum())
        raise BudgetError(
            f"size = {size}: with 4 bits everywhere the file would have {least}, {allowed:.0f} bytes may be"
        )
    errors = bit_errors(quantizer, images, progress)
    # Squares of independent errors add up.
    cost = np.array([errors[name] ** 2 for name in names])
    chosen = milp(
        cost / cost.max(),
        constraints=LinearConstraint(saved[None], lb=excess),
        integrality=np.ones(len(names)),
        bounds=Bounds(0, 1),
    )
    bits = {name: FEW if few > 0.5 else MANY for name, few in zip(names, chosen.x, strict=True)}
    return quantizer.write(out, simulated=quantizer.simulated(bits=bits)), bits


def bit_errors(quantizer: Quantizer, images: Tensor, progress: Progress | None = None) -> dict[str, float]:
    """Return the error of the logits when one layer's weights have 4 bits, by the layers' names.

    It is the root mean square of the difference from 8 bits everywhere, as a share of that of the logits, with weights
    rounded to the nearest code in any case.
    """
    network, sites = quantizer.simulated(rounding="nearest"), quantizer.sites()
    found = {}
    with torch.no_grad():
        expected = network(images)
        for done, (name, layer) in enumerate(sites.layers.items(), 1):
            many = network.tapped(layer.weight)
            assert isinstance(many, FakeQuantize)
            network.tap(layer.weight, weight_tap(layer, network.weight(layer.weight).detach(), FEW))
            found[name] = rms_error(network(images), expected)
            network.tap(layer.weight, many)
            if progress is not None:
                progress("bits", done, len(sites.layers))
    return found


def _saved_bytes(quantizer: Quantizer, name: str) -> int:
    numbers = int(np.prod(quantizer.layers[name].shape))
    return max(0, numbers - (numbers + 1) // 2 - WIDENED_BYTES)
