"""Files written whole or not at all, and their fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgewise.errors import RunFolderError

PARTIAL = ".partial"


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file beside its place and move it there, so that no reader ever sees half of it.

    Raises:
        OSError: it cannot be written; the error names the file, whatever the system was doing.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):  # of a folder that is not there, or a name that cannot be
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(path), None
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


def is_partial(path: Path) -> bool:
    """Whether a file or folder is what was being put together when a process was killed."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def without_partial(text: str) -> str:
    """Name the files and folders in a message by their final places, not by where they are put together.

    >>> without_partial("runs/a/steps/.01-train.partial/model.onnx: no space")
    'runs/a/steps/01-train/model.onnx: no space'
    """
    return re.sub(rf"(^|[\s/\"'])\.([^/\s]+){re.escape(PARTIAL)}\b", r"\1\2", text)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder for this process alone; give False where another one holds it.

    The system lets go when the process ends, however it ends. Windows, which has no such lock on folders, always
    gives True.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)


@contextmanager
def whole_folder(folder: Path, *, keep_partial: bool = False) -> Iterator[Path]:
    """Give a folder to write into that appears at its place only when the block ends well.

    Args:
        folder: where it will be; it must not exist yet.
        keep_partial: go on with what an interrupted block left behind, instead of starting empty.

    Raises:
        RunFolderError: somebody else made the folder meanwhile.
    """
    partial = partial_folder(folder)
    if not keep_partial:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    try:
        os.replace(partial, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise RunFolderError(
                f"{folder}: appeared meanwhile; something else writes into the run's folder"
            ) from error
        raise


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
