"""Canonical Huffman codes of up to 256 symbols, written and read as vectors.

The codes are those of DEFLATE (RFC 1951, 3.2.2): given by their lengths alone, at most 15 bits, packed with their
first bit first. `read` decodes many blocks of symbols side by side, one symbol of each a step; the blocks' lengths are
kept for that, and a reader of one symbol after the other does not need them.

References: Huffman, A Method for the Construction of Minimum-Redundancy Codes, Proc. IRE 1952. Larmore and Hirschberg,
A Fast Algorithm for Optimal Length-Limited Huffman Codes, J. ACM 1990 (package-merge).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from edgewise.export.bits import Array, Bytes, bytes_of

LONGEST = 15  # bits of a code, so that a length takes 4
BLOCK = 1024  # symbols; with 16 bits for a block's length that is 1/64 bit a symbol
WORD = 32  # bits written at a time: no fewer than two codes
CHUNK = 1 << 20  # symbols that are written at a time
LANES = 1 << 14  # blocks that are read side by side


def huffman_bits(counts: Sequence[int] | Array) -> int:
    """Return how many bits the codes of Huffman's algorithm take for symbols that occur so often.

    Symbols that do not occur have no code; one symbol alone takes a bit each time. The code table is not counted.

    >>> huffman_bits([4, 2, 1, 1])
    14
    """
    heap = [int(count) for count in counts if count > 0]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def code_lengths(counts: Sequence[int] | Array, longest: int = LONGEST) -> Bytes:
    """Return the lengths of the best prefix code with no code longer than a limit.

    Args:
        counts: how often each symbol occurs, ``[n]``; ``n <= 2 ** longest``.
        longest: bits.

    Returns:
        ``[n]``; 0 for a symbol that does not occur, 1 for one that is alone.

    >>> code_lengths([4, 2, 1, 1]).tolist(), code_lengths([8, 4, 2, 1, 1], longest=3).tolist()
    ([1, 2, 3, 3], [1, 3, 3, 3, 3])
    """
    lengths = np.zeros(len(counts), np.uint8)
    single: list[tuple[int, tuple[int, ...]]] = sorted(
        (int(count), (symbol,)) for symbol, count in enumerate(counts) if count > 0
    )
    if len(single) < 2:
        lengths[[symbol for _, symbols in single for symbol in symbols]] = 1
        return lengths
    packages = list(single)
    for _ in range(longest - 1):
        pairs = zip(packages[::2], packages[1::2], strict=False)
        packages = sorted([*single, *((a[0] + b[0], a[1] + b[1]) for a, b in pairs)], key=lambda package: package[0])
    for _, symbols in packages[: 2 * len(single) - 2]:
        np.add.at(lengths, list(symbols), 1)
    return lengths


def canonical(lengths: Bytes) -> Array:
    """Return the codes, ``uint32 [n]``, with their first bit as the lowest; those of one length rise with the symbol.

    >>> [format(code, "03b") for code in canonical(np.array([2, 1, 3, 3], np.uint8))]
    ['001', '000', '011', '111']
    """
    codes = np.zeros(len(lengths), np.uint32)
    code = previous = 0
    for symbol in sorted(np.flatnonzero(lengths).tolist(), key=lambda symbol: int(lengths[symbol])):
        length = int(lengths[symbol])
        code <<= length - previous
        codes[symbol] = int(format(code, f"0{length}b")[::-1], 2)
        code, previous = code + 1, length
    return codes


def write(symbols: Bytes, lengths: Bytes) -> tuple[Bytes, Array]:
    """Write symbols as one stream of bits.

    Args:
        symbols: ``[n]``, each with a code.
        lengths: of the codes.

    Returns:
        The stream, and how many bits each block of 1024 symbols takes, ``uint16 [ceil(n / 1024)]``.
    """
    sizes = lengths.astype(np.int64)[: int(symbols.max(initial=0)) + 1]
    codes = canonical(lengths).astype(np.uint64)
    blocks = np.zeros(-(-len(symbols) // BLOCK), "<u2")
    stream = np.zeros(bytes_of(len(symbols) * int(lengths.max(initial=0))) // 4 + 2, np.uint32)
    at = 0
    for start in range(0, len(symbols), CHUNK):
        some = symbols[start : start + CHUNK]
        size = sizes.take(some)
        ends = np.cumsum(size) + at
        begins = ends - size
        # A word gets the codes that begin in it; two at least do, but for the last. Their bits are apart: or adds.
        first = np.flatnonzero(np.diff(begins // WORD, prepend=-1))
        shifted = codes.take(some) << (begins % WORD).astype(np.uint64)
        whole = np.bitwise_or.reduceat(shifted, first)
        place = int(begins[0]) // WORD
        stream[place : place + len(whole)] |= whole.astype(np.uint32)
        stream[place + 1 : place + 1 + len(whole)] |= (whole >> np.uint64(WORD)).astype(np.uint32)
        edges = np.append(begins[::BLOCK], ends[-1])
        blocks[start // BLOCK : start // BLOCK + len(edges) - 1] = np.diff(edges)
        at = int(ends[-1])
    return stream.astype("<u4").view(np.uint8)[: bytes_of(at)], blocks


def read(stream: Bytes, count: int, lengths: Bytes, blocks: Array) -> Bytes:
    """Read symbols back.

    Args:
        stream: what `write` returned.
        count: symbols.
        lengths: of their codes, at most 15.
        blocks: the bits of each block.

    Returns:
        ``[count]``.

    Raises:
        ValueError: the blocks are not as many as the symbols need, or not as long as the stream.
    """
    ends = np.cumsum(blocks, dtype=np.int64)
    if len(blocks) != -(-count // BLOCK) or len(stream) != bytes_of(int(ends[-1]) if len(ends) else 0):
        raise ValueError(f"{len(blocks)} blocks in {len(stream)} bytes for {count} symbols")
    table = _table(lengths)
    words = np.zeros(bytes_of(len(stream) * 8) // 4 + 4, "<u4")
    words.view(np.uint8)[: len(stream)] = stream
    wide = words.astype(np.uint64)
    symbols = np.empty((len(blocks), BLOCK), np.uint8)
    for start in range(0, len(blocks), LANES):
        _read_blocks(wide, ends[start : start + LANES] - blocks[start : start + LANES], table, symbols[start:])
    return symbols.reshape(-1)[:count]


def _table(lengths: Bytes) -> Array:
    """Return what the next 15 bits of a stream begin with: the symbol, and above it the length of its code."""
    table = np.full(1 << LONGEST, LONGEST << 8, np.uint16)  # bits that are no code are found nowhere but behind the end
    codes = canonical(lengths)
    for symbol in np.flatnonzero(lengths).tolist():
        length = int(lengths[symbol])
        table[int(codes[symbol]) :: 1 << length] = length << 8 | symbol
    return table


def _read_blocks(words: Array, begins: Array, table: Array, symbols: Bytes) -> None:
    """Read one block in each lane: a step takes the next symbol of all of them.

    Args:
        words: the stream as ``uint64 [m]``, 32 bits in each.
        begins: the blocks' first bits, ``[lanes]``.
        table: as `_table` makes it.
        symbols: gets the blocks, ``[>= lanes, 1024]``.
    """
    lanes, last = len(begins), len(words) - 1
    place = begins // WORD
    used = (begins % WORD).astype(np.uint64)
    held = (words[place] | words[place + 1] << np.uint64(WORD)) >> used  # the next bits of each lane, `known` of them
    known = np.uint64(2 * WORD) - used
    place += 2
    found = np.empty((BLOCK, lanes), np.uint8)
    for step in range(0, BLOCK, 2):  # 32 bits hold two codes
        for row in (step, step + 1):
            entry = table.take((held & np.uint64((1 << LONGEST) - 1)).view(np.int64))
            found[row] = entry  # the low byte
            length = (entry >> 8).astype(np.uint64)
            held >>= length
            known -= length
        short = known < np.uint64(WORD)
        more = words.take(np.minimum(place, last)) * short
        held |= more << known
        place += short
        known += short.astype(np.uint64) << np.uint64(5)
    symbols[:lanes] = found.T
