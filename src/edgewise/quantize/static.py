"""Static int8 quantisation of an ONNX file: codes for weights and activations, ranges found on calibration images.

Activations become unsigned 8-bit numbers with one scale and zero point a tensor, weights signed ones with a scale for
each output channel, biases int32, written as QuantizeLinear and DequantizeLinear around the operators (QDQ). That is
the combination ONNX Runtime has its fast x86 kernels for: with signed activations, its quantiser's default, ResNet-20
ran at 0.68 times the speed of float32, with unsigned ones at 1.9 times.

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, arXiv 1712.05877.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgewise.errors import DataError, ModelError, UserError, one_line
from edgewise.export.compact import write
from edgewise.export.edit import known, operand
from edgewise.export.quiet import quietly
from edgewise.export.read import read
from edgewise.models.onnx import OnnxNetwork
from edgewise.progress import Progress
from edgewise.quantize.adaround import Rounded, learn_rounding, round_
from edgewise.quantize.config import FEWEST_IMAGES, Quantize, Rounding
from edgewise.quantize.correct import correct_biases_, output_means
from edgewise.quantize.equalize import equalize_
from edgewise.quantize.observe import Observer, Range
from edgewise.quantize.prepare import LAYERS, layers, prepare
from edgewise.quantize.qdq import to_qdq
from edgewise.quantize.simulate import attach, calibrate, weight_bits
from edgewise.quantize.sites import GATE_STEPS, Sites, find_sites
from edgewise.quantize.ties import avoid_ties_

if TYPE_CHECKING:
    import onnx_ir as ir

BATCH = 16  # the percentile and entropy observers hold every activation of a batch at once
CORRECTION_IMAGES = 64  # of which every activation of a layer is held at once
REDUCED_BITS = 7
STORED_CODES = ("int8", "uint8", "int4", "uint4")


class Quantizer:
    """A float file that is to be quantised; what has to be found out about it is found once.

    Args:
        float_onnx: what `edgewise.export.onnx.export` wrote, or another float file.
        images: inputs to find the activations' ranges on, ``[N, C, H, W]`` float32, at least 8.
        config: how; by default `Quantize()`. Its `calibration` is for those who choose the images, all are used here.
        progress: is told ("calibrate", done, total).

    Raises:
        DataError: the images are too few, do not fit the file, or hold NaN or infinity.
        ModelError: the file is no ONNX file, is quantised already, or cannot be quantised.
        UserError: there is no such file.
    """

    def __init__(
        self, float_onnx: Path, images: Tensor, config: Quantize | None = None, progress: Progress | None = None
    ) -> None:
        self.path, self.config, self.progress = float_onnx, config or Quantize(), progress
        network = read(float_onnx)
        _check_float(network, float_onnx)
        _check_images(images, network.graph.inputs[0], float_onnx)
        self.images = images.detach().cpu()
        self._fixed = _fixed_batch(network)
        with _named(float_onnx), quietly():
            self._prepared = prepare(network)
            OnnxNetwork(self._prepared.graph)  # names an operator that is not known
            _check_layers(self._prepared.graph)
        self.equalized = equalize_(self._prepared.graph) if self.config.equalize else []
        self.layers = {**(sites := self.sites()).layers, **sites.stored}
        self._rounded: dict[tuple[str, int], Rounded] = {}  # what was learnt, by layer and bits, whatever is left out
        self._biases: dict[tuple[tuple[str, int], ...], dict[str, Tensor]] = {}  # corrected, by layers and their bits

    def prepared(self) -> ir.Model:
        """Return the prepared float network, to be changed."""
        import onnx_ir as ir

        network: ir.Model = ir.from_proto(ir.to_proto(self._prepared))
        return network

    def sites(self, exclude: Collection[str] = ()) -> Sites:
        """Say what becomes codes when layers are left out, beside those that the settings leave out."""
        return find_sites(self._prepared.graph, {*self.config.exclude, *exclude})

    @cached_property
    def observers(self) -> dict[str, Observer]:
        """What was seen of each activation that may become codes while the calibration images passed.

        Raises:
            ModelError: an operator of the file is not known, or cannot run on these images.
        """
        with _named(self.path, self._fixed):
            network, names = OnnxNetwork(self._prepared.graph), self.sites().observed
            return calibrate(network, names, self.images, self.config.ranges, BATCH, self.progress)

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """What the codes of each activation cover; what is only moved about has the range of where it came from."""
        found = {name: observer.range() for name, observer in self.observers.items()}
        gate = Range(torch.tensor(0.0), torch.tensor(1 - 1 / GATE_STEPS))
        sites = self.sites()
        return {name: found[source] for name, source in sites.scales.items()} | dict.fromkeys(sites.gates, gate)

    @property
    def constant(self) -> list[str]:
        """The layers that read one and the same number everywhere, on every image."""
        sites = self.sites()
        return [name for name, layer in sites.layers.items() if self.observers[sites.scales[layer.input]].constant]

    @cached_property
    def means(self) -> dict[str, Tensor]:
        """The mean of each channel of the layers' outputs in the float network."""
        network, sites = OnnxNetwork(self._prepared.graph), self.sites()
        return output_means(network, sites.layers.values(), self.images[:CORRECTION_IMAGES])

    def simulated(
        self,
        exclude: Collection[str] = (),
        bits: Mapping[str, int] | int | None = None,
        rounding: Rounding | None = None,
    ) -> OnnxNetwork:
        """Make the network that computes in floats what the int8 file computes in integers.

        What was learnt and corrected for it is kept, and is not found again for the same layers and bits.

        Args:
            exclude: the layers to leave out.
            bits: of the weights, for all layers or by the layers' names.
            rounding: of the weights, if not as the settings say.
        """
        ranges = self.ranges  # first: what the file cannot do is told from here
        network, sites = OnnxNetwork(self._prepared.graph), self.sites(exclude)
        attach(network, sites, ranges, bits or (REDUCED_BITS if self.config.reduce_range else 8))
        avoid_ties_(network, sites)
        widths = {name: weight_bits(network, layer) for name, layer in sites.layers.items()}
        if (rounding or self.config.rounding) == "adaround":
            self._round_(network, sites, widths)
        elif self.config.correct_bias:
            self._correct_(network, sites, widths)
        return network

    def _correct_(self, network: OnnxNetwork, sites: Sites, widths: Mapping[str, int]) -> None:
        """Give layers the biases that were corrected for such layers and bits; correct them if none were."""
        layers = [layer for layer in sites.layers.values() if layer.bias]
        key = tuple(widths.items())
        if key not in self._biases:
            correct_biases_(network, layers, self.means, self.images[:CORRECTION_IMAGES])
            self._biases[key] = {layer.bias: network.weight(layer.bias).detach().clone() for layer in layers}
        for name, bias in self._biases[key].items():
            network.weight(name).data = bias.clone()

    def _round_(self, network: OnnxNetwork, sites: Sites, widths: Mapping[str, int]) -> None:
        """Give layers the weights that were learnt for their bits; learn them if some were not."""
        if not self._rounded.keys() >= widths.items():
            learnt = learn_rounding(
                network,
                sites,
                self.images[: self.config.rounding_images],
                self.config.rounding_iterations,
                correct_bias=self.config.correct_bias,
                progress=self.progress,
            )
            self._rounded |= {(name, widths[name]): found for name, found in learnt.items()}
        for name, layer in sites.layers.items():
            round_(network, layer, self._rounded[name, widths[name]])

    def write(self, out: Path, exclude: Collection[str] = (), simulated: OnnxNetwork | None = None) -> Path:
        """Write the int8 file, whole or not at all; the outputs of a last linear layer stay float32.

        Args:
            out: where it goes.
            exclude: the layers to leave out.
            simulated: what it shall compute, if not what `simulated(exclude)` makes.
        """
        network = self.prepared()
        sites = find_sites(network.graph, {*self.config.exclude, *exclude})
        return write(to_qdq(network, sites, simulated or self.simulated(exclude), self.config.bit_exact), out)


