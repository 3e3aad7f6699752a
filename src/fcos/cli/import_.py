"""`fcos import`: convert a published weight file to a model file."""

from __future__ import annotations

from pathlib import Path

import click

from fcos.cli.options import PATH, output_option, overrides_argument
from fcos.cli.output import json_option, print_json
from fcos.terminal import counted

EPILOG = """\b
Examples:
  fcos import fcos_R_50_1x.pth -o fcos.safetensors
  fcos import mine.pth -o mine.safetensors --names names.txt
  fcos import mine.pth -o mine.safetensors short_side=600 nms_iou=0.5   trained with another configuration
"""


@click.command(epilog=EPILOG)
@click.argument("file", type=PATH)
@overrides_argument("changes")
@output_option("The model file to write, *.safetensors.", required=True)
@click.option("--names", type=PATH, help="File with class names, one per line.")
@click.option("--force", is_flag=True, help="Overwrite an existing model file.")
@json_option
def command(
    file: Path, changes: tuple[str, ...], output: Path, names: Path | None, force: bool, as_json: bool
) -> None:
    """Convert FILE, a weight file of another code base, to a model file.

    Tensors are renamed, and the original preprocessing, conventions and class names are stored with them.
    KEY=VALUE gives settings of its training that the file does not contain.
    """
    from fcos.data.names import read_names
    from fcos.weights.import_model import import_model

    class_names = tuple(read_names(names)[0]) if names else None
    card = import_model(file, output, changes=changes, class_names=class_names, overwrite=force)
    if as_json:
        origin = card.origin or "fcos"
        print_json({"model": output, "origin": origin, "class_names": card.class_names})
        return
    classes = counted(len(card.class_names), "class", "classes")
    click.echo(
        f"{output}: a detector from {card.origin or 'fcos'}, {classes}; for details: `fcos info {output}`"
    )
