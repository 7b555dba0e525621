"""What `edgewise list` shows: each kind of thing there is, by name, with one line about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Rows = list[tuple[str, str]]


def _models() -> Rows:
    from edgewise.models import describe

    return describe()


def _data() -> Rows:
    from edgewise.data import names

    return list(names().items())


def _runtimes() -> Rows:
    from edgewise.devices import RUNTIMES

    rows = []
    for name, runtime in RUNTIMES.items():
        there = "installed" if runtime.installed else f"not installed: {runtime.install}"
        rows.append((name, f"{runtime.about}; {there}" if runtime.extra else runtime.about))
    return rows


def _methods() -> Rows:
    from edgewise.prune import ALLOCATIONS, IMPORTANCES, SETTINGS, zero_channels
    from edgewise.recipe import METHODS, STEPS

    def first_line(thing: object) -> str:
        return (thing.__doc__ or "").strip().splitlines()[0]

    return [
        *((f"step: {name}", first_line(config)) for name, config in STEPS.items()),
        *((f"training method: {name}", first_line(config)) for name, config in METHODS.items()),
        *((f"importance: {name}", criterion.about) for name, criterion in IMPORTANCES.items()),
        *((f"allocation: {name}", first_line(function)) for name, function in ALLOCATIONS.items()),
        ("allocation: zero", first_line(zero_channels)),
        *((f"allocation: {name}", first_line(settings)) for name, settings in SETTINGS.items()),
    ]


def _recipes() -> Rows:
    """List the recipes that come with edgewise: the first comment of each."""
    from edgewise.recipe import shipped

    rows = []
    for path in sorted(shipped().glob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        rows.append((str(shown), first.removeprefix("#").strip() if first.startswith("#") else ""))
    return rows


def _systems() -> Rows:
    from edgewise.systems import SYSTEMS

    return [(name, system.about) for name, system in SYSTEMS.items()]


CATALOG: dict[str, Callable[[], Rows]] = {
    "models": _models,
    "data": _data,
    "methods": _methods,
    "runtimes": _runtimes,
    "recipes": _recipes,
    "systems": _systems,
}
