"""`fcos eval`: the twelve COCO metrics of a model, its AP per class, and results.json."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.options import (
    PATH,
    agnostic_nms_option,
    annotation_options,
    device_of,
    devices_option,
    model_argument,
    num_processes_option,
    views_options,
)
from fcos.cli.output import json_option, new_table, print_json, print_table, progress_bar
from fcos.errors import ConfigError
from fcos.files import check_writable, write_bytes
from fcos.terminal import counted, printable_line

if TYPE_CHECKING:
    from fcos.config import TrainConfig
    from fcos.data.annotations import Annotations
    from fcos.detector import Detector
    from fcos.metrics.coco import CocoMetrics
    from fcos.metrics.rows import Rows

EPILOG = """\b
Examples:
  fcos eval runs/train                                  on the evaluation list of the run
  fcos eval runs/train --list test.json --root images   on other annotations
  fcos eval runs/train --json                           as JSON
  fcos eval best.safetensors --list VOC2007/ImageSets/Main/test.txt
  fcos eval runs/train --tile 640                       on tiles too: small objects in large images
  fcos eval runs/train --tta                            with test-time augmentation
"""


@click.command(epilog=EPILOG)
@model_argument
@click.option("--list", "list_", type=PATH, help="Annotations in any format.")
@annotation_options
@click.option("--skip-invalid", is_flag=True, help="Skip broken images and invalid boxes.")
@views_options
@agnostic_nms_option
@devices_option
@num_processes_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per forward pass; default: the run's nbatch_eval; without a run 8 on a GPU, 1 on a CPU.",
)
@click.option(
    "--out",
    type=PATH,
    help="Folder for results.json; default: eval/ next to the model file, or eval/NAME/ if --list or the "
    "model is not the run's own list or best model.",
)
@json_option
def command(
    model: Path,
    list_: Path | None,
    root: Path | None,
    names: Path | None,
    format: str,
    skip_invalid: bool,
    device: str | list[int],
    num_processes: int,
    batch_size: int | None,
    out: Path | None,
    as_json: bool,
    agnostic_nms: bool | None,
    tile: int | None,
    overlap: float | None,
    tta: bool | None,
) -> None:
    """Print the twelve COCO metrics and the AP of each class; write results.json.

    RUN_OR_MODEL is a run folder (its best model is evaluated) or a model file. Without --list, the model is
    evaluated on the evaluation list of its run.
    """
    from fcos.detector import Detector
    from fcos.train.devices import build_fabric
    from fcos.train.launch import launched

    if out:
        check_writable(out)
    views: dict[str, Any] = {"tile": tile, "overlap": overlap, "tta": tta}
    fabric = build_fabric(device_of(model, device), num_processes, one_by_default=True)
    with launched(fabric):
        detector = Detector.load(model, fabric.device, agnostic_nms=agnostic_nms, **views)
        run = run_config(detector.path)
        folder = out or _results_folder(detector.path, run, list_)
        check_writable(folder)
        annotations = evaluation_data(detector, list_, root, names, format, skip_invalid=skip_invalid)
        with progress_bar(-(-len(annotations) // fabric.world_size), "evaluating") as advance:
            # Rounding depends on the batch size: the run's own gives exactly the numbers of its training.
            batch_size = batch_size or (run.nbatch_eval if run else None)
            rows = detector.predict_dataset(
                annotations, batch_size=batch_size, on_batch=advance, fabric=fabric
            )
    if not fabric.is_global_zero:
        return
    show(annotations, rows, folder, as_json={"model": detector.path} if as_json else None)


def show(annotations: Annotations, rows: Rows, folder: Path, as_json: dict[str, Any] | None = None) -> None:
    """Write results.json to a folder, and print the metrics: tables, or JSON that begins with `as_json`."""
    from fcos.data.check import lack_of_boxes
    from fcos.metrics.coco import evaluate_detections, named_numbers
    from fcos.metrics.rows import results_json

    write_bytes(folder / "results.json", results_json(rows))
    for problem in lack_of_boxes(annotations):
        click.echo(f"warning: {problem.what}: there is nothing to evaluate", err=True)
    metrics = evaluate_detections(annotations, rows)
    if as_json is not None:
        print_json(
            {
                **as_json,
                "images": len(annotations),
                "detections": len(rows),
                "results": folder / "results.json",
                "metrics": named_numbers(metrics.stats),
                "per_class_ap": {name: None if ap < 0 else ap for name, ap in metrics.per_class_ap.items()},
            }
        )
        return
    click.echo(metrics.summary())
    _print_per_class(metrics, annotations)
    click.echo(
        f"{counted(len(annotations), 'image')}, {counted(len(rows), 'detection')} "
        f"in {folder / 'results.json'}"
    )


def run_config(model_file: Path) -> TrainConfig | None:
    """The settings of the run folder that a model file is in, if it is in one."""
    from fcos.config import load_config
    from fcos.weights.load import is_run

    folder = model_file.parent
    return load_config(folder / "config.json") if is_run(folder) else None


def _results_folder(model: Path, run: TrainConfig | None, list_: Path | None) -> Path:
    """A separate folder for anything but the run's best model on the run's list."""
    usual = model.parent / "eval"
    if run is None:
        return usual
    parts = []
    own = "best.safetensors" if (model.parent / "best.safetensors").is_file() else "last.safetensors"
    if model.name != own:
        parts.append(model.name)
    if list_ is not None and os.path.abspath(list_) != run.list_eval:
        parts += list_.absolute().with_suffix("").parts[-2:]
    return usual / re.sub(r"[^\w.-]+", "-", "-".join(parts))


def evaluation_data(
    detector: Detector,
    list_: Path | None = None,
    root: Path | None = None,
    names: Path | None = None,
    format: str = "auto",
    *,
    skip_invalid: bool = False,
) -> Annotations:
    """The annotations of `--list`, or else those of the model's run, read with the run's settings."""
    if list_ is None:
        run = run_config(detector.path)
        if run is None or not run.list_eval:
            raise ConfigError(
                "no annotations to measure AP on: "
                + ("the run has no list_eval" if run else "the model file is not in a run folder"),
                fix="give annotations with --list, and the folder of their images with --root",
            )
        list_, format = Path(run.list_eval), run.data_format
        root = root or (Path(run.root_eval) if run.root_eval else None)
        names = names or (Path(run.name_file) if run.name_file else None)
        skip_invalid = skip_invalid or run.skip_invalid
    else:
        list_, root = evaluated_part(list_, root, format)
    return detector.read_annotations(list_, root=root, names=names, format=format, skip_invalid=skip_invalid)


def evaluated_part(list_: Path, root: Path | None, format: str) -> tuple[Path, Path | None]:
    """The annotations to evaluate on, and their image folder; prints which split of a folder it chose."""
    from fcos.data.splits import evaluation_part

    part = evaluation_part(list_, root, format)
    if part.source != list_:
        click.echo(f"evaluating {part.source}", err=True)
    return part.source, part.root


def _print_per_class(metrics: CocoMetrics, annotations: Annotations) -> None:
    """A table of the classes, best AP first; those without boxes last."""
    import numpy as np

    from fcos.data.names import is_no_class

    of_boxes = annotations.labels[annotations.is_counted]
    num_boxes = np.bincount(of_boxes, minlength=annotations.num_classes).tolist()
    rows = zip(metrics.per_class_ap.items(), num_boxes, strict=True)
    table = new_table("class", "boxes", "AP", numbers=True)
    for (name, ap), count in sorted(rows, key=lambda row: -row[0][1]):
        if is_no_class(name):
            continue
        table.add_row(printable_line(name), str(count), f"{ap:.3f}" if ap >= 0 else "-")
    print_table(table)
