"""`fcos export`: a model as one file that runs without this package, checked against PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fcos.cli.eval import run_config
from fcos.cli.options import agnostic_nms_option
from fcos.cli.output import json_option, print_json
from fcos.errors import FcosError

if TYPE_CHECKING:
    from fcos.export.quantise import Search
    from fcos.export.verify import Check
    from fcos.weights.load import ExportFormat, LoadedModel

EPILOG = """\b
Examples:
  fcos export runs/train --format onnx
  fcos export runs/train --format openvino -o street_openvino --check photos/
  fcos export fcos_R_50_1x.pth --format torch -o fcos.pt2
  fcos export runs/train --format openvino --int8 --calibrate train/ --list val.json
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
    help="Picture, folder, list or quoted pattern to compare with PyTorch on; default: photographs that come "
    "with pip.",
)
@click.option("--int8", is_flag=True, help="Convolutions in 8-bit integers; needs --calibrate.")
@click.option(
    "--calibrate",
    multiple=True,
    metavar="IMAGES",
    help="With --int8: folder, list or quoted pattern of pictures like those that the model will see, 300 at "
    "most, not those of --list.",
)
@click.option(
    "--list",
    "list_",
    type=click.Path(path_type=Path),
    help="With --int8: annotations to measure AP on; default: the evaluation list of the run.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the pictures of --list.")
@click.option(
    "--skip-invalid", is_flag=True, help="Leave broken pictures and impossible boxes of --list out."
)
@click.option(
    "--max-ap-loss",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="With --int8: points of AP (of 100) that may be lost.",
)
@agnostic_nms_option
@json_option
def command(
    model: Path,
    name: ExportFormat,
    output: Path | None,
    force: bool,
    check_on: tuple[str, ...],
    int8: bool,
    calibrate: tuple[str, ...],
    list_: Path | None,
    root: Path | None,
    skip_invalid: bool,
    max_ap_loss: float,
    agnostic_nms: bool | None,
    as_json: bool,
) -> None:
    """Write a model as one file that runs without PyTorch or this package.

    Decoding and NMS are in it, any batch and any size of picture go in, and class names, preprocessing and
    thresholds stand in it. Detector.load, fcos predict, eval, info and demo take it like any other model.
    What it finds is compared with PyTorch; a file that finds something else is not kept.

    With --int8 its AP is measured on annotations instead. Where it falls by more than --max-ap-loss, parts of
    the network stay in float32, found by trying; if that does not help nothing is written.
    """
    from fcos.data.samples import photographs
    from fcos.export.make import check_path, default_path, export_model
    from fcos.files import written
    from fcos.predict.sources import find_pictures
    from fcos.weights.load import load_model

    loaded = load_model(model)
    if agnostic_nms is not None:
        loaded = loaded.with_agnostic_nms(agnostic_nms)
    path = output or default_path(loaded.path, name, int8=int8)
    check_path(path, name, overwrite=force)
    if not int8 and (calibrate or list_):
        raise FcosError("--calibrate and --list are for --int8", fix="add --int8, or leave them out")
    with tempfile.TemporaryDirectory() as folder:  # for images that are downloaded
        pictures = find_pictures(check_on, Path(folder)) if check_on else photographs()
        click.echo(f"writing {path} ...", err=True)
        if int8:
            source = Measured(list_, root, skip_invalid)
            found = _write_int8(loaded, name, path, calibrate, source, max_ap_loss / 100)
            _say(_checked(loaded, path, pictures), path, name, found, as_json=as_json)
            return
        with written(path) as partial:
            export_model(loaded, name, partial)
            check = _checked(loaded, partial, pictures)
            _say(check, path, name, None, as_json=as_json)
            if check.problems:
                raise _differs(check, path)


def _say(check: Check, path: Path, name: ExportFormat, found: Search | None, *, as_json: bool) -> None:
    if as_json:
        content = {"file": str(path), "format": name, "precision": "int8" if found else "fp32"}
        print_json({**content, **check.as_dict(), **_search_as_dict(found)})
    else:
        print_check(check, path, name, found)


class Measured(NamedTuple):
    """What the AP of 8-bit integers is measured on."""

    list: Path | None
    root: Path | None
    skip_invalid: bool


