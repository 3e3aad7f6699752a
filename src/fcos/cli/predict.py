"""`fcos predict`: run a model on images and videos; write drawn copies and JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from fcos.cli.options import agnostic_nms_option, device_of, device_option
from fcos.cli.output import json_option, print_json, progress_bar
from fcos.errors import DatasetError, OutputError
from fcos.files import check_writable, reason_of, write_bytes
from fcos.terminal import counted, printable_line

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from fcos.detector import Detector
    from fcos.predict.sources import Source
    from fcos.predict.video import VideoOptions

STOPPED_BY_CTRL_C = 130  # what shells expect
MOST_NAMES = 3  # of what could not be read, in the last line
MANY_PICTURES = 100  # for fewer it takes longer to start processes than they save
MOST_PROCESSES = 8  # by default: each needs memory

EPILOG = """\b
Examples:
  fcos predict runs/train photo.jpg
  fcos predict runs/train photos/ --out found --score-threshold 0.5
  fcos predict best.safetensors "photos/**/*.png" https://example.org/street.jpg
  fcos predict runs/train clip.mp4 --track
  fcos predict runs/train 0                          the first camera, until Ctrl-C
  find photos -name "*.jpg" | fcos predict runs/train - --json
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
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
    help="Minimum score of a detection; default: the model's own, best on its evaluation data.",
)
@click.option("--track", is_flag=True, help="Videos: give an object the same number in all frames.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Videos: process every N-th frame and skip the others.",
    metavar="N",
)
@click.option("--draw/--no-draw", default=True, help="Write drawn images and videos, or JSON only.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per forward pass; default: 8 on a GPU, up to 4 small ones on a CPU.",
)
@json_option
@agnostic_nms_option
@device_option
@click.option(
    "--num-processes",
    type=click.IntRange(min=1),
    help=f"Processes that share the images on a CPU; default: 1; on Linux, for {MANY_PICTURES} images "
    f"or more, one per core, at most {MOST_PROCESSES}.",
)
def command(
    model: Path,
    sources: tuple[str, ...],
    out: Path,
    score_threshold: float | None,
    track: bool,
    every: int,
    draw: bool,
    batch_size: int | None,
    as_json: bool,
    agnostic_nms: bool | None,
    device: str | list[int],
    num_processes: int | None,
) -> None:
    """Detect objects in images and videos; draw them and write the detections as JSON.

    MODEL is a run folder or a model file. A SOURCE is an image, a video, a folder (with its subfolders), a
    pattern like "photos/*.jpg", the URL of an image or video (https://...), a text file with one path per
    line, a camera number (0), or - for standard input: an image, or paths. Files that cannot be read are
    reported and skipped; the exit code is then 1.
    """
    from fcos.detector import Detector
    from fcos.predict.pictures import FRAMES_FILE, RESULT_FILE, plan
    from fcos.predict.sources import find_sources
    from fcos.predict.video import VideoOptions
    from fcos.train.devices import build_fabric
    from fcos.train.launch import launched

    check_writable(out)
    # Planned before other processes start, so that their drawings are not mistaken for files of the user.
    planned = plan(find_sources(sources, out), out) if is_first_process() else []
    videos = [source for source in planned if source.kind != "picture"]
    check_video_options(videos, track, every)
    device = device_of(model, device)
    forks = can_fork(model, device)
    fabric = build_fabric(device, 1 if forks else num_processes or 1, one_by_default=True)
    with launched(fabric):
        pictures = fabric.broadcast([source for source in planned if source.kind == "picture"])
        detector = Detector.load(model, fabric.device, agnostic_nms=agnostic_nms)
        threshold = detector.threshold if score_threshold is None else score_threshold
        started_at = time.perf_counter()
        num_forks = (num_processes or usual_processes(len(pictures))) if forks else 1
        outcomes = _search_pictures(detector, pictures, out, threshold, draw, batch_size, num_forks, fabric)
    if not fabric.is_global_zero:
        return
    picture_s = time.perf_counter() - started_at

    options = VideoOptions(threshold, every, track, draw)
    found_in_videos = _search_videos(detector, videos, out, options, to_stderr=as_json) if videos else []
    failed = [outcome for outcome in outcomes if "error" in outcome]
    failed += [video for video in found_in_videos if "error" in video]
    content: dict[str, Any] = {
        "model": str(detector.path),
        "score_threshold": threshold,
        "class_names": detector.class_names,
        "pictures": [outcome for outcome in outcomes if "error" not in outcome],
        "videos": [video for video in found_in_videos if "num_frames" in video],
        "failed": [{"path": outcome["path"], "error": outcome["error"]} for outcome in failed],
    }
    # backslashreplace: a file name that is no Unicode becomes a JSON escape instead of an error
    text = json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")
    write_bytes(out / RESULT_FILE, text)
    if as_json:
        print_json(content)
    elif pictures:
        num_detections = sum(len(picture["detections"]) for picture in content["pictures"])
        click.echo(
            f"{counted(len(content['pictures']), 'image')}, {counted(num_detections, 'detection')} "
            f"with a score of at least {threshold:.2f}, {len(pictures) / picture_s:.1f} images/s; "
            f"in {out}, all boxes in {out / RESULT_FILE}"
        )
    if videos and not as_json:
        click.echo(f"all boxes of the frames in {out / FRAMES_FILE}")
    if any(video.get("stopped") for video in found_in_videos):
        raise click.exceptions.Exit(STOPPED_BY_CTRL_C)
    if failed:
        names = ", ".join(printable_line(outcome["path"]) for outcome in failed[:MOST_NAMES])
        more = f" and {len(failed) - MOST_NAMES} more" if len(failed) > MOST_NAMES else ""
        click.echo(f"{_how_many_failed(pictures, videos, failed)}: {names}{more}", err=True)
        raise click.exceptions.Exit(1)


