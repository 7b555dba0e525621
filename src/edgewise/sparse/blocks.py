"""Blocks of a weight, cut by the tile that a processing element works on: Tm outputs x Tn inputs.

A weight is ``[O, I, *kernel]`` of a convolution (I is the inputs of one group) or ``[O, I]`` of a linear layer. Block
(m, n) is ``W[m Tm : (m+1) Tm, n Tn : (n+1) Tn]`` with all kernel positions. Blocks at the edge keep the size they have.

| tile | blocks of [O, I, kh, kw] |
|---|---|
| (1, 16) | one output, 16 inputs |
| (1, -1) | filters |
| (-1, 1) | channels of the input |
| (1, 1) | kernels; of a linear layer single weights |
| (-1, -1) | the whole weight |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Tile = tuple[int, int]


def resolve(shape: tuple[int, ...], tile: Tile, layer: str = "the weight") -> Tile:
    """Return the tile with numbers in the place of -1.

    Args:
        shape: of a weight, ``[O, I]`` or ``[O, I, *kernel]``.
        tile: (Tm, Tn), each at least 1, or -1 for all outputs or inputs.
        layer: what an error calls it.

    Raises:
        ValueError: a tile larger than the layer, a tile or a shape that is none.

    >>> resolve((8, 4, 3, 3), (2, -1))
    (2, 4)
    """
    if len(shape) < 2:
        raise ValueError(f"{layer} {list(shape)} has no outputs and inputs to cut into blocks; it needs 2 axes or more")
    if len(tile) != 2 or any(length < 1 and length != -1 for length in tile):
        raise ValueError(f"tile is {tuple(tile)}; it must be two numbers of at least 1, or -1 for all of an axis")
    if tile[0] > shape[0] or tile[1] > shape[1]:
        raise ValueError(
            f"tile {tuple(tile)} is larger than {layer} {list(shape)}: take at most {(shape[0], shape[1])}, "
            "or -1 for all of an axis"
        )
    outputs, inputs = (size if length == -1 else length for length, size in zip(tile, shape, strict=False))
    return outputs, inputs


def block_sums(values: Tensor, tile: Tile, layer: str = "the weight") -> Tensor:
    """Sum over each block.

    Args:
        values: in the shape of a weight ``[O, I, *kernel]``; bools are counted.
        tile: (Tm, Tn), see `resolve`.
        layer: what an error calls it.

    Returns:
        ``[ceil(O / Tm), ceil(I / Tn)]`` in the values' type, int64 for bools and integers.

    Raises:
        ValueError: a tile that does not fit.

    >>> block_sums(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (1, 2))
    tensor([[3., 3.],
            [9., 6.]])
    """
    rows, columns = resolve(tuple(values.shape), tile, layer)
    pairs = values.flatten(2).sum(2) if values.dim() > 2 else values
    down, across = -(-pairs.shape[0] // rows), -(-pairs.shape[1] // columns)
    # Zeros that fill up the last blocks leave their sums as they are.
    whole = F.pad(pairs, (0, across * columns - pairs.shape[1], 0, down * rows - pairs.shape[0]))
    return whole.reshape(down, rows, across, columns).sum((1, 3))


def block_sizes(shape: tuple[int, ...], tile: Tile, layer: str = "the weight") -> Tensor:
    """Count the weights of each block, int64 ``[ceil(O / Tm), ceil(I / Tn)]``.

    Raises:
        ValueError: a tile that does not fit.

    >>> block_sizes((2, 3, 3, 3), (1, 2))
    tensor([[18,  9],
            [18,  9]])
    """
    return block_sums(torch.ones((), dtype=torch.int64).expand(shape), tile, layer)


def spread(blocks: Tensor, shape: tuple[int, ...], tile: Tile, layer: str = "the weight") -> Tensor:
    """Give each weight the value of its block; the opposite way to `block_sums`.

    Args:
        blocks: ``[ceil(O / Tm), ceil(I / Tn)]``.
        shape: of the weight, ``[O, I, *kernel]``.
        tile: (Tm, Tn), see `resolve`.
        layer: what an error calls it.

    Returns:
        A tensor of that shape, to be read only: kernel positions share memory.

    Raises:
        ValueError: a tile that does not fit, blocks of another number.

    >>> spread(torch.tensor([[1, 2], [3, 4]]), (2, 3), (1, 2))
    tensor([[1, 1, 2],
            [3, 3, 4]])
    """
    rows, columns = resolve(tuple(shape), tile, layer)
    wanted = (-(-shape[0] // rows), -(-shape[1] // columns))
    if tuple(blocks.shape) != wanted:
        raise ValueError(f"{list(blocks.shape)} blocks for {layer} {list(shape)}: tile {tile} makes {list(wanted)}")
    pairs = blocks.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]
    return pairs.reshape(*pairs.shape, *[1] * (len(shape) - 2)).expand(shape)
