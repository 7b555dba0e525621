"""Blocks of a weight: by hand, against a loop, and on shapes that leave ragged edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgewise.sparse.blocks import Tile, block_sizes, block_sums, resolve, spread


def by_loop(values: Tensor, tile: Tile) -> list[list[float]]:
    """Sum block by block."""
    rows, columns = (values.shape[axis] if tile[axis] == -1 else tile[axis] for axis in (0, 1))
    return [
        [float(values[o : o + rows, i : i + columns].sum()) for i in range(0, values.shape[1], columns)]
        for o in range(0, values.shape[0], rows)
    ]


def test_by_hand() -> None:
    weight = torch.arange(1.0, 13.0).reshape(3, 2, 1, 2)  # [[[1 2]] [[3 4]]] [[[5 6]] [[7 8]]] [[[9 10]] [[11 12]]]
    assert block_sums(weight, (2, 1)).tolist() == [[1 + 2 + 5 + 6, 3 + 4 + 7 + 8], [9 + 10, 11 + 12]]
    assert block_sums(weight, (1, -1)).tolist() == [[10], [26], [42]]
    assert block_sums(weight, (-1, 1)).tolist() == [[33, 45]]
    assert block_sums(weight, (-1, -1)).tolist() == [[78]]
    assert block_sizes((3, 2, 1, 2), (2, 1)).tolist() == [[4, 4], [2, 2]]
    blocks = torch.tensor([[1, 2], [3, 4]])
    assert spread(blocks, (3, 2, 1, 2), (2, 1)).tolist() == [[[[1, 1]], [[2, 2]]]] * 2 + [[[[3, 3]], [[4, 4]]]]


def test_one_by_one_on_a_linear_layer_is_single_weights() -> None:
    weight = torch.randn(3, 5)
    assert torch.equal(block_sums(weight, (1, 1)), weight)
    assert torch.equal(spread(weight, (3, 5), (1, 1)), weight)


def test_bools_are_counted() -> None:
    for shape in ((3, 4), (3, 4, 2, 2)):
        counted = block_sums(torch.ones(shape, dtype=torch.bool), (2, 3))
        assert torch.equal(counted, block_sizes(shape, (2, 3)))
        assert counted.dtype == torch.int64


@st.composite
def weights_and_tiles(draw: st.DrawFn) -> tuple[Tensor, Tile]:
    outputs, inputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kernel = draw(st.sampled_from([(), (3,), (1, 1), (2, 3), (1, 2, 2)]))
    tile = (draw(st.sampled_from([-1, *range(1, outputs + 1)])), draw(st.sampled_from([-1, *range(1, inputs + 1)])))
    # Small whole numbers: every sum is exact.
    return torch.randint(-9, 10, (outputs, inputs, *kernel), generator=torch.Generator().manual_seed(0)).float(), tile


@given(weights_and_tiles())
@settings(max_examples=150, deadline=None)
def test_ragged_shapes(case: tuple[Tensor, Tile]) -> None:
    weight, tile = case
    sums, sizes = block_sums(weight, tile), block_sizes(tuple(weight.shape), tile)
    assert sums.tolist() == by_loop(weight, tile)
    assert sizes.tolist() == by_loop(torch.ones_like(weight), tile)
    assert int(sizes.sum()) == weight.numel()
    numbers = torch.arange(float(sums.numel())).reshape(sums.shape)
    given_back = spread(numbers, tuple(weight.shape), tile)
    assert given_back.shape == weight.shape
    assert torch.equal(block_sums(given_back, tile), numbers * sizes)
    for block in numbers.unique():  # what has a block's number is that block, not another of its size
        row, column = divmod(int(block), sums.shape[1])
        assert float(weight[given_back == block].sum()) == float(sums[row, column])


def test_channels_last_and_slices() -> None:
    weight = torch.randint(9, (6, 5, 3, 3)).float()
    expected = block_sums(weight, (4, 2))
    assert torch.equal(block_sums(weight.to(memory_format=torch.channels_last), (4, 2)), expected)
    assert torch.equal(block_sums(weight.repeat(2, 1, 1, 1)[::2][:3], (1, -1)), block_sums(weight[::2], (1, -1)))


def test_a_gradient_flows() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad((block_sums(weight, (2, 2)) * torch.tensor([[1, 2, 3], [4, 5, 6]])).sum(), weight)
    assert gradient.tolist() == [[1, 1, 2, 2, 3]] * 2 + [[4, 4, 5, 5, 6]]


@pytest.mark.parametrize(
    ("shape", "tile", "message"),
    [
        ((8, 3, 3, 3), (1, 16), r"tile \(1, 16\) is larger than stem \[8, 3, 3, 3\]: take at most \(8, 3\), or -1"),
        ((8, 3), (9, 1), r"tile \(9, 1\) is larger than stem \[8, 3\]"),
        ((8, 3), (0, 1), r"tile is \(0, 1\); it must be two numbers of at least 1, or -1"),
        ((8, 3), (1, -2), r"tile is \(1, -2\)"),
        ((8,), (1, 1), r"stem \[8\] has no outputs and inputs"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(shape: tuple[int, ...], tile: Tile, message: str) -> None:
    blocks = torch.zeros(1, 1)
    for call in (
        lambda: resolve(shape, tile, "stem"),
        lambda: block_sums(torch.zeros(shape), tile, "stem"),
        lambda: block_sizes(shape, tile, "stem"),
        lambda: spread(blocks, shape, tile, "stem"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_blocks_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\] blocks for the weight \[3, 5\]: tile \(2, 2\) makes \[2, 3\]"):
        spread(torch.zeros(2, 2), (3, 5), (2, 2))
