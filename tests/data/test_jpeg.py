"""Coefficients and tables against libjpeg and Pillow, decompression against scipy's cosine transform."""

import re
from io import BytesIO

import jpeglib
import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image

from edgewise.data.jpeg import dct_matrix, decompress, quantization_table, read_cover
from edgewise.errors import DataError
from image_files import encode


def smooth(height: int = 48, width: int = 48, seed: int = 0) -> np.ndarray:
    """Make a picture that JPEGs well: waves with a little noise, uint8 [H, W]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = sum(random.uniform(10, 40) * np.sin(random.uniform(-3, 3) * y + random.uniform(-3, 3) * x) for _ in "1234")
    return (128 + waves + random.normal(0, 6, (height, width))).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, **how: object) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **how)
    return file.getvalue()


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 95, 100])
def test_the_table_is_the_one_that_libjpeg_writes(quality):
    with Image.open(BytesIO(jpeg(smooth(16, 16), quality=quality))) as image:
        written = image.quantization[0]
    assert quantization_table(quality).flatten().tolist() == list(written)


@pytest.mark.parametrize("quality", [0, 101, -75])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(ValueError, match=f"quality is {quality}; it must be in"):
        quantization_table(quality)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_the_matrix_is_orthonormal_and_scipys(side):
    matrix = dct_matrix(side)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(side, dtype=torch.float64))
    expected = scipy.fft.dct(np.eye(side), axis=0, norm="ortho")
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-15)


@pytest.mark.parametrize("quality", [75, 95])
def test_decompression_is_the_inverse_transform_and_within_rounding_of_libjpegs(quality, tmp_path):
    file = tmp_path / "image.jpg"
    file.write_bytes(jpeg(smooth(40, 56), quality=quality))
    coefficients = jpeglib.read_dct(str(file)).Y
    table = quantization_table(quality)
    pixels = decompress(coefficients, table)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (40, 56))
    for row in range(5):
        for column in range(7):
            block = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].numpy()
            exact = scipy.fft.idctn(coefficients[row, column] * table.astype(float), norm="ortho") + 128
            np.testing.assert_allclose(block, exact, rtol=0, atol=2e-5)
    assert (pixels != pixels.round()).float().mean() > 0.9
    rounded = jpeglib.read_spatial(str(file)).spatial[..., 0].astype(float)
    # libjpeg's integers keep two bits after the point between its two passes, which moves a pixel by some hundredths.
    apart = np.abs(pixels.numpy().clip(0, 255) - rounded)
    assert apart.max() < 0.5 + 0.1
    assert (apart > 0.5).mean() < 0.04


def test_a_block_by_hand():
    coefficients = np.zeros((1, 2, 8, 8), np.int16)
    coefficients[0, 0, 0, 0], coefficients[0, 1, 1, 0] = 3, 2
    pixels = decompress(coefficients, np.full((8, 8), 10))
    assert pixels[:, :8].flatten().tolist() == pytest.approx([128 + 30 / 8] * 64)
    # The first vertical frequency: it falls from top to bottom, and is the same from left to right.
    expected = [128 + 20 * np.sqrt(1 / 8) * np.sqrt(2 / 8) * np.cos(np.pi * (2 * y + 1) / 16) for y in range(8)]
    assert pixels[:, 8].tolist() == pytest.approx(expected)
    assert torch.equal(pixels[:, 8:], pixels[:, 8:9].expand(8, 8))


def test_many_images_are_decompressed_as_one_is():
    coefficients = np.random.default_rng(0).integers(-9, 9, (2, 3, 4, 5, 8, 8)).astype(np.int16)
    table = quantization_table(75)
    assert torch.equal(decompress(coefficients, table)[1, 2], decompress(coefficients[1, 2], table))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_images_become_jpegs_of_the_quality(kind, tmp_path):
    pixels = smooth()
    file = tmp_path / "image.jpg"
    jpeglib.from_spatial(pixels[..., None]).write_spatial(str(file), qt=75)
    content = BytesIO()
    Image.fromarray(pixels).convert("RGB").save(content, kind, **({"lossless": True} if kind == "WEBP" else {}))
    cover = read_cover(content.getvalue(), "image", 75, None)
    assert cover.dtype == np.int16
    assert np.array_equal(cover, jpeglib.read_dct(str(file)).Y)
    assert np.abs(decompress(cover, quantization_table(75)).numpy() - pixels).mean() < 6


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_the_quality_is_taken_as_it_is(progressive, tmp_path):
    content = jpeg(smooth(), quality=95, progressive=progressive)
    file = tmp_path / "image.jpg"
    file.write_bytes(content)
    assert np.array_equal(read_cover(content, "image", 95, None), jpeglib.read_dct(str(file)).Y)


def test_the_centre_is_cut_out_to_whole_blocks():
    pixels = smooth(61, 83)  # 61 - 32 leaves 14 above, one whole block; 83 - 32 leaves 25 to the left, three
    of_jpeg = read_cover(jpeg(pixels, quality=75), "image", 75, 32)
    of_png = read_cover(encode(pixels), "image", 75, 32)
    assert np.array_equal(of_png, read_cover(encode(pixels[8:40, 24:56]), "image", 75, None))
    assert of_jpeg.shape == of_png.shape == (4, 4, 8, 8)
    # The two were quantised alike but by different compressors, which round a few coefficients apart.
    assert (of_jpeg != of_png).mean() < 0.01


COLOUR = np.stack([smooth(), smooth(seed=1), smooth(seed=2)], -1)


@pytest.mark.parametrize(
    ("content", "side", "message"),
    [
        (jpeg(COLOUR, quality=75), None, "b.png is a JPEG in colour (mode RGB); steganalysis takes gray ones"),
        (jpeg(np.repeat(smooth()[..., None], 3, 2), quality=75), None, "b.png is a JPEG in colour"),
        (jpeg(smooth(), quality=90), None, "other quantisation tables than quality 75's (its first step is 3, not 8)"),
        (jpeg(smooth(), qtables=[[9] * 64]), None, "other quantisation tables than quality 75's"),
        (jpeg(smooth(), quality=75)[:-400], None, "b.png is no image or a broken one"),
        (b"GIF", None, "b.png is no image or a broken one"),
        (b"", None, "b.png is no image or a broken one"),
        (encode(COLOUR), None, "b.png is not gray with 8 bits (mode RGB); convert it first"),
        (encode(np.zeros((16, 16), np.uint16)), None, "b.png is not gray with 8 bits (mode I;16)"),
        (encode(smooth(48, 40)), None, "b.png is 40x48, no square of whole 8x8 blocks; choose a size"),
        (encode(smooth(44, 44)), None, "b.png is 44x44, no square of whole 8x8 blocks"),
        (encode(smooth(48, 80)), 56, "b.png is 80x48, smaller than 56x56; choose a smaller size, or remove it"),
    ],
)
def test_an_image_that_is_no_cover_is_named(content, side, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_cover(content, "b.png", 75, side)
    assert "\n" not in str(caught.value)
