"""A network's tensors in as few bytes as their numbers need, in one file, given back bit for bit.

The file is a safetensors file: a table of what is stored how, and the bytes. docs/packed_format.md tells it byte for
byte. Each tensor's bytes and the table have a SHA-256, and the header is the only one that this table can have: a file
that reads is the file that was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from edgewise.errors import ModelError, nearest, one_line
from edgewise.export.bits import Bytes
from edgewise.export.encodings import ENCODINGS, Codebook, Encoding, Layout, Plain, Sparse, Ternary
from edgewise.export.integers import Integers
from edgewise.export.words import DTYPES, Parts, tensor, words
from edgewise.files import write_bytes

FORMAT, VERSION = "edgewise packed", 1
HEADER_ALIGNMENT = 8  # what safetensors itself pads to


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor as it is stored.

    Args:
        layout: the encoding's name as "kind", and the counts that its reader needs.
        dtype: the tensor's, by name.
        shape: the tensor's.
        stored: the bytes.
    """

    layout: Layout
    dtype: str
    shape: tuple[int, ...]
    stored: bytes

    @property
    def bound_bits(self) -> int:
        """What must be stored by the counts, without what fills up bytes and what only speeds up reading."""
        width = 8 * DTYPES[self.dtype].itemsize
        return ENCODINGS[self.layout["kind"]].bound_bits(self.layout, width, self.shape)


class Stored(NamedTuple):
    """A tensor's row in the table of what takes how much.

    Args:
        name: of the tensor.
        encoding: its name; of a sparse one, with that of its values, as in "sparse codebook".
        bytes: stored.
        bound_bytes: what its counts need, as in `Encoded.bound_bits`.
        numbers: of the tensor.
    """

    name: str
    encoding: str
    bytes: int
    bound_bytes: float
    numbers: int

    @property
    def bits(self) -> float:
        """What a number takes in the file, codebook and scales shared among all; 0 of an empty tensor."""
        return 8 * self.bytes / self.numbers if self.numbers else 0.0


def encode(found: Tensor, encoding: Encoding) -> Encoded:
    """Store a tensor in an encoding.

    Args:
        found: of any shape and memory layout, of a type in `edgewise.export.words.DTYPES`.
        encoding: `Plain`, `Ternary`, `Sparse`, `Codebook` or `Integers`.

    Raises:
        ModelError: a bit would be lost: the tensor is not of that kind.
    """
    x = words(found)
    layout, parts = encoding.encode(x)
    stored = b"".join(np.ascontiguousarray(part).view(np.uint8).tobytes() for part in parts)
    return Encoded({"kind": encoding.kind, **layout}, x.dtype, x.shape, stored)


def decode(encoded: Encoded) -> Tensor:
    """Return the tensor that was stored, in memory of its own.

    Raises:
        ModelError: bytes and layout do not fit.
    """
    return _decoded(encoded.layout, np.frombuffer(encoded.stored, np.uint8), encoded.dtype, encoded.shape)


MANY = 4096  # numbers, from which on what an encoding says of itself is little beside them


def smallest(found: Tensor, tile: tuple[int, int] | None = None) -> Encoded:
    """Store a tensor in the encoding that takes the fewest bytes of those that lose no bit; of equals, the simplest.

    Args:
        found: the tensor.
        tile: of a ternary tensor, whether to look for tiles of zeros too; see `Ternary`. -1 is all of an axis.
    """
    # Channels of one number each are no smaller with a scale each.
    axes = (None, *(axis for axis in range(min(2, found.dim())) if found.numel() > found.shape[axis]))
    if tile is not None and found.dim() >= 2:
        outputs, inputs = (size if side == -1 else side for side, size in zip(tile, found.shape, strict=False))
        tile = (max(1, outputs), max(1, inputs))
    plain, ternary = _tried(found, Plain()), _tried(found, Ternary())
    # Of one line the first that fits is the smallest, or as good as that: a scale for all before one for each channel.
    ranked: list[list[Encoding]] = [[Ternary(tile)] if tile and ternary else [], [Codebook()], [Sparse(Codebook())]]
    if ternary is None or found.numel() < MANY:  # two bits a number are less than four, and a code less than a float
        ranked += [[Integers(bits, axis) for bits in (4, 8) for axis in axes], [Sparse()]]
    fitting = (next((made for each in line if (made := _tried(found, each))), None) for line in ranked)
    return min((made for made in (plain, ternary, *fitting) if made), key=lambda made: len(made.stored))


