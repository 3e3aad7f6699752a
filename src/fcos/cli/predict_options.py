"""The options of `fcos predict`, by topic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from fcos.cli.options import FOLDER, agnostic_nms_option, devices_option, group, views_options
from fcos.cli.output import json_option
from fcos.cli.processes import MANY_IMAGES, MOST_PROCESSES
from fcos.format_names import FORMAT_NAMES


@dataclass(frozen=True)
class Options:
    """Their values; `--help` says what each is."""

    out: Path
    draw: bool
    show: bool
    as_json: bool
    score_threshold: float | None
    classes: tuple[str, ...]
    agnostic_nms: bool | None
    tile: int | None
    overlap: float | None
    tta: bool | None
    save_labels: str | None
    save_crops: bool
    track: bool
    every: int
    stream: bool
    batch_size: int | None
    device: str | list[int]
    num_processes: int | None


predict_options = group(
    # Output
    click.option(
        "--out",
        type=FOLDER,
        default=Path("predictions"),
        show_default=True,
        help="Folder for drawn copies, detections.json and (videos) detections.jsonl.",
    ),
    click.option("--draw/--no-draw", default=True, help="Write drawn images and videos, or JSON only."),
    click.option(
        "--show",
        is_flag=True,
        help="Also show drawn images (each until a key is pressed) and frames in a window. Esc closes it, "
        "which ends a video.",
    ),
    json_option,
    # Detections
    click.option(
        "--score-threshold",
        type=click.FloatRange(0, 1),
        help="Minimum score of a detection; default: the model's own, the best on its evaluation data.",
    ),
    click.option(
        "--classes",
        multiple=True,
        metavar="NAME,...",
        help="Only these classes, by name; default: all classes of the model. May be repeated; a name that "
        "contains a comma needs a --classes of its own.",
    ),
    agnostic_nms_option,
    views_options,
    # Images
    click.option(
        "--save-labels",
        type=click.Choice(FORMAT_NAMES),
        help="Also write the detections as annotations in this format, to labels_... in the output folder.",
    ),
    click.option(
        "--save-crops", is_flag=True, help="Images: also write each box as an image, to crops/CLASS/."
    ),
    # Videos
    click.option("--track", is_flag=True, help="Videos: track objects; each keeps its ID in all frames."),
    click.option(
        "--every",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Videos: process every N-th frame and skip the others.",
        metavar="N",
    ),
    click.option(
        "--stream",
        is_flag=True,
        help="Treat URLs as live streams, and reconnect when they break; rtsp:// always does.",
    ),
    # The machine
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Images per forward pass; default: 8 on a GPU, up to 4 small images on a CPU.",
    ),
    devices_option,
    click.option(
        "--num-processes",
        type=click.IntRange(min=1),
        help=f"Processes to split the images between on a CPU; default: 1, but on Linux one per core (at "
        f"most {MOST_PROCESSES}) for {MANY_IMAGES} images or more.",
    ),
)
