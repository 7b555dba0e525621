from io import BytesIO

import numpy as np
import psutil
import pytest
from PIL import Image

from edgewise.data.decode import CHUNK, decode, shorter_side
from edgewise.errors import DataError
from image_files import encode


def named(index):
    return f"image {index}"


def one(encoded, size=None):
    """Decode one image to [H, W, 3]."""
    return decode([encoded], size, named)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_formats_give_back_their_pixels(noise, form):
    pixels = noise(6, 6, 3)
    options = {"lossless": True} if form == "webp" else {}
    assert np.array_equal(one(encode(pixels, form, **options)), pixels)


def test_many_images_keep_their_order_and_report_their_progress(noise):
    pixels, told = noise(2 * CHUNK + 5, 3, 3, 3), []
    images = decode([encode(image) for image in pixels], None, named, lambda *step: told.append(step))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)
    assert images.is_contiguous()
    assert told == [("decode images", done, len(pixels)) for done in (CHUNK, 2 * CHUNK, 2 * CHUNK + 5)]


def test_files_and_their_content_decode_alike(noise, tmp_path):
    content = encode(noise(4, 4, 3))
    (tmp_path / "image").write_bytes(content)
    assert np.array_equal(one(tmp_path / "image"), one(content))


def saved(image, form="png", **options):
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("error")
def test_every_way_to_store_colour_becomes_rgb(noise):
    pixels = noise(5, 5, 3)
    image = Image.fromarray(pixels)
    palette = image.quantize(8)
    see_through = palette.copy()
    see_through.info["transparency"] = bytes(range(8))
    for mode in ("L", "1", "LA", "RGBA"):
        expected = np.asarray(image.convert(mode).convert("RGB"))
        assert np.array_equal(one(saved(image.convert(mode))), expected)
    assert np.array_equal(one(saved(palette)), np.asarray(palette.convert("RGB")))
    assert np.array_equal(one(saved(see_through)), np.asarray(palette.convert("RGB")))
    assert one(saved(image.convert("CMYK"), "jpeg")).shape == (5, 5, 3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_a_channel_is_refused(dtype):
    encoded = saved(Image.fromarray(np.ones((4, 4), dtype)), "tiff")
    with pytest.raises(DataError, match=r"image 0 has more than 8 bits a channel \(mode "):
        one(encoded)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_exif_orientation_is_honoured(noise, orientation, turn):
    pixels = noise(6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(one(encode(pixels, "png", exif=exif)), np.rot90(pixels, turn))
    wide = noise(4, 10, 3)
    upright = np.rot90(wide, turn)
    assert np.array_equal(one(encode(wide, "png", exif=exif), 3), one(encode(np.ascontiguousarray(upright)), 3))


def test_the_centre_is_cut_out_of_the_longer_side():
    ramp = np.repeat(np.arange(6, dtype=np.uint8)[None, :, None] * 10, 2, axis=0).repeat(3, axis=2)
    assert one(encode(ramp), 2)[:, :, 0].tolist() == [[20, 30], [20, 30]]
    tall = np.ascontiguousarray(ramp.transpose(1, 0, 2))
    assert one(encode(tall), 2)[:, :, 0].tolist() == [[20, 20], [30, 30]]


def test_resizing_is_antialiased(noise):
    checkers = ((np.arange(60)[:, None] + np.arange(90)) % 2 * 255).astype(np.uint8)
    assert np.abs(one(encode(checkers), 20).astype(float) - 127.5).max() < 8


def test_resizing_is_that_of_the_whole_image(noise):
    # Noise as smooth as a photograph, so that a crop shifted by half a pixel counts little.
    image = Image.fromarray(noise(8, 12, 3)).resize((120, 80), Image.Resampling.BICUBIC)
    whole = image.resize((60, 40), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((10, 0, 50, 40)))
    result = one(saved(image), 40)
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_large_jpegs_decoded_at_a_fraction_look_the_same(noise):
    image = Image.fromarray(noise(8, 8, 3)).resize((640, 640), Image.Resampling.BICUBIC)
    result = one(saved(image, "jpeg", quality=95), 64).astype(int)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(result - expected).mean() < 1.5


def test_a_broken_image_among_many_is_named(noise):
    encoded = [encode(noise(8, 8, 3)) for _ in range(CHUNK + 40)]
    encoded[CHUNK + 7] = encoded[CHUNK + 7][:-40]
    with pytest.raises(DataError, match=f"image {CHUNK + 7} is a broken image .*; mend or remove it"):
        decode(encoded, None, named)


def test_a_jpeg_cut_short_is_broken(noise):
    whole = encode(noise(32, 32, 3), "jpeg")
    with pytest.raises(DataError, match="image 0 is a broken image"):
        one(whole[: len(whole) // 2])


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(noise, monkeypatch):
    class Memory:
        available = 3 * 1000 * 1000 - 1

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(DataError, match=r"10 images of 1000x1000 need 0.0 GB .*; choose a smaller size"):
        decode([b"never decoded"] * 10, 1000, named)


def test_the_shorter_side_comes_from_the_header(noise):
    content = encode(noise(5, 9, 3))
    assert shorter_side(content[:60], "x") == 5
    with pytest.raises(DataError, match="x is no image that Pillow knows"):
        shorter_side(b"text", "x")
