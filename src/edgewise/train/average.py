"""An exponential moving average of the weights, as one more training method."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.train.config import TrainConfig
from edgewise.train.method import TrainingMethod


@final
class WeightAverage(TrainingMethod):
    """Averages the parameters and BatchNorm's running statistics, and finishes with the averages in their place.

    average <- average + (1 - d) (weight - average), with d = min(decay, (1 + step) / (10 + step)): the early steps
    are forgotten faster, so that a short training is not dominated by its initial weights. Any other buffer (a mask,
    a counter) keeps the network's own value.

    Reference: the warm-up of d is that of TensorFlow's ``tf.train.ExponentialMovingAverage(num_updates)``.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._weights: list[Tensor] = []
        self._averages: list[Tensor] = []

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Begin with the network's own values."""
        statistics = [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        self._weights = [*(p for p in model.parameters() if p.requires_grad), *statistics]
        self._averages = [weight.detach().clone() for weight in self._weights]

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Move every average towards its weight, in one call for all tensors."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    def finish(self, model: nn.Module) -> nn.Module:
        """Put the averages in the place of the weights."""
        torch._foreach_copy_(self._weights, self._averages)
        return model

    def state(self) -> dict[str, Tensor]:
        """Return the averages, by their place in the network."""
        return {str(place): average for place, average in enumerate(self._averages)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the averages back."""
        for place, average in enumerate(self._averages):
            average.copy_(state[str(place)])
