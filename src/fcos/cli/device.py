"""The option --device of commands that use one device."""

from __future__ import annotations

import click

WORDS = ("auto", "cpu", "cuda", "mps")


def _convert(ctx: click.Context, param: click.Parameter, value: str) -> str | list[int]:
    """A word as it is, a GPU number as a list; whether the device is there is seen when it is used."""
    if value in WORDS:
        return value
    if value.isdigit():
        return [int(value)]
    raise click.BadParameter(f"{value!r} is none of {', '.join(WORDS)}, nor a GPU number")


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    callback=_convert,
    help="auto, cpu, cuda, mps, or a GPU number.",
)
