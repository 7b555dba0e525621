"""A network that computes in floats what a quantised file computes in integers: what is stored as codes is rounded.

It is an `OnnxNetwork` of the prepared float graph, with a tap on each tensor that becomes codes. Whatever changes
weights or scales (bias correction, AdaRound, training) changes them here; files are written from it, and held
against it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.onnx import OnnxNetwork
from edgewise.progress import Progress
from edgewise.quantize.affine import WHOLE, QParams, QSpec, choose, dequantize, fake_quantize, quantize
from edgewise.quantize.observe import OBSERVERS, Observer, Range, least_squares
from edgewise.quantize.sites import Layer, Sites

if TYPE_CHECKING:
    from collections.abc import Iterator

ACTIVATIONS = QSpec(bits=8)
FEW_BITS = 4  # of weights, from which on a range must be searched for
LARGEST_BIAS = 2**30  # in codes: a sum that starts there has as much room again before it overflows


class FakeQuantize(nn.Module):
    """Rounds a tensor to the nearest numbers that have codes.

    Args:
        spec: which codes there are.
        params: what they stand for.
    """

    def __init__(self, spec: QSpec, params: QParams) -> None:
        super().__init__()
        self.spec = spec
        self.scale = nn.Parameter(params.scale)
        self.register_buffer("zero_point", params.zero_point)
        self.zero_point: Tensor
        self.numbers = 1  # that share a scale, in one image

    @property
    def params(self) -> QParams:
        """Scale and zero point as they are now."""
        return QParams(self.scale, self.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the codes stand for."""
        images = 1 if self.spec.block else x.shape[0] if x.dim() else 1
        self.numbers = max(1, x.numel() // (self.scale.numel() * images))
        return fake_quantize(x, self.params, self.spec)

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes, int32."""
        return quantize(x, self.params, self.spec)


class FakeQuantizeBias(nn.Module):
    """Rounds a bias to multiples of the step of a layer's sums: its input's scale times its weights'.

    Args:
        input: the tap of the layer's input.
        weight: that of its weights.
    """

    def __init__(self, input: FakeQuantize, weight: FakeQuantize) -> None:
        super().__init__()
        self.taps = (input, weight)  # a tuple, so that their parameters are not listed a second time

    @property
    def scale(self) -> Tensor:
        """The step of each sum, ``[K]`` float64; or one for all."""
        input, weight = self.taps
        return (input.scale.double() * weight.scale.double()).reshape(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the codes stand for; float32 tells up to 24 of their bits apart, as it does with sums."""
        scale = self.scale.detach()
        return x + ((x / scale).round() * scale - x).detach().to(x.dtype)

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes, int32."""
        return (x / self.scale).round().to(torch.int32)


class _Watch(nn.Module):
    """Shows an observer what passes; NaN and infinity have no range.

    Args:
        name: of the tensor.
        observer: of it.
    """

    def __init__(self, name: str, observer: Observer) -> None:
        super().__init__()
        self.name, self.observer = name, observer
        self.images = 1  # in the batch that passes

    def forward(self, x: Tensor) -> Tensor:
        if not all(math.isfinite(end.item()) for end in x.aminmax()):
            raise ModelError(f'the tensor "{self.name}" becomes NaN or infinite on the calibration inputs')
        rows = x.dim() == 2 and x.shape[0] > self.images and x.shape[0] % self.images == 0
        self.observer.update(x.reshape(self.images, -1, x.shape[1]) if rows else x)
        return x


def calibrate(
    network: OnnxNetwork,
    names: Iterable[str],
    images: Tensor,
    observer: Mapping[str, object],
    batch: int,
    progress: Progress | None = None,
) -> dict[str, Observer]:
    """Show tensors to observers while images pass; the network is left without taps.

    Args:
        network: of the float graph.
        names: of the tensors.
        images: ``[N, C, H, W]`` float32.
        observer: "kind", a name of `OBSERVERS`, and its settings.
        batch: how many images pass at a time.
        progress: is told ("calibrate", done, total), in batches.

    Raises:
        ModelError: a tensor becomes NaN or infinite.
    """
    settings = dict(observer)
    make = OBSERVERS[str(settings.pop("kind"))]
    watches = {name: _Watch(name, make(ACTIVATIONS, **settings)) for name in names}
    for name, watch in watches.items():
        network.tap(name, watch)
    batches = torch.split(images, batch)
    with torch.no_grad():
        for done, part in enumerate(batches, 1):
            for watch in watches.values():
                watch.images = len(part)
            network(part)
            if progress is not None:
                progress("calibrate", done, len(batches))
    network.taps.clear()
    return {name: watch.observer for name, watch in watches.items()}


def weight_tap(layer: Layer, weight: Tensor, bits: int) -> FakeQuantize:
    """Return what rounds a layer's weights: signed codes, 0 in the middle, a scale for each output channel.

    With few codes the range is the one that loses the least, otherwise all that there is.
    """
    block = tuple(1 if dim == layer.axis else WHOLE for dim in range(len(layer.shape)))
    spec = QSpec(bits=bits, signed=True, symmetric=True, block=block)
    if bits <= FEW_BITS:
        scale, zero_point = (each.reshape(spec.grid(weight.shape)) for each in least_squares(weight, spec))
        return FakeQuantize(spec, QParams(scale, zero_point))
    low, high = (end.reshape(spec.grid(weight.shape)) for end in spec.rows(weight).aminmax(dim=1))
    return FakeQuantize(spec, choose(low, high, spec))


def weight_bits(network: OnnxNetwork, layer: Layer) -> int:
    """Return how many bits a layer's weights have in a simulation."""
    tap = network.tapped(layer.weight)
    assert isinstance(tap, FakeQuantize)
    return tap.spec.bits


def attach(network: OnnxNetwork, sites: Sites, ranges: Mapping[str, Range], bits: Mapping[str, int] | int = 8) -> None:
    """Put a tap on every tensor that becomes codes.

    Args:
        network: of the graph that the sites were found in; taps that it has are taken away.
        sites: what becomes codes.
        ranges: of the activations' tensors.
        bits: of the weights, for all layers or by the layers' names.
    """
    network.taps.clear()
    for name in sites.observed:
        scale, zero_point = (each.reshape(()) for each in choose(*ranges[name], ACTIVATIONS))
        network.tap(name, FakeQuantize(ACTIVATIONS, QParams(scale, zero_point)))
    for layer in (*sites.layers.values(), *sites.stored.values()):
        width = bits if isinstance(bits, int) else bits.get(layer.name, 8)
        tap = weight_tap(layer, network.weight(layer.weight).detach(), width)
        network.tap(layer.weight, tap)
        if layer.bias and layer.name in sites.layers:
            given = network.tapped(sites.scales[layer.input])
            assert isinstance(given, FakeQuantize)
            bias = network.weight(layer.bias).detach().abs()
            step = (bias / (given.scale.detach() * LARGEST_BIAS)).reshape(tap.scale.shape)
            tap.scale.data = torch.maximum(tap.scale.data, step)
            network.tap(layer.bias, FakeQuantizeBias(given, tap))


def integer_outputs(network: OnnxNetwork, inputs: Tensor, batch: int) -> Tensor:
    """Compute what integer kernels do, ``[N, ...]`` float32: weights are their codes, and sums are in float64.

    Sums in float32 err by more than lies between one and the middle of two codes (`edgewise.quantize.ties`).

    Args:
        network: a simulation, which is left as it is.
        inputs: ``[N, C, H, W]`` float32; they become codes in float32, as runtimes do it.
        batch: how many images are computed at a time.
    """
    exact = copy.deepcopy(network).cpu()
    for name in exact.floats:
        tap, weight = exact.tapped(name), exact.weight(name).detach()
        if isinstance(tap, FakeQuantizeBias):
            weight = tap.codes(weight) * tap.scale.detach()
        elif isinstance(tap, FakeQuantize):
            weight = dequantize(tap.codes(weight), QParams(tap.scale.detach().double(), tap.zero_point), tap.spec)
        if tap is not None:
            exact.untap(name)
            exact.weight(name).data = weight.double()
    given = exact.tapped(exact.input)
    if given is not None:
        exact.untap(exact.input)
    exact.double()
    outputs = []
    with torch.no_grad():
        for part in torch.split(inputs, batch):
            outputs.append(exact((part if given is None else given(part)).double()).float())
    return torch.cat(outputs)


@contextmanager
def in_floats(network: OnnxNetwork) -> Iterator[None]:
    """Let the network compute without its taps."""
    taps = network.taps
    network.taps = nn.ModuleDict()
    try:
        yield
    finally:
        network.taps = taps
