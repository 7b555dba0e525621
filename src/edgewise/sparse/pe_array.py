"""What blocks of zeros save: a model of an array of processing elements, and the bits that ternary weights take.

The array takes one tile of weights at a time, Tm outputs x Tn inputs, and multiplies it in one cycle with Tn inputs at
one kernel position for one output position. A tile whose block is all zero is skipped. It is a count, no simulation:

    cycles = tiles that run x kernel positions x output positions

with the assumptions that operands are there when they are needed, that a ragged tile, or one of a layer smaller than
the array, takes as long as a full one, that a skipped tile takes no time, and that the array can feed the outputs of
different groups with different inputs. Only convolutions and linear layers are counted; transposed convolutions and
products of activations, as in attention, are named beside them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from edgewise.cost.static import CostModel
from edgewise.graph import trace
from edgewise.sparse.blocks import Tile, block_sizes, block_sums
from edgewise.sparse.layers import layers
from edgewise.sparse.masks import LAYERS

FLOAT_BITS, CODE_BITS = 32, 2  # of a weight that is float, of one that is ternary


def is_ternary(weight: Tensor) -> bool:
    """Say whether all weights of a layer are -a, 0 or +a.

    >>> import torch
    >>> is_ternary(torch.tensor([[0.5, -0.5, 0.0]])), is_ternary(torch.tensor([[0.5, -0.4]]))
    (True, False)
    """
    size = weight.detach().abs()
    return bool(((size == size.max()) | (size == 0)).all())


def within(tile: Tile, shape: tuple[int, ...]) -> Tile:
    """Return the tile as a layer fills it: no larger than the layer.

    >>> within((16, 16), (32, 3, 3, 3))
    (16, 3)
    """
    outputs, inputs = (min(length, size) for length, size in zip(tile, shape, strict=False))
    return outputs, inputs


@dataclass(frozen=True, kw_only=True)
class LayerOnArray:
    """What one layer costs on the array, for one image.

    Args:
        name: of the module.
        ternary: whether its weights are -a, 0 and +a.
        tiles: in all.
        skipped: those that are all zero.
        kernel: positions of the kernel; 1 of a linear layer.
        positions: of the output: pixels, or tokens.
        outputs: channels, or features.
        weights: in all.
        weights_run: those in tiles that run.
    """

    name: str
    ternary: bool
    tiles: int
    skipped: int
    kernel: int
    positions: int
    outputs: int
    weights: int
    weights_run: int

    @property
    def run(self) -> int:
        """Tiles that are not skipped."""
        return self.tiles - self.skipped

    @property
    def dense_cycles(self) -> int:
        """Cycles with no tile skipped."""
        return self.tiles * self.kernel * self.positions

    @property
    def cycles(self) -> int:
        """Cycles: one for each tile that runs, kernel position and output position."""
        return self.run * self.kernel * self.positions

    @property
    def additions(self) -> int:
        """Additions and subtractions: one for each weight of a tile that runs and output position, a 0 included."""
        return self.weights_run * self.positions

    @property
    def multiplications(self) -> int:
        """As many as additions; with ternary weights one for each output, by a, which a BatchNorm behind can take."""
        return self.outputs * self.positions if self.ternary else self.additions

    @property
    def loaded_bits(self) -> int:
        """Bits read into the weight buffer, each weight once: of tiles that run, and one a tile that says whether."""
        return (CODE_BITS if self.ternary else FLOAT_BITS) * self.weights_run + self.tiles

    @property
    def speed_up(self) -> float:
        """Dense cycles over cycles; infinite for a layer that is all zero."""
        return _ratio(self.dense_cycles, self.cycles)


@dataclass(frozen=True, kw_only=True)
class OnArray:
    """What a network costs on the array, for one image; totals are sums over `layers`.

    Args:
        tile: (outputs, inputs) of the array.
        layers: in the order in which the network holds them.
        other_macs: of operators that are no convolution or linear layer, by name; they are in no total.
    """

    tile: Tile
    layers: tuple[LayerOnArray, ...]
    other_macs: dict[str, int]

    def _total(self, quantity: Callable[[LayerOnArray], int]) -> int:
        return sum(map(quantity, self.layers))

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self._total(lambda layer: layer.tiles)

    @property
    def skipped(self) -> int:
        """Tiles that are all zero."""
        return self._total(lambda layer: layer.skipped)

    @property
    def run(self) -> int:
        """Tiles that are not skipped."""
        return self.tiles - self.skipped

    @property
    def dense_cycles(self) -> int:
        """Cycles with no tile skipped."""
        return self._total(lambda layer: layer.dense_cycles)

    @property
    def cycles(self) -> int:
        """Cycles of the tiles that run."""
        return self._total(lambda layer: layer.cycles)

    @property
    def additions(self) -> int:
        """Additions and subtractions."""
        return self._total(lambda layer: layer.additions)

    @property
    def multiplications(self) -> int:
        """Multiplications."""
        return self._total(lambda layer: layer.multiplications)

    @property
    def loaded_bits(self) -> int:
        """Bits read into the weight buffer."""
        return self._total(lambda layer: layer.loaded_bits)

    @property
    def speed_up(self) -> float:
        """Dense cycles over cycles."""
        return _ratio(self.dense_cycles, self.cycles)


def on_array(model: nn.Module, example: Tensor, tile: Tile) -> OnArray:
    """Count what a network costs on an array of processing elements.

    Args:
        model: after its training, with plain weights, float or ternary; stays as it is.
        example: an input of the network's shape ``[N, C, H, W]``; one image is counted.
        tile: (Tm, Tn) of the array, each at least 1.

    Raises:
        ValueError: a tile that is none.
        UnsupportedOp: an operator that the trace cannot follow.

    >>> import torch
    >>> net = nn.Conv2d(4, 2, 3, bias=False)
    >>> net.weight.data[0, :2] = 0
    >>> found = on_array(net, torch.zeros(1, 4, 5, 5), (1, 2))
    >>> found.tiles, found.skipped, found.cycles, found.dense_cycles
    (4, 1, 243, 324)
    """
    if min(tile) < 1:
        raise ValueError(f"tile is {tuple(tile)}; an array has at least 1 output and 1 input")
    graph = trace(copy.deepcopy(model).eval(), example)
    rows = {row.name: row for row in CostModel(graph).layers(graph.sizes)}
    modules = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    found = tuple(
        _layer(name, module.weight.detach(), rows[name].macs, tile)
        for name, module in modules.items()
        if name in rows and rows[name].macs
    )
    counted = {layer.name for layer in found}
    others = {row.name: row.macs for row in rows.values() if row.macs and row.name not in counted}
    return OnArray(tile=tile, layers=found, other_macs=others)


def _layer(name: str, weight: Tensor, macs: int, tile: Tile) -> LayerOnArray:
    """Count one layer; its MACs are each weight once for each output position."""
    shape = tuple(weight.shape)
    own = within(tile, shape)
    zero = block_sums(weight != 0, own) == 0
    return LayerOnArray(
        name=name,
        ternary=is_ternary(weight),
        tiles=zero.numel(),
        skipped=int(zero.sum()),
        kernel=prod(shape[2:]),
        positions=macs // weight.numel(),
        outputs=shape[0],
        weights=weight.numel(),
        weights_run=int(block_sizes(shape, own)[~zero.cpu()].sum()),
    )


@dataclass(frozen=True, kw_only=True)
class TernaryAccounting:
    """What a network with ternary weights takes to store, in the paper's count and in bits.

    Args:
        ternary_weights: in layers of -a, 0 and +a.
        zero_block_weights: those of them in blocks that are all zero.
        blocks: of the ternary layers.
        ternary_layers: how many.
        float_params: all other parameters: float layers, biases, normalisations.
    """

    ternary_weights: int
    zero_block_weights: int
    blocks: int
    ternary_layers: int
    float_params: int

    @property
    def group_sparsity(self) -> float:
        """The share of the ternary weights that lies in blocks of zeros; 0 without any."""
        return self.zero_block_weights / self.ternary_weights if self.ternary_weights else 0.0

    @property
    def paper_compression(self) -> float:
        """``16 / (1 - s)`` with the group sparsity s: 32 bits over 2, no word of scales, masks and float layers."""
        return _ratio(FLOAT_BITS / CODE_BITS, 1 - self.group_sparsity)

    @property
    def dense_bits(self) -> int:
        """All parameters as float32."""
        return FLOAT_BITS * (self.ternary_weights + self.float_params)

    @property
    def bits(self) -> int:
        """Codes of the other blocks, a bit a block, a float scale a layer, and the float parameters."""
        codes = CODE_BITS * (self.ternary_weights - self.zero_block_weights)
        return codes + self.blocks + FLOAT_BITS * (self.ternary_layers + self.float_params)

    @property
    def compression(self) -> float:
        """Dense bits over bits."""
        return _ratio(self.dense_bits, self.bits)


def ternary_accounting(model: nn.Module, tile: Tile) -> TernaryAccounting:
    """Count what a network with ternary weights takes to store.

    Args:
        model: after its training: plain weights. Buffers, such as BatchNorm's running statistics, are not counted.
        tile: (Tm, Tn) of the blocks, or -1 for all; a layer smaller than it is one ragged block.

    Reference: the 21x of Yang et al., AAAI 2020, for ResNet-18 are 16 / (1 - s) at s = 0.24.
    """
    weights = [layer.weight.detach() for layer in layers(model).values()]  # type: ignore[operator]
    ternary = [weight for weight in weights if is_ternary(weight)]
    tiles = [within(tile, tuple(weight.shape)) for weight in ternary]
    zeros = [block_sums(weight != 0, own) == 0 for weight, own in zip(ternary, tiles, strict=True)]
    pruned = sum(
        int(block_sizes(tuple(weight.shape), own)[zero.cpu()].sum())
        for weight, own, zero in zip(ternary, tiles, zeros, strict=True)
    )
    count = sum(weight.numel() for weight in ternary)
    return TernaryAccounting(
        ternary_weights=count,
        zero_block_weights=pruned,
        blocks=sum(zero.numel() for zero in zeros),
        ternary_layers=len(ternary),
        float_params=sum(parameter.numel() for parameter in model.parameters()) - count,
    )


def _ratio(of: float, to: float) -> float:
    return of / to if to else float("inf")
