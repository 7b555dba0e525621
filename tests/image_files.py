"""The forms of the files that the sources read, written on the spot."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image


def python2_pickle(value: object) -> bytes:
    """Pickle as Python 2 and the NumPy of its time did (protocol 2): the form of the CIFAR archives."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    match value:
        case None:
            return b"N"
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
        case np.ndarray():
            code = value.dtype.str[1:].encode()
            dtype = b"cnumpy\ndtype\n" + _opcodes((code, 0, 1)) + b"R"
            dtype += _opcodes((3, value.dtype.str[:1].encode(), None, None, None, -1, -1, 0)) + b"b"
            empty = (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _opcodes((0,)) + _opcodes(b"b") + b"tR"
            )
            column_major = value.flags.f_contiguous and not value.flags.c_contiguous
            content = (b"\x88" if column_major else b"\x89") + _opcodes(value.tobytes("F" if column_major else "C"))
            return empty + b"(" + _opcodes(1) + _opcodes(value.shape) + dtype + content + b"tb"
    raise TypeError(type(value))


def encode(pixels: np.ndarray, form: str = "png", **options: object) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3]."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()
