"""Every operator of the table is called: it runs under its name, and removing channels around it is exact."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.graph import shrink, silence, trace
from edgewise.graph.rules import RULES

aten = torch.ops.aten
Function = Callable[[nn.ModuleDict, Tensor], Tensor]


class Net(nn.Module):
    """A stem whose eight channels are positive, an operator, and a head that reads what comes out."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.stem, self.function, self.head = nn.Conv2d(3, 8, 3, padding=1), function, nn.Conv2d(8, 5, 1)
        self.layers = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1), "linear": nn.Linear(8, 8), "norm": nn.BatchNorm2d(8)})

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.layers, self.stem(x).abs() + 0.5))


def weight(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """Return a matrix of parameters for every image."""
    return m["linear"].weight.expand(len(x), -1, -1)


def stored(m: nn.ModuleDict) -> tuple[Tensor, ...]:
    norm = m["norm"]
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def constant(make: Callable[[Tensor], Tensor]) -> Function:
    """Add something made in the forward that varies over the image alone."""
    return lambda m, x: x + make(x).to(x)


ONE_OPERAND = """
    neg abs sqrt relu relu_ hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ gelu silu silu_ mish mish_ tanh tanh_
    hardswish hardswish_ erf exp log rsqrt sigmoid sigmoid_ hardsigmoid hardsigmoid_ softplus reciprocal sin cos
    clone alias detach zeros_like ones_like
"""
TWO_OPERANDS = "add add_ sub sub_ mul mul_ div div_ maximum minimum"


def called(names: str, call: Callable[[Callable[..., Tensor], Tensor], Tensor]) -> dict[str, Function]:
    """Return for each operator the function that calls it in one way."""
    return {name: lambda m, x, name=name: call(getattr(aten, name), x) for name in names.split()}


# Operators by name, each in a function that keeps eight channels in dimension 1.
CALLS: dict[str, Function] = {
    **called(ONE_OPERAND, lambda op, x: op(x)),
    **called(TWO_OPERANDS, lambda op, x: op(x, x.tanh())),
    "empty_like": lambda m, x: torch.empty_like(x).copy_(x),
    "full_like": lambda m, x: torch.full_like(x, 2) * x,
    "copy_": lambda m, x: torch.empty_like(x).copy_(x),
    "addcmul": lambda m, x: torch.addcmul(x, x, x),
    "clamp": lambda m, x: x.clamp(1, 2),
    "clamp_": lambda m, x: x.clamp_(1, 2),
    "clamp_max": lambda m, x: aten.clamp_max(x, 1),
    "clamp_min": lambda m, x: aten.clamp_min(x, 1),
    "clamp_min_": lambda m, x: aten.clamp_min_(x, 1),
    "rsub": lambda m, x: 2 - x,
    "pow": lambda m, x: x**3,
    "where": lambda m, x: torch.where(x.to(torch.bool), x, -x),
    "eq": lambda m, x: (x == x.tanh()).to(x) + x,
    "gt": lambda m, x: (x > 1).to(x) + x,
    "lt": lambda m, x: (x < 1).to(x) + x,
    "bitwise_not": lambda m, x: (~(x > 1)).to(x) + x,
    "_to_copy": lambda m, x: x.to(torch.float32).to(x.dtype) if x.is_meta else aten._to_copy(x, dtype=x.dtype),
    "lift_fresh": lambda m, x: x * torch.tensor(2.0),
    "convolution": lambda m, x: m["conv"](x),
    "addmm": lambda m, x: m["linear"](x.mean((2, 3))).unsqueeze(2).unsqueeze(3),
    "t": lambda m, x: m["linear"](x.mean((2, 3))).unsqueeze(2).unsqueeze(3),
    "mm": lambda m, x: (x.mean((2, 3)) @ m["linear"].weight.T).unsqueeze(2).unsqueeze(3),
    "bmm": lambda m, x: (weight(m, x) @ x.flatten(2)).unflatten(2, (8, 8)),
    "baddbmm": lambda m, x: torch.baddbmm(x.flatten(2), weight(m, x), x.flatten(2)).unflatten(2, (8, 8)),
    "native_batch_norm": lambda m, x: m["norm"](x),
    "_native_batch_norm_legit": lambda m, x: aten._native_batch_norm_legit(x, *stored(m), False, 0.1, 1e-5)[0],
    "_native_batch_norm_legit_no_training": lambda m, x: aten._native_batch_norm_legit_no_training(
        x, *stored(m), 0.1, 1e-5
    )[0],
    "native_layer_norm": lambda m, x: F.layer_norm(x, (8,)),
    "native_group_norm": lambda m, x: F.group_norm(x, x.shape[1]),
    "mean": lambda m, x: x.mean((2, 3), keepdim=True),
    "sum": lambda m, x: x.sum((2, 3), keepdim=True),
    "amax": lambda m, x: x.amax((2, 3), keepdim=True),
    "amin": lambda m, x: x.amin((2, 3), keepdim=True),
    "var": lambda m, x: x.var((2, 3), keepdim=True),
    "max": lambda m, x: x.max(2, keepdim=True)[0],
    "linalg_vector_norm": lambda m, x: x.norm(dim=(2, 3), keepdim=True),
    "max_pool2d_with_indices": lambda m, x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda m, x: F.avg_pool2d(x, 2),
    "_adaptive_avg_pool2d": lambda m, x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda m, x: F.adaptive_max_pool2d(x, 2),
    "upsample_nearest2d": lambda m, x: F.interpolate(x, scale_factor=2),
    "upsample_bilinear2d": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "upsample_bicubic2d": lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "_upsample_bicubic2d_aa": lambda m, x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True),
    "upsample_linear1d": lambda m, x: F.interpolate(x.flatten(2), scale_factor=0.5, mode="linear").unsqueeze(3),
    "reflection_pad2d": lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replication_pad2d": lambda m, x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "constant_pad_nd": lambda m, x: F.pad(x, (1, 1, 1, 1)),
    "as_strided_": lambda m, x: F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1),
    "view": lambda m, x: x.view(len(x), -1, 64).unsqueeze(3),
    "_unsafe_view": lambda m, x: aten._unsafe_view(x, [len(x), -1, 64]).unsqueeze(3),
    "_reshape_alias": lambda m, x: aten._reshape_alias(x, x.shape, x.stride()),
    "squeeze": lambda m, x: x[:, :, :1].squeeze(2).unsqueeze(2),
    "unsqueeze": lambda m, x: x[:, :, 0].unsqueeze(2),
    "permute": lambda m, x: x.permute(0, 1, 3, 2),
    "transpose": lambda m, x: x.transpose(2, 3),
    "expand": lambda m, x: x[:, :, :1].expand(-1, -1, 8, -1),
    "slice": lambda m, x: x[:, :, ::2],
    "select": lambda m, x: x[:, :, 0].unsqueeze(2),
    "split": lambda m, x: torch.cat(x.split(4, dim=2), dim=3),
    "split_with_sizes": lambda m, x: x.split([3, 5], dim=2)[1],
    "unsafe_split": lambda m, x: aten.unsafe_split(x, 4, 2)[1],
    "unbind": lambda m, x: x.unbind(2)[0].unsqueeze(2),
    "cat": lambda m, x: torch.cat([x, x], 2),
    "stack": lambda m, x: torch.stack([x, x], 2).flatten(2, 3),
    "index": lambda m, x: x[:, :, [0, 3, 5]],
    "repeat": lambda m, x: x.repeat(1, 1, 2, 1),
    "flip": lambda m, x: x.flip(1, 3),
    "roll": lambda m, x: x.roll(1, 2),
    "cumsum": lambda m, x: x.cumsum(2),
    "unfold": lambda m, x: x.unfold(2, 2, 2).amax(4),
    "im2col": lambda m, x: F.unfold(x, 8).reshape(len(x), -1, 8, 8),
    "col2im": lambda m, x: F.fold(F.unfold(x, 2), (8, 8), 2),
    "_softmax": lambda m, x: x.softmax(2),
    "_safe_softmax": lambda m, x: aten._safe_softmax(x, 2),
    "empty": constant(lambda x: torch.empty(8, 8, device=x.device).copy_(x[0, 0])),
    "zeros": constant(lambda x: torch.zeros(8, 8)),
    "ones": constant(lambda x: torch.ones(8, 8)),
    "full": constant(lambda x: torch.full((8, 8), 3.0)),
    "arange": constant(lambda x: torch.arange(8)),
    "eye": constant(lambda x: torch.eye(8)),
    "scalar_tensor": constant(lambda x: torch.scalar_tensor(2.0)),
    "new_zeros": constant(lambda x: x.new_zeros(8, 8)),
    "new_full": constant(lambda x: x.new_full((8, 8), 3.0)),
    "new_ones": constant(lambda x: x.new_ones(8, 8)),
}


def test_every_operator_has_a_call() -> None:
    assert set(CALLS) == set(RULES)


@pytest.mark.parametrize("name", CALLS)
def test_the_operator_runs_under_its_name_and_removal_is_exact(name: str) -> None:
    torch.manual_seed(0)
    net, x = Net(CALLS[name]).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    nn.init.uniform_(net.layers["norm"].weight)
    graph = trace(net, x)
    assert name in {op.name for op in graph.ops} | {operator for operator, _ in graph.tracer.programme}
    keep = {g.name: np.arange(g.size)[1 : 1 + g.size // 2] for g in graph.prunable()}
    with torch.no_grad():
        assert torch.allclose(silence(net, graph, keep)(x), shrink(net, graph, keep)(x), rtol=1e-10, atol=1e-12)
