"""A float ONNX file of anybody's becomes a quantised file: written, held against it, and measured beside it.

There are no labels here, so what may be lost is agreement: the share of images to which both files give one class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise import data
from edgewise.devices.base import Measurement
from edgewise.devices.kernels import READERS, Kernels, kernels
from edgewise.devices.measure import measure
from edgewise.devices.runtimes import files_of, open_session
from edgewise.errors import DataError, UserError, nearest, one_line
from edgewise.export.formats import check_installed, shipped_as
from edgewise.export.verify import compare_formats, outputs, require, rms_error
from edgewise.files import write_bytes
from edgewise.layout import SHIPPED
from edgewise.progress import Progress
from edgewise.quantize.auto import FLOAT, choose
from edgewise.quantize.config import ALLOWED_PT, FEWEST_IMAGES, Quantize
from edgewise.quantize.schemes import SCHEMES, schemes_for
from edgewise.quantize.static import Quantizer
from edgewise.tasks import same_class

KINDS = {".onnx": "onnx", **{Path(name).suffix: kind for kind, name in SHIPPED.items()}}
JUDGED = 4  # one image of so many is not calibrated on: on them the files are compared


@dataclass(frozen=True)
class QuantizedFile:
    """What became of a file.

    Args:
        scheme: that was taken, as reports call it.
        agreement: the share of the judged images that get the float file's class.
        error: of the outputs on them, root mean square, as a share of the float file's.
        judged: how many images that is.
        kernels: what its layers compute on; None where the runtime does not say.
        float_file, file: as measured, in one process.
    """

    scheme: str
    agreement: float
    error: float
    judged: int
    kernels: Kernels | None
    float_file: Measurement
    file: Measurement

    @property
    def speed(self) -> float:
        """Times the float file's."""
        return self.file.ratio(self.float_file)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        figures = {name: getattr(self, name) for name in ("scheme", "agreement", "error", "judged", "speed")}
        found = None if self.kernels is None else asdict(self.kernels)
        return {**figures, "kernels": found, "float": self.float_file.to_dict(), "file": self.file.to_dict()}


def quantize_file(
    source: Path,
    out: Path,
    images: Tensor,
    config: Quantize,
    *,
    threads: int = 1,
    seconds: float = 3.0,
    progress: Progress | None = None,
) -> QuantizedFile:
    """Quantise a float ONNX file.

    Args:
        source: the file.
        out: what is written; its suffix says for which runtime: .onnx, .xml, .pte or .tflite.
        images: ``[N, C, H, W]`` float32, as the network takes them; a quarter of them is judged on, the others
            calibrate.
        config: how, by a name of `SCHEMES`; or "auto", which keeps the fastest scheme that agrees on all but
            `max_drop` points of the judged images.
        threads: that the files are measured with.
        seconds: for how long, at least.
        progress: is told (what, done, total).

    Raises:
        UserError: `out` has no known suffix, or its format holds no such scheme.
        DataError: the images are too few, do not fit the file, or hold NaN.
        ModelError: the file cannot be quantised, or not written so.
        CheckFailed: what was written for another runtime differs from the ONNX file.
    """
    kind = _kind(source, out, config)
    count = len(images) // JUDGED
    if len(images) - count < FEWEST_IMAGES or not count:
        raise DataError(f"there are {len(images)} images, at least {FEWEST_IMAGES + FEWEST_IMAGES // 2} are needed")
    quantizer, judged = Quantizer(source, images[count:], config, progress), images[:count]
    expected = outputs(source, judged)
    side_by_side = partial(
        measure,
        runtime="openvino" if kind == "openvino" else "onnxruntime",
        threads=threads,
        seconds=seconds,
        input_shape=(images.shape[1], images.shape[2], images.shape[3]),
        progress=progress,
    )
    with TemporaryDirectory(prefix="edgewise-") as temporary:
        folder = Path(temporary)
        scheme, made = _made(quantizer, folder, kind, judged, expected, side_by_side, progress)
        shipped = shipped_as(kind, made, quantizer.images, folder)
        if shipped != made:
            require(compare_formats(made, shipped, judged, "float32" if scheme == FLOAT else "int8", kind))
        found = outputs(shipped, judged)
        runtime = "onnxruntime" if kind == "onnx" else kind
        computed = kernels(made, runtime) if runtime in READERS else None
        for file in files_of(shipped):
            write_bytes(out.with_suffix(file.suffix), file.read_bytes())
    whole, small = side_by_side([source, out])
    return QuantizedFile(scheme, same_class(found, expected), rms_error(found, expected), count, computed, whole, small)


