"""How good a pruned network is before it is trained again: its BatchNorm statistics measured anew, then its accuracy.

Both in one pass. All images go through the network together, those that calibrate first: each BatchNorm measures its
statistics on them, and normalises every image with these at once. So the statistics of a layer are those of the
network as it will run, and recalibration costs no forward of its own.

Reference: Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020,
arXiv 2007.02491: the accuracy with adapted statistics ranks pruned networks nearly as that after fine-tuning does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from edgewise.cost.static import cost_of
from edgewise.data import Split
from edgewise.graph.groups import trace
from edgewise.tasks import Task
from edgewise.train.evaluate import evaluate
from edgewise.train.forward import forward, image_layout, resolve_device, weight_layout
from edgewise.train.randomness import mixed_seed, reproducible
from edgewise.train.recalibrate import recalibrate

Arithmetic = Literal["auto", "float32", "bfloat16"]
MEMORY = 0.25  # share of the machine's memory that one pass may take: not of what is free, or runs would differ
COPIES = 3  # times what a runtime needs: results are not written over operands, and some are kept for the next network


class Recalibrating(TorchFunctionMode):
    """Lets every BatchNorm that keeps statistics use those of the batch's first images instead of its own.

    Convolutions of small maps are carried out as products meanwhile, which is faster.

    Args:
        images: how many of the batch's images are measured, at least 2; the others are only normalised.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self._batch_norm if func is F.batch_norm else convolution if func is F.conv2d else func
        return called(*args, **(kwargs or {}))

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if running_mean is not None and running_var is not None:
            running_mean, running_var = torch.zeros_like(running_mean), torch.ones_like(running_var)
            # With a momentum of 1 they become the mean and the unbiased variance of the images.
            torch.batch_norm_update_stats(input[: self.images], running_mean, running_var, 1.0)
        return F.batch_norm(input, running_mean, running_var, *args, **kwargs)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve as `F.conv2d` does; where the map has fewer places than the kernel, as one product.

    Most of the kernel lies on padding there. 3x3 on a map of 2x2 takes 4 multiplications for each place, input and
    output channel in the place of 9.
    """
    small = input.dim() == 4 and prod(input.shape[2:]) < prod(weight.shape[2:])
    if not small or isinstance(padding, str) or dilation not in (1, (1, 1)) or groups != 1:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows, columns = (
        _taps(input.shape[2 + d], weight.shape[2 + d], *(v if isinstance(v, int) else v[d] for v in (stride, padding)))
        for d in range(2)
    )
    # [O, C, H, outputs, W, outputs]; the index behind the last tap is that of a zero
    spread = F.pad(weight, (0, 1, 0, 1))[:, :, rows.to(weight.device)][..., columns.to(weight.device)]
    outputs, channels, height, high, width, wide = spread.shape
    matrix = spread.permute(2, 4, 1, 3, 5, 0).reshape(height * width * channels, high * wide * outputs)
    product = (input.permute(0, 2, 3, 1).reshape(len(input), -1) @ matrix).view(len(input), high, wide, outputs)
    return (product if bias is None else product + bias).permute(0, 3, 1, 2)


def _taps(size: int, kernel: int, stride: int, padding: int) -> Tensor:
    """Return which tap of a kernel lies on each place of the input, for each output ``[inputs, outputs]``."""
    outputs = torch.arange((size + 2 * padding - kernel) // stride + 1)
    tap = torch.arange(size)[:, None] - stride * outputs + padding
    return torch.where((tap >= 0) & (tap < kernel), tap, kernel)


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges networks by their accuracy on held-out images, with BatchNorm statistics of training images.

    Args:
        task: makes inputs and measures.
        calibration: the training images that the statistics are measured on.
        held: the images of the accuracy; never of the test split.
        device: where to compute.
        dtype: in which convolutions and products are computed; BatchNorm's parameters and statistics stay float32.
        at_once: all images go through a network together. Where that takes too much memory, statistics are averaged
            over batches (`edgewise.train.recalibrate`), and a second pass measures.
    """

    task: Task
    calibration: Split
    held: Split
    device: torch.device
    dtype: torch.dtype = torch.float32
    at_once: bool = True

    @cached_property
    def inputs(self) -> Tensor:
        """All images, those that calibrate first ``[N, C, H, W]``."""
        found = torch.cat([self._whole(self.calibration)[0], self._whole(self.held)[0]])
        return image_layout(found).to(self.dtype)

    @cached_property
    def targets(self) -> Tensor:
        """The targets of the held-out images."""
        return self._whole(self.held)[1]

    @cached_property
    def calibrating(self) -> int:
        """How many of the inputs calibrate."""
        return len(self.inputs) - len(self.targets)

    def _whole(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return all inputs and targets of a split."""
        split = split.to(self.device)
        return self.task.batch(split, torch.arange(len(split), device=self.device), augment=False)

    def accuracy(self, model: nn.Module) -> float:
        """Return the task's metric of a network once its statistics are those of the calibration images.

        Raises:
            ModelError: a forward that raises, outputs of a wrong shape or not finite.
        """
        if not self.at_once:
            measured = recalibrate(model, self.task, self.calibration, images=len(self.calibration), device=self.device)
            precision: Literal["float32", "bfloat16"] = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
            return evaluate(measured, self.task, self.held, device=self.device, precision=precision)
        return self.metric(self.passing(model)())

    def passing(self, model: nn.Module) -> Callable[[], Tensor]:
        """Return the function that sends all images through a network; the network is left as it was."""
        network, inputs, calibrating = prepared(model, self.device, self.dtype), self.inputs, self.calibrating
        return lambda: one_pass(network, inputs, calibrating)

    def metric(self, outputs: Tensor) -> float:
        """Measure the outputs of one pass of all images."""
        return self.task.metric(self.task.answers(outputs[self.calibrating :].float()), self.targets)


def prepared(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Copy a network in evaluation mode, with everything but its BatchNorms in a type, convolutions channels_last."""
    network = weight_layout(copy.deepcopy(model).to(device).eval(), torch.channels_last)
    for module in network.modules():
        if not isinstance(module, _BatchNorm):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
    return network


def one_pass(network: nn.Module, inputs: Tensor, images: int) -> Tensor:
    """Send all inputs ``[N, ...]`` through a network in evaluation mode; the first `images` of them calibrate it."""
    with torch.inference_mode(), reproducible(inputs.device), Recalibrating(images):
        return forward(network, inputs.clone())  # it may write over them


def make_judge(
    model: nn.Module,
    task: Task,
    train: Split,
    held: Split,
    *,
    calibration: int = 2000,
    images: int = 1000,
    arithmetic: Arithmetic = "auto",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Judge:
    """Choose the images that candidates of a network are judged on.

    Args:
        model: the network before it is pruned; it needs the most memory.
        task: makes inputs and measures.
        train: the training split, which the statistics come from.
        held: held-out images, which the accuracy comes from.
        calibration: how many training images, drawn by the seed; all where there are fewer.
        images: how many held-out images, likewise.
        arithmetic: "auto" is bfloat16 where the device computes in it, else float32.
        seed: at least 0.
        device: where to compute.

    Raises:
        ValueError: fewer than 2 calibration images or no held-out ones; a seed below 0.
        UnknownName: a device that is not here.
        DataError: a split the task refuses.
    """
    if calibration < 2:  # one image has no variance
        raise ValueError(f"calibration is {calibration}; it must be at least 2")
    if images < 1:
        raise ValueError(f"images is {images}; it must be at least 1")
    device = resolve_device(device)
    task.check(train)
    task.check(held)
    generator = torch.Generator().manual_seed(mixed_seed(seed))
    first, then = _drawn(train, calibration, generator), _drawn(held, images, generator)
    dtype = torch.bfloat16 if arithmetic == "bfloat16" or (arithmetic == "auto" and _has_bfloat16(device)) else None
    example = torch.empty(1, *train.images.shape[-3:])
    needed = cost_of(trace(model, example)).peak_activation_bytes * (len(first) + len(then)) * COPIES
    at_once = (needed / 2 if dtype else needed) <= MEMORY * _memory_bytes(device)
    return Judge(task, first, then, device, dtype or torch.float32, at_once)


def _drawn(split: Split, count: int, generator: torch.Generator) -> Split:
    return split.part(torch.randperm(len(split), generator=generator)[:count])


def _has_bfloat16(device: torch.device) -> bool:
    """Say whether a device has instructions that multiply in bfloat16."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _memory_bytes(device: torch.device) -> int:
    """Return how much memory a device has in all."""
    total: int = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    return total
