"""`fcos init FOLDER`: propose a train.json from the data and the machine, and say why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.options import PATH, minutes_option, output_option
from fcos.cli.output import json_option, new_table, print_json, print_table
from fcos.errors import ConfigError
from fcos.files import check_writable, read_text, write_text
from fcos.terminal import printable_line

if TYPE_CHECKING:
    from fcos.train.propose import Proposal

EPILOG = """\b
Examples:
  fcos init images/                  writes train.json
  fcos init images/ -o birds.json
  fcos init images/ --minutes 30     for about half an hour of training on this machine
  fcos train birds.json              trains with it
"""


@click.command(epilog=EPILOG)
@click.argument("folder", type=PATH)
@output_option("The config file to write.", default=Path("train.json"), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the config file.")
@minutes_option
@json_option
def command(folder: Path, output: Path, force: bool, minutes: float | None, as_json: bool) -> None:
    """Propose a train.json for a FOLDER of annotated images.

    The annotation format is detected. The folder's own train/val split is used; if it has none, one is made.
    """
    proposals = write_proposal(folder, output, overwrite=force, minutes=minutes)
    if as_json:
        settings = {
            key: {"value": _portable(value, Path.cwd()), "because": reason}
            for key, value, reason in proposals
        }
        print_json({"file": output, "settings": settings})
        return
    print_proposal(proposals, output)
    click.echo(f"start training with `fcos train {output}`; edit the file to change a setting")


def write_proposal(
    folder: Path,
    output: Path,
    overrides: tuple[str, ...] = (),
    *,
    overwrite: bool = False,
    minutes: float | None = None,
) -> list[Proposal]:
    """Write a config file for a folder; return the settings with their reasons.

    Args:
        overrides: settings from the command line; they are not written.

    Raises:
        ConfigError: a file exists (annotations are not replaced even with `overwrite`), or `overrides`
            conflict with the proposal; nothing is written.
    """
    from fcos.config import load_config
    from fcos.config.checks import DATA_PATHS
    from fcos.config.load import settings_text
    from fcos.data.formats.coco import looks_like_coco
    from fcos.train.propose import Proposal, budget_of, find_hardware, propose, propose_data

    check_writable(output)
    if output.is_file() and looks_like_coco(output):
        raise ConfigError(
            "the config file would replace annotations of the same name",
            where=f"file {output}",
            fix=f"write another file: `fcos init {folder} -o OTHER.json`, then `fcos train OTHER.json`",
        )
    data = propose_data(folder, output.with_name(f"{output.stem}_split"))
    hardware = find_hardware()
    budget = None if minutes is None else budget_of(minutes, len(data.train), hardware)
    proposals = [*data.proposals, *propose(data.train, hardware, budget)]
    # Without the paths: a split has no files yet.
    settings = {key: value for key, value, _ in proposals if key not in DATA_PATHS}
    config = load_config(settings, overrides, origin="the proposal")
    beside = output.absolute().parent
    config_text = settings_text({key: _portable(value, beside) for key, value, _ in proposals})
    texts = {**data.files, output: config_text}
    for file, text in reversed(texts.items()):
        if file.exists() and not overwrite and read_text(file, ConfigError) != text:
            kind, train = "annotation", ""
            if file == output:
                kind, train = "config", f"train with it: `fcos train {output}`; or "
            raise ConfigError(
                f"the {kind} file already exists and differs from the proposal",
                where=f"file {file}",
                fix=f"{train}write another: `fcos init {folder} -o OTHER.json`; "
                f"or replace it: `fcos init {folder} --force`",
            )
    for file, text in texts.items():
        write_text(file, text)
    for note in data.notes:
        click.echo(f"note: {printable_line(note)}", err=True)
    given = [key for key in type(config).model_fields if config.origin(key).startswith("command line")]
    proposals = [proposal for proposal in proposals if proposal.key not in given]
    return [*proposals, *(Proposal(key, getattr(config, key), "command line, not written") for key in given)]


def _portable(value: Any, folder: Path) -> Any:
    """Make a path below the config file's folder relative to it, so that both can be moved together."""
    if not isinstance(value, Path):
        return value
    path = Path(os.path.abspath(value))
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def print_proposal(proposals: list[Proposal], output: Path, *, err: bool = False) -> None:
    """Each setting with its reason, and the file that they are in."""
    from fcos.cli.config import show

    table = new_table("setting", "value", "reason")
    for key, value, reason in proposals:
        table.add_row(key, *map(printable_line, (show(_portable(value, Path.cwd())), reason)))
    print_table(table, err=err)
    click.echo(f"written to {output}", err=err)
