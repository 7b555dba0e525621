import math

import pytest
import torch

from edgewise.data import crop, cutout, flip, mixup

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.uint8, torch.float32]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=64, channels=3, height=8, width=8, dtype=torch.uint8, layout=torch.contiguous_format):
    images = torch.randint(0, 256, (n, channels, height, width), generator=seeded(1))
    return images.to(dtype).to(memory_format=layout)


def crop_slowly(image, padding, border):
    """Every place that a crop of one image [C, H, W] can be at, pixel by pixel."""
    channels, height, width = image.shape

    def pixel(c, y, x):
        if 0 <= y < height and 0 <= x < width:
            return image[c, y, x]
        if border == "zero":
            return torch.zeros_like(image[0, 0, 0])
        mirror = lambda i, n: -i if i < 0 else 2 * (n - 1) - i if i >= n else i  # noqa: E731
        return image[c, mirror(y, height), mirror(x, width)]

    def at(top, left):
        rows = [[[pixel(c, top + y, left + x) for x in range(width)] for y in range(height)] for c in range(channels)]
        return torch.tensor(rows, dtype=image.dtype)

    return [at(t, l) for t in range(-padding, padding + 1) for l in range(-padding, padding + 1)]  # noqa: E741


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2])
def test_crop_is_one_of_the_places_and_reaches_all_of_them(border, layout, dtype, channels):
    one = batch(1, channels, 4, 5, dtype)
    places = crop_slowly(one[0], 2, border)
    cropped = crop(one.expand(600, -1, -1, -1).to(memory_format=layout), 2, seeded(), border=border)
    found = [next(i for i, place in enumerate(places) if torch.equal(place, image)) for image in cropped]
    counts = torch.bincount(torch.tensor(found), minlength=25)
    assert counts.min() > 0
    assert counts.max() < 60  # 24 expected of each, standard deviation 4.8


def test_crop_by_hand():
    row = torch.tensor([[[[1, 2, 3]] * 3]])
    found = {tuple(crop(row, 1, seeded(seed))[0, 0, 0].tolist()) for seed in range(30)}
    assert found == {(2, 1, 2), (1, 2, 3), (2, 3, 2)}
    found = {tuple(crop(row, 1, seeded(seed), border="zero")[0, 0, 1].tolist()) for seed in range(30)}
    assert found == {(0, 1, 2), (1, 2, 3), (2, 3, 0)}


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_crop_without_padding_is_the_identity(border, layout):
    images = batch(layout=layout)
    assert torch.equal(crop(images, 0, seeded(), border=border), images)


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_crop_takes_images_that_are_not_contiguous(border):
    images = batch(8, 3, 16, 16)
    for view in (images[:, :, ::2, 1::2], images[:, 1:], images[2:, :, :5], images.transpose(2, 3)):
        assert torch.equal(crop(view, 2, seeded(), border=border), crop(view.contiguous(), 2, seeded(), border=border))
        assert torch.equal(crop(view, 0, seeded(), border=border), view)


@pytest.mark.parametrize(("padding", "border"), [(-1, "zero"), (8, "reflect"), (-1, "reflect")])
def test_crop_refuses_padding_it_cannot_make(padding, border):
    with pytest.raises(ValueError, match=f"padding is {padding}"):
        crop(batch(), padding, border=border)


def test_flip_by_hand():
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]])
    found = {str(flip(image, seeded(seed)).tolist()) for seed in range(20)}
    assert found == {"[[[[1, 2, 3], [4, 5, 6]]]]", "[[[[3, 2, 1], [6, 5, 4]]]]"}


def test_flipping_twice_with_the_same_choices_is_the_identity():
    images = batch()
    once = flip(images, seeded())
    assert not torch.equal(once, images)
    assert torch.equal(flip(once, seeded()), images)


def test_flip_chooses_half_of_the_images():
    images = torch.arange(2, dtype=torch.uint8).expand(4000, 1, 1, 2)
    share = flip(images, seeded())[:, 0, 0, 0].float().mean()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_cutout_zeroes_one_square_of_exactly_its_size(dtype, layout, size):
    images = torch.ones(200, 2, 6, 7, dtype=dtype).to(memory_format=layout)
    zero = cutout(images, size, seeded()) == 0
    assert torch.equal(zero[:, 0], zero[:, 1])
    rows, columns = zero[:, 0].any(2).sum(1), zero[:, 0].any(1).sum(1)
    assert (rows == size).all()
    assert (columns == size).all()
    assert (zero[:, 0].sum((1, 2)) == size * size).all()


