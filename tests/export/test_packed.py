"""Packed files: every bit comes back, the bytes are those of the counts, and no damage goes unseen."""

import hashlib
import json
import math
import zlib
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import edgewise as ew
from edgewise.errors import ModelError
from edgewise.export import bits, huffman, packed
from edgewise.export.encodings import ENCODINGS, Codebook, Encoding, Plain, Sparse, Ternary
from edgewise.export.integers import Integers
from edgewise.export.packed import (
    decode,
    encode,
    pack,
    paper_compression,
    smallest,
    stored_bytes,
    stream,
    unpack,
    write,
)
from edgewise.export.words import DTYPES
from edgewise.sparse import prunable

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (5, 3), (33, 5), (8, 6, 3, 3), (2, 3, 1, 2, 2)]


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(first: Tensor, second: Tensor) -> None:
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    assert raw(first) == raw(second)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit patterns: NaN with payloads, infinities, subnormals, -0.0."""
    drawn = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    if dtype == torch.bool:
        drawn &= 1
    if not len(drawn):
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(drawn).view(dtype).reshape(shape)


def palette(shape: tuple[int, ...], values: Tensor, seed: int, weights: list[float] | None = None) -> Tensor:
    """A tensor of some values."""
    shares = None if weights is None else np.array(weights) / sum(weights)
    chosen = np.random.default_rng(seed).choice(len(values), math.prod(shape), p=shares)
    return values[torch.from_numpy(chosen)].reshape(shape)


# -- bits and codes -------------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, 32), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_codes_are_packed_lowest_bit_first(width: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << width, count, dtype=np.uint64).astype(np.uint32)
    stored = bits.put(codes, width)
    whole = sum(int(code) << (place * width) for place, code in enumerate(codes))  # one large number
    assert stored.tobytes() == whole.to_bytes(bits.bytes_of(count * width), "little")
    assert bits.get(stored, count, width).tolist() == codes.tolist()
    with pytest.raises(ValueError, match="bytes for"):
        bits.get(np.append(stored, np.uint8(0)), count, width)


def slow_huffman(counts: list[int]) -> int:
    """Bits of the best prefix code: merge the two rarest until one is left."""
    left, total = sorted(count for count in counts if count), 0
    if len(left) == 1:
        return left[0]
    while len(left) > 1:
        both = left.pop(0) + left.pop(0)
        total, left = total + both, sorted([*left, both])
    return total


@QUICK
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_lengths_are_huffmans(counts: list[int]) -> None:
    """With counts of up to 1000 no code comes near the limit of 15 bits but in theory; then it may take more."""
    lengths = huffman.code_lengths(counts)
    assert [length > 0 for length in lengths] == [count > 0 for count in counts]
    taken = sum(count * int(length) for count, length in zip(counts, lengths, strict=True))
    best = slow_huffman(counts)
    assert huffman.huffman_bits(counts) == best
    assert taken == best if sum(counts) < 1597 * 2 else taken >= best  # Fibonacci: 15 bits need 1597 at least
    if sum(count > 0 for count in counts) > 1:
        assert sum(2.0 ** -int(length) for length in lengths if length) == 1


def test_no_code_is_longer_than_the_limit_and_the_others_are_best() -> None:
    """Fibonacci's numbers make the longest codes. By brute force over all lengths for few symbols."""
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = huffman.code_lengths(fibonacci)
    assert lengths.max() == huffman.LONGEST
    assert sum(2.0 ** -int(length) for length in lengths) == 1
    counts = [1, 1, 2, 3, 5, 8]
    best = min(
        sum(count * length for count, length in zip(counts, each, strict=True))
        for each in np.ndindex(*[3] * 6)
        if sum(2.0 ** -(length + 1) for length in each) <= 1
    ) + sum(counts)
    taken = huffman.code_lengths(counts, longest=3)
    assert sum(count * int(length) for count, length in zip(counts, taken, strict=True)) == best


