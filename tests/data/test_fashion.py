from importlib.resources import files

import pytest
import torch

from edgewise.data import fashion, load, prepare
from edgewise.errors import DataError

CHECKSUM = "sha256:b1e03b1fad6ff15a61f43abaa34e4caf51217981b622afefbe7a6b1229f0897c"


@pytest.fixture(scope="module")
def decoded():
    return fashion.read()


def test_the_embedded_images_are_the_first_of_fashion_mnist(decoded):
    # The first ten labels of each split as published.
    assert decoded.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert decoded.test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert decoded.train.labels.bincount().tolist() == [942, 1027, 1016, 1019, 974, 989, 1021, 1022, 990, 1000]
    assert decoded.test.labels.bincount().tolist() == [200, 203, 214, 190, 219, 195, 197, 200, 194, 188]


def test_the_data_set_is_the_one_that_figures_were_made_with():
    data = load("fashion-mnist")
    assert data.checksum == CHECKSUM
    assert data.name == "fashion-mnist"
    assert data.input_shape == (1, 28, 28)
    assert (len(data.train), len(data.held), len(data.test)) == (9_500, 500, 2_000)
    assert data.classes[9] == "Ankle boot"
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64


def test_the_constants_are_those_of_the_training_images(decoded):
    mean, std = prepare.mean_and_std(decoded.train.images)
    assert (mean, std) == (fashion.MEAN, fashion.STD)


def test_the_embedded_files_are_small():
    folder = files("edgewise.data") / "fashion_mnist"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 5_000_000


@pytest.mark.parametrize("content", [None, b"", b"RIFF junk"])
def test_an_incomplete_installation_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "train.webp").write_bytes(content)
    with pytest.raises(DataError, match=r"train.webp is missing or broken .*install edgewise again"):
        fashion.read_split(tmp_path, "train")
