"""Images with labels, whole in memory as bytes, and their augmentation."""

from pathlib import Path

from edgewise.data import box_packs, boxes, cifar, coco, fashion, folders, packs, prepare, stego, voc
from edgewise.data.augment import crop, cutout, flip, mixup
from edgewise.data.augment_boxes import flip_boxes, jitter, zoom_boxes
from edgewise.data.dataset import Dataset, Kind, Split, normalize
from edgewise.data.prepare import fewer
from edgewise.data.source import Source
from edgewise.errors import DataError, UnknownName, nearest
from edgewise.progress import Progress

__all__ = [
    "Dataset",
    "Kind",
    "Source",
    "Split",
    "crop",
    "cutout",
    "fewer",
    "flip",
    "flip_boxes",
    "jitter",
    "kind_of",
    "load",
    "mixup",
    "names",
    "normalize",
    "zoom_boxes",
]


def load(
    spec: str,
    *,
    held: float = 0.05,
    size: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        spec: ``NAME`` or ``NAME:PATH``, as `names` lists them.
        held: share of the training images, of each class alike, that becomes the held-out split; in (0, 1). Always
            the same images, whatever the run's seed. Boxes that come with a validation split have that held out.
        size: side in pixels to resize images to, antialiased; None keeps them as they are, and in a folder, whose
            images may have any size, and for images with boxes chooses one near theirs.
        skip_bad: drop and count boxes that lie outside their image or have no area, instead of refusing them.
        progress: is told (what, done, total).

    Raises:
        UnknownName: no such source.
        DataError: files that are missing, corrupt or not images; labels out of range; fewer than two classes; a
            share or a size out of range.
    """
    name, colon, path = spec.partition(":")
    if name not in SOURCES:
        wanted = f"write folder:{spec}" if spec and Path(spec).is_dir() else nearest(name, SOURCES)
        raise UnknownName(f'data "{spec}" is not known; {wanted}')
    source = SOURCES[name]
    if (colon and not source.path) or (source.path_needed and not path):
        raise DataError(f'data "{spec}" is no complete name; write "{_usage(name, source)}"')
    if size is not None and size < 1:
        raise DataError(f"{spec}: size is {size}; it must be at least 1, the side of the images in pixels")
    if not 0 < held < 1:
        raise DataError(f"{spec}: held is {held}; it must be in (0, 1), the share of the training images to hold out")
    where = Path(path).expanduser() if path else None
    if source.read_boxes and where and _has_boxes(source, path):
        return boxes.dataset(source.read_boxes(where), spec, held, size, skip_bad=skip_bad, progress=progress)
    if skip_bad:
        raise DataError(f"{spec}: skip_bad drops boxes, and it has none; leave it out")
    if source.load and where:
        return source.load(where, held, size, progress)
    assert source.read is not None  # the path that the others need is there
    return prepare.dataset(source.read(where, size, progress), spec, held, size)


def kind_of(spec: str) -> Kind:
    """Return what a data set's labels are, by its name and without reading it; "classification" where it is unknown."""
    name, _, path = spec.partition(":")
    if (source := SOURCES.get(name)) is None:
        return "classification"
    return "detection" if _has_boxes(source, path) else source.kind


def _has_boxes(source: Source, path: str) -> bool:
    return source.read_boxes is not None and (source.read is None or Path(path).expanduser().is_file())


def names() -> dict[str, str]:
    """List what `load` takes, each with a line on what it is."""
    return {_usage(name, source): source.about for name, source in SOURCES.items()}


def _usage(name: str, source: Source) -> str:
    path = f":{source.path}" if source.path_needed else f"[:{source.path}]"
    return name + (path if source.path else "")


SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(fashion.read, "10,000 + 2,000 grey images of clothes, 28x28, 10 classes; in the package"),
    "cifar10": Source(
        cifar.read_cifar10, "50,000 + 10,000 photographs, 32x32, 10 classes; downloaded once, or from PATH", path="PATH"
    ),
    "cifar100": Source(
        cifar.read_cifar100,
        "50,000 + 10,000 photographs, 32x32, 100 classes; downloaded once, or from PATH",
        path="PATH",
    ),
    "pack": Source(
        packs.read,
        "train.npz and test.npz or val.npz of encoded images with labels; or a FILE.npz of images with boxes",
        path="FOLDER",
        path_needed=True,
        read_boxes=box_packs.read,
    ),
    "folder": Source(
        folders.read, "a folder of images for each class, of any size and format", path="FOLDER", path_needed=True
    ),
    "coco": Source(
        None,
        "images with boxes: annotations/instances_*.json, or SPLIT/_annotations.coco.json",
        path="FOLDER",
        path_needed=True,
        read_boxes=coco.read,
    ),
    "voc": Source(
        None,
        "images with boxes: Annotations, JPEGImages and ImageSets/Main of Pascal VOC",
        path="FOLDER",
        path_needed=True,
        read_boxes=voc.read,
    ),
    "stego": Source(
        None,
        "pairs of a gray JPEG and itself with a message embedded, from a folder of gray images or a .npz of them",
        path="IMAGES[?method=juniward&payload=0.4&quality=75]",
        path_needed=True,
        load=stego.load,
        kind="steganalysis",
    ),
}
