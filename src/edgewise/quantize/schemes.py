"""The schemes by name: what each does, and the file that it makes of a float one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edgewise.export.compact import write
from edgewise.export.verify import FOUR_BITS
from edgewise.quantize.dynamic import quantize_dynamic_
from edgewise.quantize.static import Quantizer
from edgewise.quantize.storage import store_weights_


class Scheme(NamedTuple):
    """A way to a smaller file.

    Args:
        about: what it does, in a line.
        precision: what the file is called in reports.
        write: ``(quantizer, out) -> out``.
    """

    about: str
    precision: str
    write: Callable[[Quantizer, Path], Path]


def _stored(kind: str, quantizer: Quantizer, out: Path) -> Path:
    return write(store_weights_(quantizer.prepared(), kind, quantizer.config.exclude), out)


SCHEMES: dict[str, Scheme] = {
    "int8_static": Scheme("codes everywhere, ranges from calibration images", "int8", Quantizer.write),
    "int8_dynamic": Scheme(
        "linear layers on codes, ranges found as the network runs",
        "int8 dynamic",
        lambda quantizer, out: write(quantize_dynamic_(quantizer.prepared(), quantizer.config.exclude), out),
    ),
    "int8_weight": Scheme("weights stored in 8 bits, floats computed with", "int8 weights", partial(_stored, "int8")),
    "int4_weight": Scheme("weights stored in 4 bits, floats computed with", FOUR_BITS, partial(_stored, "int4")),
    "float16": Scheme("weights stored as float16, float32 computed with", "float16", partial(_stored, "float16")),
    "bfloat16": Scheme("weights stored as bfloat16, float32 computed with", "bfloat16", partial(_stored, "bfloat16")),
}

CODES_ONLY = ("executorch", "litert")  # formats that compute on codes or on floats, and store nothing else


def schemes_for(kind: str) -> tuple[str, ...]:
    """Return the names of the schemes whose files a format can hold as they are."""
    return ("int8_static",) if kind in CODES_ONLY else tuple(SCHEMES)
