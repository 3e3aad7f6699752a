"""`fcos export`: export a model to a file that runs without this package, and compare it with PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fcos.cli.eval import evaluation_data
from fcos.cli.options import PATH, agnostic_nms_option, model_argument, needs_demo
from fcos.cli.output import json_option, new_table, print_json, print_table
from fcos.errors import FcosError
from fcos.files import written
from fcos.terminal import counted

if TYPE_CHECKING:
    from fcos.data.annotations import Annotations
    from fcos.export.calibration import Calibration
    from fcos.export.quantize import Search
    from fcos.export.verify import Check
    from fcos.weights.load import ExportFormat, LoadedModel

EPILOG = """\b
Examples:
  fcos export runs/train --format onnx
  fcos export runs/train --format openvino -o street_openvino --check images/
  fcos export fcos_R_50_1x.pth --format torch -o fcos.pt2
  fcos export runs/train --format openvino --int8 --calibrate train/ --list val.json
  fcos export runs/train --format ncnn
  fcos export runs/train --format litert --int8 --calibrate train/ --list val.json
  fcos export runs/train --format web -o site
  fcos export everyday --format web
"""


@click.command(epilog=EPILOG)
@model_argument
@click.option(
    "--format",
    "name",
    type=click.Choice(["onnx", "openvino", "torch", "ncnn", "litert", "web"]),
    required=True,
    help="onnx: one file; openvino: a folder, fastest on Intel and AMD; torch: a torch.export program; "
    "ncnn, litert: folders for phones and small boards, in which decode.py does decoding and NMS; "
    "web: a folder for a static host, with a page that runs the ONNX file.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="File or folder to write; default: next to the model file (everyday: the current folder).",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file or folder.")
@click.option(
    "--ort",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --format web: folder of the npm package onnxruntime-web; default: fetched with npm.",
)
@click.option(
    "--check",
    "check_on",
    multiple=True,
    metavar="IMAGES",
    help="Images on which to compare with PyTorch: image, folder, list or quoted pattern; default: three "
    "sample images.",
)
@click.option("--int8", is_flag=True, help="Quantize convolutions to 8-bit integers; needs --calibrate.")
@click.option(
    "--calibrate",
    multiple=True,
    metavar="IMAGES",
    help="With --int8: typical input images to calibrate on (folder, list or quoted pattern); at most 300 "
    "are used. Do not use the images of --list.",
)
@click.option(
    "--list",
    "list_",
    type=PATH,
    help="With --int8: annotations to measure AP on; default: the evaluation list of the run.",
)
@click.option("--root", type=PATH, help="Folder of the images of --list.")
@click.option("--skip-invalid", is_flag=True, help="Skip broken images and invalid boxes of --list.")
@click.option(
    "--max-ap-loss",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="With --int8: maximum loss of AP, in points (of 100).",
)
@agnostic_nms_option
@json_option
def command(
    model: Path,
    name: ExportFormat | Literal["web"],
    output: Path | None,
    force: bool,
    ort: Path | None,
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
    """Export a model to a file that runs without this package.

    The file includes decoding and NMS, accepts batches and images of any size, and stores class names,
    preprocessing and thresholds. (ncnn and litert: folders in which decode.py decodes the output of the
    network; litert accepts images of one size only.) Detector.load, fcos predict, eval, info and demo open it
    like any other model. Its detections are compared with PyTorch's; if they differ, the file is deleted.

    With --int8, AP is compared instead. If it drops by more than --max-ap-loss, parts of the network are
    kept in float32; if that does not help, nothing is written.
    """
    import torch

    from fcos.data.samples import photographs
    from fcos.detector import Detector
    from fcos.export.formats import beside, check_free, check_path, default_path
    from fcos.predict.sources import find_images
    from fcos.weights.load import load_model

    loaded = load_model(model)
    if agnostic_nms is not None:
        loaded = loaded.with_agnostic_nms(agnostic_nms)
    if name == "web":
        if int8:
            raise FcosError("--format web does not support --int8", fix="omit --int8")
        path = output or beside(loaded.path, "_web")
        check_free(path, overwrite=force)
        images = find_images(check_on, path) if check_on else photographs()
        _write_web(loaded, path, ort, images, as_json=as_json)
        return
    path = output or default_path(loaded.path, name, int8=int8)
    check_path(path, name, overwrite=force)
    if not int8 and (calibrate or list_):
        raise FcosError("--calibrate and --list need --int8", fix="add --int8, or omit them")
    images = find_images(check_on, path) if check_on else photographs()
    click.echo(f"writing {path} ...", err=True)
    if int8:
        calibration = _calibration(loaded, name, calibrate, path)
        detector = Detector.of(loaded, torch.device("cpu"))
        annotations = evaluation_data(detector, list_, root, skip_invalid=skip_invalid)
        search = _write_int8(loaded, name, path, calibration, annotations, max_ap_loss / 100)
        _report(_compare(loaded, path, name, images), path, name, search, as_json=as_json)
        return
    with written(path) as partial:
        _write_checked(loaded, name, partial, path, images, as_json=as_json)


def _write_checked(
    loaded: LoadedModel, name: ExportFormat, partial: Path, path: Path, images: list[Path], *, as_json: bool
) -> None:
    """Write the file that will be at `path`, unless its detections differ from the network's."""
    from fcos.export.formats import export_model
    from fcos.export.verify import SHOWN_PROBLEMS

    export_model(loaded, name, partial)
    check = _compare(loaded, partial, name, images)
    _report(check, path, name, None, as_json=as_json)
    if not check.problems:
        return
    lines = list(check.problems[:SHOWN_PROBLEMS])
    if more := len(check.problems) - len(lines):
        lines.append(f"and {more} more")
    raise FcosError(
        f"the detections of {path.name} differ from PyTorch's; the file was deleted:\n  "
        + "\n  ".join(lines),
        fix="try another --format, and please report this with the output of `fcos info` for the model",
    )


