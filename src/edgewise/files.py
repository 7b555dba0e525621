"""Files written whole or not at all, and their fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file beside its place and move it there, so that no reader ever sees half of it."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write a value in the one canonical form of JSON that edgewise uses."""
    return write_bytes(path, canonical_json(value))


def canonical_json(value: Any) -> bytes:
    """Return JSON with two spaces of indent, keys in their order, a newline at the end; NaN is refused."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def partial_folder(folder: Path) -> Path:
    """Return where a folder is put together before it moves to its place."""
    return folder.with_name(f".{folder.name}{PARTIAL}")


@contextmanager
def whole_folder(folder: Path, *, keep_partial: bool = False) -> Iterator[Path]:
    """Give a folder to write into that appears at its place only when the block ends well.

    Args:
        folder: where it will be; it must not exist yet.
        keep_partial: go on with what an interrupted block left behind, instead of starting empty.
    """
    partial = partial_folder(folder)
    if not keep_partial:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    os.replace(partial, folder)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
