"""What is embedded, how the pairs are split, what is kept in the cache, and what bad input is told."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from edgewise import data
from edgewise.data import stego
from edgewise.data.jpeg import decompress, quantization_table, read_cover
from edgewise.data.stego import Embedding, embed
from edgewise.errors import DataError
from image_files import encode

METHODS = pytest.mark.parametrize("method", ["juniward", "uerd", "nsf5"])


def smooth(seed: int, side: int = 64) -> np.ndarray:
    """Make a picture with texture in it: noise of several scales, uint8 [side, side]."""
    random = np.random.default_rng(seed)
    layers = [np.kron(random.normal(0, 16, (side // n, side // n)), np.ones((n, n))) for n in (1, 2, 4, 8, 16)]
    return (128 + sum(layers) / 2).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 75) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def ac(coefficients: np.ndarray) -> int:
    """Count the AC coefficients that are not zero."""
    return int((coefficients != 0).sum() - (coefficients[..., 0, 0] != 0).sum())


@pytest.fixture(scope="module")
def covers() -> list[np.ndarray]:
    return [read_cover(encode(smooth(seed)), "cover", 75, None) for seed in range(8)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEWISE_CACHE", str(folder))
    return folder


@pytest.fixture
def pack(tmp_path):
    """Ten images in one file."""
    return write(tmp_path / "gray.npz", [encode(smooth(seed)) for seed in range(10)])


def write(file, encoded, **more):
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(file, **{"data": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets, **more})
    return file


def load(path, query="?method=nsf5", held=0.25, **more):
    return data.load(f"stego:{path}{query}", held=held, **more)


# -- embedding


@METHODS
def test_a_message_changes_coefficients_by_one_and_follows_its_seed(covers, method):
    embedding = Embedding(method, payload=0.3)
    first, again, other = (embed(covers[0], embedding, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.int16
    assert np.abs(first - covers[0]).max() == 1


def test_nsf5_makes_the_changes_that_the_bound_demands_and_all_toward_zero(covers):
    """H(changes / coefficients) = payload, H in bits; found here by halving."""
    low, high = 0.0, 0.5
    for _ in range(60):
        rate = (low + high) / 2
        entropy = -rate * np.log2(rate) - (1 - rate) * np.log2(1 - rate)
        low, high = (rate, high) if entropy < 0.4 else (low, rate)
    for seed, cover in enumerate(covers):
        message = embed(cover, Embedding("nsf5", payload=0.4), seed)
        assert (message != cover).sum() == pytest.approx(rate * ac(cover), abs=1.01)
        assert np.array_equal(message[..., 0, 0], cover[..., 0, 0])
        assert (np.abs(message) <= np.abs(cover)).all()
        assert not (message[cover == 0] != 0).any()


@pytest.mark.parametrize("payload", [0.1, 0.4])
def test_uerd_makes_the_changes_that_its_costs_and_the_payload_demand(covers, payload):
    """Costs, Gibbs probabilities and the entropy of +1, 0, -1 from the published formulas, with loops."""
    table = quantization_table(75).astype(float)
    expected, variance, found = 0.0, 0.0, 0
    for seed, cover in enumerate(covers):
        rows, columns = cover.shape[:2]
        energy = np.abs(cover * table).sum((2, 3)) - np.abs(cover[..., 0, 0] * table[0, 0])
        padded = np.pad(energy, 1, mode="edge")
        step = table.copy()
        step[0, 0] = (table[0, 1] + table[1, 0]) / 2
        costs = np.empty(cover.shape)
        for r in range(rows):
            for c in range(columns):
                around = padded[r : r + 3, c : c + 3].sum() - energy[r, c]
                costs[r, c] = step / (energy[r, c] + 0.25 * around)
        low, high = 0.0, 1e6  # the rate at which probability falls with cost
        for _ in range(100):
            scale = (low + high) / 2
            changed = np.exp(-scale * costs) / (1 + 2 * np.exp(-scale * costs))
            still = 1 - 2 * changed
            bits = -(2 * changed * np.log2(changed + 1e-300) + still * np.log2(still + 1e-300)).sum()
            low, high = (scale, high) if bits > payload * ac(cover) else (low, scale)
        expected += 2 * changed.sum()
        variance += (2 * changed * still).sum()
        found += (embed(cover, Embedding("uerd", payload), seed) != cover).sum()
    assert abs(found - expected) < 4 * variance**0.5 + 0.005 * expected


@METHODS
def test_a_larger_payload_changes_more(covers, method):
    counts = [(embed(covers[0], Embedding(method, payload), 5) != covers[0]).sum() for payload in (0.1, 0.4, 0.8)]
    assert counts == sorted(set(counts))
    assert 0.02 < counts[1] / ac(covers[0]) < 0.25


def test_the_adaptive_methods_avoid_what_is_flat():
    """Left half flat but for a trace, right half full of texture."""
    pixels = smooth(3)
    pixels[:, :32] = 120 + pixels[:, :32] // 64
    cover = read_cover(encode(pixels), "cover", 75, None)
    for method in ("juniward", "uerd"):
        changed = embed(cover, Embedding(method), 0) != cover
        assert changed[:, 4:].sum() > 5 * changed[:, :4].sum()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "uert"}, 'method is "uert"; did you mean "uerd"?'),
        ({"payload": 0.0}, "payload is 0.0; it must be in (0, 1]"),
        ({"payload": 1.1}, "payload is 1.1"),
        ({"payload": float("nan")}, "payload is nan"),
        ({"quality": 0}, "quality is 0; it must be in [1, 100]"),
    ],
)
def test_a_choice_out_of_range_is_named(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Embedding(**given)


# -- the data set


def test_pairs_are_the_unrounded_pixels_of_cover_and_stego(pack):
    pairs = load(pack, "?method=uerd&payload=0.5&quality=95")
    assert pairs.name == "gray"
    assert pairs.classes == ("cover", "stego")
    assert pairs.kind == "steganalysis"
    assert pairs.note == "UERD at 0.5 bpnzac, JPEG quality 95"
    assert pairs.input_shape == (1, 64, 64)
    for part in (pairs.train, pairs.held, pairs.test):
        assert part.images.dtype == torch.float32
        for (cover, message), label in zip(part.images, part.labels.tolist(), strict=True):
            coefficients = read_cover(encode(smooth(label)), "cover", 95, None)
            assert torch.equal(cover[0], decompress(coefficients, quantization_table(95)))
            assert not torch.equal(cover, message)
            assert (cover - message).abs().max() < 20


def test_inputs_are_pixels_as_they_are(pack):
    pairs = load(pack)
    normalised = data.normalize(pairs.test.images[:, 0], pairs.mean, pairs.std)
    torch.testing.assert_close(normalised, pairs.test.images[:, 0], rtol=1e-7, atol=0)


def test_a_fifth_of_the_covers_is_tested_on_and_the_splits_share_none(pack):
    pairs = load(pack, held=0.25)
    parts = [part.labels.tolist() for part in (pairs.train, pairs.held, pairs.test)]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert sorted(label for part in parts for label in part) == list(range(10))
    assert all(part == sorted(part) for part in parts)


def test_neither_method_nor_payload_nor_quality_nor_share_moves_a_cover_to_the_test(pack):
    queries = ["?method=nsf5", "?method=uerd&quality=95", "?method=nsf5&payload=0.1"]
    tested = [load(pack, query, held=held).test.labels.tolist() for query in queries for held in (0.1, 0.5)]
    assert all(labels == tested[0] for labels in tested)


def test_images_beside_it_do_not_change_a_pair(tmp_path):
    contents = [encode(smooth(seed)) for seed in range(6)]
    found = []
    for name, order in (("one", [0, 1, 2, 3]), ("two", [5, 3, 4, 0])):
        pairs = load(write(tmp_path / f"{name}.npz", [contents[index] for index in order]))
        images = {
            order[label]: image
            for part in (pairs.train, pairs.held, pairs.test)
            for image, label in zip(part.images, part.labels.tolist(), strict=True)
        }
        found.append(images)
    assert all(torch.equal(found[0][seed], found[1][seed]) for seed in (0, 3))


def test_splits_of_few_covers_are_never_empty():
    for covers in range(3, 9):
        digests = [bytes([37 * index % 256]) for index in range(covers)]
        for held in (0.01, 0.5, 0.99):
            parts = stego.split(digests, held)
            assert min(map(len, parts)) >= 1
            assert sorted(np.concatenate(parts).tolist()) == list(range(covers))


def test_a_folder_is_read_with_jpegs_as_they_are(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / ".hidden").write_text("no image")
    for seed in range(4):
        (folder / f"{seed}.jpg").write_bytes(jpeg(smooth(seed)))
    (folder / "more" / "4.png").write_bytes(encode(smooth(4)))
    pairs = load(folder)
    assert pairs.name == "photos"
    labels = torch.cat([part.labels for part in (pairs.train, pairs.held, pairs.test)])
    images = torch.cat([part.images for part in (pairs.train, pairs.held, pairs.test)])[labels.argsort()]
    expected = decompress(read_cover(jpeg(smooth(2)), "cover", 75, None), quantization_table(75))
    assert len(images) == 5
    assert torch.equal(images[2, 0, 0], expected)


def test_a_size_cuts_the_centre_out(pack):
    whole, cut = (load(pack, size=size) for size in (None, 32))
    assert cut.size == 32
    # Compressed blocks do not know their neighbours.
    assert torch.equal(cut.test.images[:, 0], whole.test.images[:, 0, :, 16:48, 16:48])


# -- the cache


def test_what_was_embedded_is_kept_and_found_again(pack, cache):
    told = []
    first = load(pack, progress=lambda *step: told.append(step))
    assert {step[0] for step in told} == {"read covers", "embed messages"}
    assert told[-1] == ("embed messages", 10, 10)
    told.clear()
    again = load(pack, progress=lambda *step: told.append(step))
    assert told == []
    assert torch.equal(first.train.images, again.train.images)
    assert first.checksum == again.checksum
    assert len(list(cache.iterdir())) == 1


def test_every_choice_and_every_image_is_part_of_the_key(pack, tmp_path, cache):
    fewer = write(tmp_path / "fewer.npz", [encode(smooth(seed)) for seed in range(9)])
    runs = [
        (pack, "?method=nsf5", None),
        (pack, "?method=uerd", None),
        (pack, "?method=nsf5&payload=0.2", None),
        (pack, "?method=nsf5&quality=95", None),
        (pack, "?method=nsf5", 32),
        (fewer, "?method=nsf5", None),
    ]
    checksums = [load(path, query, size=size).checksum for path, query, size in runs]
    assert len(set(checksums)) == len(runs) == len(list(cache.iterdir()))


def test_a_broken_cache_is_named(pack, cache):
    load(pack)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"stego-.*npz cannot be read .*; remove it"):
        load(pack)


def test_a_cache_that_cannot_be_written_is_named(pack, cache):
    cache.write_text("no folder")
    with pytest.raises(DataError, match=r"stego-.*npz cannot be written .*EDGEWISE_CACHE names a place"):
        load(pack)


# -- bad input


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?methode=uerd", 'no choice is called "methode"; did you mean "method"?'),
        ("?method=f5", 'method is "f5"; did you mean "nsf5"?'),
        ("?payload=much", 'payload is "much"; it must be a number'),
        ("?payload=2", "payload is 2.0; it must be in (0, 1]"),
        ("?quality=75.5", 'quality is "75.5"; it must be a number'),
        ("?quality=", 'quality is ""; it must be a number'),
        ("?quality=101", "quality is 101; it must be in [1, 100]"),
    ],
)
def test_a_choice_that_is_none_is_named(pack, query, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(pack, query)
    assert str(caught.value).startswith(f"stego:{pack}{query}: ")


def test_a_size_between_blocks_is_refused(pack):
    with pytest.raises(DataError, match="size is 60; it must be a multiple of 8"):
        load(pack, size=60)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (jpeg(np.stack([smooth(0), smooth(1), smooth(2)], -1)), "image 3 is a JPEG in colour"),
        (jpeg(smooth(0), 80), "image 3 is a JPEG of other quantisation tables than quality 75's"),
        (encode(smooth(0, 48)), "image 3 is 48x48, the first image 64x64; choose a size to cut out of all"),
        (encode(np.full((64, 64), 9, np.uint8)), "image 3 takes no message by nsF5 at 0.4 bpnzac (it has no AC"),
        (b"nothing", "image 3 is no image or a broken one"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path, cache, bad, message):
    good = [encode(smooth(seed)) for seed in range(4)]
    file = write(tmp_path / "gray.npz", [*good[:3], bad, good[3]])
    with pytest.raises(DataError, match=re.escape(f"{file}: {message}")) as caught:
        load(file)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_images_too_small_for_the_size_are_named(pack):
    with pytest.raises(DataError, match="image 0 is 64x64, smaller than 72x72"):
        load(pack, size=72)


def test_too_few_images_are_refused(tmp_path):
    file = write(tmp_path / "two.npz", [encode(smooth(seed)) for seed in range(2)])
    with pytest.raises(DataError, match="holds too few images, 2"):
        load(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 5, 3])}, "the offsets do not rise"),
        ({"offsets": np.array([0, 10**9])}, "the offsets do not rise"),
        ({"offsets": np.zeros((2, 2), int)}, "must be rows of integers"),
        ({"data": np.zeros(9)}, r"data is float64 \[9\]"),
    ],
)
def test_arrays_that_do_not_fit_together_are_named(tmp_path, changes, message):
    file = write(tmp_path / "gray.npz", [encode(smooth(0))], **changes)
    with pytest.raises(DataError, match=message):
        load(file)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.npz is missing; give a folder of gray images"):
        load(tmp_path / "nowhere.npz")
    file = tmp_path / "text.npz"
    file.write_text("no arrays")
    with pytest.raises(DataError, match=r"text.npz is no .npz of images"):
        load(file)
    np.savez(file, labels=np.zeros(3))
    with pytest.raises(DataError, match=r"text.npz is no .npz of images .*needs data and offsets"):
        load(file)
