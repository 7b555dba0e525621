import re

import numpy as np
import pytest
import torch
from PIL import Image

from edgewise.data import Split, prepare
from edgewise.data.source import Decoded
from edgewise.errors import DataError


def numbered(labels, size=2):
    """Images whose first pixel is their number, so that they can be followed."""
    images = torch.zeros(len(labels), 1, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return Split(images, torch.tensor(labels))


def numbers(split):
    return split.images[:, 0, 0, 0].tolist()


def decoded(train, test, classes=("a", "b"), **more):
    return Decoded("d", classes, train, test, **more)


def test_hold_out_takes_the_same_share_of_every_class_and_loses_nothing():
    labels = [0] * 100 + [1] * 40 + [2] * 3
    learned, held = prepare.hold_out("d", ("a", "b", "c"), numbered(labels), 0.1)
    assert torch.bincount(held.labels).tolist() == [10, 4, 1]
    assert sorted(numbers(learned) + numbers(held)) == list(range(143))
    for part in (learned, held):
        assert numbers(part) == sorted(numbers(part))
        assert [labels[n] for n in numbers(part)] == part.labels.tolist()


@pytest.mark.parametrize(("share", "counts"), [(0.001, [1, 1]), (0.999, [49, 1]), (0.5, [25, 1])])
def test_hold_out_always_leaves_and_takes_one_image_of_a_class(share, counts):
    _, held = prepare.hold_out("d", ("a", "b"), numbered([0] * 50 + [1] * 2), share)
    assert torch.bincount(held.labels).tolist() == counts


def test_hold_out_does_not_follow_the_seed_of_the_run():
    train = numbered([0, 1] * 50)
    torch.manual_seed(1)
    first = numbers(prepare.hold_out("d", ("a", "b"), train, 0.2)[1])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert numbers(prepare.hold_out("d", ("a", "b"), train, 0.2)[1]) == first
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert first != list(range(10))


def test_hold_out_refuses_a_class_of_one_image():
    with pytest.raises(DataError, match='class "b" has 1 training image'):
        prepare.hold_out("d", ("a", "b"), numbered([0, 0, 1]), 0.5)


def test_hold_out_passes_over_a_class_without_images():
    _, held = prepare.hold_out("d", ("a", "b", "c"), numbered([0, 0, 2, 2]), 0.5)
    assert held.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2, 1], [0, 1], "d: label 2 of training image 2 is not in [0, 2)"),
        ([0, 1, -1], [0], "d: label -1 of training image 2 is not in [0, 2)"),
        ([0, 0, 1, 1], [0, 1, 7], "d: label 7 of test image 2 is not in [0, 2)"),
        ([0, 0, 0], [0, 1], 'd: class "b" has test images but no training image'),
    ],
)
def test_labels_that_are_no_class_are_named(train, test, message):
    with pytest.raises(DataError, match=re.escape(message)):
        prepare.dataset(decoded(numbered(train), numbered(test)), "d", 0.5, None)


def test_one_class_is_refused():
    with pytest.raises(DataError, match="only 1 class"):
        prepare.dataset(decoded(numbered([0, 0]), numbered([0]), classes=("a",)), "d", 0.5, None)


@pytest.mark.parametrize("empty", ["training", "test"])
def test_a_split_without_images_is_refused(empty):
    some, none = numbered([0, 1]), Split(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    splits = (none, some) if empty == "training" else (some, none)
    with pytest.raises(DataError, match=f"there are no {empty} images"):
        prepare.dataset(decoded(*splits), "d", 0.5, None)


def test_images_that_are_all_the_same_are_refused():
    same = Split(torch.full((4, 1, 2, 2), 9, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(DataError, match="channel 0 is the same in every training image"):
        prepare.dataset(decoded(same, same), "d", 0.5, None)


def test_published_statistics_are_kept_and_others_computed():
    train = numbered([0, 0, 1, 1])
    assert prepare.dataset(decoded(train, train, mean=(0.25,), std=(0.5,)), "d", 0.5, None).mean == (0.25,)
    computed = prepare.dataset(decoded(train, train), "d", 0.5, None)
    assert (computed.mean, computed.std) == prepare.mean_and_std(train.images)


def test_mean_and_std_are_numpys():
    images = torch.randint(0, 256, (50, 3, 7, 5), dtype=torch.uint8)
    images[:, 1] //= 4
    array = images.numpy().astype(np.float64) / 255
    mean, std = prepare.mean_and_std(images)
    np.testing.assert_allclose(mean, array.mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std, array.std((0, 2, 3)), atol=5.1e-5)


def test_the_checksum_tells_any_change_and_nothing_else():
    train, test = numbered([0, 0, 1, 1]), numbered([0, 1])
    original = prepare.dataset(decoded(train, test), "d", 0.25, None).checksum
    assert re.fullmatch("sha256:[0-9a-f]{64}", original)
    assert prepare.dataset(decoded(train, test), "d", 0.5, None).checksum == original
    reordered = Split(train.images.to(memory_format=torch.channels_last), train.labels)
    assert prepare.checksum(reordered, test) == original
    for which in range(4):
        parts = [t.clone() for t in (train.images, train.labels, test.images, test.labels)]
        parts[which].view(-1)[0] += 1
        assert prepare.checksum(Split(*parts[:2]), Split(*parts[2:])) != original
    assert prepare.checksum(test, train) != original
    assert prepare.checksum(Split(train.images.view(4, 1, 1, 4), train.labels), test) != original


def test_resize_to_the_same_side_changes_nothing():
    images = numbered([0, 1]).images
    assert prepare.resize(images, 2) is images


def test_resize_is_antialiased():
    checkers = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = prepare.resize(checkers.to(torch.uint8).expand(3, 1, 64, 64), 16)
    assert small.dtype == torch.uint8
    assert ((small.float() - 127.5).abs() < 4).all()


@pytest.mark.parametrize("size", [14, 32, 45])
def test_resize_is_pillows(size):
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    resized = prepare.resize(images, size)
    for image, result in zip(images, resized, strict=True):
        expected = Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected).astype(int) - result[0].numpy()).max() <= 1


def test_resized_images_are_what_is_described():
    train = Split(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1] * 3))
    data = prepare.dataset(decoded(train, train), "d", 0.3, 4)
    assert data.input_shape == (1, 4, 4)
    assert data.test.images.shape == (6, 1, 4, 4)
    assert (data.mean, data.std) == prepare.mean_and_std(prepare.resize(train.images, 4))


def test_fewer_training_images_are_drawn_evenly_from_the_classes():
    train = numbered([0] * 30 + [1] * 30 + [2] * 4)
    whole = prepare.dataset(decoded(train, train, ("a", "b", "c")), "d", 0.01, None)
    some = prepare.fewer(whole, 18, seed=0)
    assert torch.bincount(some.train.labels).tolist() == [8, 7, 3]  # one of the four of class c is held out
    assert numbers(some.train) == sorted(set(numbers(some.train)))
    assert set(numbers(some.train)) < set(numbers(whole.train))
    assert numbers(some.train) == numbers(prepare.fewer(whole, 18, seed=0).train)
    assert numbers(some.train) != numbers(prepare.fewer(whole, 18, seed=1).train)
    assert (some.held, some.test, some.mean, some.checksum) == (whole.held, whole.test, whole.mean, whole.checksum)
    assert some.note == "trained on 18 of 61 images"
    assert numbers(prepare.fewer(whole, 61, seed=3).train) == numbers(whole.train)
    with pytest.raises(DataError, match="d: images = 62, but it has 61 to train on"):
        prepare.fewer(whole, 62, seed=0)
