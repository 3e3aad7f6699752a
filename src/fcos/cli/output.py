"""What commands write besides text: JSON for other programs on stdout, a progress bar on stderr."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from fcos.terminal import progress_console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")


def print_json(value: Any) -> None:
    """One JSON value on stdout, in ASCII for any terminal; numbers that are not finite become null."""
    click.echo(json.dumps(_plain(value), indent=2).replace("\x7f", "\\u007f"))  # ASCII's one other control


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it, and many readers refuse Python's
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@contextmanager
def progress_bar(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, in a terminal only; call what it yields with the number of images done.

    Without a `total` it shows how many, and no end.
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
