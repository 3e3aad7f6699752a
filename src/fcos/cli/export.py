"""`fcos export`: a model as one file that runs without this package, checked against PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcos.cli.output import json_option, print_json
from fcos.errors import FcosError

if TYPE_CHECKING:
    from fcos.build import LoadedModel
    from fcos.export.formats import FormatName
    from fcos.export.verify import Check

EPILOG = """\b
Examples:
  fcos export runs/train --format onnx
  fcos export runs/train --format openvino -o street_openvino --check photos/
  fcos export fcos_R_50_1x.pth --format torch -o fcos.pt2
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="RUN_OR_MODEL", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "name",
    type=click.Choice(["onnx", "openvino", "torch"]),
    required=True,
    help="onnx: one file; openvino: a folder, the fastest on Intel and AMD; torch: a torch.export program.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File or folder to write; default: beside the model file.",
)
@click.option("--force", is_flag=True, help="Overwrite it.")
@click.option(
    "--check",
    "check_on",
    multiple=True,
    metavar="IMAGES",
    help="Picture, folder or pattern to compare with PyTorch on; default: photographs that come with pip.",
)
@json_option
def command(
    model: Path,
    name: FormatName,
    output: Path | None,
    force: bool,
    check_on: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a model as one file that runs without PyTorch or this package.

    Decoding and NMS are in it, any batch and any size of picture go in, and class names, preprocessing and
    thresholds stand in it. Detector.load, fcos predict, eval, info and demo take it like any other model.
    What it finds is compared with PyTorch; a file that finds something else is removed.
    """
    from fcos.build import load_model
    from fcos.export.make import check_path, default_path, export_model, remove

    loaded = load_model(model)
    path = output or default_path(loaded.path, name)
    check_path(path, name, overwrite=force)
    with tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(check_on, Path(folder))
        click.echo(f"writing {path} ...", err=True)
        export_model(loaded, name, path)
        check = _checked(loaded, path, pictures)
    if as_json:
        content = {"file": str(path), "format": name, "precision": "fp32", **check.as_dict()}
        print_json(content)
    else:
        print_check(check, path, name)
    if check.problems:
        remove(path)
        raise _differs(check, path)


def _pictures(words: tuple[str, ...], folder: Path) -> list[Path]:
    """Those that the words mean; without words those of pip, written to `folder`."""
    from fcos.export.verify import usual_pictures
    from fcos.predict.sources import find_pictures

    return find_pictures(words, folder) if words else usual_pictures(folder)


def _checked(loaded: LoadedModel, path: Path, pictures: list[Path]) -> Check:
    import torch

    from fcos.api import Detector
    from fcos.export.verify import check_export

    return check_export(Detector(loaded, torch.device("cpu")), Detector.load(path), pictures)


def print_check(check: Check, path: Path, name: FormatName) -> None:
    """What was compared, in lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fcos.export.formats import FORMATS

    click.echo(f"{path}: {FORMATS[name].about}")
    click.echo(
        f"{check.num_same} of {check.num_detections} detections in {check.num_pictures} pictures are the "
        f"same; boxes differ by at most {check.most_pixels:.4f} pixels, scores by {check.most_score:.6f}"
    )
    if check.num_ties:
        click.echo(f"{check.num_ties} others follow from scores that are equal up to the last digits")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("PyTorch", name, "ratio"):
        table.add_column(title, justify="right")
    for title, before, after, unit in (
        ("one picture", check.before_ms, check.after_ms, "ms"),
        ("file", check.before_bytes / 1e6, check.after_bytes / 1e6, "MB"),
    ):
        table.add_row(title, f"{before:.1f} {unit}", f"{after:.1f} {unit}", f"{after / before:.2f}")
    Console(width=100).print(table)


def _differs(check: Check, path: Path) -> FcosError:
    from fcos.export.verify import SHOWN_PROBLEMS

    lines = list(check.problems[:SHOWN_PROBLEMS])
    if more := len(check.problems) - len(lines):
        lines.append(f"and {more} more")
    return FcosError(
        f"{path.name} does not find what PyTorch finds, and was removed:\n  " + "\n  ".join(lines),
        fix="report it with the model's `fcos info`; another --format may do",
    )