def _write_int8(
    loaded: LoadedModel,
    name: ExportFormat,
    path: Path,
    calibrate: tuple[str, ...],
    source: Measured,
    most_loss: float,
) -> Search:
    """Quantise, measure, write; refuse what loses too much."""
    import torch

    from fcos.detector import Detector
    from fcos.export.calibration import Calibration
    from fcos.export.quantise import check_int8, export_int8
    from fcos.predict.sources import find_pictures

    check_int8(name)
    if not calibrate:
        raise FcosError(
            "8-bit integers need pictures to measure their ranges on",
            fix="give --calibrate a folder with some hundred pictures like those that the model will see "
            "(of the training set, not those that it is measured on)",
        )
    calibration = Calibration(loaded.config, find_pictures(calibrate, path))
    list_, root = source.list, source.root
    if list_ is None:
        run = run_config(loaded.path)
        if run is None or not run.list_eval:
            raise FcosError(
                "there is nothing to measure the AP on: the model file is not in a run folder",
                fix="give annotations with --list, and the folder of their pictures with --root",
            )
        list_, root = Path(run.list_eval), root or (Path(run.root_eval) if run.root_eval else None)
    annotations = Detector.of(loaded, torch.device("cpu")).read_annotations(
        list_, root=root, skip_invalid=source.skip_invalid
    )

    def say(left_out: tuple[str, ...]) -> None:
        parts = f", {' and '.join(left_out)} in float32" if left_out else ""
        click.echo(f"quantising on {len(calibration)} pictures{parts} ...", err=True)

    found = export_int8(loaded, name, path, calibration, annotations, most_loss, say)
    if not found.is_within:
        raise _loses_too_much(found, most_loss)
    return found


def _loses_too_much(found: Search, most_loss: float) -> FcosError:
    trials = "\n  ".join(
        f"{' and '.join(trial.left_out) or 'nothing'} in float32: AP {trial.ap:.4f}" for trial in found.trials
    )
    return FcosError(
        f"8-bit integers cost {(found.ap_before - found.chosen.ap) * 100:.2f} AP, more than "
        f"{most_loss * 100:g}; nothing was written. AP was {found.ap_before:.4f}; tried:\n  {trials}",
        fix="give more pictures to --calibrate, or accept the loss with --max-ap-loss",
    )


def _search_as_dict(found: Search | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {"ap_before": found.ap_before, "ap_after": found.chosen.ap, "in_float32": found.chosen.left_out}


def _checked(loaded: LoadedModel, path: Path, pictures: list[Path]) -> Check:
    import torch

    from fcos.detector import Detector
    from fcos.export.verify import check_export

    return check_export(Detector.of(loaded, torch.device("cpu")), Detector.load(path), pictures)


def print_check(check: Check, path: Path, name: ExportFormat, found: Search | None = None) -> None:
    """What was compared, in lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fcos.export.formats import FORMATS

    click.echo(f"{path}: {FORMATS[name].about}")
    if found is None:
        _print_same(check)
    else:
        _print_int8(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("PyTorch", name, "ratio"):
        table.add_column(title, justify="right")
    for title, before, after, unit in (
        ("one picture", check.before_ms, check.after_ms, "ms"),
        ("file", check.before_bytes / 1e6, check.after_bytes / 1e6, "MB"),
    ):
        table.add_row(title, f"{before:.1f} {unit}", f"{after:.1f} {unit}", f"{after / before:.2f}")
    if found is not None:
        before, after = found.ap_before, found.chosen.ap
        table.add_row("AP", f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}" if before > 0 else "-")
    Console(width=100).print(table)


def _print_int8(found: Search) -> None:
    left_out = " and ".join(found.chosen.left_out)
    click.echo(f"8-bit integers, {left_out} in float32" if left_out else "8-bit integers")


def _print_same(check: Check) -> None:
    click.echo(
        f"{check.num_same} of {check.num_detections} detections in {check.num_pictures} pictures are the "
        f"same; boxes differ by at most {check.most_pixels:.4f} pixels, scores by {check.most_score:.6f}"
    )
    if check.num_ties:
        click.echo(f"{check.num_ties} others follow from scores that are equal up to the last digits")


def _differs(check: Check, path: Path) -> FcosError:
    from fcos.export.verify import SHOWN_PROBLEMS

    lines = list(check.problems[:SHOWN_PROBLEMS])
    if more := len(check.problems) - len(lines):
        lines.append(f"and {more} more")
    return FcosError(
        f"{path.name} does not find what PyTorch finds, and was not kept:\n  " + "\n  ".join(lines),
        fix="report it with the model's `fcos info`; another --format may do",
    )
