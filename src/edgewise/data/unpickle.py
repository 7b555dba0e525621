"""The pickles of the CIFAR archives, read without running anything they ask for.

Python 2 wrote those files: dictionaries of strings and lists, and NumPy arrays of bytes. An array asks for three
names, and each is answered here by a stand-in that only keeps what it is given, so a file can neither call a function
nor reach into NumPy; any other name is refused.
"""

import io
import pickle
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError


def unpickle(content: bytes, name: str) -> dict[bytes, Any]:
    """Read one file of a CIFAR archive.

    Args:
        content: the file's bytes.
        name: how to call it in a message.

    Returns:
        The dictionary in it; strings are bytes, arrays are uint8 and read-only.

    Raises:
        DataError: a broken file, or one that asks for more than arrays of bytes.
    """
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a corrupt pickle fails in any way whatever
        raise DataError(f"{name} is not a file of the original archive ({error})") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{name} is not a file of the original archive (it holds no dictionary)")
    return {key: value.array if isinstance(value, _Array) else value for key, value in loaded.items()}


@final
class _Type:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: bytes, align: int, copy: int) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and fields, which bytes do not have."""


@final
class _Array:
    """Stands in for ``numpy.ndarray``."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, dtype, column_major, content = state
        if dtype.code != b"u1":
            raise pickle.UnpicklingError(f"an array of {dtype.code!r} instead of bytes")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if column_major else "C")


def _reconstruct(cls: type[_Array], shape: tuple[int, ...], code: bytes) -> _Array:
    """Stand in for ``numpy.core.multiarray._reconstruct``: an empty array, to be filled by its state."""
    return _Array()


@final
class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, and refuse all other names."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}
