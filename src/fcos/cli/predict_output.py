"""The results that `fcos predict` writes and prints."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click

from fcos.files import write_bytes
from fcos.terminal import counted, printable_line

MOST_NAMES = 3  # of files, in a line


def write_result(out: Path, content: dict[str, Any]) -> None:
    """Write `RESULT_FILE`; a file name that is not valid Unicode becomes a JSON escape, not an error."""
    from fcos.predict.images import RESULT_FILE  # imports torch

    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_bytes(out / RESULT_FILE, text.encode("utf-8", "backslashreplace"))


def print_images(content: dict[str, Any], elapsed_s: float | None, out: Path) -> None:
    """Print the number of detections in images, the output folder and, with `elapsed_s`, the speed."""
    from fcos.predict.images import RESULT_FILE

    images = content["images"]
    if not images:
        click.echo("no images were read")
        return
    speed = "" if elapsed_s is None else f", {len(images) / elapsed_s:.1f} images/s"
    num_detections = sum(len(image["detections"]) for image in images)
    click.echo(
        f"{counted(len(images), 'image')}, {counted(num_detections, 'detection')} "
        f"with a score of at least {content['score_threshold']:.2f}{speed}; "
        f"saved to {out}, all boxes in {out / RESULT_FILE}"
    )
    if labels := content.get("labels"):
        click.echo(
            f"labels saved to {printable_line(labels['path'])}"
            + (f", root of the images: {printable_line(labels['root'])}" if labels["root"] else "")
            + (f", class names: {printable_line(labels['name_file'])}" if labels["name_file"] else "")
        )


def print_video(about: dict[str, Any], elapsed_s: float, *, to_stderr: bool) -> None:
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
        if num_resized := about.get("num_resized"):
            what = f"{counted(num_resized, 'drawn frame')}, to the size of the first one"
            click.echo(f"resized: {printable_line(about['path'])}: {what}", err=True)
        if "error" in about:
            click.echo(f"broken: {printable_line(about['path'])}: {printable_line(about['error'])}", err=True)
    else:
        print_skipped(about)


def print_skipped(outcome: dict[str, Any]) -> None:
    """Print a line about an image or video that could not be read."""
    click.echo(f"skipped: {printable_line(outcome['path'])}: {printable_line(outcome['error'])}", err=True)


def print_others(paths: Collection[str]) -> None:
    """Print a line about files in folders that are skipped because of their format."""
    if paths:
        count = counted(len(paths), "image or video", "images and videos")
        click.echo(f"ignored: {count} in unsupported formats: {_first_names(sorted(paths))}", err=True)


def print_frames(path: Path) -> None:
    """Print a line about an image with several frames: only the first is used."""
    from fcos.data.image import count_frames  # imports torch

    if (num_frames := count_frames(path)) > 1:
        click.echo(f"only the first of {num_frames} frames: {printable_line(str(path))}", err=True)


def print_failed(failed: Sequence[dict[str, Any]], num_images: int, num_videos: int) -> None:
    """Print how many images and videos could not be read, and name the first few."""
    what = counted(num_images, "image")
    if num_videos:
        what = f"{num_images + num_videos} images and videos" if num_images else counted(num_videos, "video")
    names = _first_names([outcome["path"] for outcome in failed])
    in_full = " in full" if num_videos else ""
    click.echo(f"{len(failed)} of {what} could not be read{in_full}: {names}", err=True)


def _first_names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MOST_NAMES} more" if len(paths) > MOST_NAMES else ""
    return ", ".join(map(printable_line, paths[:MOST_NAMES])) + more
