"""`fcos convert`: convert annotations between formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fcos.cli.options import PATH, annotation_options
from fcos.cli.output import json_option, print_json
from fcos.format_names import FORMAT_NAMES
from fcos.terminal import counted

EPILOG = """\b
Examples:
  fcos convert bccd/ --to coco -o bccd.json
  fcos convert bccd/ImageSets/Main/train.txt --to list -o train.txt
  fcos convert instances_val2017.json --root val2017 --to yolo -o val_yolo
  fcos convert data.yaml:val --to voc -o val_voc --copy-images
"""


@click.command(epilog=EPILOG)
@click.argument("source", type=PATH)
@click.option("--to", type=click.Choice(FORMAT_NAMES), required=True, help="Format to write.")
@click.option(
    "-o",
    "--out",
    type=PATH,
    required=True,
    help="File (list: .txt, COCO: .json) or folder (VOC, YOLO) to write; it must not exist yet.",
)
@annotation_options
@click.option(
    "--copy-images", is_flag=True, help="With --to voc or yolo: copy the images instead of linking them."
)
@json_option
def command(
    source: Path,
    to: Any,
    out: Path,
    root: Path | None,
    names: Path | None,
    format: Any,
    copy_images: bool,
    as_json: bool,
) -> None:
    """Convert the annotations of SOURCE to another format, without losing a box.

    In a list or COCO file, image names are relative to a root folder, which is printed: give it as --root,
    root_train or root_eval when reading. VOC and YOLO folders contain links to the images, or copies with
    --copy-images. Anything that the new format cannot represent is reported.
    """
    from fcos.data.formats import convert

    result = convert(source, to, out, root=root, names=names, format=format, copy_images=copy_images)
    annotations = result.annotations
    boxes, classes = len(annotations.labels), annotations.num_classes
    if as_json:
        counts = {"images": len(annotations), "boxes": boxes, "class_names": annotations.class_names}
        files = {"out": out, "root": result.root, "name_file": result.name_file}
        print_json({**files, **counts, "notes": result.notes})
        return
    click.echo(
        f"{out}: {counted(len(annotations), 'image')}, {counted(boxes, 'box', 'boxes')}, "
        f"{counted(classes, 'class', 'classes')}"
    )
    if result.root is not None:
        click.echo(f"root of the images: {result.root}")
    if result.name_file is not None:
        click.echo(f"class names: {result.name_file}")
    for note in result.notes:
        click.secho(f"note: {note}", fg="yellow")
