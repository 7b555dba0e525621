"""Cover and stego pairs: gray JPEGs, each beside itself with a message embedded, for steganalysis.

``stego:IMAGES?method=uerd&payload=0.4&quality=95`` reads a folder of gray images, or a file ``.npz`` of encoded ones
(``data``, uint8, one after another, and ``offsets``, integers [N + 1]). The messages are simulated by conseal: the
changes that an optimal code would make. Which covers are tested on, and where in an image what is changed, follows
from the bytes of its file: neither another method, payload or quality nor other images beside it move it to another
split or change its random numbers.

References: Holub, Fridrich, Denemark, "Universal Distortion Function for Steganography in an Arbitrary Domain",
EURASIP Journal on Information Security 2014 (J-UNIWARD). Guo et al., "Using Statistical Image Model for JPEG
Steganography: Uniform Embedding Revisited", IEEE TIFS 2015 (UERD). Fridrich, Pevny, Kodovsky, "Statistically
Undetectable JPEG Steganography", ACM MM&Sec 2007 (nsF5).
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import parse_qsl
from zipfile import BadZipFile

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.data.dataset import Dataset, Split
from edgewise.data.download import cache_folder
from edgewise.data.folders import visible
from edgewise.data.jpeg import BLOCK, Coefficients, decompress, quantization_table, read_cover
from edgewise.errors import DataError, MissingExtra, nearest, one_line
from edgewise.files import write_bytes
from edgewise.progress import Progress

Method = Literal["juniward", "uerd", "nsf5"]
TITLES: dict[Method, str] = {"juniward": "J-UNIWARD", "uerd": "UERD", "nsf5": "nsF5"}

TEST_SHARE = 0.2

# Inputs are pixels of 0 to 255 as they are, (image / 255 - 0) / (1 / 255): networks for steganalysis count in their
# levels, and centring or scaling by the covers' own mean and deviation would only move what they truncate.
MEAN, STD = (0.0,), (1 / 255,)

CHUNK = 64  # covers decompressed in one call: enough to be quick, few enough to need little memory beside them

CACHE_LAYOUT = 1  # a number to raise whenever what is kept changes its meaning
INSTALL = 'pip install "edgewise[steganalysis]"'


@dataclass(frozen=True)
class Embedding:
    """How messages are embedded.

    Args:
        method: ``juniward``, ``uerd`` or ``nsf5``.
        payload: bits of message for each AC coefficient of the cover that is not zero, in (0, 1].
        quality: of the JPEGs, in [1, 100].

    Raises:
        ValueError: a value out of range, by name.
    """

    method: Method = "juniward"
    payload: float = 0.4
    quality: int = 75

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f'method is "{self.method}"; {nearest(self.method, get_args(Method))}')
        if not 0 < self.payload <= 1:
            raise ValueError(f"payload is {self.payload}; it must be in (0, 1], bits per non-zero AC coefficient")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be in [1, 100]")


def load(path: Path, held: float, size: int | None = None, progress: Progress | None = None) -> Dataset:
    """Read covers, embed a message into each, and make a data set of the pairs.

    What was embedded is kept in the cache folder. The pixels of a pair take 8 bytes each, 0.5 GB for 1,000 covers of
    256x256.

    Args:
        path: ``IMAGES`` or ``IMAGES?method=...&payload=...&quality=...``, see `Embedding`.
        held: share of the covers that are not tested on, to be held out; in (0, 1).
        size: side in pixels to cut out of the images' centres, a multiple of 8; None takes images whole, which must
            then be squares of one size.
        progress: is told (what, done, total).

    Returns:
        A data set whose images are float32 [N, 2, 1, H, W], cover and stego of 0 to 255, not rounded; its labels,
        int64 [N], are the covers' numbers. A fifth of the covers is the test split.

    Raises:
        DataError: images that are missing, broken, in colour, of several sizes, too small or without any contrast;
            a JPEG of another quality; fewer than three images; choices out of range; more than the memory holds; a
            cache that cannot be read or written.
        MissingExtra: conseal or jpeglib is not installed.
    """
    images, embedding = _parse(str(path))
    if size is not None and size % BLOCK:
        raise DataError(f"stego:{path}: size is {size}; it must be a multiple of {BLOCK}, the side of a JPEG's blocks")
    encoded, name = _encoded(images)
    if len(encoded) < 3:
        raise DataError(f"stego:{images} holds too few images, {len(encoded)}; three are needed, one for each split")
    digests = [hashlib.sha256(content).digest() for content in encoded]
    covers, changes = _kept(
        _key(digests, embedding, size), lambda: _embed_all(encoded, name, digests, embedding, size, progress)
    )
    _see_memory(covers.size, f"stego:{images}")
    pairs = Split(_pixels(covers, changes, quantization_table(embedding.quality)), torch.arange(len(covers)))
    train, kept, test = (pairs.part(torch.from_numpy(index)) for index in split(digests, held))
    return Dataset(
        name=images.stem,
        classes=("cover", "stego"),
        train=train,
        held=kept,
        test=test,
        mean=MEAN,
        std=STD,
        checksum=_checksum(covers, changes),
        note=f"{TITLES[embedding.method]} at {embedding.payload:g} bpnzac, JPEG quality {embedding.quality}",
        kind="steganalysis",
    )


def embed(cover: Coefficients, embedding: Embedding, seed: int) -> Coefficients:
    """Embed a random message into a gray JPEG.

    Args:
        cover: int16 [H / 8, W / 8, 8, 8], quantised coefficients of the embedding's quality.
        embedding: method and payload.
        seed: of the message, in [0, 2^32).

    Returns:
        Coefficients of the same shape, each changed by at most 1.

    Raises:
        ValueError: a cover without any AC coefficient that is not zero.
        RuntimeWarning: a payload that the method did not reach, where warnings are errors.

    As in conseal's default and the method's first publication, J-UNIWARD's costs are taken one wavelet coefficient
    beside their place; see Lorch, Benes, arXiv 2305.19776.
    """
    import conseal

    if not cover.reshape(-1, BLOCK * BLOCK)[:, 1:].any():
        raise ValueError("it has no AC coefficient that is not zero; nothing can be embedded")
    table, payload = quantization_table(embedding.quality), embedding.payload
    if embedding.method == "nsf5":
        stego = conseal.nsF5.simulate_single_channel(y0=cover, alpha=payload, seed=seed)
    elif embedding.method == "uerd":
        stego = conseal.uerd.simulate_single_channel(y0=cover, qt=table, alpha=payload, seed=seed)
    else:
        pixels = decompress(cover, table).round().clamp(0, 255).double().numpy()
        stego = conseal.juniward.simulate_single_channel(x0=pixels, y0=cover, qt=table, alpha=payload, seed=seed)
    return np.asarray(stego, np.int16)


def split(digests: Sequence[bytes], held: float) -> tuple[NDArray[np.int64], ...]:
    """Share covers out to train, held and test by the rank of their hashes; always the same ones.

    Args:
        digests: of the covers' files, at least three.
        held: share of the covers that are not tested on, in (0, 1).

    Returns:
        The indices of each, int64, rising; none is empty.
    """
    ranked = np.array(sorted(range(len(digests)), key=lambda index: digests[index]), np.int64)
    tested = max(1, round(TEST_SHARE * len(ranked)))
    rest = len(ranked) - tested
    kept = min(max(1, round(held * rest)), rest - 1)
    test, held_out, train = np.split(ranked, [tested, tested + kept])
    return np.sort(train), np.sort(held_out), np.sort(test)


def _parse(spec: str) -> tuple[Path, Embedding]:
    """Take ``IMAGES?method=...&payload=...&quality=...`` apart."""
    images, _, query = spec.partition("?")
    readers: dict[str, Callable[[str], object]] = {"method": str, "payload": float, "quality": int}
    chosen: dict[str, object] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in readers:
            raise DataError(f'stego:{spec}: no choice is called "{key}"; {nearest(key, readers)}')
        try:
            chosen[key] = readers[key](text)
        except ValueError as error:
            raise DataError(f'stego:{spec}: {key} is "{text}"; it must be a number') from error
    try:
        return Path(images), Embedding(**chosen)  # type: ignore[arg-type]
    except ValueError as error:
        raise DataError(f"stego:{spec}: {error}") from error


def _encoded(images: Path) -> tuple[list[bytes], Callable[[int], str]]:
    """Read the encoded images of a folder or a file, and how to call each."""
    if images.is_dir():
        files = sorted(visible(images))
        return [file.read_bytes() for file in files], lambda index: str(files[index])
    try:
        with np.load(images, allow_pickle=False) as pack:
            data, offsets = pack["data"], pack["offsets"]
        edges = offsets.astype(np.int64)
    except FileNotFoundError as error:
        raise DataError(f"stego:{images} is missing; give a folder of gray images, or a file .npz of them") from error
    except (OSError, ValueError, EOFError, BadZipFile, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{images} is no .npz of images ({one_line(error)}): it needs data and offsets") from error
    if data.ndim != 1 or data.dtype != np.uint8 or edges.ndim != 1 or not len(edges):
        raise DataError(f"{images}: data is {data.dtype} {list(data.shape)}; data and offsets must be rows of integers")
    if edges[0] < 0 or edges[-1] > len(data) or (np.diff(edges) <= 0).any():
        raise DataError(f"{images}: the offsets do not rise from 0 to the {len(data)} bytes of data; it may be corrupt")
    content = data.tobytes()
    return [content[start:end] for start, end in pairwise(edges.tolist())], lambda index: f"{images}: image {index}"


def _embed_all(
    encoded: Sequence[bytes],
    name: Callable[[int], str],
    digests: Sequence[bytes],
    embedding: Embedding,
    size: int | None,
    progress: Progress | None,
) -> tuple[Coefficients, NDArray[np.int8]]:
    """Read all covers and embed into each: int16 and int8 [N, H / 8, W / 8, 8, 8], coefficients and their changes."""
    covers: list[Coefficients] = []
    for index, content in enumerate(encoded):
        cover = read_cover(content, name(index), embedding.quality, size)
        if covers and cover.shape != covers[0].shape:
            sides = [f"{BLOCK * c.shape[0]}x{BLOCK * c.shape[1]}" for c in (cover, covers[0])]
            raise DataError(f"{name(index)} is {sides[0]}, the first image {sides[1]}; choose a size to cut out of all")
        covers.append(cover)
        if progress is not None:
            progress("read covers", index + 1, len(encoded))

    def changes(index: int) -> NDArray[np.int8]:
        try:
            stego = embed(covers[index], embedding, int.from_bytes(digests[index][:4], "little"))
        except (ValueError, RuntimeWarning) as error:
            about = f"{TITLES[embedding.method]} at {embedding.payload:g} bpnzac"
            raise DataError(f"{name(index)} takes no message by {about} ({error}); remove it") from error
        return (stego - covers[index]).astype(np.int8)

    _embedder()
    made = []
    # Most of the time goes into NumPy's loops, which threads share. A payload that was missed is only warned of.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("error", RuntimeWarning)
        for done, change in enumerate(pool.map(changes, range(len(covers))), 1):
            made.append(change)
            if progress is not None:
                progress("embed messages", done, len(covers))
    return np.stack(covers), np.stack(made)


def _embedder() -> None:
    """Import conseal, which compiles itself in part and so takes a second, in one thread."""
    try:
        import conseal  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"embedding messages needs conseal: {INSTALL}") from error


def _key(digests: Sequence[bytes], embedding: Embedding, size: int | None) -> str:
    """Name what decides over every coefficient: the images in their order, the choices, who compresses and embeds."""
    try:
        makers = {name: version(name) for name in ("conseal", "jpeglib")}
    except PackageNotFoundError as error:
        raise MissingExtra(f"embedding messages needs {error.name}: {INSTALL}") from error
    decides = {"layout": CACHE_LAYOUT, "size": size, **asdict(embedding), **makers}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode() + b"".join(digests)).hexdigest()[:32]


def _kept(key: str, make: Callable[[], tuple[Coefficients, NDArray[np.int8]]]) -> tuple[Coefficients, NDArray[np.int8]]:
    """Return covers and changes from the cache, or make them and keep them there."""
    file = cache_folder() / f"stego-{key}.npz"
    if file.exists():
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return arrays["covers"], arrays["changes"]
        except (OSError, ValueError, EOFError, BadZipFile, KeyError) as error:
            raise DataError(f"{file} cannot be read ({one_line(error)}); remove it, to embed once more") from error
    covers, changes = make()
    content = BytesIO()
    np.savez_compressed(content, covers=covers, changes=changes)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content.getvalue())
    except OSError as error:
        raise DataError(
            f"{file} cannot be written ({error.strerror or error}); EDGEWISE_CACHE names a place"
        ) from error
    return covers, changes


def _pixels(covers: Coefficients, changes: NDArray[np.int8], table: NDArray[np.int64]) -> Tensor:
    """Decompress pairs: float32 [N, 2, 1, H, W]."""
    blocks = covers.shape[1]
    pixels = torch.empty(len(covers), 2, 1, BLOCK * blocks, BLOCK * blocks)
    for start in range(0, len(covers), CHUNK):
        chunk = slice(start, start + CHUNK)
        pixels[chunk, 0, 0] = decompress(covers[chunk], table)
        pixels[chunk, 1, 0] = decompress(covers[chunk] + changes[chunk], table)
    return pixels


def _see_memory(coefficients: int, name: str) -> None:
    """Refuse pairs that the memory does not hold: as float32, once whole and once split."""
    needed, free = 16 * coefficients, psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{name} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; choose a smaller size"
        )


def _checksum(covers: Coefficients, changes: NDArray[np.int8]) -> str:
    """Hash the coefficients of all covers and their changes: from these integers the pixels follow."""
    digest = hashlib.sha256(f"{list(covers.shape)}".encode())
    digest.update(np.ascontiguousarray(covers, "<i2").data)
    digest.update(np.ascontiguousarray(changes).data)
    return f"sha256:{digest.hexdigest()}"
