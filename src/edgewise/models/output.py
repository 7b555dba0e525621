"""Whether a network's output is what its task needs, and what foreign code's exceptions say."""

from itertools import chain

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.graph.trace import evaluating
from edgewise.train.forward import telling_inputs


def check_output(model: nn.Module, input_shape: tuple[int, int, int], classes: int) -> None:
    """Run a network once, on two images of zeros, and make sure that it returns logits ``[2, classes]``.

    The network is run in evaluation mode and left as it was: modes, buffers, gradients and random state.

    Args:
        model: one tensor in, one tensor out.
        input_shape: ``(C, H, W)`` of an image.
        classes: how many classes the data has.

    Raises:
        ModelError: the forward raised (its own message is repeated), or returned something else.

    >>> check_output(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), (3, 2, 2), classes=5)
    Traceback (most recent call last):
    edgewise.errors.ModelError: the network returned a tensor [2, 10] for inputs [2, 3, 2, 2]; ...
    """
    x, output = _run(model, input_shape)
    if not isinstance(output, Tensor) or output.shape != (2, classes) or not output.is_floating_point():
        raise ModelError(
            f"the network returned {_described(output)} for inputs {list(x.shape)}; "
            f"it must return one tensor of logits [2, {classes}], a number for each of the data's classes"
        )


def check_maps(model: nn.Module, input_shape: tuple[int, int, int], maps: int, stride: int) -> None:
    """Run a network as `check_output` does, and make sure that it returns maps ``[2, maps, H / stride, W / stride]``.

    Args:
        model: one tensor in, one tensor out.
        input_shape: ``(C, H, W)`` of an image.
        maps: how many: one for each of the data's classes, and those that say where boxes lie.
        stride: pixels of the image for one place of a map.

    Raises:
        ModelError: the forward raised (its own message is repeated), or returned something else.
    """
    x, output = _run(model, input_shape)
    expected = [2, maps, input_shape[1] // stride, input_shape[2] // stride]
    if not isinstance(output, Tensor) or list(output.shape) != expected or not output.is_floating_point():
        raise ModelError(
            f"the network returned {_described(output)} for inputs {list(x.shape)}; to find boxes it must return one "
            f"tensor of maps {expected}; take one of centernet_tiny, centernet_mobilenet_v2, centernet_resnet18 and "
            "centernet_resnet50"
        )


def _run(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Tensor, object]:
    """Return two images of zeros and what a network makes of them; it is left as it was."""
    stored = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    x = torch.zeros(2, *input_shape, device=stored.device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad(), evaluating(model), telling_inputs(x):
        return x, torch.func.functional_call(model, buffers, (x,))


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        kind = "a tensor" if output.is_floating_point() else f"a tensor of {str(output.dtype).removeprefix('torch.')}"
        return f"{kind} {list(output.shape)}"
    if isinstance(output, dict):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, output)) or '(none)'}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)} ({', '.join(map(_described, output))})"
    return "None" if output is None else f"an object of type {type(output).__name__}"
