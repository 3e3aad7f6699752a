"""`fcos config`: every setting with its default, unit and meaning, or the resolved ones of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.options import overrides_argument
from fcos.cli.output import json_option, new_table, print_json, print_table
from fcos.terminal import printable_line

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """\b
Examples:
  fcos config                          all settings with their defaults
  fcos config train.json epochs=24     what training would use, and where each value comes from
  fcos config model=fcos_lite0         the values that a preset sets
  fcos config --presets                the presets and what each changes
"""


@click.command(epilog=EPILOG)
@overrides_argument("words", "[TRAIN_JSON] [KEY=VALUE]...")
@click.option("--presets", is_flag=True, help="Show the presets and what each changes, with the reason.")
@json_option
def command(words: tuple[str, ...], presets: bool, as_json: bool) -> None:
    """Print every setting with its default, unit and meaning.

    With TRAIN_JSON or KEY=VALUE: print the values that training would use, and where each comes from.
    """
    if presets:
        _print_presets(as_json)
    elif words:
        _print_resolved(words, as_json)
    else:
        _print_settings(as_json)


def _print_settings(as_json: bool) -> None:
    from fcos.config import TrainConfig, expects, unit

    fields = TrainConfig.model_fields
    if as_json:
        rows = {
            key: {
                "default": field.default,
                "unit": unit(key),
                "takes": expects(key),
                "meaning": field.description,
            }
            for key, field in fields.items()
        }
        print_json(rows)
        return
    table = new_table("setting", "default", "unit", "meaning")
    for key, field in fields.items():
        words = f": {expects(key)}" if '"' in expects(key) else ""  # list the choices
        _add(table, key, show(field.default), unit(key), f"{field.description}{words}")
    print_table(table)


def _print_resolved(words: tuple[str, ...], as_json: bool) -> None:
    from fcos.config import load_config

    # "a=b.json" is an override, as for `fcos train`
    file, overrides = (None, words) if "=" in words[0] else (Path(words[0]), words[1:])
    config = load_config(file, overrides)
    if as_json:
        print_json(config.model_dump())
        return
    table = new_table("setting", "value", "comes from")
    for key in type(config).model_fields:
        _add(table, key, show(getattr(config, key)), config.origin(key))
    print_table(table)


def _print_presets(as_json: bool) -> None:
    from rich.text import Text

    from fcos.config.presets import ALL_PRESETS, PRESETS

    if as_json:
        print_json(PRESETS)
        return
    table = new_table("preset", "changes", "reason")
    for name, preset in ALL_PRESETS.items():
        table.add_row(Text(name, "bold"), "", preset.summary)
        for key, change in preset.changes.items():
            table.add_row("", f"{key} = {show(change.value)}", change.reason)
        table.add_section()
    print_table(table)


def show(value: Any) -> str:
    """A value as it would be written in train.json, but with fewer digits."""
    if isinstance(value, list):
        return f"[{', '.join(show(item) for item in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def _add(table: Table, key: str, *cells: str) -> None:
    """A row, under the title of the group that this setting opens."""
    from rich.text import Text

    from fcos.config import GROUPS

    if key in GROUPS:
        table.add_section()
        table.add_row(Text(GROUPS[key], "bold cyan"))
    table.add_row(*map(printable_line, (key, *cells)))
