"""The run folder before its steps: which one, whether it may be used, and by one process at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgewise.errors import RunFolderError
from edgewise.files import is_partial, locked, partial_folder, write_bytes
from edgewise.layout import CHECKPOINT, DENSE, EVENTS, MANIFEST, RECIPE, step_folder
from edgewise.prune.config import Prune
from edgewise.recipe import Recipe, absolute, read, to_toml

MISSING = "nothing"


def choose(recipe: Recipe, out: Path | None, resume: bool, *, same: bool = True) -> Path:
    """Find the run's folder and refuse one that holds something else; nothing is written.

    Args:
        recipe: what will be done there.
        out: the folder; by default ``runs/<recipe's name>``, numbered when taken.
        resume: it holds a run that is gone on with.
        same: which was begun with this very recipe.

    Raises:
        RunFolderError: the folder is taken, or there is no run of this recipe to resume in it.
    """
    folder = out or _default(recipe.name, resume)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder}: a file of that name is in the way")
    if resume:
        if not (folder / RECIPE).exists():
            raise RunFolderError(f"{folder}: no run to resume; leave --resume out to start one")
        if same:
            _check_same(folder, read(folder / RECIPE), absolute(recipe))
    # What a kill left of the recipe's own file is no run yet.
    elif folder.exists() and not all(is_partial(path) for path in folder.iterdir()):
        raise RunFolderError(f"{folder}: exists already; take --resume to go on with it, or another --out")
    return folder


@contextmanager
def held(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Make the folder and hold it for this process alone, the recipe in it.

    The paths in the recipe that is kept are absolute, so that it can be resumed and checked from anywhere.

    Raises:
        RunFolderError: another process is at work in it; its number is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as free:
        if not free:
            raise RunFolderError(f"{folder}: {_holder(folder)} is at work in it; wait for it, or take another --out")
        choose(recipe, folder, resume)  # again: until now another process may have been at work
        write_bytes(folder / RECIPE, to_toml(absolute(recipe)).encode())
        event(folder, "resume" if resume else "start", recipe=recipe.name, process=os.getpid())
        yield


def event(folder: Path, name: str, **details: Any) -> None:
    """Append a line to the run's log; a line cut short by a kill is closed first."""
    path = folder / EVENTS
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps({"time": now, "event": name, **details}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _default(name: str, resume: bool) -> Path:
    """Return ``runs/<name>``, or with a number: the first that is free, or the last there is to resume."""
    number, folder = 1, Path("runs") / name
    while folder.exists():
        number += 1
        following = Path("runs") / f"{name}-{number}"
        if resume and not following.exists():
            break
        folder = following
    return folder


def _holder(folder: Path) -> str:
    """Name the process that holds a folder: the last that said it began there."""
    try:
        lines = (folder / EVENTS).read_text(encoding="utf-8").splitlines()
        return next(f"process {number}" for line in reversed(lines) if (number := json.loads(line).get("process")))
    except (OSError, ValueError, StopIteration):
        return "another process"


def _check_same(folder: Path, begun: Recipe, recipe: Recipe) -> None:
    """Refuse a recipe that differs from the one a run was begun with in what was done already."""
    steps = _begun(folder, begun)
    old, new = _settings(begun, steps), _settings(recipe, steps)
    used = any(isinstance(step, Prune) and step.budget for step in begun.step[:steps])
    if not used and not (folder / MANIFEST).exists():  # else the budget is held against the result, and only then
        old, new = ({k: v for k, v in each.items() if not k.startswith("budget")} for each in (old, new))
    for key in old | new:
        was, wanted = old.get(key, MISSING), new.get(key, MISSING)
        if was != wanted:
            raise RunFolderError(
                f"{folder}: was begun with another recipe: {key} was {was!r} and is {wanted!r}; "
                f"resume with its own {folder / RECIPE}, or take another --out"
            )


def _begun(folder: Path, recipe: Recipe) -> int:
    """Count the steps that a run has begun; once the dense network is settled, so is the step that ends it."""
    if (folder / MANIFEST).exists():
        return len(recipe.step) + 1
    places = [step_folder(folder, index, step.kind) for index, step in enumerate(recipe.step)]
    begun = [i + 1 for i, place in enumerate(places) if place.exists() or (partial_folder(place) / CHECKPOINT).exists()]
    return max([0, *begun, *([recipe.dense_at + 1] if (folder / DENSE).exists() else [])])


def _settings(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return a recipe's settings by their paths, those of its first steps only."""
    table = asdict(recipe)
    table["step"] = table["step"][:steps]
    return dict(_flat(table, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value