def quantize_static(
    float_onnx: Path, out: Path, calibration: Tensor, config: Quantize | None = None, progress: Progress | None = None
) -> Path:
    """Write the int8 version of a float ONNX file, as `Quantizer` does; nothing is printed."""
    return Quantizer(float_onnx, calibration, config, progress).write(out)


def _fixed_batch(network: ir.Model) -> str:
    """Say what a batch size that is written into a file may have to do with an error."""
    first = next(iter(network.graph.inputs[0].shape or []), None)
    return (
        f"; it is written for {first} images at a time, export it with an open batch" if isinstance(first, int) else ""
    )


@contextmanager
def _named(path: Path, hint: str = "") -> Iterator[None]:
    """Say of which file an error is, in one line, and what it may come from."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # whatever operators with impossible settings make of images
        raise ModelError(f"{path}: it cannot be quantised: {one_line(error)}{hint}") from error


def _check_float(network: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    if any("Quantize" in node.op_type or node.op_type.startswith(("QLinear", "QGemm")) for node in network.graph):
        raise ModelError(f"{path}: it is quantised already; quantise the float file that it was made from")
    casts = (node.inputs[0] for node in network.graph if node.op_type == "Cast")
    if any(known(value) is not None and known(value).dtype.name in STORED_CODES for value in casts):
        raise ModelError(f"{path}: its weights are codes already; quantise the float file that it was made from")
    for kind, values in (("input", network.graph.inputs), ("output", network.graph.outputs)):
        if len(values) != 1:
            names = ", ".join(str(value.name) for value in values)
            raise ModelError(f"{path}: it has {len(values)} {kind}s ({names}), it must have one")
    if (dtype := network.graph.inputs[0].dtype) != ir.DataType.FLOAT:
        kind = "of no type" if dtype is None else dtype.name.lower()
        raise ModelError(f"{path}: its input is {kind}, it must be float32; quantise the float32 file")


def _check_layers(graph: ir.Graph) -> None:
    """Refuse weights that cannot become codes."""
    every = layers(graph)
    if not every:
        raise ModelError(f"it has no layer to quantise ({', '.join(LAYERS)} with constant weights)")
    for layer in every:
        for held in (known(operand(layer, 1)), known(operand(layer, 2))):
            if held is not None and held.dtype != np.float32:
                raise ModelError(f"the weights of {layer.name} are {held.dtype}, they must be float32")
            if held is not None and not np.isfinite(held).all():
                raise ModelError(f"the weights of {layer.name} hold NaN or infinity")


def _check_images(images: Tensor, expected: ir.Value, path: Path) -> None:
    shape = list(expected.shape or [])
    found = list(images.shape)
    fits = len(shape) == len(found) and all(
        not isinstance(a, int) or a == b for a, b in zip(shape[1:], found[1:], strict=True)
    )
    if not fits or images.dtype != torch.float32:
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(f"the calibration inputs are {kind} {found}, but {path} takes float32 {_shape(shape)}")
    if len(images) < FEWEST_IMAGES:
        raise DataError(f"there are {len(images)} calibration inputs, at least {FEWEST_IMAGES} are needed")
    if not bool(torch.isfinite(images).all()):
        first = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"calibration input {first} holds NaN or infinity")


def _shape(dims: list[Any]) -> str:
    return "[" + ", ".join(str(dim) if isinstance(dim, int) else "N" for dim in dims) + "]"
