"""`fcos compare`: AP, latency and size of several models in one table and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.eval import evaluated_part
from fcos.cli.options import PATH, annotation_options, device_option, output_option
from fcos.cli.output import json_option, new_table, print_json, print_table, progress_bar
from fcos.files import check_writable
from fcos.terminal import counted, printable_line

if TYPE_CHECKING:
    from fcos.data.annotations import Annotations
    from fcos.report.tradeoff import Candidate, Measured

EPILOG = """\b
Examples:
  fcos compare runs/a runs/b --data val.json --root images
  fcos compare runs/a runs/a/best.onnx int8=runs/a/best_int8_openvino --data val.json
  fcos compare ours=runs/a yolo=yolov8n.onnx deim=deimv2_n.onnx --data instances_val2017.json
  fcos compare runs/a runs/b --data val.json --num-images 50 --json
"""


@click.command(epilog=EPILOG)
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option(
    "--data",
    "--list",
    "data",
    type=PATH,
    required=True,
    help="Annotations in any format, or a folder with splits; classes that a model lacks count as AP 0.",
)
@annotation_options
@click.option("--skip-invalid", is_flag=True, help="Skip broken images and invalid boxes.")
@click.option(
    "--other-names",
    type=PATH,
    help="Class names for ONNX files that contain none, one per line; default: those of the data.",
)
@click.option(
    "--num-images", type=click.IntRange(min=1), help="Measure latency and AP on the first N images only."
)
@output_option(
    "Plot to write: png, pdf or svg, by its suffix.", default=Path("compare.png"), show_default=True
)
@device_option
@json_option
def command(
    models: tuple[str, ...],
    data: Path,
    root: Path | None,
    names: Path | None,
    format: str,
    skip_invalid: bool,
    other_names: Path | None,
    num_images: int | None,
    output: Path,
    device: str | list[int],
    as_json: bool,
) -> None:
    """Measure AP, AP50, latency and file size of several models, to choose one.

    A MODEL is a run folder, a model file, an exported file, or an ONNX file of DEIM, D-FINE, RT-DETR or YOLO;
    write NAME=MODEL to name it in the table and plot. The latency is the median time per image on this
    machine, from pixels to detections, one image at a time; models take turns, a few images each. Classes
    are matched by name.
    """
    from fcos.data.annotations import select
    from fcos.data.check import valid_part
    from fcos.data.formats import read_annotations
    from fcos.report.curves import check_format
    from fcos.report.tradeoff import measure_candidates, plot

    check_format(output)
    check_writable(output)
    data, root = evaluated_part(data, root, format)
    annotations = read_annotations(data, root=root, names=names, format=format)
    if num_images is not None:
        annotations = select(annotations, range(min(num_images, len(annotations))))
    annotations = valid_part(annotations, skip_invalid=skip_invalid)
    candidates = open_candidates(models, annotations, other_names, device)
    with progress_bar(len(annotations), "comparing") as advance:
        rows = measure_candidates(candidates, annotations, advance)
    plot(rows, output)
    for row in rows:
        if row.unknown:
            click.echo(f"note: {_unknown(row, annotations)}", err=True)
    if as_json:
        print_json({"data": data, "num_images": len(annotations), "plot": output, "models": _as_dicts(rows)})
    else:
        _print(rows)
    click.echo(f"plot saved to {printable_line(str(output))}", err=True)


def open_candidates(
    models: Sequence[str], annotations: Annotations, other_names: Path | None, device: str | list[int]
) -> list[Candidate]:
    """Open the models to measure; those without a name get the end of their path."""
    from fcos.report.curves import run_names

    split = [_name_and_path(word) for word in models]
    ends = run_names([path for _, path in split])
    return [
        _open(name or end, path, annotations, other_names, device)
        for (name, path), end in zip(split, ends, strict=True)
    ]


def _name_and_path(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return "", Path(word)
    return name, Path(path)


def _open(
    name: str, path: Path, annotations: Annotations, other_names: Path | None, device: str | list[int]
) -> Candidate:
    from fcos.config.conventions import CONVENTIONS
    from fcos.detector import Detector
    from fcos.export.verify import size_of
    from fcos.report.tradeoff import Candidate

    if path.suffix == ".onnx":
        from fcos.export.other_onnx import open_other

        other = open_other(path, other_names, annotations.class_names)
        if other is not None:
            return Candidate(name, other.predict, other.class_names, size_of(path))
    detector = Detector.load(path, device)
    return Candidate(
        name,
        lambda image: detector.predict(image, 0.0),
        detector.class_names,
        size_of(detector.path),
        str(detector.device),
        CONVENTIONS[detector.config.rules].inclusive_boxes,
    )


def _unknown(row: Measured, annotations: Annotations) -> str:
    return (
        f"{printable_line(row.candidate.name)} does not have {len(row.unknown)} of "
        f"{counted(annotations.num_classes, 'class', 'classes')}, which count as AP 0: "
        f"{printable_line(', '.join(row.unknown[:5]))}" + (", ..." if len(row.unknown) > 5 else "")
    )


def _as_dicts(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    from fcos.metrics.coco import named_numbers

    return [
        {
            "name": row.candidate.name,
            "metrics": named_numbers(row.metrics.stats),
            "latency_ms": round(row.latency_ms, 3),
            "num_bytes": row.candidate.num_bytes,
            "device": row.candidate.device,
            "is_best": row.is_best,
            "unknown_classes": row.unknown,
        }
        for row in rows
    ]


def _print(rows: Sequence[Measured]) -> None:
    table = new_table("model", "AP", "AP50", "ms per image", "MB", "device", "")
    for row in rows:
        scores = [f"{n:.3f}" if n >= 0 else "-" for n in (row.metrics.map_mean, row.metrics.map_50)]
        size = f"{row.candidate.num_bytes / 1e6:.1f}"
        mark = "*" if row.is_best else ""
        name = printable_line(row.candidate.name)
        table.add_row(name, *scores, f"{row.latency_ms:.1f}", size, row.candidate.device, mark)
    print_table(table)
    click.echo("* no other model is both faster and more accurate")
