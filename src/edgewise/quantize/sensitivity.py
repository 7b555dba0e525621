"""Which layers lose the most when they are quantised: one at a time, measured at the logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.export.verify import rms_error
from edgewise.progress import Progress
from edgewise.quantize.static import Quantizer

IMAGES = 32


def layer_errors(quantizer: Quantizer, images: Tensor, progress: Progress | None = None) -> dict[str, float]:
    """Return the error of the logits when one layer alone reads codes and has weights of codes, the largest first.

    Args:
        quantizer: of the float file.
        images: ``[N, C, H, W]`` float32, better not those that the ranges were found on.
        progress: is told ("sensitivity", done, total), in layers.

    Returns:
        By the layers' names, the root mean square of the error as a share of that of the logits, with weights rounded
        to the nearest code in any case.
    """
    network, sites = quantizer.simulated(rounding="nearest"), quantizer.sites()
    needed = {name: (layer.weight, layer.bias, sites.scales[layer.input]) for name, layer in sites.layers.items()}
    taps = {tensor: network.tapped(tensor) for tensors in needed.values() for tensor in tensors if tensor}
    found = {}
    with torch.no_grad():
        network.taps = nn.ModuleDict()
        expected = network(images)
        for done, (name, tensors) in enumerate(needed.items(), 1):
            network.taps = nn.ModuleDict()
            for tensor in tensors:
                if tensor and (tap := taps[tensor]) is not None:
                    network.tap(tensor, tap)
            found[name] = rms_error(network(images), expected)
            if progress is not None:
                progress("sensitivity", done, len(needed))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