def paper_compression(weights: Mapping[str, Tensor], tile: tuple[int, int]) -> float:
    """Return how many times fewer bits ternary weights take than in float32, as papers on tiles of zeros count.

    ``16 / (1 - s)``, s the share of the weights in tiles of nothing but 0: two bits for each other weight, and nothing
    for the tiles' own bits, scales and what stays float. What is true of a file says `stored_bytes`.

    Args:
        weights: ternary, ``[O, I, ...]``.
        tile: outputs and inputs of a tile.

    Raises:
        ModelError: a tensor that is not ternary or has no tiles.
    """
    codes = sum(int(encode(weight, Ternary(tile)).layout["codes"]) for weight in weights.values())
    return 16 * sum(weight.numel() for weight in weights.values()) / codes if codes else math.inf


def _tried(found: Tensor, encoding: Encoding) -> Encoded | None:
    """Store a tensor, or return None where it is not of that kind."""
    try:
        return encode(found, encoding)
    except ModelError:
        return None


def pack(tensors: Mapping[str, Tensor], encodings: Mapping[str, Encoding], path: str | Path) -> Path:
    """Write tensors to a file, whole or not at all.

    Args:
        tensors: a state dict, by any names.
        encodings: of each of them, by the same names.
        path: the file; its folder exists.

    Raises:
        ModelError: a tensor without encoding, an encoding without tensor, a tensor that is not of its kind (named).
        OSError: the file cannot be written.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "a.packed"
    >>> _ = pack({"w": torch.tensor([0.5, 0.0, -0.5])}, {"w": Ternary()}, file)
    >>> unpack(file)["w"].tolist(), stored_bytes(file)
    ([0.5, 0.0, -0.5], [Stored(name='w', encoding='ternary', bytes=5, bound_bytes=4.75, numbers=3)])
    """
    for name in encodings:
        if name not in tensors:
            raise ModelError(f"an encoding for {name!r}, which is no tensor; {nearest(name, tensors)}")
    encoded = {}
    for name, found in tensors.items():
        if name not in encodings:
            raise ModelError(f"no encoding for {name!r}; give Plain() to store it as it is")
        try:
            encoded[name] = encode(found, encodings[name])
        except ModelError as error:
            raise ModelError(f"{name!r}: {error}") from error
    return write(encoded, path)


def write(encoded: Mapping[str, Encoded], path: str | Path) -> Path:
    """Write what is encoded already, as `smallest` returns it, to a file, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [
        {
            "name": name,
            "dtype": each.dtype,
            "shape": list(each.shape),
            "bytes": len(each.stored),
            "sha256": hashlib.sha256(each.stored).hexdigest(),
            **each.layout,
        }
        for name, each in encoded.items()
    ]
    table = zlib.compress(json.dumps(rows, separators=(",", ":"), allow_nan=False).encode(), 9)
    header = _header(table, sum(len(each.stored) for each in encoded.values()))
    return write_bytes(Path(path), b"".join([header, table, *(each.stored for each in encoded.values())]))


def unpack(path: str | Path) -> dict[str, Tensor]:
    """Read a file's tensors by name, in the order they were written.

    Raises:
        ModelError: no such file, not a packed one, a newer version, cut off, or damaged anywhere.
    """
    return dict(stream(path))


def stream(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield a file's tensors one by one: of the others nothing is in memory.

    Raises:
        ModelError: as `unpack`; for a damaged tensor, when its turn comes.
    """
    file = Path(path)
    with _opened(file) as (source, rows):
        data, at = source.get_slice("data"), 0
        for row in rows:
            stored: Bytes = data[at : at + row.size]
            if hashlib.sha256(stored.data).hexdigest() != row.sha256:
                raise ModelError(f"{file}: {row.name!r} is damaged (its SHA-256 is another); get the file again")
            try:
                found = _decoded(row.layout, stored, row.dtype, row.shape)
            except ModelError as error:
                raise ModelError(f"{file}: {row.name!r}: {error}") from error
            yield row.name, found
            at += row.size


