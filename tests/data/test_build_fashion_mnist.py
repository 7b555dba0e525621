import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewise.data.fashion import read_split

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_fashion_mnist.py"


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def run(source, out):
    options = ["--source", str(source), "--out", str(out), "--train", "12", "--test", "7"]
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)


@pytest.fixture
def source(tmp_path):
    """The four files of the full set, with a few images of noise; and what the embedded set must hold."""
    random = np.random.default_rng(0)
    wanted = {}
    for split, name, count, taken in (("train", "train", 20, 12), ("test", "t10k", 9, 7)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels)
        wanted[split] = images[:taken], labels[:taken]
    return tmp_path, wanted


def test_what_the_script_writes_reads_as_the_first_images(source, tmp_path):
    folder, wanted = source
    done = run(folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for split, (images, labels) in wanted.items():
        read = read_split(tmp_path / "out", split)
        assert np.array_equal(read.images[:, 0].numpy(), images)
        assert np.array_equal(read.labels.numpy(), labels)


def test_the_script_refuses_a_file_that_is_no_idx(source, tmp_path):
    folder, _ = source
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"junk"))
    done = run(folder, tmp_path / "out")
    assert done.returncode == 1
    assert "train-images-idx3-ubyte.gz is not an idx file of bytes" in done.stderr