def is_first_process() -> bool:
    """Whether this is the first process of all, before they are connected."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def can_fork(model: Path, device: str | list[int]) -> bool:
    """Whether the processes that share the images can be forks of this one.

    They start at once and share the model's memory. On macOS a fork must not compute, Windows has none, and
    the threads of an exported file's runtime do not live on in one.
    """
    from fcos.predict.device import choose_device
    from fcos.train.launch import started_from_outside
    from fcos.weights.load import format_of

    on_cpu = choose_device(device)[0] == "cpu"
    return sys.platform == "linux" and on_cpu and not format_of(model) and not started_from_outside()


def usual_processes(num_pictures: int) -> int:
    """The default number of processes."""
    import torch

    return min(torch.get_num_threads(), MOST_PROCESSES) if num_pictures >= MANY_PICTURES else 1


def check_video_options(videos: Sequence[Source], track: bool, every: int) -> None:
    """Refuse options that need a video or a missing package: now, not after an hour of images."""
    from fcos.predict.tracker import import_trackers
    from fcos.predict.video_reader import import_av

    if videos:
        import_av()
        if track:
            import_trackers()
    elif (track or every > 1) and is_first_process():
        option = "--track" if track else "--every"
        raise click.UsageError(f"{option} is for videos, but no source is a video.")


def _search_pictures(
    detector: Detector,
    pictures: Sequence[Source],
    out: Path,
    threshold: float,
    draw: bool,
    batch_size: int | None,
    num_forks: int,
    fabric: Fabric,
) -> list[dict[str, Any]]:
    """The detections of each image, on the first process; each process predicts its share."""
    from fcos.data.loader import ShardSampler
    from fcos.predict.detect import gather
    from fcos.predict.pictures import search_pictures

    size = batch_size or detector.group_size
    batches = ShardSampler(len(pictures), size, fabric.global_rank, fabric.world_size)
    mine = [place for batch in batches for place, _ in batch]
    results = search_pictures(
        detector,
        [pictures[place] for place in mine],
        out,
        threshold,
        draw=draw,
        batch_size=batch_size,
        num_processes=num_forks,
    )
    outcomes: list[tuple[int, dict[str, Any]]] = []
    with progress_bar(len(mine), "detecting") as advance:
        for place, outcome in zip(mine, results, strict=True):
            if "error" in outcome:
                _report(outcome)
            outcomes.append((place, outcome))
            advance(1)
    return [outcome for _, outcome in sorted(gather(outcomes, fabric), key=lambda outcome: outcome[0])]


def _search_videos(
    detector: Detector, videos: Sequence[Source], out: Path, options: VideoOptions, *, to_stderr: bool
) -> list[dict[str, Any]]:
    """The detections of each video; Ctrl-C stops after a frame and leaves complete files."""
    from fcos.predict.pictures import FRAMES_FILE
    from fcos.predict.video import search_video
    from fcos.train.stop import StopSignal

    found: list[dict[str, Any]] = []
    with StopSignal(after="frame") as stop, _lines_to(out / FRAMES_FILE) as lines:
        for video in videos:
            started_at = time.perf_counter()
            with ExitStack() as stack:
                advance = [lambda done: None]

                def show(total: int | None, stack: ExitStack = stack, advance: list[Any] = advance) -> None:
                    advance[0] = stack.enter_context(progress_bar(total, "detecting"))

                try:
                    about = search_video(
                        detector,
                        video,
                        out / video.name,
                        lines,
                        options,
                        on_open=show,
                        on_frame=lambda advance=advance: advance[0](1),  # type: ignore[misc]
                        is_stopped=lambda: stop.number != 0,
                    )
                except DatasetError as error:
                    about = {"path": video.where, "error": error.what}
            found.append(about)
            _describe(about, time.perf_counter() - started_at, to_stderr=to_stderr)
            if stop.number:
                break
    return found


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
            fix="make room on the disk, or give another folder with --out",
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
    click.echo(f"left out: {printable_line(outcome['path'])}: {printable_line(outcome['error'])}", err=True)


def _how_many_failed(
    pictures: Sequence[Source], videos: Sequence[Source], failed: Sequence[dict[str, Any]]
) -> str:
    if videos and not pictures:
        return f"{len(failed)} of {counted(len(videos), 'video')} could not be read in full"
    if videos:
        return f"{len(failed)} of {len(pictures) + len(videos)} images and videos could not be read in full"
    return f"{len(failed)} of {counted(len(pictures), 'image')} could not be read"
