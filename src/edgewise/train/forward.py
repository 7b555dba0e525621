"""Running somebody's network: where it lies, which mode it is in, what its forward raises."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgewise.errors import ModelError, UnknownName, nearest, one_line
from edgewise.train.config import Precision

NARROW = 16  # inputs of a filter, in channels_last a block of oneDNN's


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the network's outputs.

    Raises:
        ModelError: the forward raised, or returned something else than a tensor; the message holds its own.
    """
    with telling_inputs(inputs), StridesApart() if _has_narrow(model, inputs) else nullcontext():
        outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise ModelError(f"the network returned an object of type {type(outputs).__name__}; it must return one tensor")
    return outputs


@final
class StridesApart(TorchFunctionMode):
    """Lets convolutions by 1x1 filters of few inputs that skip pixels compute in the contiguous layout.

    In channels_last their weights' gradient crashes the process on x86 (oneDNN in torch 2.13: it writes past its
    memory for fewer than 16 inputs, at most 16 outputs, a stride of 2 and maps of 56 pixels or more).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            x, weight, *rest = args
            stride = rest[1] if len(rest) > 1 else (kwargs or {}).get("stride", 1)
            if _is_narrow(weight) and stride not in (1, (1, 1)):
                # Not weight.contiguous(): for a filter of one pixel both layouts are, and its strides decide.
                args = (x.contiguous(), weight.flatten(1)[..., None, None], *rest)
        return func(*args, **(kwargs or {}))


def _is_narrow(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.shape[2:] == (1, 1) and weight.shape[1] < NARROW


def _has_narrow(model: nn.Module, inputs: Tensor) -> bool:
    """Say whether a network that is to be trained has filters that `StridesApart` is for."""
    return torch.is_grad_enabled() and not inputs.is_cuda and any(map(_is_narrow, model.parameters()))


@contextmanager
def telling_inputs(inputs: Tensor) -> Iterator[None]:
    """Turn whatever a network's forward raises into a `ModelError` that says so, and on which inputs."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # says nothing about the network
    except Exception as error:
        raise ModelError(f"the network's forward raised on inputs {list(inputs.shape)}: {one_line(error)}") from error


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Make the context in which a forward runs with that precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def take_modes(model: nn.Module, original: nn.Module) -> None:
    """Give every module the mode that it has in another network; one that is not there follows the whole network's."""
    modes = {name: module.training for name, module in original.named_modules()}
    for name, module in model.named_modules():
        module.training = modes.get(name, original.training)


def home(model: nn.Module) -> torch.device:
    """Find the device that the network lies on; the CPU for one without parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "cpu", "cuda" or "cuda:1" into a device that is here, with its index, as the tensors on it name it.

    Raises:
        UnknownName: there is no such device.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    name = str(device)
    gpus = torch.cuda.device_count()
    if name == "cuda" and gpus:
        return torch.device("cuda", torch.cuda.current_device())
    known = ["cpu", *(f"cuda:{index}" for index in range(gpus))]
    if name not in known:
        raise UnknownName(f'device "{name}" is not here; {nearest(name, known)}')
    return torch.device(name)


def image_layout(inputs: Tensor) -> Tensor:
    """Lay a batch of images out as channels_last, the layout convolutions are fastest in; others stay."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def weight_layout(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Lay the network's 4-D parameters and buffers out in a memory format, in place."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            # Not contiguous(), which takes a kernel of one input channel for channels_last already and leaves its
            # strides, by which the convolution then chooses the layout of its output.
            tensor.data = tensor.data.to(memory_format=memory_format)
    return model
