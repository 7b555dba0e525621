"""From decoded images to a data set: resized, checked, described, and a slice of the training held out."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from edgewise.data.dataset import Dataset, Split
from edgewise.data.source import Decoded
from edgewise.errors import DataError

# Of the slice that is held out. A constant: runs with other seeds choose on the same images and stay comparable.
HELD_SEED = 0

# Images resized in one call: enough to be quick, few enough to need little memory beside them.
CHUNK = 4096


def dataset(decoded: Decoded, spec: str, held: float, size: int | None) -> Dataset:
    """Make a data set of what a source decoded.

    Args:
        decoded: its images, any labels.
        spec: how the user calls it, for messages.
        held: share of each class's training images to hold out, in (0, 1).
        size: side in pixels to resize to; None keeps it.

    Raises:
        DataError: see `check` and `hold_out`; a channel that is the same everywhere.
    """
    check(spec, decoded.classes, decoded.train, decoded.test)
    train, test = (
        Split(resize(split.images, size or split.images.shape[2]), split.labels)
        for split in (decoded.train, decoded.test)
    )
    mean, std = (decoded.mean, decoded.std) if decoded.mean else normalisation(spec, train.images)
    learned, kept = hold_out(spec, decoded.classes, train, held)
    return Dataset(
        name=decoded.name,
        classes=decoded.classes,
        train=learned,
        held=kept,
        test=test,
        mean=mean,
        std=std,
        checksum=checksum(train, test),
        note=decoded.note,
    )


def resize(images: Tensor, size: int) -> Tensor:
    """Resize square images by antialiased bilinear interpolation.

    Args:
        images: uint8 [N, C, H, H].
        size: the new side in pixels; the images themselves come back where it is H.

    Returns:
        uint8 [N, C, size, size].
    """
    if images.shape[2] == size:
        return images
    return torch.cat(
        [F.interpolate(chunk, (size, size), mode="bilinear", antialias=True) for chunk in torch.split(images, CHUNK)]
    )


def check(name: str, classes: tuple[str, ...], train: Split, test: Split) -> None:
    """Refuse images that cannot be learned from or measured on.

    Raises:
        DataError: one class, no images, a label that is no class (which, and of which image), a class in the test
            images that no training image shows.
    """
    if len(classes) < 2:
        raise DataError(f"{name}: only {len(classes)} class; telling classes apart needs two or more")
    for split, images in (("training", train), ("test", test)):
        if len(images) == 0:
            raise DataError(f"{name}: there are no {split} images")
        outside = ((images.labels < 0) | (images.labels >= len(classes))).nonzero()
        if len(outside):
            index = int(outside[0])
            label = int(images.labels[index])
            raise DataError(f"{name}: label {label} of {split} image {index} is not in [0, {len(classes)})")
    unseen = set(test.labels.tolist()) - set(train.labels.tolist())
    if unseen:
        raise DataError(f'{name}: class "{classes[min(unseen)]}" has test images but no training image')


def hold_out(name: str, classes: tuple[str, ...], train: Split, share: float) -> tuple[Split, Split]:
    """Split off a share of the training images, class by class, always the same ones.

    Args:
        name: of the data set, for the message.
        classes: their names.
        train: labels in [0, classes).
        share: of each class, in (0, 1); rounded, at least one image held out and one left to learn from.

    Returns:
        The images to learn from and those held out, both in their original order.

    Raises:
        DataError: a class with a single image, by name.
    """
    generator = torch.Generator().manual_seed(HELD_SEED)
    held = torch.zeros(len(train), dtype=torch.bool)
    for label, count in enumerate(torch.bincount(train.labels, minlength=len(classes)).tolist()):
        if count == 1:
            raise DataError(f'{name}: class "{classes[label]}" has 1 training image; one more is needed to hold out')
        if count:
            taken = min(max(1, round(share * count)), count - 1)
            chosen = torch.randperm(count, generator=generator)[:taken]
            held[(train.labels == label).nonzero().flatten()[chosen]] = True
    return Split(train.images[~held], train.labels[~held]), Split(train.images[held], train.labels[held])


def fewer(dataset: Dataset, images: int, seed: int) -> Dataset:
    """Keep some of the training images: of every class as many, as far as it has them; with boxes, any of them.

    Args:
        dataset: stays as it is; what is held out, the test, the mean and the checksum are those of all images.
        images: how many to train on.
        seed: of the draw.

    Raises:
        DataError: there are not so many.
    """
    train = dataset.train
    if images > len(train):
        raise DataError(f"{dataset.name}: images = {images}, but it has {len(train)} to train on")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    labels = train.labels if dataset.kind == "classification" else torch.zeros(len(train), dtype=torch.int64)
    order = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    turn = torch.arange(len(order)) - starts[labels[order]]  # the how-manieth of its class
    chosen = order[torch.argsort(turn, stable=True)[:images]].sort().values
    about = f"trained on {images:,} of {len(train):,} images"
    return replace(
        dataset,
        train=train.part(chosen),
        note=f"{dataset.note}; {about}" if dataset.note else about,
    )


def normalisation(spec: str, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute what training images are normalised by: `mean_and_std`.

    Raises:
        DataError: a channel that is the same everywhere.
    """
    mean, std = mean_and_std(images)
    if min(std) == 0:
        raise DataError(f"{spec}: channel {std.index(0)} is the same in every training image; nothing can be learned")
    return mean, std


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and the standard deviation of each channel, over all pixels.

    The numbers are counted value by value, so nothing is lost in a sum; the results are rounded to four decimals, as
    published ones are.

    Args:
        images: uint8 [N, C, H, W].

    Returns:
        Both as numbers per channel, of images in [0, 1].

    >>> mean_and_std(torch.tensor([[[[0, 0, 255, 255]]]], dtype=torch.uint8))
    ((0.5,), (0.5,))
    """
    value = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double() * (
            images.shape[1] / images.numel()
        )
        mean = (share * value).sum()
        std = (share * (value - mean).square()).sum().sqrt()
        means.append(round(mean.item(), 4))
        stds.append(round(std.item(), 4))
    return tuple(means), tuple(stds)


def checksum(train: Split, test: Split) -> str:
    """Hash every image and label of the training (before anything is held out) and of the test.

    Shape, type and bytes count, in the order train images, train labels, test images, test labels; images as
    [N, C, H, W], labels as little-endian int64.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        array = tensor.contiguous().numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return f"sha256:{digest.hexdigest()}"
