"""Output of commands besides plain text: JSON for other programs, tables, and a progress bar on stderr."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fcos.terminal import progress_console

if TYPE_CHECKING:
    from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")


def print_json(value: Any) -> None:
    """One JSON value on stdout, in ASCII for any terminal; numbers that are not finite become null."""
    click.echo(json.dumps(_plain(value), indent=2).replace("\x7f", "\\u007f"))  # DEL


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN, and many parsers reject Python's
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@contextmanager
def progress_bar(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, in a terminal only; call the yielded function with the images done.

    Without a `total`, it shows only the count.
    """
    from rich import progress

    console = progress_console()
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def new_table(*columns: str, numbers: bool = False) -> Table:
    """An empty table in the style of all commands; names of settings are never wrapped.

    With `numbers`, all columns but the first are right-aligned.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        justify: Any = "right" if numbers and place else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column == "setting")
    return table


def print_table(table: Table, *, err: bool = False) -> None:
    """Print at the width of the terminal; a name in a cell is not markup."""
    from rich.console import Console

    console = Console(stderr=err)
    # A file or a pipe has no width; rich's default of 80 columns would wrap every line.
    width = console.width if console.is_terminal else 140
    Console(width=width, stderr=err, markup=False, emoji=False, highlight=False).print(table)
