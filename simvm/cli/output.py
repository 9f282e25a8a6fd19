"""What a verb prints: answers and tables on stdout, messages and progress on stderr.

Bars appear on a terminal only. What draws them is imported when something is drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from simvm.errors import Mistake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from simvm.runner import Progress

_WIDTH: Final = 120
"""Columns of a table that does not go to a terminal."""

_LONG: Final = ("source", "value", "target", "published", "simulated")
"""Columns whose texts may go on in another line."""


def _console() -> Console:
    """Where tables go: stdout, at a width of its own where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH, soft_wrap=False)


def answer(args: argparse.Namespace, data: Any, drawn: Callable[[], RenderableType]) -> None:
    """The answer of a verb, in the format that was asked for."""
    if args.format == "json":
        print(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        console = _console()
        with console.capture() as text:  # on a closed pipe rich itself would exit with 1
            console.print(drawn())
        print(text.get(), end="")


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> RenderableType:
    """Rows of values under their heads."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        made.add_column(head, overflow="fold", no_wrap=head not in _LONG)
    for row in rows:
        made.add_row(*(Text(_cell(value)) for value in row))
    return made


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def tell(args: argparse.Namespace, text: str) -> None:
    """A message, unless --quiet."""
    if not args.quiet:
        print(text, file=sys.stderr)


@contextmanager
def progress_bars(args: argparse.Namespace) -> Iterator[Progress | None]:
    """A bar for each variant with rate and time left; on a terminal only."""
    if args.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from simvm.units import human_count, human_ns

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}

    def show(variant: str, now: int, done: int, total: int | None) -> None:
        if variant not in tasks:
            for task in tasks.values():
                bars.update(task, completed=bars.tasks[task].total or 1, total=None)
                bars.stop_task(task)
            tasks[variant] = bars.add_task(variant, total=total, done="")
        task = tasks[variant]
        speed = bars.tasks[task].speed
        rate = f", {human_count(round(speed))}/s" if speed else ""
        text = f"{human_count(done)} accesses{rate}, at {human_ns(now)}"
        bars.update(task, completed=done, total=total, done=text)

    with bars:
        yield show


@contextmanager
def steps_done(args: argparse.Namespace) -> Iterator[Callable[[str, int, int], None] | None]:
    """How many steps of a list are done, and which is under way; on a terminal only."""
    if getattr(args, "quiet", False) or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda name, done, total: status.update(f"{done} of {total}: {name}")


@contextmanager
def reading(
    args: argparse.Namespace, what: str = "accesses"
) -> Iterator[Callable[[int, int], None] | None]:
    """How far an import has come; on a terminal only."""
    if args.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    from simvm.units import human_bytes, human_count

    with Console(stderr=True).status("reading") as status:
        yield lambda read, kept: status.update(
            f"{human_bytes(read)} read, {human_count(kept)} {what} kept"
        )


def complain(mistakes: Sequence[Mistake], stream: Any) -> None:
    """All mistakes, grouped by file."""
    for file in dict.fromkeys(mistake.file for mistake in mistakes):
        those = [mistake for mistake in mistakes if mistake.file == file]
        number = "1 mistake" if len(those) == 1 else f"{len(those)} mistakes"
        print(f"{file or 'input'}: {number}", file=stream)
        for mistake in those:
            value = f" = {mistake.value}" if mistake.value else ""
            if mistake.key or value:
                print(f"  {mistake.key or 'found'}{value}", file=stream)
            print(f"    rule: {mistake.rule}", file=stream)
            print(f"    fix:  {mistake.fix}", file=stream)
