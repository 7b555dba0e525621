"""The table of measured layers: kept on disk for one machine, runtime, precision and number of threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from edgewise.devices.local import ask_worker, available_cores, machine, machine_key
from edgewise.errors import UserError
from edgewise.files import canonical_json, read_json, write_bytes
from edgewise.graph.trace import LayerShape
from edgewise.progress import Progress

FORMAT = 2
CHUNK_LAYERS = 24  # in one file of the worker's
CHUNK_MACS = 300e6
SAVE_EVERY = 8  # files


def measure_layers(
    shapes: Iterable[LayerShape],
    folder: Path,
    *,
    precision: str = "float32",
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[LayerShape, float]:
    """Return the seconds of each layer on this machine, measuring those the table does not know yet.

    A table is good for one machine, version of the runtime, precision and number of threads; others have tables of
    their own. It is saved as it grows, so that what is interrupted goes on where it stopped.

    Args:
        shapes: the layers.
        folder: where tables are kept; made if it is not there.
        precision: "float32" or "int8".
        threads: that the runtime may use, each with a core.
        progress: is told ("layers", done, total).

    Raises:
        UserError: more threads than cores, or an unknown precision.
        MeasurementFailed: the runtime cannot run a layer.
    """
    cores = available_cores()
    if not 1 <= threads <= cores:
        raise UserError(f"threads = {threads}: this machine has {cores} cores to use; give 1 to {cores}")
    about = _about(precision, threads)
    path = folder / f"layers-{hashlib.sha256(canonical_json(about)).hexdigest()[:16]}.json"
    known = _read(path, about)
    wanted = set(shapes)
    missing = sorted(wanted - known.keys(), key=lambda shape: (shape.macs, shape))
    done, total = len(wanted) - len(missing), len(wanted)
    for chunks in _batched(_chunks(missing), SAVE_EVERY):
        if progress is not None:
            progress("layers", done, total)
        request = {"task": "layers", "artifacts": [], "precision": precision, "threads": threads}
        answer = ask_worker({**request, "files": [[asdict(shape) for shape in chunk] for chunk in chunks]})
        for chunk, seconds in zip(chunks, answer["seconds"], strict=True):
            known.update(zip(chunk, seconds, strict=True))
            done += len(chunk)
        _write(path, about, known)
    if progress is not None:
        progress("layers", total, total)
    return {shape: known[shape] for shape in wanted}


def _about(precision: str, threads: int) -> dict[str, Any]:
    """Say what a table is good for."""
    facts = machine()
    return {
        "format": FORMAT,
        "machine": machine_key(),
        **{name: facts[name] for name in ("cpu", "cpu_flags")},
        "onnxruntime": facts["versions"]["onnxruntime"],
        "precision": precision,
        "threads": threads,
    }


def _read(path: Path, about: dict[str, Any]) -> dict[LayerShape, float]:
    """Read a table; none, or one that cannot be read or is of something else, is empty."""
    try:
        content = read_json(path)
        if content["about"] != about:
            return {}
        return {LayerShape(*map(_frozen, shape)): float(seconds) for shape, seconds in content["layers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(path: Path, about: dict[str, Any], known: dict[LayerShape, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(LayerShape)]
    rows = [[[getattr(shape, name) for name in names], seconds] for shape, seconds in sorted(known.items())]
    write_bytes(path, json.dumps({"about": about, "layers": rows}).encode())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _chunks(shapes: list[LayerShape]) -> Iterator[list[LayerShape]]:
    """Put layers of like size into one file, few enough that their tensors do not crowd each other."""
    chunk: list[LayerShape] = []
    for shape in shapes:
        if chunk and (len(chunk) == CHUNK_LAYERS or sum(s.macs for s in chunk) + shape.macs > CHUNK_MACS):
            yield chunk
            chunk = []
        chunk.append(shape)
    if chunk:
        yield chunk


def _batched(chunks: Iterator[list[LayerShape]], size: int) -> Iterator[list[list[LayerShape]]]:
    batch: list[list[LayerShape]] = []
    for chunk in chunks:
        batch.append(chunk)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
