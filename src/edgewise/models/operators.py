"""ONNX's operators in torch: the words that files of vision networks are written in.

Each takes its inputs by position, as tensors where they hold floats and as NumPy arrays where they hold integers, and
its attributes by name. Where an input is left out it is None.

Reference: ONNX operators, opset 20, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.errors import ModelError

Integers = np.ndarray[Any, Any]
OPERATORS: dict[str, Callable[..., Any]] = {}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LONGEST = 1 << 31  # from which an end stands for the end of the axis
FLOAT_TYPES = (1, 10, 11, 16)  # ONNX's numbers of float32, float16, float64, bfloat16
PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
RESIZES = {  # mode, coordinates, rounding: torch's mode, and whether corners are aligned
    ("nearest", "asymmetric", "floor"): ("nearest", None),
    ("nearest", "half_pixel", "round_prefer_floor"): ("nearest-exact", None),
    ("linear", "half_pixel", ""): ("bilinear", False),
    ("linear", "pytorch_half_pixel", ""): ("bilinear", False),
    ("linear", "align_corners", ""): ("bilinear", True),
    ("cubic", "half_pixel", ""): ("bicubic", False),
    ("cubic", "pytorch_half_pixel", ""): ("bicubic", False),
    ("cubic", "align_corners", ""): ("bicubic", True),
}


def operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function under ONNX's name."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS[name] = function
        return function

    return enter


# -- layers ------------------------------------------------------------------------------------------------------


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] = (),
) -> Tensor:
    """Convolve ``[N, C, *space]`` with ``[K, C / group, *kernel]``."""
    space = x.dim() - 2
    strides, dilations = tuple(strides) or (1,) * space, tuple(dilations) or (1,) * space
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    x, padding = _padded(x, paddings(auto_pad, pads, x, reach, strides), 0.0)
    return CONVOLUTIONS[space](x, weight, bias, strides, padding, dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] = (),
) -> Tensor:
    """Convolve the other way, from ``[N, C, *space]`` with ``[C, K / group, *kernel]``."""
    space = x.dim() - 2
    before, after = _halves(pads or (0,) * 2 * space)
    if auto_pad != "NOTSET" or output_shape or before != after:
        raise ModelError("ConvTranspose with automatic or uneven padding is not known")
    ones, none = (1,) * space, (0,) * space
    return TRANSPOSED[space](
        x, weight, bias, tuple(strides) or ones, before, tuple(output_padding) or none, group, tuple(dilations) or ones
    )


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Multiply two matrices and add a third."""
    if alpha == beta == 1 and not transA and (c is None or c.dim() == 1):
        return F.linear(a, b if transB else b.t(), c)  # one operator, which other runtimes' exporters know
    product = (a.t() if transA else a) @ (b.t() if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices."""
    return a @ b


# -- normalisations ----------------------------------------------------------------------------------------------


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """Normalise with fixed statistics."""
    return F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Normalise over the axes from `axis` on."""
    shape = x.shape[axis:]
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


@operator("GroupNormalization")
def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Normalise groups of channels; up to opset 20 a scale is a group's."""
    weight, shift = (each.repeat_interleave(x.shape[1] // len(each)) for each in (scale, bias))
    return F.group_norm(x, num_groups, weight, shift, epsilon)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalise each image's channels."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


# -- element by element --------------------------------------------------------------------------------------------

BOTH: dict[str, tuple[Callable[..., Tensor], Callable[..., Integers]]] = {  # of floats, of integers
    "Add": (torch.add, np.add),
    "Sub": (torch.sub, np.subtract),
    "Mul": (torch.mul, np.multiply),
    "Div": (torch.div, np.floor_divide),
    "Neg": (torch.neg, np.negative),
    "Abs": (torch.abs, np.abs),
}
FLOATS: dict[str, Callable[..., Tensor]] = {
    **{"Pow": torch.pow, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Reciprocal": torch.reciprocal},
    **{"Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil, "Sin": torch.sin, "Cos": torch.cos},
    **{"Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softplus": F.softplus, "Mish": F.mish},
    **{"HardSwish": F.hardswish, "PRelu": lambda x, slope: F.relu(x) - slope * F.relu(-x)},
    **{"Max": torch.maximum, "Min": torch.minimum, "Identity": lambda x: x, "Dropout": lambda x, *_: x},
}


def _enter_elementwise() -> None:
    for name, (floats, integers) in BOTH.items():
        operator(name)(partial(_either, floats, integers))
    for name, function in FLOATS.items():
        operator(name)(function)


def _either(floats: Callable[..., Tensor], integers: Callable[..., Integers], *inputs: Any) -> Any:
    """Compute in NumPy what is made of integers alone."""
    return (integers if all(isinstance(each, np.ndarray) for each in inputs) else floats)(*inputs)


_enter_elementwise()


@operator("Clip")
def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Bound from below and above."""
    bounds = [None if bound is None else float(bound) for bound in (low, high)]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Let a share of what is negative pass."""
    return F.leaky_relu(x, alpha)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Bend what is negative exponentially."""
    return F.elu(x, alpha)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Clamp a line to 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Weigh with the normal distribution."""
    return F.gelu(x, approximate=approximate)


@operator("Softmax")
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Turn logits into shares of 1."""
    return torch.softmax(x, axis)


@operator("Cast")
def cast(x: Any, *, to: int, saturate: int = 1) -> Any:
    """Change the type: floats are float32, whole numbers int64."""
    floats = to in FLOAT_TYPES
    if isinstance(x, Tensor):
        return x if floats else x.detach().cpu().numpy().astype(np.int64)
    return torch.from_numpy(x.astype(np.float32)) if floats else x.astype(np.int64)


# -- pooling and reductions ------------------------------------------------------------------------------------------


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    """Take the largest of each window."""
    space = len(kernel_shape)
    strides, dilations = tuple(strides) or (1,) * space, tuple(dilations) or (1,) * space
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel_shape, strict=True)]
    x, padding = _padded(x, paddings(auto_pad, pads, x, reach, strides), -math.inf)
    return MAX_POOLS[space](x, tuple(kernel_shape), strides, padding, dilations, bool(ceil_mode))


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Take the mean of each window, of what is padded only where `count_include_pad` says so."""
    space = len(kernel_shape)
    strides = tuple(strides) or (1,) * space
    before, after = _halves(paddings(auto_pad, pads, x, kernel_shape, strides))
    if before != after or any(d != 1 for d in dilations):
        raise ModelError("AveragePool with uneven padding or with dilation is not known")
    return AVERAGE_POOLS[space](x, tuple(kernel_shape), strides, before, bool(ceil_mode), bool(count_include_pad))


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """Take the mean over space."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """Take the largest over space."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def _enter_reductions() -> None:
    kinds: dict[str, Callable[..., Tensor]] = {
        **{"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin},
        "ReduceL2": lambda x, dims, keepdim: torch.linalg.vector_norm(x, 2, dims, keepdim),
    }
    for name, function in kinds.items():
        operator(name)(partial(_reduce, function))


def _reduce(
    function: Callable[..., Tensor],
    x: Tensor,
    axes: Integers | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    dims = tuple(range(x.dim())) if axes is None or not len(axes) else tuple(int(axis) for axis in axes)
    return x if axes is None and noop_with_empty_axes else function(x, dims, keepdim=bool(keepdims))


_enter_reductions()


# -- shapes ----------------------------------------------------------------------------------------------------------


@operator("Shape")
def shape(x: Any, *, start: int = 0, end: int | None = None) -> Integers:
    """Return the lengths of the axes."""
    return np.array(x.shape[start:end], np.int64)


@operator("Reshape")
def reshape(x: Any, lengths: Integers, *, allowzero: int = 0) -> Any:
    """Arrange anew; 0 keeps a length, -1 takes what is left."""
    sizes = [x.shape[axis] if length == 0 and not allowzero else int(length) for axis, length in enumerate(lengths)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Arrange as a matrix."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def transpose(x: Any, *, perm: Sequence[int] = ()) -> Any:
    """Order the axes anew."""
    order = tuple(perm) or tuple(reversed(range(x.ndim)))
    return x.permute(order) if isinstance(x, Tensor) else x.transpose(order)


@operator("Squeeze")
def squeeze(x: Any, axes: Integers | None = None) -> Any:
    """Leave out axes of length 1."""
    dims = [d for d, n in enumerate(x.shape) if n == 1] if axes is None else [int(a) % x.ndim for a in axes]
    return x.reshape([n for d, n in enumerate(x.shape) if d not in dims])


@operator("Unsqueeze")
def unsqueeze(x: Any, axes: Integers) -> Any:
    """Put in axes of length 1."""
    lengths = list(x.shape)
    for axis in sorted(int(a) % (x.ndim + len(axes)) for a in axes):
        lengths.insert(axis, 1)
    return x.reshape(lengths)


@operator("Expand")
def expand(x: Any, lengths: Integers) -> Any:
    """Repeat along axes of length 1, as broadcasting does."""
    sizes = np.broadcast_shapes(tuple(x.shape), tuple(int(n) for n in lengths))
    return x.expand(sizes) if isinstance(x, Tensor) else np.broadcast_to(x, sizes)


@operator("Concat")
def concat(*parts: Any, axis: int) -> Any:
    """Join along an axis."""
    return np.concatenate(parts, axis) if isinstance(parts[0], np.ndarray) else torch.cat(parts, axis)


@operator("Split")
def split(x: Tensor, lengths: Integers | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    """Cut into parts of given lengths, or into equal ones with what is left in the last."""
    if lengths is None:
        return torch.split(x, -(-x.shape[axis] // num_outputs), axis)
    return torch.split(x, [int(n) for n in lengths], axis)


@operator("Slice")
def slice_(
    x: Any, starts: Integers, ends: Integers, axes: Integers | None = None, steps: Integers | None = None
) -> Any:
    """Take ranges of some axes."""
    cuts = [slice(None)] * x.ndim
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = place if axes is None else int(axes[place])
        step = 1 if steps is None else int(steps[place])
        if step < 0 and isinstance(x, Tensor):
            raise ModelError("Slice with a negative step is not known")
        cuts[axis] = slice(int(start), int(end) if end < LONGEST else None, step)
    return x[tuple(cuts)]


@operator("Gather")
def gather(x: Any, indices: Integers, *, axis: int = 0) -> Any:
    """Take entries along an axis."""
    if isinstance(x, np.ndarray):
        return x.take(indices, axis)
    axis %= x.dim()
    if indices.ndim == 0:
        return x.select(axis, int(indices))
    taken = x.index_select(axis, torch.as_tensor(indices.reshape(-1) % x.shape[axis], device=x.device))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("Pad")
def pad(
    x: Tensor, pads: Integers, value: Any = None, axes: Integers | None = None, *, mode: str = "constant"
) -> Tensor:
    """Add borders."""
    before, after = _halves(tuple(int(n) for n in pads))
    widths = dict.fromkeys(range(x.dim()), (0, 0))
    dims = range(x.dim()) if axes is None else [int(axis) % x.dim() for axis in axes]
    widths.update(zip(dims, zip(before, after, strict=True), strict=True))
    if mode not in PAD_MODES:
        raise ModelError(f'Pad with the mode "{mode}" is not known')
    inner = [n for dim in reversed(range(x.dim())) for n in widths[dim]]
    while len(inner) > 2 and not any(inner[-2:]):  # torch reflects no more axes than it must
        inner = inner[:-2]
    return F.pad(x, inner, PAD_MODES[mode], float(value) if value is not None and mode == "constant" else None)


@operator("Resize")
def resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Integers | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    **others: Any,
) -> Tensor:
    """Make an image larger or smaller, in the ways torch knows too."""
    how = (mode, coordinate_transformation_mode, nearest_mode if mode == "nearest" else "")
    if how not in RESIZES or others.get("antialias") or x.dim() != 4:
        raise ModelError(f"Resize with {', '.join(filter(None, how))} is not known")
    name, corners = RESIZES[how]
    size = None if sizes is None else tuple(int(n) for n in sizes[-2:])
    factors = None if size is not None or scales is None else tuple(scales[-2:].tolist())
    return F.interpolate(x, size, factors, mode=name, align_corners=corners)


@operator("Where")
def where(condition: Integers, a: Any, b: Any) -> Any:
    """Choose element by element; what chooses is a constant."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.where(condition, a, b)
    chosen = torch.tensor(condition)
    return torch.where(chosen, *(each if isinstance(each, Tensor) else torch.as_tensor(each) for each in (a, b)))


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Turn channels into space."""
    if mode != "CRD":
        raise ModelError(f'DepthToSpace with the mode "{mode}" is not known')
    return F.pixel_shuffle(x, blocksize)


# -- padding -----------------------------------------------------------------------------------------------------------


def _halves(pads: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what is padded before and after each axis."""
    return tuple(pads[: len(pads) // 2]), tuple(pads[len(pads) // 2 :])


def paddings(auto_pad: str, pads: Sequence[int], x: Tensor, reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the padding of each axis of space, before all and after all; `reach` is a window's length."""
    if auto_pad in ("NOTSET", "VALID"):
        return list(pads) if pads and auto_pad == "NOTSET" else [0] * 2 * len(reach)
    lengths = zip(x.shape[2:], reach, strides, strict=True)
    total = [max(0, (-(-length // stride) - 1) * stride + window - length) for length, window, stride in lengths]
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    return [*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small]


def _padded(x: Tensor, pads: Sequence[int], value: float) -> tuple[Tensor, tuple[int, ...]]:
    """Pad what torch's layers cannot pad by themselves: unevenly; return what is left for them."""
    before, after = _halves(pads)
    if before == after and value == 0.0:
        return x, before
    around = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, around, value=value) if any(around) else x, (0,) * len(before)
