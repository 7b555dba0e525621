"""What a method may do while a network trains."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from edgewise.train.config import TrainConfig


class TrainingMethod(Protocol):
    """Takes part in a training; a method inherits this and writes only the hooks it needs.

    The loop calls the recipe's methods in their order, each step like this::

        start                                  once, before the optimizer is made
            before_step                        every step
            forward, task loss, loss           each method receives the loss of the one before it
            backward, gradients, optimizer step, after_step
            after_epoch                        every epoch, followed by a checkpoint
        finish                                 once, in reverse order, as nested context managers leave

    Every default is neutral. ``before_step``, ``gradients``, ``after_step``, ``after_epoch`` and ``finish`` run without
    autograd.

    Random numbers come from torch's global generator (``torch.randn_like`` and its kin): the loop seeds it for each
    epoch from the run's seed, apart from the order and the augmentation of the images, which no method can disturb.

    A killed training is resumed by calling ``start`` on a copy of the starting network, then giving parameters and
    buffers the values they had, then ``load_state``. So ``start`` must build the same structure each time, and what a
    method keeps elsewhere than in the network's parameters and buffers belongs in ``state``.

    The method is used by one training at a time; ``start`` begins afresh.
    """

    config: object = None
    """The frozen dataclass that the method was made from: a checkpoint written under another is refused."""

    # The bodies end in `return` because type checkers take a protocol's empty body for an abstract method.

    def networks(self) -> Sequence[nn.Module]:
        """Return the networks that the method was given, such as teachers: a checkpoint made with others is refused."""
        return ()

    def start(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> None:
        """Prepare the network in place, already a copy of the caller's and on the training's device.

        Parametrisations, modules and hooks are registered here; parameters that come with them are trained too.
        """
        return

    def before_step(self, model: nn.Module, index: Tensor) -> None:
        """Learn which images the step is about to see.

        Args:
            model: the network.
            index: int64 [B], their places in the training split, on the training's device. Where images belong
                together a place has several inputs.
        """
        return

    def loss(self, model: nn.Module, inputs: Tensor, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Compute the loss to minimise, a scalar, from the loss so far; runs under the training's autocast."""
        return loss

    def gradients(self, model: nn.Module) -> None:
        """Change the gradients in place, between the backward pass and the optimizer's step."""
        return

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Change the weights in place after the optimizer's step.

        Args:
            model: the network.
            step: the step, counted from 0 over the whole training.
            lr: the learning rate that this step had.
        """
        return

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Act after an epoch, counted from 0 over the whole training."""
        return

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the trained network without what ``start`` added; in place, or a new one.

        With an average of the weights (``TrainConfig.ema``) the network holds the average by now: what must hold
        exactly, such as zeros, is imposed here again.
        """
        return model

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed training needs, as tensors by name."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned; the tensors lie on the CPU, and ``start`` has been called."""
        return
