"""`fcos predict`: run a model on images and videos; write drawn copies and JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from fcos.cli.options import agnostic_nms_option, announce, device_of, device_option, views_options
from fcos.cli.output import json_option, print_json, progress_bar
from fcos.errors import DatasetError, OutputError
from fcos.files import check_writable, reason_of, write_bytes
from fcos.format_names import FORMAT_NAMES
from fcos.terminal import counted, printable_line

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from fcos.detector import Detector
    from fcos.predict.sources import Source
    from fcos.predict.video import VideoOptions

STOPPED_BY_CTRL_C = 130  # what shells expect
MOST_NAMES = 3  # unreadable files that the last line names
MANY_IMAGES = 100  # for fewer, starting processes takes longer than they save
MOST_PROCESSES = 8  # by default: each needs memory

EPILOG = """\b
Examples:
  fcos predict photo.jpg                             20 everyday classes: no training needed
  fcos predict runs/train photo.jpg
  fcos predict runs/train photos/ --out found --score-threshold 0.5
  fcos predict best.safetensors "photos/**/*.png" https://example.org/street.jpg
  fcos predict runs/train photos/ --classes person,car --save-crops
  fcos predict runs/train photos/ --save-labels yolo   to train on, or to correct in a labelling tool
  fcos predict runs/train aerial.tif --tile 640      small objects in a large image
  fcos predict runs/train clip.mp4 --track
  fcos predict runs/train rtsp://camera.local/live   until Ctrl-C, over broken connections
  fcos predict runs/train 0                          the first camera, until Ctrl-C
  find photos -name "*.jpg" | fcos predict runs/train - --json
