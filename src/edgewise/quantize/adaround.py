"""AdaRound: for each weight it is learnt whether to round up or down, so that the layer's output changes the least.

Layer by layer, in the graph's order: each one on the rounded inputs that the layers before it make, against the output
of the float network (asymmetric reconstruction), after the clamp behind it where there is one. A layer is learnt from
positions of its output that are drawn once: each is a row of the inputs that it is made of. So a learning step costs
as much as the layer has weights, whatever the size of its maps, and a network takes minutes on one core.

Reference: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, arXiv 2004.10568.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.export.edit import known, operand
from edgewise.models.operators import paddings
from edgewise.quantize.simulate import FakeQuantize, in_floats

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgewise.models.onnx import OnnxNetwork, Step
    from edgewise.progress import Progress
    from edgewise.quantize.sites import Layer, Sites

ZETA, GAMMA = 1.1, -0.1  # the paper's, eq. (23)
LAMBDA = 1.0  # of the regulariser, eq. (21); see `learn_codes` for its unit
BETA = (20.0, 2.0)  # annealed: first only what is undecided is pushed, in the end all
WARM_UP = 0.2  # of the iterations without the regulariser, as in the authors' code
LR = 0.01  # of Adam, likewise
ROWS = 4096  # of a layer that are drawn, from all images together
BATCH_ROWS = 256  # in a learning step; the paper takes all positions of 32 images, hours on one core
JUDGING = 4  # one image of so many is not learnt from: on them it is seen whether the learnt rounding is better


class Rounded(NamedTuple):
    """A layer's weights on their codes.

    Args:
        weight: scale times code, in the shape of the layer's weights: rounding to the nearest finds those codes.
        bias: that suits it, ``[K]``; zeros for a layer without one.
        nearest: the mean square error of the layer's output when each weight is rounded to the nearest code.
        learnt: that of the learnt codes; both on images that nothing was learnt from.
    """

    weight: Tensor
    bias: Tensor
    nearest: float
    learnt: float


@dataclass(frozen=True)
class Reconstruction:
    """A layer as a product of matrices, on the positions of its output that were drawn.

    Args:
        x: the inputs of each position, ``[G, P, I]``: groups, positions, inputs of a channel.
        target: what the float network has there, clamped, ``[G, P, O]``.
        bias: ``[G, 1, O]``.
        clamp: the lowest and the highest output that the operator behind the layer lets pass.
    """

    x: Tensor
    target: Tensor
    bias: Tensor
    clamp: tuple[float, float] = (-math.inf, math.inf)

    def at(self, positions: Tensor | slice) -> Reconstruction:
        """Return the same layer at some of the positions, in that order; a slice copies nothing."""
        return replace(self, x=self.x[:, positions], target=self.target[:, positions])

    def errors(self, weight: Tensor) -> Tensor:
        """Return the squared errors ``[G, P, O]`` with the weights ``[G, O, I]``."""
        return (torch.baddbmm(self.bias, self.x, weight.mT).clamp(*self.clamp) - self.target).square()

    def suiting(self, weight: Tensor) -> Tensor:
        """Return the bias ``[G, 1, O]`` of the least squares with the weights: one Gauss-Newton step, which is all.

        The mean error is taken away, of what the clamp lets pass.
        """
        output = torch.baddbmm(self.bias, self.x, weight.mT)
        passed = (output > self.clamp[0]) & (output < self.clamp[1])
        error = ((output - self.target) * passed).sum(1, keepdim=True)
        return self.bias - error / passed.sum(1, keepdim=True).clamp(min=1)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Return eq. (23): a sigmoid stretched beyond 0 and 1 and cut off there, so that both can be reached.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def learn_codes(
    weight: Tensor,
    scale: Tensor,
    codes: tuple[int, int],
    layer: Reconstruction,
    iterations: int,
    generator: torch.Generator,
) -> Tensor:
    """Return a code for each weight: the one below it or the one above it, as far as there is one.

    Args:
        weight: ``[G, O, I]``.
        scale: of each weight, of the same shape.
        codes: the lowest and the highest.
        layer: what the weights shall compute.
        iterations: of Adam.
        generator: draws the positions of each.
    """
    floor = (weight / scale).floor()
    # h(v) is where the weight lies between both codes: it begins as the float weight.
    v = torch.logit((weight / scale - floor - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    adam = torch.optim.Adam([v], LR)
    begin, positions = int(WARM_UP * iterations), layer.x.shape[1]
    layer, size = layer.at(torch.randperm(positions, generator=generator)), min(BATCH_ROWS, positions)
    # In units of what nearest rounding loses, so that a layer's scale does not matter; the paper's is 0.01 of the
    # loss's own. With a tenth of it little moves but to the nearest code in the end, with ten times as much too early.
    lost = layer.errors((weight / scale).round().clamp(*codes) * scale).sum((0, 2)).mean().item()
    price = LAMBDA * lost / weight.numel()
    for step in range(iterations):
        first = int(torch.randint(positions - size + 1, (), generator=generator))
        up = rectified_sigmoid(v)
        part = layer.at(slice(first, first + size))
        loss = part.errors((floor + up).clamp(*codes) * scale).sum((0, 2)).mean()
        if step >= begin:
            done = (step - begin) / max(1, iterations - begin)
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 + math.cos(math.pi * done)) / 2
            loss = loss + price * (1 - (2 * up - 1).abs().pow(beta)).sum()  # eq. (24)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return (floor + (rectified_sigmoid(v.detach()) >= 0.5)).clamp(*codes)


def learn_rounding(
    network: OnnxNetwork,
    sites: Sites,
    images: Tensor,
    iterations: int,
    *,
    correct_bias: bool = True,
    progress: Progress | None = None,
) -> dict[str, Rounded]:
    """Return the rounded weights of each layer that computes on codes; the network is left as it was.

    Where the learnt codes are no better than the nearest on images that nothing was learnt from, those are returned.

    Args:
        network: with its taps, and the weights of the float network.
        sites: what becomes codes.
        images: ``[N, C, H, W]`` float32, all of which are held in memory at once; some tens are enough.
        iterations: of each layer.
        correct_bias: whether biases may change with the codes.
        progress: is told ("adaround", done, total), in layers.
    """
    generator = torch.Generator().manual_seed(0)
    steps = {step.outputs[0]: step for step in network.steps}
    clamps = {str(clamp.inputs[0].name): _bounds(clamp) for clamp in sites.clamps if clamp.inputs[0] is not None}
    targets = {layer.output: _Draw(layer.channel_axis, len(images), generator) for layer in sites.layers.values()}
    changed = [name for layer in sites.layers.values() for name in (layer.weight, layer.bias) if name]
    floats = {name: network.weight(name).detach().clone() for name in changed}
    found: dict[str, Rounded] = {}

    def learn(layer: Layer, x: Tensor) -> None:
        drawn, step, clamp = targets.pop(layer.output), steps[layer.output], clamps.get(layer.output)
        bias = network.weight(layer.bias).detach() if layer.bias else torch.zeros(drawn.rows.shape[1])
        groups = int(step.attributes.get("group", 1))
        whole = Reconstruction(
            input_rows(x, step, layer, drawn.places),
            _grouped(drawn.rows.clamp(*clamp) if clamp else drawn.rows, groups),
            _grouped(bias[None], groups),
            clamp or (-math.inf, math.inf),
        )
        with torch.enable_grad():
            found[layer.name] = _best(network, layer, whole, len(images), iterations, correct_bias, generator)
        round_(network, layer, found[layer.name])
        if progress is not None:
            progress("adaround", len(found), len(sites.layers))

    by_input: dict[str, list[Layer]] = {}
    for layer in sites.layers.values():
        by_input.setdefault(layer.input, []).append(layer)
    before = {name: network.tapped(name) for name in by_input}
    with torch.no_grad():
        with in_floats(network):
            for name, draw in targets.items():
                network.tap(name, draw)
            network(images)
        try:
            for name, readers in by_input.items():
                network.tap(name, _Learn(before[name], readers, learn))
            network(images)
        finally:
            for name, tap in before.items():
                network.untap(name) if tap is None else network.tap(name, tap)
            for name, weight in floats.items():
                network.weight(name).data = weight
    return found


def round_(network: OnnxNetwork, layer: Layer, rounded: Rounded) -> None:
    """Give a layer of a simulation its rounded weights and the bias that suits them."""
    network.weight(layer.weight).data = rounded.weight.clone()
    if layer.bias:
        network.weight(layer.bias).data = rounded.bias.clone()


def input_rows(x: Tensor, step: Step, layer: Layer, places: Tensor) -> Tensor:
    """Return the inputs that a layer's output is made of at some places, ``[G, P, I]``.

    Args:
        x: the layer's input ``[N, C, *space]``, or ``[..., C]`` of a linear layer.
        step: the operator, with its settings.
        layer: the same, with the shape of its weights.
        places: in each image's output, flattened, ``[N, places]``.
    """
    if layer.op_type != "Conv":
        return x.reshape(len(places), -1, x.shape[-1])[_each(places), places].flatten(0, 1)[None]
    kernel, space = layer.shape[2:], x.dim() - 2
    strides = step.attributes.get("strides") or [1] * space
    dilations = step.attributes.get("dilations") or [1] * space
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    automatic, pads = step.attributes.get("auto_pad", "NOTSET"), step.attributes.get("pads", ())
    pads = paddings(automatic, pads, x, reach, strides)
    x = F.pad(x, [pads[side * space + axis] for axis in reversed(range(space)) for side in (0, 1)])
    lengths = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, strides, strict=True)]
    flat = torch.zeros(*places.shape, 1, dtype=torch.long)
    for axis, coordinate in enumerate(_unravel(places, lengths)):
        taken = coordinate[..., None] * strides[axis] + dilations[axis] * torch.arange(kernel[axis])
        flat = (flat[..., :, None] * x.shape[2 + axis] + taken[..., None, :]).flatten(2)
    rows = x.flatten(2)[_each(places)[..., None], :, flat]  # [N, places, kernel, C]
    return _grouped(rows.flatten(0, 1).mT.flatten(1), int(step.attributes.get("group", 1)))


def _best(
    network: OnnxNetwork,
    layer: Layer,
    whole: Reconstruction,
    images: int,
    iterations: int,
    correct_bias: bool,
    generator: torch.Generator,
) -> Rounded:
    """Learn from most of the images, and take what is best on the others."""
    tap, weight = network.tapped(layer.weight), network.weight(layer.weight).detach()
    assert isinstance(tap, FakeQuantize)
    scale = tap.spec.spread(tap.scale.detach(), weight.shape).expand(weight.shape)
    groups, _, outputs = whole.bias.shape
    matrix, scales, nearest = (
        each.movedim(layer.axis, 0).reshape(groups, outputs, -1) for each in (weight, scale, tap.codes(weight).float())
    )
    learnt_from = (images - images // JUDGING) * (whole.x.shape[1] // images)
    learning, judging = whole.at(slice(learnt_from)), whole.at(slice(learnt_from, None))
    learnt = learn_codes(matrix, scales, tap.spec.codes, learning, iterations, generator)
    tried = [(codes, whole.bias) for codes in (nearest, learnt)]
    if layer.bias and correct_bias:
        tried += [(codes, learning.suiting(codes * scales)) for codes in (nearest, learnt)]
    errors = [replace(judging, bias=bias).errors(codes * scales).mean().item() for codes, bias in tried]
    least = min(range(len(tried)), key=errors.__getitem__)
    codes, bias = tried[least]
    rounded = (codes * scales).reshape(weight.movedim(layer.axis, 0).shape).movedim(0, layer.axis)
    return Rounded(rounded.contiguous(), bias.flatten(), errors[0], errors[least])


class _Draw(nn.Module):
    """Keeps a layer's output at places that are drawn.

    Args:
        axis: which dimension the channels are.
        images: that pass, all at once.
        generator: draws.
    """

    def __init__(self, axis: int, images: int, generator: torch.Generator) -> None:
        super().__init__()
        self.axis, self.images, self.generator = axis, images, generator
        self.places = torch.zeros(images, 0, dtype=torch.long)  # [N, places] of the flattened map
        self.rows = torch.zeros(0)  # [N * places, K]

    def forward(self, x: Tensor) -> Tensor:
        maps = x.flatten(2).mT if self.axis == 1 else x.reshape(self.images, -1, x.shape[-1])  # [N, space, K]
        count = min(maps.shape[1], max(1, ROWS // self.images))
        self.places = torch.rand(maps.shape[:2], generator=self.generator).argsort(1)[:, :count]
        self.rows = maps[_each(self.places), self.places].flatten(0, 1)
        return x


class _Learn(nn.Module):
    """Lets layers learn their rounding from their input, before they compute.

    Args:
        tap: that the input has already.
        layers: that read it.
        learn: of (layer, input).
    """

    def __init__(self, tap: nn.Module | None, layers: list[Layer], learn: Callable[[Layer, Tensor], None]) -> None:
        super().__init__()
        self.before, self.layers, self.learn = tap, layers, learn

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        for layer in self.layers:
            self.learn(layer, x)
        return x


def _bounds(clamp: ir.Node) -> tuple[float, float]:
    """Return the lowest and the highest number that an operator lets pass."""
    if clamp.op_type == "Relu":
        return 0.0, math.inf
    low, high = (known(operand(clamp, place)) for place in (1, 2))
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """Split the columns ``[P, G * n]`` of rows: ``[G, P, n]``."""
    return rows.reshape(len(rows), groups, -1).transpose(0, 1).contiguous()


def _each(places: Tensor) -> Tensor:
    """Return the number of each image beside its places, ``[N, 1]``."""
    return torch.arange(len(places))[:, None]


def _unravel(places: Tensor, lengths: list[int]) -> list[Tensor]:
    """Return the coordinates of flattened places, one tensor for each axis."""
    found = []
    for length in reversed(lengths):
        found.append(places % length)
        places = places // length
    return found[::-1]
