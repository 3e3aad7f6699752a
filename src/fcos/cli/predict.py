"""`fcos predict`: run a model on images and videos; write drawn copies and JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli import processes
from fcos.cli.options import announce, device_of
from fcos.cli.output import print_json, progress_bar
from fcos.cli.predict_options import Options, predict_options
from fcos.cli.predict_output import (
    print_failed,
    print_frames,
    print_images,
    print_others,
    print_skipped,
    print_video,
    write_result,
)
from fcos.cli.processes import is_first_process
from fcos.files import check_writable
from fcos.terminal import printable_line

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from fcos.detector import Detector
    from fcos.predict.sources import Source
    from fcos.predict.window import Window

STOPPED_BY_CTRL_C = 130  # what shells expect

EPILOG = """\b
Examples:
  fcos predict photo.jpg                             20 everyday classes: no training needed
  fcos predict runs/train photo.jpg
  fcos predict runs/train photos/ --out found --score-threshold 0.5
  fcos predict best.safetensors "photos/**/*.png" https://example.org/street.jpg
  fcos predict runs/train photos/ --classes person,car --save-crops
  fcos predict runs/train photos/ --save-labels yolo   to train on, or to correct in a labeling tool
  fcos predict runs/train aerial.tif --tile 640      small objects in a large image
  fcos predict runs/train clip.mp4 --track
  fcos predict runs/train rtsp://camera.local/live   until Ctrl-C; reconnects by itself
  fcos predict runs/train 0 --show                   the first camera, in a window
  find photos -name "*.jpg" | fcos predict runs/train - --json