def stored_bytes(path: str | Path) -> list[Stored]:
    """Return what each tensor of a file takes; no tensor is read.

    Raises:
        ModelError: as `unpack`, but for damaged tensors.
    """
    with _opened(Path(path)) as (_, rows):
        listed = []
        for row in rows:
            encoding = row.layout["kind"]
            if encoding == Sparse.kind:
                encoding += f" {row.layout['values']['kind']}"
            bound = Encoded(row.layout, row.dtype, row.shape, b"").bound_bits / 8
            listed.append(Stored(row.name, encoding, row.size, bound, math.prod(row.shape)))
        return listed


class _Row(NamedTuple):
    """What the table says of a tensor: its bytes are `size` many, behind those of the rows before."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    sha256: str
    layout: Layout


def _header(table: bytes, size: int) -> bytes:
    """Return how the file begins, up to the table: its length in 8 bytes, and the header of a safetensors file."""
    described: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "version": str(VERSION), "sha256": hashlib.sha256(table).hexdigest()},
        "table": {"dtype": "U8", "shape": [len(table)], "data_offsets": [0, len(table)]},
        "data": {"dtype": "U8", "shape": [size], "data_offsets": [len(table), len(table) + size]},
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, list[_Row]]]:
    """Give an open file and the rows of its table, after holding that both are as they were written."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ModelError(f"no such packed file: {file}")
    try:
        source: Any = safe_open(file, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} is not a packed file, or is cut off: {one_line(error)}") from error
    with source:
        about = source.metadata() or {}
        version = about.get("version", "")
        if about.get("format") != FORMAT or not version.isdecimal():
            raise ModelError(f"{file} is not a packed file: its format is {about.get('format', 'not told')}")
        if int(version) > VERSION:
            raise ModelError(
                f"{file} has version {version} of the format, and this edgewise reads {VERSION}; update it"
            )
        try:
            table = source.get_tensor("table").tobytes()
            size = int(source.get_slice("data").get_shape()[0])
        except (SafetensorError, IndexError) as error:
            raise ModelError(f"{file} is damaged: {one_line(error)}; get it again") from error
        header = _header(table, size)
        with file.open("rb") as beginning:
            if beginning.read(len(header)) != header:
                raise ModelError(f"{file} is damaged: its header does not fit its table; get it again")
        try:
            rows = [
                _Row(row["name"], row["dtype"], tuple(row["shape"]), row["bytes"], row["sha256"], row)
                for row in json.loads(zlib.decompress(table))
            ]
            if sum(row.size for row in rows) != size or any(row.size < 0 for row in rows):
                raise ValueError(f"its rows are not of {size} bytes")
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise ModelError(f"{file}: a table that cannot be read ({one_line(error)})") from error
        yield source, rows


def _decoded(layout: Layout, stored: Bytes, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor in memory of its own."""
    try:
        parts = Parts(stored)
        found = ENCODINGS[layout["kind"]].decode(layout, parts, dtype, shape)
        parts.end()
        if len(found.flat) != math.prod(shape):
            raise ValueError(f"{len(found.flat)} numbers for the shape {list(shape)}")
        return tensor(found)
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
        raise ModelError(f"the stored bytes do not fit what is said of them ({one_line(error)})") from error