def _made(
    quantizer: Quantizer,
    folder: Path,
    kind: str,
    judged: Tensor,
    expected: Tensor,
    side_by_side: Callable[[list[Path]], list[Measurement]],
    progress: Progress | None,
) -> tuple[str, Path]:
    """Write the ONNX file of the scheme that is asked for, or chosen; return what it is called, and where it lies."""
    config = quantizer.config
    if config.scheme != "auto":
        return config.scheme, SCHEMES[config.scheme].write(quantizer, folder / "made.onnx")
    choice = choose(
        quantizer,
        folder,
        accuracy=lambda path: same_class(outputs(path, judged), expected),
        allowed_pt=ALLOWED_PT if config.max_drop is None else config.max_drop,
        images=judged,
        measure=lambda paths: side_by_side([shipped_as(kind, path, quantizer.images, folder) for path in paths]),
        schemes=schemes_for(kind),
        progress=progress,
    )
    return choice.kept.label, choice.kept.path


def settings(scheme: str, max_drop: float = ALLOWED_PT, *, bit_exact: bool = False) -> Quantize:
    """Return how to quantise without a recipe.

    Raises:
        UserError: there is no such scheme, or it needs a recipe; a drop out of range.
    """
    if scheme not in (known := ("auto", *SCHEMES)):
        needs = f'scheme "{scheme}" needs a recipe'
        raise UserError(
            needs if scheme in ("qat", "mixed") else f'scheme "{scheme}" is unknown; {nearest(scheme, known)}'
        )
    try:
        drop = max_drop if scheme == "auto" else None
        return Quantize(scheme=scheme, max_drop=drop, bit_exact=bit_exact)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"--{error}") from error


def calibration_images(source: Path, spec: str, count: int) -> Tensor:
    """Return training images of a data set as a file takes them: of its size, normalised; drawn evenly.

    Args:
        source: the file.
        spec: the data set, as recipes have it.
        count: of the images.
    """
    session = open_session(source)
    side = session.inputs[0].dims[-1] if session.inputs and session.inputs[0].dims else None
    found = data.load(spec, size=side if isinstance(side, int) else None)
    chosen = torch.linspace(0, len(found.train) - 1, min(count, len(found.train))).long()
    return data.normalize(found.train.images[chosen], found.mean, found.std)


def read_inputs(path: Path) -> Tensor:
    """Read inputs from a NumPy file.

    Args:
        path: of an array ``[N, C, H, W]`` float32.

    Raises:
        DataError: it is no such file.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # whatever NumPy makes of bytes that are none of its own
        raise DataError(f"{path}: no NumPy file: {one_line(error)}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype != np.float32:
        about = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(f"{path}: it holds {about}, it must be one float32 array [N, C, H, W]")
    return torch.from_numpy(array)


def _kind(source: Path, out: Path, config: Quantize) -> str:
    """Return the format that a suffix stands for."""
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: the float file would be lost; write to another file")
    if (suffix := out.suffix.lower()) not in KINDS:
        raise UserError(f'{out}: no format has the suffix "{out.suffix}"; {nearest(suffix, KINDS)}')
    kind = KINDS[suffix]
    if config.scheme not in ("auto", *schemes_for(kind)):
        raise UserError(f'{out}: {kind} has no kernels for scheme = "{config.scheme}"; take int8_static or auto')
    if kind != "onnx":
        check_installed(kind)
    return kind
