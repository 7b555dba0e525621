"""What the command prints: tables, progress bars, a step's line, and the end of a run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, default=str))


def dash(value: Any, form: Callable[[Any], str]) -> str:
    """Format a value, or a dash where it is not known."""
    return "-" if value is None else form(value)


def print_table(title: str, columns: list[str], rows: list[list[str]], numbers: int = 0) -> None:
    """Print a table; its last `numbers` columns are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, box=box.SIMPLE, title_justify="left")
    for position, column in enumerate(columns):
        right = position >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def print_rows(title: str, columns: Sequence[str], rows: list[list[str]], notes: Sequence[str] = ()) -> None:
    """Print rows too wide for a table: each as a line of its first two cells, and under it what else is known."""
    print(f"{title}\n")
    wide = max((len(row[0]) for row in rows), default=0)
    for who, what, *figures in rows:
        known = [f"{name} {cell}" for name, cell in zip(columns[2:], figures, strict=True) if cell != "-"]
        print(f"{who:<{wide}}  {what}")
        if known:
            print(" " * wide + "    " + ", ".join(known))
    print(*(f"\n{note}" for note in notes), sep="", end="\n" if notes else "")


def step_line(row: dict[str, Any]) -> str:
    """Say in one line what a step left."""
    from edgewise.report import format_bytes, format_count, format_seconds

    parts = [
        f"{row['step']:<14}",
        f"{row['metric']} {dash(row['accuracy'], lambda v: f'{v:.2%}')}",
        f"{format_count(row['params'])} params",
        f"{format_count(row['macs'])} MACs",
        f"file {format_bytes(row['file_bytes'])}" if row["file_bytes"] else "",
        f"latency {format_seconds(row['latency_s'])}" if row["latency_s"] else "",
        f"in {row['seconds']:.0f} s",
    ]
    return "  ".join(part for part in parts if part) + "".join(f"\n    note: {note}" for note in row["notes"])


def print_finished(console: Console, finished: Any) -> None:
    """Print what came out, against the dense network and the budget."""
    from edgewise.budget import COLUMNS
    from edgewise.units import format_bytes, format_quantity, format_seconds, format_signed

    small, dense = finished.results["compressed"], finished.results["rows"][0]
    lines = []
    if small["file_bytes"] and dense["file_bytes"]:
        share = small["file_bytes"] / dense["file_bytes"]
        lines.append(f"file      {format_bytes(small['file_bytes'])}, {share:.1%} of the dense float file")
    if small["speedup"]:
        lines.append(f"latency   {format_seconds(small['latency_s'])}, {small['speedup']:.2f}x the dense speed")
    if small["drop_pt"] is not None:
        name = finished.results["metric"]
        lines.append(f"{name:<9} {small['accuracy']:.2%}, {format_signed(-small['drop_pt'])} points")
    for name, limit in (finished.results["budget"] or {}).items():
        state = "met" if limit["met"] else "MISSED"
        column = COLUMNS[name].column
        value, most = (
            dash(limit[key], lambda v: f"{v:.2f} points") if name == "drop" else format_quantity(column, limit[key])
            for key in ("value", "limit")
        )
        share = f" ({limit['share']:.4g} of the dense network's)" if "share" in limit else ""
        lines.append(f"budget    {name}: {state}, {value} of {most}{share}")
    if missed_drop(finished.results):
        lines.append("          all else holds: more epochs of recovery, or looser limits, would lose less")
    lines += [f"report    {finished.folder / 'report.html'}", f"run       {finished.folder}"]
    console.print("\n".join(lines), markup=False, highlight=False)


def missed_drop(results: dict[str, Any]) -> bool:
    """Whether accuracy is all that a run's budget misses."""
    missed = [name for name, limit in (results["budget"] or {}).items() if not limit["met"]]
    return missed == ["drop"]


@contextlib.contextmanager
def bars(*, quiet: bool) -> Iterator[tuple[Callable[[str, int, int], None] | None, Console]]:
    """Draw progress bars on stderr for whatever lasts longer than a second; give the console beside them."""
    from time import monotonic

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=quiet, soft_wrap=True, highlight=False, quiet=quiet, markup=False)
    if quiet:
        yield None, console
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as drawn:
        tasks: dict[str, Any] = {}
        begun: dict[str, float] = {}

        def progress(what: str, done: int, total: int) -> None:
            begun.setdefault(what, monotonic())
            if what not in tasks and done < total and monotonic() - begun[what] > 1:
                tasks[what] = drawn.add_task(what, total=total)
            if what in tasks:
                drawn.update(tasks[what], completed=done, total=total)
            if done >= total:
                begun.pop(what)
                if what in tasks:
                    drawn.remove_task(tasks.pop(what))

        yield progress, drawn.console


@contextlib.contextmanager
def keep_going() -> Iterator[None]:
    """Print, unless the reader of our output went away, as `head` does: a run does not end with it."""
    try:
        yield
    except (BrokenPipeError, SystemExit):  # by its version, Rich raises the one or the other
        silence()


def silence() -> None:
    """Let what is printed from now on go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