def _write_web(
    loaded: LoadedModel, path: Path, ort: Path | None, images: list[Path], *, as_json: bool
) -> None:
    """An ONNX file, compared like any other, and the page that runs it."""
    import torch

    from fcos.detector import Detector

    with needs_demo():
        from fcos.demo.web import MODEL, add_page, check_web, runtime
    detector = Detector.of(loaded, torch.device("cpu"))
    check_web(detector)
    with runtime(ort) as package, written(path) as folder:
        click.echo(f"writing {path} ...", err=True)
        folder.mkdir()
        _write_checked(loaded, "onnx", folder / MODEL, path / MODEL, images, as_json=as_json)
        add_page(folder, detector, package)


def _compare(loaded: LoadedModel, path: Path, name: ExportFormat, images: list[Path]) -> Check:
    from fcos.detector import Detector
    from fcos.export.formats import reference_of
    from fcos.export.verify import check_export

    return check_export(reference_of(loaded, name), Detector.load(path), images)


# 8-bit integers ---------------------------------------------------------------------------------------------


def _calibration(
    loaded: LoadedModel, name: ExportFormat, calibrate: tuple[str, ...], path: Path
) -> Calibration:
    from fcos.export.calibration import Calibration
    from fcos.export.quantize import check_int8
    from fcos.predict.sources import find_images

    check_int8(name)
    if not calibrate:
        raise FcosError(
            "--int8 needs calibration images",
            fix="give --calibrate a folder with a few hundred typical input images, "
            "for example training images (not those that AP is measured on)",
        )
    return Calibration(loaded.config, find_images(calibrate, path))


def _write_int8(
    loaded: LoadedModel,
    name: ExportFormat,
    path: Path,
    calibration: Calibration,
    annotations: Annotations,
    max_loss: float,
) -> Search:
    """Write the quantized model, unless it loses too much AP."""
    from fcos.export.quantize import export_int8

    def on_trial(in_float32: tuple[str, ...]) -> None:
        parts = f", {' and '.join(in_float32)} in float32" if in_float32 else ""
        click.echo(f"quantizing on {counted(calibration.num_images, 'image')}{parts} ...", err=True)

    search = export_int8(loaded, name, path, calibration, annotations, max_loss, on_trial)
    if search.is_within:
        return search
    trials = "\n  ".join(
        f"{' and '.join(trial.in_float32) or 'nothing'} in float32: AP {trial.ap:.4f}"
        for trial in search.trials
    )
    raise FcosError(
        f"quantization costs {(search.ap_before - search.chosen.ap) * 100:.2f} points of AP, more than "
        f"{max_loss * 100:g}; nothing was written. AP was {search.ap_before:.4f}; tried:\n  {trials}",
        fix="give more images to --calibrate, or accept the loss with --max-ap-loss",
    )


# Results ----------------------------------------------------------------------------------------------------


def _report(check: Check, path: Path, name: ExportFormat, search: Search | None, *, as_json: bool) -> None:
    """Print the comparison as a table or JSON."""
    from fcos.export.formats import FORMATS

    if as_json:
        precision = "int8" if search else "fp32"
        content: dict[str, Any] = {"file": str(path), "format": name, "precision": precision}
        content |= asdict(check)
        if search:
            chosen = search.chosen
            content |= {"ap_before": search.ap_before, "ap_after": chosen.ap, "in_float32": chosen.in_float32}
        print_json(content)
        return
    click.echo(f"{path}: {FORMATS[name].ABOUT}")
    if search is None:
        click.echo(
            f"{check.num_same} of {check.num_detections} detections in {check.num_images} images are the "
            f"same; boxes differ by at most {check.most_pixels:.4f} pixels, scores by {check.most_score:.6f}"
        )
        if check.num_ties:
            click.echo(f"{check.num_ties} others differ only by rounding: scores or overlaps are tied")
    else:
        kept = " and ".join(search.chosen.in_float32)
        click.echo(f"8-bit integers, {kept} in float32" if kept else "8-bit integers")
    table = new_table("", "PyTorch", name, "ratio", numbers=True)
    for title, before, after, unit in (
        ("one image", check.before_ms, check.after_ms, "ms"),
        ("file", check.before_bytes / 1e6, check.after_bytes / 1e6, "MB"),
    ):
        table.add_row(title, f"{before:.1f} {unit}", f"{after:.1f} {unit}", f"{after / before:.2f}")
    if search is not None:
        before, after = search.ap_before, search.chosen.ap
        table.add_row("AP", f"{before:.3f}", f"{after:.3f}", f"{after / before:.3f}" if before > 0 else "-")
    print_table(table)
