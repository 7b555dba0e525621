"""The scheme that is best here: every candidate is made, its accuracy found, and those that hold it are measured.

Nothing is kept that is slower than the float file, or larger. Where int8 loses too much, its most sensitive layers are
left in floats, one by one, until it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgewise.devices.base import Measurement
from edgewise.progress import Progress
from edgewise.quantize.schemes import SCHEMES
from edgewise.quantize.sensitivity import IMAGES, layer_errors
from edgewise.quantize.static import Quantizer

NOISE = 0.02  # of a latency: what is no slower than that is as fast
STATIC = "int8_static"
FLOAT = "float32"


@dataclass(frozen=True)
class Exclusion:
    """One more layer left in floats.

    Args:
        layer: "" for none.
        error: of the logits when that layer alone is quantised.
        accuracy: of the file without it and those before it, a fraction.
    """

    layer: str
    error: float
    accuracy: float


@dataclass(frozen=True)
class Candidate:
    """A file that was tried.

    Args:
        scheme: that made it; "float32" for what it is held against.
        path: of the file.
        excluded: the layers that stayed in floats.
        accuracy: on held-out images, a fraction.
        file_bytes: its size.
        latency_s: as measured; None where its accuracy was out of question.
        speed: times the float file's, measured beside it.
    """

    scheme: str
    path: Path
    excluded: tuple[str, ...]
    accuracy: float
    file_bytes: int
    latency_s: float | None = None
    speed: float | None = None

    @property
    def label(self) -> str:
        """What it is called."""
        layers = "layer" if len(self.excluded) == 1 else "layers"
        return self.scheme + (f" without {len(self.excluded)} {layers}" if self.excluded else "")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "path": self.path.name, "label": self.label}


@dataclass(frozen=True)
class Choice:
    """What was tried, and what was kept.

    Args:
        kept: the best candidate; float32 where nothing is as fast, smaller and accurate enough.
        tried: all of them, the float file first.
        curve: how the accuracy rose as layers were left out; empty where none had to be.
    """

    kept: Candidate
    tried: tuple[Candidate, ...]
    curve: tuple[Exclusion, ...]


def without_sensitive(
    quantizer: Quantizer,
    out: Path,
    *,
    accuracy: Callable[[Path], float],
    least: float,
    images: Tensor,
    progress: Progress | None = None,
) -> tuple[Candidate, tuple[Exclusion, ...]]:
    """Write the int8 file, leaving out the most sensitive layers one by one until its accuracy holds.

    Args:
        quantizer: of the float file.
        out: where the file goes.
        accuracy: of a file.
        least: that is allowed.
        images: to find out on which layers are sensitive; some are enough.
        progress: is told (what, done, total).

    Returns:
        The first file that holds, or the most accurate one where none does; and the curve, whose first point is all
        layers.
    """
    quantizer.write(out)
    found = accuracy(out)
    curve = [Exclusion("", 0.0, found)]
    best = Candidate(STATIC, out, (), found, out.stat().st_size)
    if found >= least:
        return best, ()
    errors = layer_errors(quantizer, images[:IMAGES], progress)
    excluded: list[str] = []
    another = out.with_name(f"next-{out.name}")
    for done, (layer, error) in enumerate(errors.items(), 1):
        excluded.append(layer)
        quantizer.write(another, excluded)
        found = accuracy(another)
        curve.append(Exclusion(layer, error, found))
        if found > best.accuracy:
            best = Candidate(STATIC, out, tuple(excluded), found, another.replace(out).stat().st_size)
        if progress is not None:
            progress("leave out", done, len(errors))
        if found >= least:
            break
    another.unlink(missing_ok=True)
    return best, tuple(curve)


def choose(
    quantizer: Quantizer,
    folder: Path,
    *,
    accuracy: Callable[[Path], float],
    allowed_pt: float,
    images: Tensor,
    measure: Callable[[Sequence[Path]], list[Measurement]],
    schemes: Collection[str] = tuple(SCHEMES),
    progress: Progress | None = None,
) -> Choice:
    """Try the schemes, and keep the fastest that loses no more than is allowed.

    Of those that are equally fast it is the smallest, among those that lose at most half of that if there are any: what
    is found on held-out images is not exact, and nothing is won by losing more.

    Args:
        quantizer: of the float file, which everything is held against.
        folder: where the candidates go; it exists.
        accuracy: of a file on held-out images, a fraction.
        allowed_pt: accuracy points that may be lost there.
        images: to find out on which layers are sensitive.
        measure: of files side by side, where they will run.
        schemes: to try; names of `SCHEMES`.
        progress: is told (what, done, total).
    """
    dense = Candidate(FLOAT, quantizer.path, (), accuracy(quantizer.path), quantizer.path.stat().st_size)
    least = dense.accuracy - allowed_pt / 100
    tried, curve = [dense], tuple[Exclusion, ...]()
    for scheme in schemes:
        out = folder / f"{scheme}.onnx"
        if scheme == STATIC:
            static, curve = without_sensitive(
                quantizer, out, accuracy=accuracy, least=least, images=images, progress=progress
            )
            tried.append(static)
            tried.extend(_other_places(quantizer, static, accuracy))
        else:
            SCHEMES[scheme].write(quantizer, out)
            tried.append(Candidate(scheme, out, (), accuracy(out), out.stat().st_size))
        if progress is not None:
            progress("schemes", len(tried), len(schemes) + 3)
    eligible = [each for each in tried[1:] if each.accuracy >= least and each.file_bytes < dense.file_bytes]
    first, *others = measure([dense.path, *(each.path for each in eligible)])
    dense = replace(dense, latency_s=first.latency_s, speed=1.0)
    measured = [
        replace(each, latency_s=found.latency_s, speed=found.ratio(first))
        for each, found in zip(eligible, others, strict=True)
    ]
    by_path = {each.path: each for each in (dense, *measured)}
    tried = [by_path.get(each.path, each) for each in tried]
    fast = [each for each in measured if each.speed is not None and each.speed >= 1 - NOISE]
    fastest = max((each.speed or 0 for each in fast), default=0)
    as_fast = [each for each in fast if (each.speed or 0) >= fastest * (1 - NOISE)]
    careful = [each for each in as_fast if each.accuracy >= dense.accuracy - allowed_pt / 200] or as_fast
    kept = min(careful, key=lambda each: each.file_bytes, default=dense)
    return Choice(kept, tuple(tried), curve)


def _other_places(quantizer: Quantizer, static: Candidate, accuracy: Callable[[Path], float]) -> list[Candidate]:
    """Leave the first layers in floats as well: with few channels integer kernels may be slower than float ones."""
    found = []
    layers = [name for name in quantizer.sites().layers if name not in static.excluded]
    for count in (1, 2):
        if len(layers) > count:
            excluded = (*static.excluded, *layers[:count])
            out = static.path.with_name(f"{STATIC}-{count}.onnx")
            quantizer.write(out, excluded)
            found.append(Candidate(STATIC, out, excluded, accuracy(out), out.stat().st_size))
    return found
