"""`fcos predict`: pictures in, drawn pictures and one detections.json out."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.device import device_of, device_option, num_processes_option
from fcos.cli.progress import progress_bar
from fcos.errors import DatasetError

if TYPE_CHECKING:
    from fcos.api import Detector
    from fcos.detections import Detections

RESULT_FILE = "detections.json"
DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # others are drawn to .png
JPEG_QUALITY = 92

EPILOG = """\b
Examples:
  fcos predict runs/train photo.jpg
  fcos predict runs/train photos/ --out found --score-threshold 0.5
  fcos predict best.safetensors "photos/**/*.png"
"""


@dataclass(frozen=True)
class Job:
    """One picture to search, and where the drawn one goes."""

    source: Path
    target: Path


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("predictions"),
    show_default=True,
    help="Folder for the drawn pictures and detections.json.",
)
@click.option(
    "--score-threshold",
    type=click.FloatRange(0, 1),
    help="Least score of a detection; default: the model's own, best on its evaluation list.",
)
@device_option
@num_processes_option
def command(
    model: Path,
    sources: tuple[str, ...],
    out: Path,
    score_threshold: float | None,
    device: str | list[int],
    num_processes: int,
) -> None:
    """Detect in pictures; write drawn pictures and one detections.json.

    MODEL is a run folder or a model file. A SOURCE is a picture, a folder (with its subfolders) or a pattern
    like "photos/*.jpg". A broken picture is reported and left out; the exit code is 1 then.
    """
    # Planned before other processes start: what they draw must not look like what was there.
    jobs = plan_jobs(find_pictures(sources, out), out) if is_first_process() else []
    from fcos.api import Detector
    from fcos.engine.devices import build_fabric
    from fcos.engine.evaluate import gather
    from fcos.engine.launch import launched

    fabric = build_fabric(device_of(model, device), num_processes, one_by_default=True)
    with launched(fabric):
        jobs = fabric.broadcast(jobs)
        detector = Detector.load(model, fabric.device)
        threshold = detector.threshold if score_threshold is None else score_threshold
        started_at = time.perf_counter()
        outcomes: list[tuple[int, dict[str, Any]]] = []
        mine = range(fabric.global_rank, len(jobs), fabric.world_size)
        with progress_bar(len(mine), "detecting") as advance:
            for place in mine:
                try:
                    outcomes.append((place, _predict(detector, jobs[place], threshold)))
                except DatasetError as error:
                    source = jobs[place].source
                    outcomes.append((place, {"path": str(source), "error": error.what}))
                    click.echo(f"left out: {click.format_filename(source)}: {error.what}", err=True)
                advance(1)
        outcomes = sorted(gather(outcomes, fabric), key=lambda outcome: outcome[0])
    if not fabric.is_global_zero:
        return
    elapsed_s = time.perf_counter() - started_at
    found = [outcome for _, outcome in outcomes if "error" not in outcome]
    failed = [outcome for _, outcome in outcomes if "error" in outcome]

    content = {
        "model": str(detector.path),
        "score_threshold": threshold,
        "class_names": detector.class_names,
        "pictures": found,
        "failed": failed,
    }
    out.mkdir(parents=True, exist_ok=True)
    # backslashreplace: a file name that is no Unicode becomes a JSON escape instead of an error
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (out / RESULT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
    num_detections = sum(len(picture["detections"]) for picture in found)
    click.echo(
        f"{len(found)} pictures, {num_detections} detections with a score of at least {threshold:.2f}, "
        f"{len(jobs) / elapsed_s:.1f} pictures/s; in {out}, all boxes in {out / RESULT_FILE}"
    )
    if failed:
        click.echo(f"{len(failed)} of {len(jobs)} pictures could not be read", err=True)
        raise click.exceptions.Exit(1)


def is_first_process() -> bool:
    """Before the processes know each other: whether this is the first of all."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def find_pictures(sources: Sequence[str], out: Path) -> dict[Path, Path]:
    """The pictures that the words mean, each with its name below the output folder.

    Raises:
        DatasetError: a word that means no picture.
    """
    names: dict[Path, Path] = {}
    for source in sources:
        pictures = list(_expand(source, out.resolve()))
        if not pictures:
            raise _nothing_found(source)
        for path, name in pictures:
            names.setdefault(path, name)  # given twice is searched once
    return names