"""


@click.command(epilog=EPILOG)
@click.argument("arguments", nargs=-1, required=True, metavar="[MODEL] SOURCE...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("predictions"),
    show_default=True,
    help="Folder for drawn copies, detections.json and (videos) detections.jsonl.",
)
@click.option(
    "--score-threshold",
    type=click.FloatRange(0, 1),
    help="Minimum score of a detection; default: the model's own, the best on its evaluation data.",
)
@click.option(
    "--classes", metavar="NAME,...", help="Only these classes, by name; default: all classes of the model."
)
@click.option(
    "--save-labels",
    type=click.Choice(FORMAT_NAMES),
    help="Also write the detections as annotations in this format, to labels_... in the output folder.",
)
@click.option("--save-crops", is_flag=True, help="Images: also write each box as an image, to crops/CLASS/.")
@click.option("--track", is_flag=True, help="Videos: give an object the same number in all frames.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Videos: process every N-th frame and skip the others.",
    metavar="N",
)
@click.option(
    "--stream", is_flag=True, help="URLs are live videos, reconnected when they break; rtsp:// always is."
)
@click.option("--draw/--no-draw", default=True, help="Write drawn images and videos, or JSON only.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per forward pass; default: 8 on a GPU, up to 4 small ones on a CPU.",
)
@views_options
@json_option
@agnostic_nms_option
@device_option
@click.option(
    "--num-processes",
    type=click.IntRange(min=1),
    help=f"Processes to split the images between on a CPU; default: 1, but on Linux one per core (at most "
    f"{MOST_PROCESSES}) for {MANY_IMAGES} images or more.",
)
def command(
    arguments: tuple[str, ...],
    out: Path,
    score_threshold: float | None,
    classes: str | None,
    save_labels: str | None,
    save_crops: bool,
    track: bool,
    every: int,
    stream: bool,
    draw: bool,
    batch_size: int | None,
    as_json: bool,
    agnostic_nms: bool | None,
    device: str | list[int],
    num_processes: int | None,
    tile: int | None,
    overlap: float | None,
    tta: bool | None,
) -> None:
    """Detect objects in images and videos; draw them and write the detections as JSON.

    MODEL is a run folder or a model file; without one, the everyday detector of this package is used, which
    knows 20 classes (person, car, dog, chair, ...). A SOURCE is an image, a video, a folder (with its
    subfolders), a pattern like "photos/*.jpg", the URL of an image or video (https://...) or of a live stream
    (rtsp://...), a text file with one path per line, a camera number (0), or - for standard input (an image,
    or paths). Files that cannot be read are reported and skipped, and the exit code is 1.
    """
    from fcos.detector import Detector
    from fcos.predict.sources import FRAMES_FILE, RESULT_FILE, find_sources, plan
    from fcos.predict.video import VideoOptions

    model, sources = split_arguments(arguments)
    check_writable(out)
    if is_first_process():
        announce(model)
    # Planned before other processes start, so that their output is not mistaken for the user's files.
    planned = plan(find_sources(sources, out, streams=stream), out) if is_first_process() else []
    images = [source for source in planned if source.kind == "image"]
    videos = [source for source in planned if source.kind != "image"]
    check_video_options(videos, track, every)
    check_image_options(planned, save_labels, save_crops, out)
    device = device_of(model, device)
    num_forks = (num_processes or usual_processes(len(images))) if can_fork(model, device) else 1
    with _processes(device, 1 if num_forks > 1 else num_processes or 1) as (torch_device, fabric):
        detector = Detector.load(
            model, torch_device, agnostic_nms=agnostic_nms, tile=tile, overlap=overlap, tta=tta
        )
        if classes is not None:
            detector = detector.only([name.strip() for name in classes.split(",")])
        threshold = detector.threshold if score_threshold is None else score_threshold
        started_at = time.perf_counter()
        outcomes = _predict_images(
            detector, images, out, threshold, draw, save_crops, batch_size, num_forks, fabric
        )
    if fabric and not fabric.is_global_zero:
        return
    images_s = time.perf_counter() - started_at

    options = VideoOptions(threshold, every, track, draw)
    outcomes_of_videos = _predict_videos(detector, videos, out, options, to_stderr=as_json) if videos else []
    failed = [outcome for outcome in outcomes + outcomes_of_videos if "error" in outcome]
    content: dict[str, Any] = {
        "model": str(detector.path),
        "score_threshold": threshold,
        "class_names": detector.class_names,
        "pictures": [outcome for outcome in outcomes if "error" not in outcome],
        "videos": [video for video in outcomes_of_videos if "num_frames" in video],
        "failed": [{"path": outcome["path"], "error": outcome["error"]} for outcome in failed],
    }
    write_json(out / RESULT_FILE, content)
    if save_labels and content["pictures"]:
        content["labels"] = _save_labels(detector, content["pictures"], save_labels, out)
        write_json(out / RESULT_FILE, content)
    if as_json:
        print_json(content)
    elif images and not content["pictures"]:
        click.echo("no images were read")
    elif images:
        num_detections = sum(len(image["detections"]) for image in content["pictures"])
        click.echo(
            f"{counted(len(content['pictures']), 'image')}, {counted(num_detections, 'detection')} "
            f"with a score of at least {threshold:.2f}, {len(content['pictures']) / images_s:.1f} images/s; "
            f"saved to {out}, all boxes in {out / RESULT_FILE}"
        )
    if "labels" in content and not as_json:
        labels = content["labels"]
        click.echo(
            f"labels saved to {printable_line(labels['path'])}"
            + (f", root of the images: {printable_line(labels['root'])}" if labels["root"] else "")
            + (f", class names: {printable_line(labels['name_file'])}" if labels["name_file"] else "")
        )
    if videos and not as_json:
        click.echo(f"boxes of all frames in {out / FRAMES_FILE}")
    if any(video.get("stopped") for video in outcomes_of_videos):
        raise click.exceptions.Exit(STOPPED_BY_CTRL_C)
    if failed:
        names = ", ".join(printable_line(outcome["path"]) for outcome in failed[:MOST_NAMES])
        more = f" and {len(failed) - MOST_NAMES} more" if len(failed) > MOST_NAMES else ""
        click.echo(f"{_how_many_failed(images, videos, failed)}: {names}{more}", err=True)
        raise click.exceptions.Exit(1)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file; a file name that is no Unicode becomes a JSON escape instead of an error."""
    write_bytes(path, json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))