def slow_read(stored: bytes, count: int, lengths: list[int]) -> list[int]:
    """DEFLATE's decoder, a bit at a time (RFC 1951, 3.2.2), that needs no blocks."""
    code, codes = 0, {}
    for length in range(1, huffman.LONGEST + 1):
        code <<= 1
        for symbol, own in enumerate(lengths):
            if own == length:
                codes[length, code] = symbol
                code += 1
    found, place = [], 0
    while len(found) < count:
        code = length = 0
        while (length, code) not in codes:
            code = code << 1 | stored[place // 8] >> place % 8 & 1
            length, place = length + 1, place + 1
        found.append(codes[length, code])
    return found


@pytest.mark.parametrize("count", [1, 31, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("symbols", [1, 2, 3, 40, 256])
def test_a_stream_is_read_as_deflate_reads_it(count: int, symbols: int) -> None:
    shares = 0.8 ** np.arange(symbols)
    drawn = np.random.default_rng(count).choice(symbols, count, p=shares / shares.sum()).astype(np.uint8)
    lengths = huffman.code_lengths(np.bincount(drawn, minlength=symbols))
    stored, blocks = huffman.write(drawn, lengths)
    assert int(blocks.sum()) == int(lengths[drawn].astype(int).sum())
    assert huffman.read(stored, count, lengths, blocks).tolist() == drawn.tolist()
    assert slow_read(stored.tobytes(), count, lengths.tolist()) == drawn.tolist()


def test_streams_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huffman, "CHUNK", 2048)
    monkeypatch.setattr(huffman, "LANES", 3)
    test_a_stream_is_read_as_deflate_reads_it(9999, 40)


# -- round trips ----------------------------------------------------------------------------------------------------


@QUICK
@given(st.sampled_from(SHAPES), st.sampled_from(sorted(DTYPES)), st.integers(0, 2**32 - 1))
def test_any_bits_come_back(shape: tuple[int, ...], dtype: str, seed: int) -> None:
    tensor = random_bits(shape, DTYPES[dtype], seed)
    thin = palette(shape, torch.cat([torch.zeros(1, dtype=tensor.dtype), random_bits((5,), tensor.dtype, seed)]), seed)
    for found in (tensor, thin):
        for encoding in (Plain(), Sparse(), Sparse(places="gaps"), Sparse(places="bitmap")):
            assert_same(decode(encode(found, encoding)), found)
        assert_same(decode(smallest(found, (2, 3))), found)
    for encoding in (Codebook(), Codebook(3), Codebook(codes="fixed"), Codebook(codes="huffman"), Sparse(Codebook())):
        assert_same(decode(encode(thin, encoding)), thin)


@QUICK
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_ternary_tensors_come_back(
    shape: tuple[int, ...], dtype: torch.dtype, outputs: int, inputs: int, seed: int
) -> None:
    scale = random_bits((1,), dtype, seed)
    other = scale.clone()  # negated as bits: arithmetic changes some NaN
    other.view(torch.uint8)[-1] ^= 128
    zeros = torch.tensor([0.0, 0.0, -0.0], dtype=dtype)
    tensor = palette(shape, torch.cat([zeros, scale, other]), seed)
    assert_same(decode(encode(tensor, Ternary())), tensor)
    if len(shape) > 1:
        assert_same(decode(encode(tensor, Ternary((outputs, inputs)))), tensor)
        empty = torch.zeros_like(tensor)
        assert decode(encode(empty, Ternary((outputs, inputs)))).equal(empty)


@QUICK
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([(0,), (9,), (4, 3), (6, 4, 3, 3)]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_quantised_tensors_come_back(
    width: int, shape: tuple[int, ...], dtype: torch.dtype, whole: bool, seed: int
) -> None:
    limit = 2 ** (width - 1)
    random = np.random.default_rng(seed)
    codes = torch.from_numpy(random.integers(-limit + 1, limit, shape)).float()
    codes.reshape(-1)[::5] = -0.0  # as rounding leaves them
    for axis in (None, *range(min(2, len(shape)))):
        scale = torch.from_numpy(random.lognormal(-5, 3, 1 if axis is None else shape[axis])).float()
        along = scale.reshape([size if dim == axis else 1 for dim, size in enumerate(shape)])
        tensor = (codes * along).to(dtype)
        given = scale if whole or dtype != torch.float32 else None
        assert_same(decode(encode(tensor, Integers(width, axis, given))), tensor)


def test_the_lowest_code_stands_for_minus_zero_only_where_there_is_one() -> None:
    scale = torch.tensor([0.5])
    lowest = torch.tensor([-8.0, 7.0, 0.0]) * 0.5
    assert_same(decode(encode(lowest, Integers(4, None, scale))), lowest)
    with pytest.raises(ModelError, match="its scale times a code of 4 bits"):
        encode(torch.tensor([-8.0, 7.0, -0.0]) * 0.5, Integers(4, None, scale))


def test_layouts_and_gradients_do_not_matter() -> None:
    whole = torch.arange(96.0).reshape(2, 3, 4, 4)
    for tensor in (
        whole.to(memory_format=torch.channels_last),
        whole.permute(3, 0, 2, 1),
        whole[:, 1:, ::2],
        torch.nn.Parameter(whole),
        whole[0, 0, 0, 0],
        torch.tensor(2.0).expand(3, 4),
    ):
        assert_same(decode(encode(tensor, Plain())), tensor)
        assert_same(decode(smallest(tensor)), tensor)


def test_what_was_given_stays_as_it_is_and_what_comes_back_is_its_own() -> None:
    tensor = torch.arange(6.0)
    encoded = encode(tensor, Plain())
    back = decode(encoded)
    back += 1
    assert tensor.tolist() == [0, 1, 2, 3, 4, 5]
    assert decode(encoded).tolist() == [0, 1, 2, 3, 4, 5]


# -- what is stored -------------------------------------------------------------------------------------------------


def test_the_bytes_by_hand() -> None:
    half = bytes.fromhex("0000003f")  # 0.5
    tensor = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]])
    # Codes 1, 3, 0, 0, then zeros, then 1 as the last of twelve.
    assert encode(tensor, Ternary()).stored == half + bytes([0b00001101, 0, 0b01000000])
    # Tiles of 1 x 2: the first and the last of six; their codes 1, 3, 0, 1.
    assert encode(tensor, Ternary((1, 2))).stored == half + bytes([0b100001, 0b01001101])
    values = half + bytes.fromhex("000000bf") + half
    assert encode(tensor, Sparse(places="bitmap")).stored == bytes([0b11, 0b1000]) + values
    # Gaps 0, 0, 9: 12 bits with any width up to 4, and then the fewest codes.
    gaps = encode(tensor, Sparse(places="gaps"))
    assert (gaps.layout["bits"], gaps.layout["gaps"]) == (4, 3)
    assert gaps.stored == bytes([0x00, 0x09]) + values
    # Gaps 0, 0, 0, 0, 4: with 1 bit 0, 0, 0, 0, four ones that are zeros of the tensor, 0; else 2 bits each.
    gaps = encode(torch.tensor([2, 3, 4, 5, 0, 0, 0, 0, 6], dtype=torch.uint8), Sparse(places="gaps"))
    assert (gaps.layout["bits"], gaps.layout["gaps"]) == (1, 9)
    assert gaps.stored == bytes([0b11110000, 0, 2, 3, 4, 5, 6])
    # Bit patterns rise 0, 0.5, -0.5; codes 1, 2, 0, ...
    assert encode(tensor, Codebook(codes="fixed")).stored == (
        bytes(4) + half + bytes.fromhex("000000bf") + bytes([0b1001, 0, 0b01000000])
    )
    # Lengths 1, 2, 2: codes 0, 10, 11. The block has 15 bits: 10 11 0 0 0000 000 10.
    coded = encode(tensor, Codebook(codes="huffman"))
    assert coded.stored == (
        bytes(4) + half + bytes.fromhex("000000bf") + bytes([0x21, 0x02]) + bytes([15, 0]) + bytes([0b1101, 0b0100000])
    )
    assert encode(tensor, Integers(4, 0, torch.tensor([0.5, 1.0, 0.25]))).stored == (
        np.array([0.5, 1, 0.25], "<f4").tobytes() + bytes([0xF1, 0, 0, 0, 0, 0x20])
    )


