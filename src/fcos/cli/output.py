"""What commands write besides words: JSON for other programs, on stdout alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")


def counted(count: int, one: str, many: str = "") -> str:
    """A number and its noun: "1 image", "2,000 images"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def print_json(value: Any) -> None:
    """One JSON value on stdout, in ASCII for any terminal; numbers that are not finite become null."""
    click.echo(json.dumps(_plain(value), indent=2))


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
