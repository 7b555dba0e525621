import pickle
import struct

import numpy as np
import pytest

from edgewise.data.unpickle import unpickle
from edgewise.errors import DataError
from image_files import python2_pickle

BATCH = {
    b"batch_label": b"training batch 1 of 5",
    b"labels": [6, 9, 0],
    b"data": np.arange(24, dtype=np.uint8).reshape(3, 8),
    b"filenames": [b"a.png", b"b.png", b"c.png"],
}


def same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert np.array_equal(value, second[key])


def test_a_batch_reads_as_it_was_written():
    loaded = unpickle(python2_pickle(BATCH), "batch")
    same(loaded, BATCH)
    assert loaded[b"data"].dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
def test_the_standard_unpickler_reads_the_same():
    same(pickle.loads(python2_pickle(BATCH), encoding="bytes"), unpickle(python2_pickle(BATCH), "batch"))


@pytest.mark.filterwarnings("ignore")
def test_an_array_stored_by_columns_reads_as_it_was():
    content = python2_pickle({b"data": np.asfortranarray(BATCH[b"data"])})
    same(unpickle(content, "batch"), {b"data": BATCH[b"data"]})
    same(pickle.loads(content, encoding="bytes"), {b"data": BATCH[b"data"]})


def global_call(module, name, argument):
    return f"c{module}\n{name}\n(X".encode() + struct.pack("<I", len(argument)) + argument.encode() + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "scalar"),
        ("_codecs", "encode"),
        ("pickle", "loads"),
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused(module, name):
    with pytest.raises(DataError, match=rf"evil is not .*asks for {module}\.{name}"):
        unpickle(global_call(module, name, "x"), "evil")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_nothing(tmp_path, protocol):
    mark = tmp_path / "mark"
    with pytest.raises(DataError, match="asks for"):
        unpickle(pickle.dumps({b"data": Evil(mark)}, protocol), "evil")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark), protocol)).close()
    assert mark.exists()  # the standard unpickler does run it


def test_arrays_of_other_types_are_refused():
    for dtype in ("<i4", "|b1", "<f8"):
        with pytest.raises(DataError, match="instead of bytes"):
            unpickle(python2_pickle({b"data": np.zeros(3, dtype)}), "batch")


def test_every_shorter_file_is_refused():
    content = python2_pickle(BATCH)
    for length in range(len(content)):
        with pytest.raises(DataError, match="batch is not a file of the original archive"):
            unpickle(content[:length], "batch")


def test_a_file_that_holds_no_dictionary_is_refused():
    with pytest.raises(DataError, match="no dictionary"):
        unpickle(python2_pickle([1, 2]), "batch")
