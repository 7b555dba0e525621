import hashlib
import pickle
import tarfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch

from edgewise.data import cifar, load
from edgewise.errors import DataError
from image_files import python2_pickle

ARCHIVES = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}
PER_FILE = 30


def batches(archive, noise):
    """The files of a tiny archive, as they are before they are pickled."""
    classes = 10 if archive.name == "cifar10" else 100
    labels = [n % classes for n in range(PER_FILE * len(archive.train))]
    files = {}
    for place, name in enumerate((*archive.train, archive.test)):
        some = labels[place * PER_FILE :][:PER_FILE] if name != archive.test else labels[:PER_FILE]
        files[name] = {b"data": noise(PER_FILE, 3072), archive.labels: some, b"coarse_labels": [0] * PER_FILE}
    files[archive.meta] = {archive.names: [b"class %d" % label for label in range(classes)]}
    return files


def pack(path, archive, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


@pytest.fixture(params=ARCHIVES)
def tiny(request, tmp_path, noise):
    """An archive, its unpickled files, and the path of it packed."""
    archive = ARCHIVES[request.param]
    if archive is cifar.CIFAR100:
        archive = replace(archive, train=("train",))
    files = batches(archive, noise)
    if archive is not cifar.CIFAR10:  # 30 images show 30 of the 100 classes; two of each are needed to hold out
        files["train"][archive.labels] = [n // 2 for n in range(PER_FILE)]
        files["test"][archive.labels] = [n // 2 for n in range(PER_FILE)]
    path = tmp_path / "published" / archive.url.rsplit("/", 1)[-1]
    path.parent.mkdir()
    pack(path, archive, {name: python2_pickle(file) for name, file in files.items()})
    return archive, files, path


def unpacked(archive, files, folder):
    folder.mkdir(parents=True)
    for name, file in files.items():
        (folder / name).write_bytes(python2_pickle(file))
    return folder


def test_the_archive_the_folder_and_their_parents_read_the_same(tiny, tmp_path):
    archive, files, path = tiny
    folder = unpacked(archive, files, tmp_path / "extracted" / archive.folder)
    loaded = [load(f"{archive.name}:{place}") for place in (path, path.parent, folder, folder.parent)]
    assert len({data.checksum for data in loaded}) == 1
    data = loaded[0]
    assert data.name == archive.name
    assert data.input_shape == (3, 32, 32)
    assert data.classes[:2] == ("class 0", "class 1")
    assert len(data.classes) == {"cifar10": 10, "cifar100": 100}[archive.name]
    assert (data.mean, data.std) == (archive.mean, archive.std)
    assert len(data.train) + len(data.held) == PER_FILE * len(archive.train)
    first = files[archive.test]
    assert torch.equal(data.test.images, torch.tensor(first[b"data"].reshape(-1, 3, 32, 32)))
    assert data.test.labels.tolist() == first[archive.labels]


def test_training_batches_follow_each_other(tiny):
    archive, files, path = tiny
    decoded = cifar._read(archive, path, None)
    expected = np.concatenate([files[name][b"data"] for name in archive.train]).reshape(-1, 3, 32, 32)
    assert np.array_equal(decoded.train.images.numpy(), expected)
    assert decoded.train.labels.tolist() == [n for name in archive.train for n in files[name][archive.labels]]


def test_images_stored_by_columns_read_the_same(tiny):
    archive, files, path = tiny
    before = load(f"{archive.name}:{path}").checksum
    for name in (*archive.train, archive.test):
        files[name][b"data"] = np.asfortranarray(files[name][b"data"])
    pack(path, archive, {name: python2_pickle(file) for name, file in files.items()})
    assert load(f"{archive.name}:{path}").checksum == before


def test_without_a_path_the_archive_is_downloaded_once(tiny, tmp_path, monkeypatch):
    archive, _, path = tiny
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, archive.name.upper(), replace(archive, url=path.as_uri(), md5=md5))
    told = []
    first = load(archive.name, progress=lambda *step: told.append(step))
    assert {what for what, _, _ in told} == {f"download {path.name}"}
    path.unlink()
    assert load(archive.name).checksum == first.checksum


def test_a_download_of_another_archive_is_refused(tiny, tmp_path, monkeypatch):
    archive, _, path = tiny
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, archive.name.upper(), replace(archive, url=path.as_uri()))
    with pytest.raises(DataError, match=f'instead of {archive.md5}; try again, or .* data = "{archive.name}:PATH"'):
        load(archive.name)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_off_archive_is_named(tiny, kept):
    archive, _, path = tiny
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=f"{path} is a corrupt archive"):
        load(f"{archive.name}:{path}")


def test_a_changed_byte_is_found(tiny):
    archive, _, path = tiny
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        load(f"{archive.name}:{path}")


def test_what_is_missing_is_named(tiny, tmp_path):
    archive, files, _ = tiny
    with pytest.raises(DataError, match=f"nowhere does not exist; name the folder {archive.folder}"):
        load(f"{archive.name}:{tmp_path / 'nowhere'}")
    folder = unpacked(archive, files, tmp_path / archive.folder)
    (folder / archive.train[-1]).unlink()
    with pytest.raises(DataError, match=f"has no {archive.train[-1]};"):
        load(f"{archive.name}:{folder}")


def test_the_other_archive_is_not_taken(tiny):
    archive, _, path = tiny
    other = {"cifar10": "cifar100", "cifar100": "cifar10"}[archive.name]
    with pytest.raises(DataError, match="name the folder"):
        load(f"{other}:{path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, f: f[a.test].update({b"data": np.zeros((PER_FILE, 3000), np.uint8)}), "no images of 3x32x32"),
        (lambda a, f: f[a.test].pop(b"data"), "no images of 3x32x32"),
        (lambda a, f: f[a.test][a.labels].pop(), "no label for each of its 30 images"),
        (lambda a, f: f[a.test].update({a.labels: [b"x"] * PER_FILE}), "no label for each"),
        (lambda a, f: f[a.meta].pop(a.names), "has no list"),
        (lambda a, f: f[a.test][a.labels].__setitem__(4, 1000), r"label 1000 of test image 4 is not in \[0, 100?\)"),
        (lambda a, f: f[a.train[0]][a.labels].__setitem__(3, -1), "label -1 of training image 3"),
    ],
)
def test_files_that_do_not_fit_together_are_named(tiny, change, message):
    archive, files, path = tiny
    change(archive, files)
    pack(path, archive, {name: python2_pickle(file) for name, file in files.items()})
    with pytest.raises(DataError, match=message):
        load(f"{archive.name}:{path}")


def test_a_malicious_archive_does_nothing(tiny, tmp_path):
    archive, files, path = tiny
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    content = {name: python2_pickle(file) for name, file in files.items()}
    pack(path, archive, {**content, archive.train[0]: pickle.dumps(Evil(), 2)})
    with pytest.raises(DataError, match=f"{archive.train[0]} is not a file of the original archive"):
        load(f"{archive.name}:{path}")
    assert not mark.exists()


def test_members_outside_the_folder_are_not_read(tiny):
    archive, files, path = tiny
    content = {f"../{archive.folder}/{name}": python2_pickle(file) for name, file in files.items()}
    pack(path, archive, content)
    with pytest.raises(DataError, match=f"has no {archive.train[0]}"):
        load(f"{archive.name}:{path}")
