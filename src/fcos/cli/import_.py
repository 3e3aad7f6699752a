"""`fcos import`: a published weight file to a model file that says everything about itself."""

from __future__ import annotations

from pathlib import Path

import click

from fcos.cli.options import overrides_argument
from fcos.cli.output import json_option, print_json

EPILOG = """\b
Examples:
  fcos import fcos_R_50_1x.pth -o fcos.safetensors
  fcos import mine.pth -o mine.safetensors --names names.txt
  fcos import mine.pth -o mine.safetensors short_side=600 nms_iou=0.5   trained with another configuration
"""


@click.command(epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@overrides_argument("changes")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The model file to write, *.safetensors.",
)
@click.option("--names", type=click.Path(path_type=Path), help="Class names, one a line.")
@click.option("--force", is_flag=True, help="Overwrite the model file.")
@json_option
def command(
    file: Path, changes: tuple[str, ...], output: Path, names: Path | None, force: bool, as_json: bool
) -> None:
    """Write FILE, of another code base, as a model file of ours.

    The tensors get our names, and the card says how its authors use them: preprocessing, rules of detection,
    class names. KEY=VALUE corrects what the file cannot say, as it was trained.
    """
    from fcos.data.names import read_names
    from fcos.weights.import_model import import_model

    class_names = tuple(read_names(names)[0]) if names else None
    card = import_model(file, output, changes=changes, class_names=class_names, overwrite=force)
    if as_json:
        origin = card.origin or "fcos"
        print_json({"model": output, "origin": origin, "class_names": card.class_names})
        return
    classes = len(card.class_names)
    click.echo(
        f"{output}: a detector of {card.origin or 'fcos'}, {classes} classes; `fcos info {output}` says more"
    )
