"""The style of `--help`: bold titles and coloured names in a terminal, plain text elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import click


class Formatter(click.HelpFormatter):
    """Click's, with colours; `click.echo` takes them out again where there is no terminal."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """The first line."""
        super().write_usage(prog, args, click.style("Usage: ", bold=True) if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        """The title of a section."""
        super().write_heading(click.style(heading, bold=True))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Options or commands with their meaning."""
        super().write_dl([(click.style(name, fg="cyan"), text) for name, text in rows], col_max, col_spacing)


class Context(click.Context):
    """The context of every command of ours."""

    formatter_class = Formatter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if os.environ.get("NO_COLOR"):  # https://no-color.org; rich heeds it by itself
            self.color = False
