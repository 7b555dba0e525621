"""FlipOut: of weights of one size, those go first that changed their sign most often while they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from edgewise.sparse.gradual import Sparsifying, check_schedule
from edgewise.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class FlipOut:
    """Set weights to zero while the network trains: small ones that flip between plus and minus.

    A weight that is trained to zero jumps over it again and again; one that is small on its way elsewhere does not.
    Noise on the gradients lets a weight flip that has come to rest near zero.

    Args:
        sparsity: the share of the weights of convolutions and linear layers that is zero in the end, in (0, 1).
        events: how often weights are taken, each time the same share of what is left. The published rate of a half is
            2 events for 0.75, 4 for 0.9375, 10 for 0.999.
        start, end: the shares of the training at the first and at the last event. The authors have ``1 / (events + 1)``
            and ``events / (events + 1)``, which 0 stands for.
        power: p of the saliency ``|w|^p / (flips + 1)``.
        noise: of the gradients, as a share of the root mean square of each tensor's gradient. The authors' 1 is for
            trainings of hundreds of epochs: in 10 it cost 14 points; without any the flips equalled magnitude.
        noise_end: the share of the training from which on there is none. The authors have it to the end, 1; 0 stands
            for the last event, after which no sign is looked at any more.

    Raises:
        ValueError: a value out of range, by name.

    Reference: Apostol, Stol, Forre, Pruning by Leveraging Training Dynamics, AI Communications 35(2), 2022, doi
    10.3233/AIC-210127, and its code; first as FlipOut, BNAIC 2020, arXiv 2009.02594.
    """

    kind: Literal["flipout"] = "flipout"
    sparsity: float
    events: int = 4
    start: float = 0.0
    end: float = 0.0
    power: float = 2.0
    noise: float = 1.0
    noise_end: float = 0.0

    def __post_init__(self) -> None:
        check_schedule(self.sparsity, self.events, *self.span)
        for name, value, fits, range_ in (
            ("power", self.power, self.power >= 0, "at least 0"),
            ("noise", self.noise, self.noise >= 0, "at least 0"),
            ("noise_end", self.noise_end, 0 <= self.noise_end <= 1, "in [0, 1], a share of the training"),
        ):
            if not fits:
                raise ValueError(f"{name} is {value}; it must be {range_}")

    @property
    def span(self) -> tuple[float, float]:
        """The shares of the training at the first and at the last event."""
        apart = 1 / (self.events + 1)
        start = self.start or apart
        return start, self.end or (1 - apart if self.events > 1 else start + 1e-9)


@final
class FlipOutPruning(Sparsifying):
    """Counts flips, makes noise, and takes weights, as `FlipOut` says."""

    config: FlipOut

    def __init__(self, config: FlipOut) -> None:
        super().__init__(config.sparsity, config.events, *config.span, "geometric", "global")
        self.config = config
        self._parameters: list[nn.Parameter] = []
        self._noise = torch.empty(0)  # of all parameters, one after the other: a new one every step would cost more
        self._flips: dict[str, Tensor] = {}
        self._signs: dict[str, Tensor] = {}  # after the step before: -1 or 1, and 0 for what is zero
        self._spare: dict[str, Tensor] = {}  # takes turns with those
        self._steps = self._step = 0

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Find the weights and the events; no weight has flipped yet."""
        self._signs = {}  # of what was trained before
        super().start(model, config, steps_per_epoch)
        self._parameters = list(model.parameters())
        self._noise = torch.empty(sum(map(Tensor.numel, self._parameters)), device=self._parameters[0].device)
        self._flips = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.weights.items()}
        self._signs = {name: weight.detach().sign() for name, weight in self.weights.items()}
        self._spare = {name: torch.empty_like(weight) for name, weight in self.weights.items()}
        self._steps, self._step = config.epochs * steps_per_epoch, 0

    def gradients(self, model: nn.Module) -> None:
        """Add noise of each gradient's own size, and none to weights that are gone."""
        super().gradients(model)
        last = self.config.noise_end * self._steps if self.config.noise_end else self._due[-1]
        if self.config.noise and self._step < last:
            self._add_noise([parameter.grad for parameter in self._parameters if parameter.grad is not None])
            super().gradients(model)

    def _add_noise(self, gradients: list[Tensor]) -> None:
        """Add to each gradient numbers from a normal distribution as wide as its root mean square, times `noise`."""
        numbers = [gradient.numel() for gradient in gradients]
        drawn = torch.split(self._noise[: sum(numbers)].normal_(), numbers)
        noise = [part.view_as(gradient) for part, gradient in zip(drawn, gradients, strict=True)]
        widths = torch._foreach_norm(gradients)
        torch._foreach_mul_(widths, [self.config.noise * number**-0.5 for number in numbers])
        torch._foreach_mul_(noise, widths)
        torch._foreach_add_(gradients, noise)

    def watch(self) -> None:
        """Count the flips of a step."""
        self._step += 1
        before, after = list(self._signs.values()), list(self._spare.values())
        torch._foreach_copy_(after, list(self.weights.values()))
        torch._foreach_sign_(after)
        torch._foreach_sub_(before, after)
        torch._foreach_abs_(before)  # 2 where a weight has flipped
        torch._foreach_add_(list(self._flips.values()), before, alpha=0.5)
        self._signs, self._spare = self._spare, self._signs

    def choose(self, keep: Mapping[str, Tensor]) -> None:
        """Keep these weights from now on; that the others become zero is no flip."""
        super().choose(keep)
        self.only_kept(self._signs)

    def scores(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``|w|^p / (flips + 1)``."""
        return {
            name: weight.detach().abs().pow(self.config.power) / (self._flips[name] + 1)
            for name, weight in weights.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the masks, the flips and the next step; the signs are those of the weights."""
        flips = {f"flips/{name}": flips for name, flips in self._flips.items()}
        return {**super().state(), **flips, "step": torch.tensor(self._step)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take them back."""
        super().load_state(state)
        for name, flips in self._flips.items():
            flips.copy_(state[f"flips/{name}"])
        self._signs = {name: weight.detach().sign() for name, weight in self.weights.items()}
        self._step = int(state["step"])