def test_cutout_reaches_every_place():
    zero = cutout(torch.ones(500, 1, 3, 4), 2, seeded()) == 0
    assert len({str(z.tolist()) for z in zero}) == 2 * 3


@pytest.mark.parametrize("size", [-1, 9])
def test_cutout_refuses_a_square_that_does_not_fit(size):
    with pytest.raises(ValueError, match=f"size is {size}"):
        cutout(batch(), size)


def test_mixup_blends_images_as_it_blends_targets():
    # Each image is filled with a number of its own class, so the blend of the targets tells the blend of the images.
    targets = torch.arange(10).repeat(20)
    images = (targets.float() * 10).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    blended, soft = mixup(images, targets, 10, 0.4, seeded())
    assert soft.shape == (200, 10)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(200))
    expected = (soft @ (torch.arange(10) * 10.0)).view(-1, 1, 1, 1).expand_as(blended)
    torch.testing.assert_close(blended, expected, atol=1e-4, rtol=1e-5)
    assert (soft.max(1).values < 0.999).any()


def test_mixup_of_two_by_hand():
    images = torch.tensor([[[[0.0, 1.0, 2.0]]], [[[10.0, 11.0, 12.0]]]])
    for seed in range(20):
        blended, soft = mixup(images, torch.tensor([1, 0]), 3, 1.0, seeded(seed))
        if (soft[:, 1:].sum(1) < 1).all() and soft[0, 1] < 1:  # both met the other one
            share = soft[0, 1].item()
            torch.testing.assert_close(blended[0, 0, 0], torch.tensor([0.0, 1.0, 2.0]) + 10 * (1 - share))
            torch.testing.assert_close(soft[0], torch.tensor([1 - share, share, 0]))
            break
    else:
        pytest.fail("no image met the other one in 20 trials")


def test_mixup_shares_follow_the_beta_distribution():
    # Partners of another class: the target's own share is Beta(a, a) with mean 1/2 and variance 1 / (4 (2 a + 1)).
    n, alpha = 20_000, 0.5
    _, soft = mixup(torch.zeros(n, 1, 1, 1), torch.arange(n) % 1000, 1000, alpha, seeded())
    own = soft[torch.arange(n), torch.arange(n) % 1000]
    own = own[own < 1]
    assert abs(own.mean() - 0.5) < 0.02
    assert abs(own.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_mixup_of_bytes_rounds_to_bytes():
    images, targets = batch(), torch.arange(64) % 10
    as_bytes, soft = mixup(images, targets, 10, 0.4, seeded())
    as_floats, same = mixup(images.float(), targets, 10, 0.4, seeded())
    assert as_bytes.dtype == torch.uint8
    assert torch.equal(as_bytes, as_floats.round().to(torch.uint8))
    assert torch.equal(soft, same)


def test_mixup_with_a_small_alpha_leaves_whole_shares():
    _, soft = mixup(batch(256), torch.arange(256), 256, 1e-3, seeded())
    assert soft.isfinite().all()
    torch.testing.assert_close(soft.sum(1), torch.ones(256))


@pytest.mark.parametrize("alpha", [0, -1.0])
def test_mixup_refuses_alpha_that_is_not_above_0(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}"):
        mixup(batch(), torch.zeros(64, dtype=torch.int64), 10, alpha)


FUNCTIONS = {
    "crop": lambda images, generator: crop(images, 2, generator),
    "crop-zero": lambda images, generator: crop(images, 2, generator, border="zero"),
    "flip": flip,
    "cutout": lambda images, generator: cutout(images, 3, generator),
    "mixup": lambda images, generator: mixup(images, torch.arange(len(images)), len(images), 0.4, generator)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
class TestEveryFunction:
    def test_keeps_shape_type_layout_and_its_input(self, name, layout, dtype):
        images = batch(dtype=dtype, layout=layout)
        before = images.clone()
        result = FUNCTIONS[name](images, seeded())
        assert result.shape == images.shape
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=layout)
        assert torch.equal(images, before)

    def test_follows_its_generator(self, name, layout, dtype):
        images = batch(dtype=dtype, layout=layout)
        first, again, other = (FUNCTIONS[name](images, seeded(seed)) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(first, FUNCTIONS[name](images.contiguous(), seeded(3)))

    def test_without_a_generator_follows_the_global_one(self, name, layout, dtype):
        images = batch(dtype=dtype, layout=layout)
        torch.manual_seed(5)
        first = FUNCTIONS[name](images, None)
        torch.manual_seed(5)
        assert torch.equal(first, FUNCTIONS[name](images, None))
