"""Published archives, downloaded once into the cache folder."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from edgewise.errors import DataError
from edgewise.progress import Progress

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30


def cache_folder() -> Path:
    """Return where downloads are kept: the environment's EDGEWISE_CACHE, or ``~/.cache/edgewise``."""
    return Path(os.environ.get("EDGEWISE_CACHE") or "~/.cache/edgewise").expanduser()


def fetch(url: str, md5: str, *, otherwise: str, progress: Progress | None = None) -> Path:
    """Return a published file from the cache, downloading it where it is not there yet.

    A download appears under its name only when it is whole and its MD5 is right; whatever goes wrong leaves nothing
    behind. A file that was there before is held against the MD5 each time: half a second for CIFAR's.

    Args:
        url: of the file; its last part becomes the name.
        md5: as published, in hexadecimal.
        otherwise: what a user without the network can do, for the message.
        progress: is told (what, bytes done, bytes in all).

    Raises:
        DataError: the file cannot be downloaded, read or written, or its MD5 is another.
    """
    target = cache_folder() / url.rsplit("/", 1)[-1]
    if target.exists():
        return _unchanged(target, md5, otherwise)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(handle, "wb") as file:
                for block in _blocks(url, otherwise, progress):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != md5:
                raise DataError(f"{url} has the MD5 {digest.hexdigest()} instead of {md5}; try again, or {otherwise}")
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror or error})") from error
    return target


def _unchanged(target: Path, md5: str, otherwise: str) -> Path:
    """Return a file of the cache if its MD5 is the published one: a disk or a hand may have changed it since."""
    try:
        with target.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{target} cannot be read ({error.strerror or error}); remove it, or {otherwise}") from error
    if found != md5:
        raise DataError(
            f"{target} has the MD5 {found} instead of {md5}; remove it, so that it is downloaded again, or {otherwise}"
        )
    return target


def _blocks(url: str, otherwise: str, progress: Progress | None) -> Iterator[bytes]:
    """Download a file piece by piece."""
    try:
        with urlopen(url, timeout=TIMEOUT_S) as response:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            while block := response.read(BLOCK_BYTES):
                done += len(block)
                if progress is not None:
                    progress(f"download {url.rsplit('/', 1)[-1]}", done, max(done, total))
                yield block
    except (OSError, HTTPException) as error:
        raise DataError(f"{url} cannot be downloaded ({error}); {otherwise}") from error
