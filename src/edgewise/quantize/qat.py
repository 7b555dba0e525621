"""Quantisation-aware training: the network learns with its tensors rounded, and the scales learn with it (LSQ).

It starts from the ranges that calibration found, in the form that the file will have: batch normalisations are folded,
so that what is trained is what will be computed.

Reference: Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from edgewise.models.onnx import OnnxNetwork, Step
from edgewise.quantize.affine import SMALLEST_SCALE
from edgewise.quantize.simulate import FakeQuantize
from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


class Lsq(TrainingMethod):
    """Learns step sizes beside the weights; takes part in the training of a simulated network.

    A step size has one gradient from all the numbers that share it. It is divided by the square root of how many they
    are, times the highest code, so that step sizes move by as large a share of themselves as weights do, and cut off
    at the step size itself: a channel of few large weights would otherwise lose its scale within a few steps.
    """

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find taps and zeros of the network; rectifiers whose work is done by codes that begin at 0 are left out."""
        self._taps = [module for module in model.modules() if isinstance(module, FakeQuantize)]
        sparse = [weight for weight in model.parameters() if weight.dim() > 1 and not bool(weight.all())]
        self._zeros = [(weight, weight.detach() == 0) for weight in sparse]
        if isinstance(model, OnnxNetwork):
            self._steps = model.steps
            model.steps = tuple(_without_rectifier(step, model) for step in model.steps)

    def gradients(self, model: nn.Module) -> None:
        """Scale the step sizes' gradients."""
        for tap in self._taps:
            if tap.scale.grad is not None:
                tap.scale.grad *= (tap.numbers * max(tap.spec.codes)) ** -0.5
                tap.scale.grad.clamp_(-tap.scale, tap.scale)

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Keep the step sizes positive, and weights zero that were zero: they have a code of their own."""
        for tap in self._taps:
            tap.scale.clamp_(min=SMALLEST_SCALE)
        for weight, zero in self._zeros:
            weight.masked_fill_(zero, 0)

    def finish(self, model: nn.Module) -> nn.Module:
        """Put the rectifiers back."""
        if isinstance(model, OnnxNetwork):
            model.steps = self._steps
        return model


def _without_rectifier(step: Step, network: OnnxNetwork) -> Step:
    """Return an operator, or one that does nothing for a rectifier of what is rounded to codes from 0 on."""
    tap = network.tapped(step.outputs[0])
    done = step.op_type == "Relu" and isinstance(tap, FakeQuantize) and not tap.spec.signed and not tap.zero_point.any()
    return replace(step, op_type="Identity") if done else step
