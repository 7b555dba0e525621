"""How a tensor's numbers are stored: each encoding gives back every bit, or refuses the tensor.

`encode` turns a tensor into bytes and a layout, the small facts (counts, widths) that a reader needs beside shape and
type; `decode` is its inverse; `bound_bits` is what the layout's counts take without any rounding up to bytes. What the
bytes are is told in docs/packed_format.md.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from edgewise.errors import ModelError
from edgewise.export import bits, huffman
from edgewise.export.bits import Array, Bytes
from edgewise.export.integers import Integers
from edgewise.export.words import Parts, Words

Layout = dict[str, Any]

MOST_BITS = 8  # of a code
SAMPLE = 4096  # numbers that tell whether a tensor has far too many different ones
WIDEST_GAP = 24  # bits
GOLDEN, HASH_BITS = 0x9E3779B97F4A7C15, 16  # Knuth's multiplier: 2**64 over the golden ratio


class Encoding(Protocol):
    """A way to store a tensor."""

    @property
    def kind(self) -> str:
        """Its name in the file."""
        ...

    def encode(self, x: Words) -> tuple[Layout, list[Array]]:
        """Return the layout and the parts of the stored bytes; a ModelError where a bit would be lost."""
        ...

    @staticmethod
    def decode(layout: Layout, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Words:
        """Return the numbers; a ValueError, KeyError or TypeError where layout and bytes do not fit."""
        ...

    @staticmethod
    def bound_bits(layout: Layout, width: int, shape: tuple[int, ...]) -> int:
        """Return what must be stored, in bits, for numbers of a width; no entropy, only counts."""
        ...


@dataclass(frozen=True)
class Plain:
    """The numbers as they are."""

    kind: ClassVar[str] = "plain"

    def encode(self, x: Words) -> tuple[Layout, list[Array]]:
        """Return layout and parts; see `Encoding`."""
        return {}, [x.flat]

    @staticmethod
    def decode(layout: Layout, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Words:
        """Return the numbers; see `Encoding`."""
        empty = Words(np.empty(0, np.uint8), dtype, shape)
        return Words(parts.take(math.prod(shape), empty.bits).view(f"<u{empty.bits // 8}"), dtype, shape)

    @staticmethod
    def bound_bits(layout: Layout, width: int, shape: tuple[int, ...]) -> int:
        """Return what must be stored; see `Encoding`."""
        return width * math.prod(shape)


@dataclass(frozen=True)
class Ternary:
    """Two bits a number: 0, the scale, or minus the scale, one scale for the tensor.

    Args:
        tile: ``(Tm, Tn)``: outputs and inputs of a tile of the weight ``[O, I, ...]``; smaller at the edges. Each tile
            takes a bit, and the codes of one that is all 0 are not stored.
    """

    tile: tuple[int, int] | None = None
    kind: ClassVar[str] = "ternary"

    def __post_init__(self) -> None:
        if self.tile is not None and not (len(self.tile) == 2 and min(self.tile) >= 1):
            raise ValueError(f"tile = {self.tile}: outputs and inputs, each at least 1")

    def encode(self, x: Words) -> tuple[Layout, list[Array]]:
        """Return layout and parts; see `Encoding`."""
        if not x.sign:
            raise ModelError(f"a ternary tensor is of floats, this one of {x.dtype}; store it plain")
        magnitudes = x.flat & x.flat.dtype.type(x.sign - 1)
        scale = magnitudes.max(initial=0)
        nonzero = magnitudes != 0
        if not np.array_equal(magnitudes == scale, nonzero) and scale:
            raise ModelError("a ternary tensor is 0 or plus or minus one magnitude, and this one has more; share them")
        # A code is a magnitude, 0 or 1, and a sign: so -0.0 has one too.
        codes = nonzero.view(np.uint8) | (x.flat != magnitudes).view(np.uint8) << 1
        scales = np.array([scale], x.flat.dtype)
        if self.tile is None:
            return {"codes": len(codes)}, [scales, bits.put(codes, 2)]
        kept = self._kept(codes, x.shape)
        codes = codes[_spread(kept, self.tile, x.shape)]
        layout = {"codes": len(codes), "tile": list(self.tile)}
        return layout, [scales, bits.put(kept.reshape(-1), 1), bits.put(codes, 2)]

    def _kept(self, codes: Bytes, shape: tuple[int, ...]) -> Array:
        """Return which tiles are not all 0, ``bool [ceil(O / Tm), ceil(I / Tn)]``."""
        assert self.tile is not None
        if len(shape) < 2:
            raise ModelError(f"tiles are of weights [O, I, ...], and this tensor has the shape {list(shape)}")
        grid = _grid(shape, self.tile)
        if 0 in shape:
            return np.zeros(grid, np.bool_)
        kept: Array = (codes != 0).reshape(*shape[:2], -1).any(axis=2)
        for axis, side in enumerate(self.tile):
            kept = np.logical_or.reduceat(kept, range(0, shape[axis], side), axis=axis)
        return kept

    @staticmethod
    def decode(layout: Layout, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Words:
        """Return the numbers; see `Encoding`."""
        empty = Words(np.empty(0, np.uint8), dtype, shape)
        scale = int(parts.take(1, empty.bits)[0])
        table = np.array([0, scale, empty.sign, scale | empty.sign], f"<u{empty.bits // 8}")
        count, tile = int(layout["codes"]), layout.get("tile")
        if tile is None:
            return Words(table.take(bits.get(parts.take(bits.bytes_of(2 * count)), count, 2)), dtype, shape)
        grid = _grid(shape, tile)
        kept = bits.get(parts.take(bits.bytes_of(math.prod(grid))), math.prod(grid), 1)
        codes = np.zeros(math.prod(shape), np.uint8)
        stored = bits.get(parts.take(bits.bytes_of(2 * count)), count, 2)
        codes[_spread(kept.reshape(grid).astype(np.bool_), tile, shape)] = stored
        return Words(table.take(codes), dtype, shape)

    @staticmethod
    def bound_bits(layout: Layout, width: int, shape: tuple[int, ...]) -> int:
        """Return what must be stored; see `Encoding`."""
        tiles = math.prod(_grid(shape, layout["tile"])) if "tile" in layout else 0
        return width + tiles + 2 * int(layout["codes"])


def _grid(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles a weight ``[O, I, ...]`` has along its outputs and its inputs."""
    return -(-shape[0] // tile[0]), -(-shape[1] // tile[1])


def _spread(kept: Array, tile: tuple[int, int], shape: tuple[int, ...]) -> Array:
    """Return which numbers, ``bool [n]``, lie in tiles that are kept."""
    each = kept.repeat(tile[0], axis=0)[: shape[0]].repeat(tile[1], axis=1)[:, : shape[1]]
    return np.repeat(each.reshape(-1), math.prod(shape[2:]))


@dataclass(frozen=True)
class Codebook:
    """Each number is a code: its place among the different bit patterns of the tensor, which are stored once.

    Args:
        bits: at most ``2 ** bits`` different numbers, 0 to 8; codes take what the different ones need.
        codes: "fixed" width, canonical "huffman" codes, or what is "smaller".
    """

    bits: int = MOST_BITS
    codes: str = "smaller"
    kind: ClassVar[str] = "codebook"

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= MOST_BITS:
            raise ValueError(f"bits = {self.bits}: 0 to {MOST_BITS}")
        if self.codes not in ("fixed", "huffman", "smaller"):
            raise ValueError(f'codes = "{self.codes}": "fixed", "huffman" or "smaller"')

    def encode(self, x: Words) -> tuple[Layout, list[Array]]:
        """Return layout and parts; see `Encoding`."""
        centroids, codes = self._shared(x.flat)
        width = _width(len(centroids))
        fixed: Layout = {"centroids": len(centroids), "bits": width}
        if self.codes == "fixed" or not len(codes):
            return fixed, [centroids, bits.put(codes, width)]
        counts = np.bincount(codes, minlength=len(centroids))
        lengths = huffman.code_lengths(counts)
        blocks = -(-len(codes) // huffman.BLOCK)
        coded: Layout = {"centroids": len(centroids), "huffman": int(counts @ lengths.astype(np.int64))}
        saved = bits.bytes_of(len(codes) * width) - sum(map(bits.bytes_of, (coded["huffman"], 4 * len(lengths))))
        if self.codes == "smaller" and saved <= 2 * blocks:
            return fixed, [centroids, bits.put(codes, width)]
        stream, sizes = huffman.write(codes, lengths)
        return coded, [centroids, bits.put(lengths, 4), sizes, stream]

    def _shared(self, flat: Array) -> tuple[Array, Bytes]:
        """Return the different numbers, rising as unsigned integers, and the place of each number among them."""
        # Nearly all of them are in a sample; what is not is found by looking, which is quicker than to sort them all.
        centroids = np.unique(flat[:: max(1, len(flat) // SAMPLE)])
        self._hold(centroids)
        codes = _places(flat, centroids)
        rare = flat[centroids.take(codes) != flat] if len(flat) else flat
        if len(rare):
            self._hold(centroids := np.union1d(centroids, rare))
            codes = _places(flat, centroids)
        return centroids, codes

    def _hold(self, centroids: Array) -> None:
        if len(centroids) > 1 << self.bits:
            raise ModelError(
                f"a codebook of {self.bits} bits holds {1 << self.bits} different numbers, and this tensor has more; "
                "share its weights first"
            )

    @staticmethod
    def decode(layout: Layout, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Words:
        """Return the numbers; see `Encoding`."""
        count, known = math.prod(shape), int(layout["centroids"])
        centroids = parts.take(known, Words(np.empty(0, np.uint8), dtype, shape).bits)
        if "huffman" in layout:
            lengths = bits.get(parts.take(bits.bytes_of(4 * known)), known, 4)
            sizes = parts.take(-(-count // huffman.BLOCK), 16)
            codes: Array = huffman.read(parts.take(bits.bytes_of(layout["huffman"])), count, lengths, sizes)
        else:
            width = int(layout["bits"])
            codes = bits.get(parts.take(bits.bytes_of(count * width)), count, width)
        return Words(centroids.take(codes) if count else centroids[:0], dtype, shape)

    @staticmethod
    def bound_bits(layout: Layout, width: int, shape: tuple[int, ...]) -> int:
        """Return what must be stored; see `Encoding`."""
        known, count = int(layout["centroids"]), math.prod(shape)
        codes = layout["huffman"] + 4 * known if "huffman" in layout else count * layout["bits"]
        return known * width + int(codes)


def _places(flat: Array, centroids: Array) -> Bytes:
    """Return the place of each number among different ones; any place for one that is not there.

    A table at a hash of 16 bits that tells all of them apart, which more than every other multiplier's does.
    """
    width = 8 * flat.dtype.itemsize
    for odd in itertools.count(1, 2):
        multiplier = flat.dtype.type(GOLDEN * odd % (1 << width))
        drop = flat.dtype.type(max(0, width - HASH_BITS))
        slots = centroids * multiplier >> drop
        if len(np.unique(slots)) == len(centroids):
            break
    table = np.zeros(1 << HASH_BITS, np.uint8)
    table[slots] = np.arange(len(centroids))
    places: Bytes = table.take(flat * multiplier >> drop)
    return places


def _width(different: int) -> int:
    """Return the bits of a code for so many different numbers."""
    return max(0, different - 1).bit_length()


@dataclass(frozen=True)
class Sparse:
    """The numbers that are not 0, and where they are: a bit for each number, or the gaps between them.

    Args:
        values: how the numbers that are not 0 are stored; -0.0 is one of them.
        places: a "bitmap", the "gaps", or what is "smaller".
    """

    values: Encoding = Plain()
    places: str = "smaller"
    kind: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        if self.places not in ("bitmap", "gaps", "smaller"):
            raise ValueError(f'places = "{self.places}": "bitmap", "gaps" or "smaller"')

    def encode(self, x: Words) -> tuple[Layout, list[Array]]:
        """Return layout and parts; see `Encoding`."""
        nonzero = x.flat != 0
        at = np.flatnonzero(nonzero)
        values = x.flat if len(at) == len(x.flat) else x.flat[at]
        inner, parts = self.values.encode(Words(values, x.dtype, (len(values),)))
        layout: Layout = {"values": {"kind": self.values.kind, **inner}, "count": len(values)}
        if self.places != "bitmap":
            gaps = np.diff(at, prepend=-1) - 1
            width, entries = _gap_width(gaps)
            if self.places == "gaps" or width * entries < len(nonzero):
                return {**layout, "bits": width, "gaps": entries}, [bits.put(_coded(gaps, width), width), *parts]
        return layout, [bits.put(nonzero, 1), *parts]

    @staticmethod
    def decode(layout: Layout, parts: Parts, dtype: str, shape: tuple[int, ...]) -> Words:
        """Return the numbers; see `Encoding`."""
        size, count, inner = math.prod(shape), int(layout["count"]), layout["values"]
        if "gaps" in layout:
            width, entries = int(layout["bits"]), int(layout["gaps"])
            codes = bits.get(parts.take(bits.bytes_of(entries * width)), entries, width).astype(np.int64)
            ends = codes != (1 << width) - 1
            at = (np.cumsum(codes + ends) - 1)[ends]
        else:
            at = np.flatnonzero(bits.get(parts.take(bits.bytes_of(size)), size, 1))
        values = ENCODINGS[inner["kind"]].decode(inner, parts, dtype, (count,)).flat
        flat = np.zeros(size, values.dtype)
        flat[at] = values
        return Words(flat, dtype, shape)

    @staticmethod
    def bound_bits(layout: Layout, width: int, shape: tuple[int, ...]) -> int:
        """Return what must be stored; see `Encoding`."""
        places = layout["gaps"] * layout["bits"] if "gaps" in layout else math.prod(shape)
        inner = layout["values"]
        return int(places) + ENCODINGS[inner["kind"]].bound_bits(inner, width, (int(layout["count"]),))


def _gap_width(gaps: Array) -> tuple[int, int]:
    """Return the bits of a gap that take the least room in all, and how many codes that makes."""
    if not len(gaps):
        return 1, 0
    counts = np.bincount(gaps)
    different = np.flatnonzero(counts)
    counts = counts[different]
    entries = {width: len(gaps) + int(counts @ (different // ((1 << width) - 1))) for width in range(1, WIDEST_GAP)}
    width = min(entries, key=lambda width: (width * entries[width], entries[width]))
    return width, entries[width]


def _coded(gaps: Array, width: int) -> Array:
    """Return gaps as codes of a width; the highest code stands for as many zeros as it says, and no number."""
    highest = (1 << width) - 1
    skips = gaps // highest
    ends = np.cumsum(skips + 1) - 1
    codes = np.full(int(ends[-1]) + 1 if len(ends) else 0, highest, np.uint32)
    codes[ends] = gaps % highest
    return codes


ENCODINGS: dict[str, type[Encoding]] = {
    "plain": Plain,
    "ternary": Ternary,
    "sparse": Sparse,
    "codebook": Codebook,
    "int4": Integers,
    "int8": Integers,
}