def _expand(source: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures of one word of the command line, and their names relative to its folder."""
    from fcos.data.pictures import is_picture, pictures_under

    path = Path(source).expanduser()
    if path.is_file():  # whatever its suffix: it was asked for by name
        yield path, Path(path.name)
        return
    if path.is_dir():
        folder, candidates = path, pictures_under(path)
    else:
        folder = _fixed_folder(path)
        candidates = [
            Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if is_picture(match)
        ]
    # What an earlier call drew into a folder inside of the source is not a source.
    drawn = out if folder.resolve() in out.parents else None
    for picture in candidates:
        if picture.is_file() and not (drawn and drawn in picture.resolve().parents):
            yield picture, picture.relative_to(folder)


def _fixed_folder(pattern: Path) -> Path:
    """The part of a pattern before its first wildcard: "photos/**/*.png" -> "photos"."""
    parts = pattern.parts
    wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:wild])


def _nothing_found(source: str) -> DatasetError:
    from fcos.data.pictures import PICTURE_SUFFIXES

    suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
    path = Path(source).expanduser()
    if path.is_dir():
        return DatasetError(
            "the folder holds no picture",
            where=str(path.absolute()),
            fix=f"looked in it and its subfolders for {suffixes}; give another folder, or a file by its name",
        )
    if glob.has_magic(source):
        return DatasetError(
            f"no picture matches the pattern {source!r}",
            where=str(_fixed_folder(path).absolute()),
            fix=f"looked for {suffixes}; * stands for any name, ** for any folders",
        )
    return DatasetError(
        f"there is no {source!r}", where=str(path.absolute()), fix="give a picture, a folder, or a pattern"
    )


def plan_jobs(names: dict[Path, Path], out: Path) -> list[Job]:
    """Where each picture's drawn copy goes; different pictures of one name are numbered.

    Raises:
        DatasetError: a picture would be overwritten that `fcos predict` did not draw.
    """
    jobs, taken = [], set[str]()
    for source, name in names.items():
        if name.suffix.lower() not in DRAWN_SUFFIXES:
            name = name.with_name(name.name + ".png")
        target, number = name, 1
        while str(target).casefold() in taken:
            number += 1
            target = name.with_stem(f"{name.stem}_{number}")
        taken.add(str(target).casefold())
        jobs.append(Job(source, out / target))

    sources = {job.source.resolve() for job in jobs}
    is_ours = (out / RESULT_FILE).is_file()
    for job in jobs:
        if job.target.resolve() in sources or (job.target.exists() and not is_ours):
            raise DatasetError(
                "a picture would be overwritten by its drawn copy",
                where=str(job.target),
                fix="give another folder with --out",
            )
    return jobs


def _predict(detector: Detector, job: Job, score_threshold: float) -> dict[str, Any]:
    """Search one picture, draw it, and describe what was found.

    One at a time: reading, drawing and writing a picture take longer than a batch could save.
    """
    detections = detector.predict(job.source, score_threshold)
    drawn = detections.draw()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(job.target, quality=JPEG_QUALITY)  # formats without a quality ignore it
    return {
        "path": str(job.source),
        "drawn": str(job.target),
        "width": drawn.width,
        "height": drawn.height,
        "detections": _as_dicts(detections),
    }


def _as_dicts(detections: Detections) -> list[dict[str, Any]]:
    return [
        {
            "box_xyxy": [round(side, 2) for side in box],
            "score": round(score, 4),
            "label": label,
            "class_name": detections.class_names[label],
        }
        for box, score, label in zip(
            detections.boxes_xyxy.tolist(),
            detections.scores.tolist(),
            detections.labels.tolist(),
            strict=True,
        )
    ]
