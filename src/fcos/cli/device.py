"""The options --device and --num-processes of commands that go through pictures."""

from __future__ import annotations

from pathlib import Path

import click

WORDS = ("auto", "cpu", "cuda", "mps")


def _convert(ctx: click.Context, param: click.Parameter, value: str) -> str | list[int]:
    """A word as it is, GPU numbers as a list; whether the device is there is seen when it is used."""
    if value in WORDS:
        return value
    if all(number.isdigit() for number in value.split(",")):
        return [int(number) for number in value.split(",")]
    raise click.BadParameter(f"{value!r} is none of {', '.join(WORDS)}, nor GPU numbers")


def device_of(model: Path, device: str | list[int]) -> str | list[int]:
    """The device for a model: exported files run on the CPU, so that "auto" is no GPU for them."""
    from fcos.weights.load import format_of

    return "cpu" if device == "auto" and format_of(model) else device


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    callback=_convert,
    help="auto, cpu, cuda, mps, or GPU numbers such as 0,1,2,3, which share the pictures.",
)

num_processes_option = click.option(
    "--num-processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share the pictures on --device cpu.",
)
