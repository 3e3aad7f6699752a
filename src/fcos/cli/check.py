"""`fcos check`: summarize a data set and report its problems."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.options import annotation_options
from fcos.cli.output import json_option, new_table, print_json, print_table
from fcos.errors import DatasetError
from fcos.files import read_text
from fcos.terminal import counted, printable_line, track

if TYPE_CHECKING:
    from fcos.data.annotations import Annotations
    from fcos.data.check import CheckReport
    from fcos.data.formats import Split
    from fcos.data.summary import Counts

MAX_SHOWN = 20
MAX_CONFIG_BYTES = 2**20  # a larger file is not a train.json

EPILOG = """\b
Examples:
  fcos check images/                              a folder in any format, with all its splits
  fcos check train.json                           the data that training would read
  fcos check train.txt val.txt --root images --names names.txt
  fcos check annotations/instances_train.json --headers-only
"""


@click.command(epilog=EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@annotation_options
@click.option(
    "--headers-only", is_flag=True, help="Do not decode images: faster, but misses truncated files."
)
@json_option
def command(
    sources: tuple[str, ...],
    root: Path | None,
    names: Path | None,
    format: str,
    headers_only: bool,
    as_json: bool,
) -> None:
    """Summarize the data set SOURCE, and report broken images and invalid boxes.

    SOURCE is an annotation file, a data set folder (all its splits are checked) or a train.json. With several
    sources or splits, images that are in more than one of them are reported too.

    The exit code is 1 if there are problems; training refuses such a data set unless skip_invalid=true.
    """
    from fcos.data.check import check
    from fcos.data.image_files import common_images

    parts = _read_parts(sources, root, names, format)
    reports = []
    for title, part in parts:
        report = check(part, decode=not headers_only, track=partial(track, what="reading images"))
        reports.append(report)
        if not as_json:
            _print_report(title, part, report)
    shared = [
        {"between": [first_title, second_title], "images": pairs}
        for (first_title, first), (second_title, second) in combinations(parts, 2)
        if (pairs := common_images(first, second))
    ]
    if as_json:
        described = [
            {
                "source": title,
                "format": part.format,
                "card": asdict(report.counts),
                "problems": [asdict(problem) for problem in report.problems],
                "warnings": [asdict(warning) for warning in report.warnings],
            }
            for (title, part), report in zip(parts, reports, strict=True)
        ]
        print_json({"parts": described, "common": shared})
    elif len(parts) > 1:
        _print_common(shared)
        _print_total(reports)
    if any(report.problems for report in reports):
        raise SystemExit(1)


def _read_parts(
    sources: tuple[str, ...], root: Path | None, name_file: Path | None, format: Any
) -> list[tuple[str, Annotations]]:
    """Every split with its title; all with the class names of the first, as training reads them."""
    from fcos.data.formats import find_name_file, read_annotations, read_names, read_with_classes_of
    from fcos.data.names import with_classes_of
    from fcos.data.registry import NO_IMAGES, format_named

    splits, name_file, format = _expand(sources, root, name_file, format)
    if name_file is None and (name_file := find_name_file(splits[0].source, splits[0].root, format)):
        _note(f"class names from {name_file}")
    if name_file is not None and not read_names(name_file)[1]:
        _note(f"{name_file} does not start with 'background', so its first line is read as a class")
    parts: list[tuple[str, Annotations]] = []
    for split in splits:
        try:
            if parts:  # as training reads evaluation data
                of_training = parts[0][1].class_names
                annotations = read_with_classes_of(
                    split.source, of_training, root=split.root, names=name_file, format=format
                )
            else:
                annotations = read_annotations(split.source, root=split.root, names=name_file, format=format)
        except DatasetError as error:
            if error.what != NO_IMAGES or len(parts) < 2 or len(sources) > 1:
                raise
            # The test split of a folder, which only `fcos eval` needs.
            click.secho(f"warning: {printable_line(str(split.source))}: {NO_IMAGES}", fg="yellow", err=True)
            continue
        if parts and format_named(annotations.format).class_names != "none":
            annotations = with_classes_of(annotations, parts[0][1].class_names)
        parts.append((str(split.source), annotations))
    return parts


def _note(what: str) -> None:
    click.echo(f"note: {printable_line(what)}", err=True)


def _expand(
    sources: tuple[str, ...], root: Path | None, name_file: Path | None, format: Any
) -> tuple[list[Split], Path | None, Any]:
    """The splits to check: a folder's splits, a config's two lists, or the sources themselves."""
    from fcos.config import load_config
    from fcos.data.formats import Split, find_splits

    first = Path(sources[0])
    if len(sources) == 1 and _is_config(first):
        config = load_config(first)
        pairs = ((config.list_train, config.root_train), (config.list_eval, config.root_eval))
        splits = [Split(Path(source), Path(folder) if folder else root) for source, folder in pairs if source]
        return splits, name_file or (Path(config.name_file) if config.name_file else None), config.data_format
    if len(sources) == 1 and first.is_dir() and format == "auto":
        found = find_splits(first)
        for note in found.notes:
            _note(note)
        splits = [Split(part.source, root or part.root) for part in found.all()]
        return splits, name_file or found.name_file, found.format
    return [Split(Path(source), root) for source in sources], name_file, format


def _is_config(source: Path) -> bool:
    if source.suffix != ".json":
        return False
    try:
        content = json.loads(read_text(source, max_bytes=MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        return False  # the reader of the annotations reports what is wrong
    return isinstance(content, dict) and "list_train" in content


def _print_report(title: str, annotations: Annotations, report: CheckReport) -> None:
    click.secho(f"{printable_line(title)} ({annotations.format})", bold=True)
    print_table(_summary_table(report.counts))
    print_table(_class_table(report.counts))
    for problems, what, color in (
        (report.warnings, "warning", "yellow"),
        (report.problems, "problem", "red"),
    ):
        for problem in problems[:MAX_SHOWN]:
            advice = f" ({problem.fix})" if what == "warning" and problem.fix else ""
            click.echo(click.style(f"{what}: ", fg=color) + printable_line(f"{problem}{advice}"))
        if len(problems) > MAX_SHOWN:
            more = counted(len(problems) - MAX_SHOWN, f"more {what}")
            click.echo(f"... and {more} (--json lists all)")
    for fix in dict.fromkeys(problem.fix for problem in report.problems):
        click.echo(f"fix: {fix}")
    told = f", {counted(len(report.warnings), 'warning')}" if report.warnings else ""
    if report.problems:
        what = f"{counted(len(report.problems), 'problem')}{told}: {report.summary()}"
        hint = "" if report.of_all else ' ("skip_invalid": true skips exactly these)'
        click.secho(f"{what}{hint}", fg="red")
    else:
        click.secho(f"no problems{told}", fg="green")
    click.echo()


def _summary_table(counts: Counts) -> Any:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_row("images", f"{counts.num_images}, {counts.num_empty} of them without boxes")
    for side, (smallest, median, largest) in (counts.sides or {}).items():
        table.add_row(side, f"{smallest} to {largest} pixels, median {median}")
    table.add_row("boxes", f"{counts.num_boxes}, at most {counts.most_boxes} per image")
    sizes = (f"{count} {name}" for name, count in counts.boxes_per_size.items())
    table.add_row("sizes (COCO)", ", ".join(sizes))
    if counts.num_crowd or counts.num_difficult:
        difficult = counted(counts.num_difficult, "difficult box", "difficult boxes")
        table.add_row("special", f"{counted(counts.num_crowd, 'crowd region')}, {difficult}")
    return table


def _class_table(counts: Counts) -> Any:
    table = new_table("class", "boxes", "images", numbers=True)
    for name, boxes in counts.boxes_per_class.items():
        table.add_row(printable_line(name), str(boxes), str(counts.images_per_class[name]))
    return table


def _print_common(shared: list[dict[str, Any]]) -> None:
    for entry in shared:
        (first, second), pairs = entry["between"], entry["images"]
        number = counted(len(pairs), "image is", "images are")
        what = printable_line(f"{number} in both {first} and {second}")
        click.secho(f"warning: {what}; do not evaluate on training images", fg="yellow")
        for one, other in pairs[:MAX_SHOWN]:
            click.echo(printable_line(f"  {one}" if one == other else f"  {one} = {other}"))
        if len(pairs) > MAX_SHOWN:
            click.echo(f"  ... and {len(pairs) - MAX_SHOWN} more")
    if not shared:
        click.secho("no image is in more than one split", fg="green")


def _print_total(reports: list[CheckReport]) -> None:
    """The last line: the problems of all splits, since earlier ones may have scrolled away."""
    numbers = [len(report.problems) for report in reports if report.problems]
    if numbers:
        total = f"{counted(sum(numbers), 'problem')} in {len(numbers)} of {len(reports)} splits"
        click.secho(f"in total: {total}", fg="red")
    else:
        click.secho(f"in total: no problems in {len(reports)} splits", fg="green")