@pytest.fixture(scope="module")
def layers() -> dict[str, Tensor]:
    """A ResNet-20's weights; ternary, sparse and coarse ones are made of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: weight.detach() for name, weight in prunable(ew.models.build("resnet20")).items()}


def made_ternary(weight: Tensor) -> Tensor:
    kept = weight.abs() > 0.7 * weight.abs().mean()
    kept[: len(weight) // 3] = False
    return torch.where(kept, weight.sign() * 0.1, torch.zeros(()))


KINDS: dict[str, tuple[object, Encoding]] = {
    "plain": (lambda w: w, Plain()),
    "ternary": (made_ternary, Ternary()),
    "tiles": (made_ternary, Ternary((1, 16))),
    "sparse": (lambda w: w.where(w > 1.5 * w.std(), torch.zeros(())), Sparse()),
    "sparse codes": (lambda w: (w * 16).round() / 16 + 0.0, Sparse(Codebook())),
    "codes": (lambda w: (w * 16).round() / 16 + 0.0, Codebook(codes="fixed")),
    "huffman": (lambda w: (w * 16).round() / 16 + 0.0, Codebook(codes="huffman")),
    "int4": (lambda w: (w / w.abs().max() * 7).round() * (w.abs().max() / 7), Integers(4, None)),
    "int8": (lambda w: (w / w.abs().max() * 127).round() * (w.abs().max() / 127), Integers(8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_real_layers_take_what_their_counts_need(kind: str, layers: dict[str, Tensor], tmp_path: Path) -> None:
    make, encoding = KINDS[kind]
    tensors = {name: make(weight) for name, weight in layers.items()}  # type: ignore[operator]
    path = pack(tensors, dict.fromkeys(tensors, encoding), tmp_path / "a.packed")
    for name, found in unpack(path).items():
        assert_same(found, tensors[name])
    rows = stored_bytes(path)
    assert [row.name for row in rows] == list(tensors)
    for row in rows:
        if tensors[row.name].numel() > 1000:
            assert row.bound_bytes <= row.bytes <= 1.03 * row.bound_bytes
        assert row.bits == 8 * row.bytes / tensors[row.name].numel()
    assert path.stat().st_size < sum(row.bytes for row in rows) + 300 + 100 * len(rows)


def test_the_bounds_are_the_formulas() -> None:
    tensor = torch.zeros(20, 32, 3, 3)
    tensor[:2, :16] = 0.25
    ternary = encode(tensor, Ternary((16, 16)))
    assert ternary.bound_bits == 2 * 16 * 16 * 9 + 4 + 32  # 2 x 2 tiles, one of which is not 0
    assert paper_compression({"w": tensor, "zeros": torch.zeros(2, 20, 32)}, (16, 16)) == 16 * (5760 + 1280) / 2304
    assert paper_compression({"w": torch.zeros(2, 2)}, (1, 1)) == math.inf
    assert encode(tensor, Ternary()).bound_bits == 2 * 20 * 32 * 9 + 32
    assert encode(tensor, Plain()).bound_bits == 32 * 5760
    assert encode(tensor, Codebook(codes="fixed")).bound_bits == 2 * 32 + 5760
    assert encode(tensor, Codebook(codes="huffman")).bound_bits == 2 * 32 + 2 * 4 + 5760
    assert encode(tensor, Sparse(places="bitmap")).bound_bits == 5760 + 32 * 288
    assert encode(tensor, Integers(8)).bound_bits == 8 * 5760 + 32 * 20


def test_the_smallest_is_found() -> None:
    random = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    scale = random.abs().amax(1, keepdim=True) / 7
    cases = {
        "plain": random,
        "int4": (random / scale).round() * scale,
        "ternary": palette((40, 64), torch.tensor([0.0, -0.0, 0.1, -0.1]), 0),
        "sparse": torch.where(random > 1, random, torch.zeros(())),
        "codebook": palette((40, 64), torch.randn(8, generator=torch.Generator().manual_seed(1)), 0),
    }
    assert {kind: smallest(tensor).layout["kind"] for kind, tensor in cases.items()} == {kind: kind for kind in cases}
    skewed = palette((40, 64), torch.arange(4), 0, [20, 3, 1, 1])
    assert "huffman" in smallest(skewed + 1).layout
    assert smallest(torch.zeros(1000, dtype=torch.int64)).stored == b""


@pytest.mark.parametrize(
    ("tensor", "encoding", "message"),
    [
        (torch.tensor([1.0, 2.0]), Ternary(), "one magnitude, and this one has more"),
        (torch.tensor([1.0, math.nan]), Ternary(), "one magnitude, and this one has more"),
        (torch.tensor([1, 0]), Ternary(), "ternary tensor is of floats, this one of int64"),
        (torch.zeros(4), Ternary((1, 1)), r"tiles are of weights \[O, I, ...\]"),
        (torch.arange(5.0), Codebook(2), "2 bits holds 4 different numbers"),
        (torch.arange(257), Codebook(), "8 bits holds 256 different numbers"),
        (torch.arange(300.0).repeat_interleave(5000), Codebook(), "8 bits holds 256 different numbers"),
        (torch.arange(5.0), Sparse(Codebook(1)), "1 bits holds 2 different numbers"),
        (torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), Integers(8), "no scale makes codes of 8 bits"),
        (torch.ones(4, 9), Integers(8, 2), r"axis 2 of a tensor of the shape \[4, 9\]"),
        (torch.ones(4, 9), Integers(8, 0, torch.ones(3)), "3 scales for 4 channels"),
        (torch.ones(4, 9), Integers(4, 0, torch.full((4,), 0.3)), "its scale times a code of 4 bits"),
        (torch.tensor([[math.inf]]), Integers(8), "NaN or infinity is no code"),
        (torch.tensor([[math.nan]]), Integers(8, 0, torch.ones(1)), "its scale times a code"),
        (torch.ones(4, 9).half(), Integers(8), "scales of a tensor of float16 must be given"),
        (torch.ones(3).int(), Integers(8), "codes times a scale are floats, and this tensor is of int32"),
        (torch.ones(3, dtype=torch.complex64), Plain(), "complex64 strided on cpu has no packed form"),
        (torch.ones(3).to_sparse(), Plain(), "sparse_coo on cpu has no packed form"),
        (torch.ones(3, device="meta"), Plain(), "on meta has no packed form"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(tensor: Tensor, encoding: Encoding, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        encode(tensor, encoding)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ternary((0, 4)), r"tile = \(0, 4\)"),
        (lambda: Codebook(9), "bits = 9: 0 to 8"),
        (lambda: Codebook(codes="lzma"), 'codes = "lzma"'),
        (lambda: Sparse(places="csr"), 'places = "csr"'),
        (lambda: Integers(5), "bits = 5: 4 or 8"),
    ],
)
def test_an_encoding_that_is_none_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# -- files ----------------------------------------------------------------------------------------------------------

TENSORS = {
    "layer.weight": palette((4, 6, 3, 3), torch.tensor([0.0, 0.5, -0.5]), 0),
    'any "name" \\ \n é 鱼 \ud800': torch.tensor([1.0, -0.0, math.nan]),
    "": torch.tensor(3),
    "thin": torch.tensor([0.0] * 90 + [1.5, -2.5]).bfloat16(),
    "coded": palette((40,), torch.randn(5, generator=torch.Generator().manual_seed(0)), 1),
    "empty": torch.empty(0, 3),
    "int": torch.tensor([[0.1], [0.2]]),
}
KIND = [Ternary((1, 4)), Plain(), Plain(), Sparse(), Codebook(codes="huffman"), Plain(), Integers(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return pack(TENSORS, dict(zip(TENSORS, KIND, strict=True)), tmp_path / "net.packed")


def test_names_and_their_order_come_back(path: Path) -> None:
    back = unpack(path)
    assert list(back) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert_same(back[name], tensor)
    assert [row.encoding for row in stored_bytes(path)] == [
        "ternary", "plain", "plain", "sparse plain", "codebook", "plain", "int4",
    ]  # fmt: skip
    assert unpack(pack({}, {}, path)) == {}


def test_a_file_is_the_same_each_time_and_any_safetensors_reader_opens_it(path: Path) -> None:
    from safetensors.numpy import load_file

    before = path.read_bytes()
    assert pack(TENSORS, dict(zip(TENSORS, KIND, strict=True)), path).read_bytes() == before
    parts = load_file(path)
    assert set(parts) == {"table", "data"}
    rows = json.loads(zlib.decompress(parts["table"].tobytes()))
    assert sum(row["bytes"] for row in rows) == len(parts["data"])


def test_every_flipped_bit_and_every_changed_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        for mask in (1 << place % 8, 0xFF, 0x20 ^ 0x09):
            damaged = bytearray(whole)
            damaged[place] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(ModelError) as caught:
                unpack(path)
            assert "\n" not in str(caught.value)


def test_every_cut_and_every_longer_file_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cut off"):
            unpack(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelError):
        unpack(path)


def test_what_is_wrong_is_told(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file

    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"net\.packed: 'int' is damaged \(its SHA-256 is another\)"):
        unpack(path)
    assert [name for name, _ in islice(stream(path), 6)] == list(TENSORS)[:6]  # those before it are read
    with pytest.raises(ModelError, match="no such packed file"):
        unpack(tmp_path / "none")
    with pytest.raises(ModelError, match="no such packed file"):
        unpack(tmp_path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ModelError, match="is not a packed file: its format is not told"):
        unpack(path)
    save_file({"a": np.zeros(3)}, path, {"format": "edgewise packed", "version": "1"})
    with pytest.raises(ModelError, match="damaged"):
        unpack(path)
    monkeypatch.setattr(packed, "VERSION", 2)
    write({}, path)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="has version 2 of the format, and this edgewise reads 1; update it"):
        unpack(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "zip"},
        {"codes": 3},
        {"shape": [4, 6]},
        {"shape": [4, 6, 3, 4]},
        {"tile": [0, 1]},
        {"tile": [1, 1]},
        {"dtype": "float8"},
        {"dtype": "float64"},
        {"bytes": -1},
        {"codes": -4},
        {"codes": "many"},
    ],
)
def test_a_row_that_does_not_fit_its_bytes_is_found(changes: dict[str, object], tmp_path: Path) -> None:
    """A file whose checksums are right, from a writer that is wrong."""
    encoded = encode(TENSORS["layer.weight"], Ternary((1, 4)))
    row = {"kind": "ternary", "dtype": encoded.dtype, "shape": encoded.shape, **encoded.layout, **changes}
    fake = SimpleNamespace(stored=encoded.stored, dtype=row.pop("dtype"), shape=row.pop("shape"), layout=row)
    file = write({"w": fake}, tmp_path / "a.packed")  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=r"'w': the stored bytes do not fit|a table that cannot be read"):
        unpack(file)


def test_an_encoding_for_each_tensor_and_a_tensor_for_each_encoding(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.arange(3.0)}
    with pytest.raises(ModelError, match="no encoding for 'b'"):
        pack(tensors, {"a": Plain()}, tmp_path / "x")
    with pytest.raises(ModelError, match="an encoding for 'bb', which is no tensor; did you mean"):
        pack(tensors, {"a": Plain(), "bb": Plain()}, tmp_path / "x")
    with pytest.raises(ModelError, match="'b': a ternary tensor is 0 or"):
        pack(tensors, {"a": Plain(), "b": Ternary()}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        pack({"a": torch.ones(3)}, {"a": Plain()}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_encoding_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "packed_format.md").read_text(encoding="utf-8")
    for name in [*ENCODINGS, *DTYPES]:
        assert f"`{name}`" in text


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    """The file as the page tells it, read without edgewise."""
    whole = pack({"w": torch.tensor([0.5, 0.0, -0.5])}, {"w": Ternary()}, tmp_path / "w").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    size = header["table"]["shape"][0]
    assert header["__metadata__"] == {
        "format": "edgewise packed", "version": "1", "sha256": hashlib.sha256(rest[:size]).hexdigest()
    }  # fmt: skip
    assert header["data"] == {"dtype": "U8", "shape": [5], "data_offsets": [size, size + 5]}
    assert rest[size:] == bytes.fromhex("0000003f31")
    digest = hashlib.sha256(rest[size:]).hexdigest()
    row = zlib.decompress(rest[:size]).decode()
    assert [each["sha256"] for each in json.loads(row)] == [digest]
    text = (Path(__file__).parents[2] / "docs" / "packed_format.md").read_text(encoding="utf-8")
    assert row.replace(digest, "<64 digits>") in text