def split_arguments(arguments: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The model and the sources; where the first argument is a source too, the everyday detector."""
    from fcos.predict.sources import is_source
    from fcos.weights.everyday import EVERYDAY
    from fcos.weights.load import is_model

    first, *rest = arguments
    if is_model(first) and not rest:
        raise click.UsageError(f"there is nothing to predict on: give images after the model {first!r}.")
    if rest and (is_model(first) or not is_source(first)):
        return Path(first), rest
    return Path(EVERYDAY), arguments


# Images -----------------------------------------------------------------------------------------------------


def _predict_images(
    detector: Detector,
    images: Sequence[Source],
    out: Path,
    threshold: float,
    draw: bool,
    crops: bool,
    batch_size: int | None,
    num_forks: int,
    fabric: Fabric | None,
) -> list[dict[str, Any]]:
    """What `detections.json` says about each image, on the first process; each process predicts its share."""
    from fcos.predict.device import gather
    from fcos.predict.images import predict_images

    if fabric:
        images = fabric.broadcast(images)
    mine = range(len(images))[fabric.global_rank :: fabric.world_size] if fabric else range(len(images))
    outcomes: list[tuple[int, dict[str, Any]]] = []
    with progress_bar(len(mine), "predicting") as advance:
        results = predict_images(
            detector,
            [images[place] for place in mine],
            out,
            threshold,
            draw=draw,
            crops=crops,
            batch_size=batch_size,
            num_processes=num_forks,
        )
        for place, outcome in zip(mine, results, strict=True):
            if "error" in outcome:
                _report(outcome)
            elif draw and "drawn" not in outcome:
                click.echo(f"not drawn: {printable_line(outcome['path'])}: too large", err=True)
            outcomes.append((place, outcome))
            advance(1)
    return [outcome for _, outcome in sorted(gather(outcomes, fabric), key=lambda outcome: outcome[0])]


def check_image_options(planned: Sequence[Source], save_labels: str | None, crops: bool, out: Path) -> None:
    """Reject options that need image files, and output that is there already, before the work."""
    from fcos.predict.images import CROPS
    from fcos.predict.labels import check_labels

    if not is_first_process():
        return
    if save_labels:
        check_labels(planned, save_labels, out)
    if crops and any(source.kind != "image" for source in planned):
        raise click.UsageError("--save-crops works on images, but a source is a video.")
    if crops and (out / CROPS).exists():
        raise OutputError(
            "crops of an earlier call are here",
            where=str(out / CROPS),
            fix="remove the folder, or choose another one with --out",
        )


def _save_labels(
    detector: Detector, pictures: Sequence[dict[str, Any]], format: str, out: Path
) -> dict[str, Any]:
    """Write the labels; what `detections.json` says about them."""
    from fcos.predict.labels import labels_path, save_labels

    written = save_labels(detector.class_names, detector.category_ids, pictures, format, out)
    return {
        "format": format,
        "path": str(labels_path(out, format)),
        "root": None if written.root is None else str(written.root),
        "name_file": None if written.name_file is None else str(written.name_file),
    }


# Several processes ------------------------------------------------------------------------------------------


@contextmanager
def _processes(device: str | list[int], num_processes: int) -> Iterator[tuple[torch.device, Fabric | None]]:
    """The device of this process, and the Fabric that connects the processes, if there are several."""
    from fcos.predict.device import torch_device

    many_devices = isinstance(device, list) and len(device) > 1
    if not (many_devices or num_processes > 1 or was_started_with_others()):
        yield torch_device(device), None
        return
    from fcos.train.devices import build_fabric  # one process does without Fabric
    from fcos.train.launch import launched

    fabric = build_fabric(device, num_processes, one_by_default=True)
    with launched(fabric):
        yield fabric.device, fabric


def is_first_process() -> bool:
    """Whether this is the first process of all, before they are connected."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def was_started_with_others() -> bool:
    """Whether torchrun or srun started several processes of this command."""
    return any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def can_fork(model: Path, device: str | list[int]) -> bool:
    """Whether the images can be split between forks of this process.

    Forks start at once and share the model's memory. On macOS they must not compute, Windows has none, and
    the threads of an exported file's runtime do not survive in one.
    """
    from fcos.predict.device import choose_device
    from fcos.weights.load import format_of

    on_cpu = choose_device(device)[0] == "cpu"
    return sys.platform == "linux" and on_cpu and not format_of(model) and not was_started_with_others()


def usual_processes(num_images: int) -> int:
    """The default number of processes."""
    import torch

    return min(torch.get_num_threads(), MOST_PROCESSES) if num_images >= MANY_IMAGES else 1


# Videos -----------------------------------------------------------------------------------------------------


def check_video_options(videos: Sequence[Source], track: bool, every: int) -> None:
    """Reject options that need a video or a missing package now, not after an hour of images."""
    from fcos.predict.tracker import import_trackers
    from fcos.predict.video_reader import import_av

    if videos:
        import_av()
        if track:
            import_trackers()
    elif (track or every > 1) and is_first_process():
        option = "--track" if track else "--every"
        raise click.UsageError(f"{option} works on videos, but no source is a video.")


def _predict_videos(
    detector: Detector, videos: Sequence[Source], out: Path, options: VideoOptions, *, to_stderr: bool
) -> list[dict[str, Any]]:
    """What `detections.json` says about each video; Ctrl-C stops after a frame and leaves complete files."""
    from fcos.predict.sources import FRAMES_FILE
    from fcos.predict.stop import StopSignal
    from fcos.predict.video import predict_video

    outcomes: list[dict[str, Any]] = []
    with StopSignal(after="frame") as stop, _lines_to(out / FRAMES_FILE) as lines:
        for video in videos:
            started_at = time.perf_counter()
            try:
                about = predict_video(
                    detector,
                    video,
                    out / video.name,
                    lines,
                    options,
                    progress=lambda num_frames: progress_bar(num_frames, "predicting"),
                    is_stopped=lambda: stop.number != 0,
                )
            except DatasetError as error:
                about = {"path": video.where, "error": error.what}
            outcomes.append(about)
            _describe(about, time.perf_counter() - started_at, to_stderr=to_stderr)
            if stop.number:
                break
    return outcomes


@contextmanager
def _lines_to(path: Path) -> Iterator[TextIO]:
    """A file that grows line by line; `OutputError` if it, or a file beside it, cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="backslashreplace") as lines:
            yield lines
    except OSError as error:
        raise OutputError(
            f"cannot be written: {reason_of(error)}",
            where=str(error.filename or path.parent),
            fix="free some disk space, or choose another folder with --out",
        ) from error


def _describe(about: dict[str, Any], elapsed_s: float, *, to_stderr: bool) -> None:
    """Print a line about a video."""
    if num_frames := about.get("num_frames"):
        num_tracks = about["num_tracks"]
        tracks = f", {counted(num_tracks, 'track')}" if num_tracks else ""
        click.echo(
            f"{printable_line(about['path'])}: {counted(num_frames, 'frame')}, "
            f"{counted(about['num_detections'], 'detection')}{tracks}, {num_frames / elapsed_s:.1f} frames/s"
            + (f"; drawn in {printable_line(about['drawn'])}" if about["drawn"] else "")
            + ("; stopped early" if about["stopped"] else ""),
            err=to_stderr,
        )
        if "error" in about:
            click.echo(f"broken: {printable_line(about['path'])}: {printable_line(about['error'])}", err=True)
    else:
        _report(about)


def _report(outcome: dict[str, Any]) -> None:
    click.echo(f"skipped: {printable_line(outcome['path'])}: {printable_line(outcome['error'])}", err=True)


def _how_many_failed(
    images: Sequence[Source], videos: Sequence[Source], failed: Sequence[dict[str, Any]]
) -> str:
    if videos and not images:
        return f"{len(failed)} of {counted(len(videos), 'video')} could not be read in full"
    if videos:
        return f"{len(failed)} of {len(images) + len(videos)} images and videos could not be read in full"
    return f"{len(failed)} of {counted(len(images), 'image')} could not be read"