"""


@click.command(epilog=EPILOG)
@click.argument("arguments", nargs=-1, required=True, metavar="[MODEL] SOURCE...")
@predict_options
def command(arguments: tuple[str, ...], **values: Any) -> None:
    """Detect objects in images and videos; draw them and write the detections as JSON.

    MODEL is a run folder or a model file; without one, the everyday detector of this package is used, which
    knows 20 classes (person, car, dog, chair, ...). A SOURCE is an image, a video, a folder (with its
    subfolders), a pattern like "photos/*.jpg", the URL of an image or video (https://...) or of a live stream
    (rtsp://...), a text file with one path per line, a camera number (0), or - for standard input (an image,
    or paths). Files that cannot be read are reported and skipped, and the exit code is 1.
    """
    from fcos.detector import Detector
    from fcos.predict.images import FRAMES_FILE, claim, plan
    from fcos.predict.sources import find_sources
    from fcos.predict.window import Window

    options = Options(**values)
    out = options.out
    model, sources = split_arguments(arguments)
    check_writable(out)
    planned: list[Source] = []
    if is_first_process():
        announce(model)
        # Before other processes start, so that their output is not taken for the user's files.
        others = set[str]()
        found = find_sources(sources, out, streams=options.stream, on_other=others.add)
        planned = plan(found, out, draw=options.draw)
        check_options(options, planned)
        print_others(others)
    images = [source for source in planned if source.kind == "image"]
    videos = [source for source in planned if source.kind != "image"]
    device = device_of(model, options.device)
    num_processes, num_forks = options.num_processes or 1, 1
    if processes.can_fork(model, device):
        num_processes, num_forks = 1, options.num_processes or processes.usual_processes(len(images))
    with closing(Window()) if options.show and is_first_process() else nullcontext() as window:
        with processes.connected(device, num_processes) as (torch_device, fabric):
            detector = Detector.load(
                model,
                torch_device,
                agnostic_nms=options.agnostic_nms,
                tile=options.tile,
                overlap=options.overlap,
                tta=options.tta,
            )
            if options.classes:
                detector = detector.only(class_list(options.classes, detector.class_names))
            threshold = detector.threshold if options.score_threshold is None else options.score_threshold
            if is_first_process():
                claim(planned, out, draw=options.draw)
            started_at = time.perf_counter()
            outcomes = _predict_images(detector, images, threshold, options, num_forks, fabric, window)
        if fabric and not fabric.is_global_zero:
            return
        images_s = time.perf_counter() - started_at
        of_videos = _predict_videos(detector, videos, threshold, options, window) if videos else []
    failed = [outcome for outcome in outcomes + of_videos if "error" in outcome]
    content: dict[str, Any] = {
        "model": str(detector.path),
        "score_threshold": threshold,
        "class_names": detector.class_names,
        "images": [outcome for outcome in outcomes if "error" not in outcome],
        "videos": [video for video in of_videos if "num_frames" in video],
        "failed": [{"path": outcome["path"], "error": outcome["error"]} for outcome in failed],
    }
    write_result(out, content)
    if options.save_labels and content["images"]:
        from fcos.predict.labels import save_labels

        content["labels"] = save_labels(
            detector.class_names, detector.category_ids, content["images"], options.save_labels, out
        )
        write_result(out, content)
    if options.as_json:
        print_json(content)
    else:
        if images:
            print_images(content, None if window else images_s, out)
        if videos:
            click.echo(f"boxes of all frames in {out / FRAMES_FILE}")
    if any(video.get("stopped") for video in of_videos):
        raise click.exceptions.Exit(STOPPED_BY_CTRL_C)
    if failed:
        print_failed(failed, len(images), len(videos))
        raise click.exceptions.Exit(1)


def split_arguments(arguments: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """The model and the sources; if the first argument is a source, the model is the everyday detector."""
    from fcos.predict.sources import is_source
    from fcos.weights.load import EVERYDAY, is_model

    first, *rest = arguments
    if is_model(first) and not rest:
        raise click.UsageError(f"there is nothing to predict on: give images after the model {first!r}.")
    if rest and (is_model(first) or not is_source(first)):
        return Path(first), rest
    return Path(EVERYDAY), arguments


def class_list(values: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """The classes of `--classes`: each value is a class, which may contain commas, or several."""
    return [
        name.strip() for value in values for name in ([value] if value in class_names else value.split(","))
    ]


def check_options(options: Options, planned: Sequence[Source]) -> None:
    """Reject options that do not fit the sources, earlier output or the installed packages."""
    from fcos.predict.images import check_crops
    from fcos.predict.labels import check_labels
    from fcos.predict.tracker import import_trackers
    from fcos.predict.video_reader import import_av

    num_images = sum(source.kind == "image" for source in planned)
    has_videos = num_images < len(planned)
    if options.save_labels:
        check_labels(planned, options.save_labels, options.out)
    if options.save_crops:
        if has_videos:
            raise click.UsageError("--save-crops works on images, but a source is a video.")
        check_crops(options.out)
    if options.show and not options.draw and num_images:
        raise click.UsageError("--show shows drawn images: omit --no-draw.")
    if has_videos:
        import_av()
        if options.track:
            import_trackers()
    elif options.track or options.every > 1:
        option = "--track" if options.track else "--every"
        raise click.UsageError(f"{option} works on videos, but no source is a video.")


def _predict_images(
    detector: Detector,
    images: Sequence[Source],
    threshold: float,
    options: Options,
    num_forks: int,
    fabric: Fabric | None,
    window: Window | None,
) -> list[dict[str, Any]]:
    """Each image's entry of `detections.json`, on the first process; each process predicts its share."""
    from PIL import Image

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
            options.out,
            threshold,
            draw=options.draw,
            crops=options.save_crops,
            batch_size=options.batch_size,
            num_processes=num_forks,
        )
        for place, outcome in zip(mine, results, strict=True):
            if "error" in outcome:
                print_skipped(outcome)
            elif options.draw and "drawn" not in outcome:
                click.echo(f"not drawn: {printable_line(outcome['path'])}: too large", err=True)
            elif window:
                with Image.open(outcome["drawn"]) as drawn:
                    window.show(drawn, printable_line(outcome["path"]), wait=True)
            if "error" not in outcome and (path := images[place].path):
                print_frames(path)
            outcomes.append((place, outcome))
            advance(1)
    return [outcome for _, outcome in sorted(gather(outcomes, fabric), key=lambda outcome: outcome[0])]


def _predict_videos(
    detector: Detector, videos: Sequence[Source], threshold: float, options: Options, window: Window | None
) -> list[dict[str, Any]]:
    """Each video's entry of `detections.json`."""
    from fcos.predict.video import VideoOptions, predict_videos

    of_videos = VideoOptions(threshold, options.every, options.track, options.draw)
    if window and window.is_open:
        of_videos = replace(
            of_videos,
            on_drawn=lambda drawn: window.show(drawn, "fcos predict"),
            is_stopped=lambda: not window.is_open,
        )
    outcomes: list[dict[str, Any]] = []
    started_at = time.perf_counter()
    for about in predict_videos(
        detector, videos, options.out, of_videos, partial(progress_bar, what="predicting")
    ):
        print_video(about, time.perf_counter() - started_at, to_stderr=options.as_json)
        outcomes.append(about)
        started_at = time.perf_counter()
    return outcomes
