"""Predicting images: entries of `detections.json`, crops, and drawn copies."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fcos.data.strips import LargeImage
from fcos.errors import DatasetError, OutputError
from fcos.files import WRITTEN_FILE as WRITTEN_FILE
from fcos.files import explained, predicted_files
from fcos.predict.detections import Detections, as_dicts
from fcos.predict.sources import Source, read_source, real_path
from fcos.predict.stream import predict_each

if TYPE_CHECKING:
    from fcos.predict.pipeline import Pipeline

RESULT_FILE, FRAMES_FILE = "detections.json", "detections.jsonl"  # in the output folder
DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # others are drawn to .png
JPEG_QUALITY = 92
CROPS = "crops"  # in the output folder
MOST_CHARACTERS = 60  # of a class's folder: up to 4 bytes each, and file systems allow 255 bytes
NO_SPACE = "free some disk space, or choose another folder with --out"


def plan(sources: Iterable[Source], out: Path, *, draw: bool = True) -> list[Source]:
    """Give each source its own path for the drawn copy below `out`; duplicate names get numbers.

    Raises:
        DatasetError: a file would be overwritten that `fcos predict` did not write, or that was changed
            since.
    """
    sources = list(sources)
    given = {real_path(source.path) for source in sources if source.path is not None}
    ours = predicted_files(out)

    def check_free(name: Path, what: str, by: str) -> None:
        target = out / name
        is_ours = not os.path.lexists(target) or (
            name.as_posix() in ours and ours[name.as_posix()] in (None, target.stat().st_size)
        )
        if real_path(target) in given or not is_ours:
            raise DatasetError(
                f"{what} would be overwritten by {by}",
                where=str(target),
                fix="choose another folder with --out, or move this file",
            )

    planned, taken = [], set[str]()
    for source in sources:
        first = name = _drawn_name(source)
        number = 1
        while str(name).casefold() in taken:
            number += 1
            name = first.with_stem(f"{first.stem}_{number}")
        taken.add(str(name).casefold())
        if draw:
            check_free(name, "an image" if source.kind == "image" else "a video", "the drawn copy")
        planned.append(replace(source, name=name))
    for file in _result_files(sources):
        check_free(Path(file), "a file of another program", "the detections")
    return planned


def claim(planned: Sequence[Source], out: Path, *, draw: bool = True) -> None:
    """Record results and videos before they are written, so that a later call may replace partial files."""
    videos = [source.name.as_posix() for source in planned if draw and source.kind != "image"]
    for name in [*_result_files(planned), *videos]:
        _note(out, name, None)


def _result_files(sources: Sequence[Source]) -> list[str]:
    has_videos = any(source.kind != "image" for source in sources)
    return [RESULT_FILE, FRAMES_FILE] if has_videos else [RESULT_FILE]


def _note(out: Path, name: str, size: int | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / WRITTEN_FILE).open("a", encoding="ascii") as file:
        file.write("\n" + json.dumps([name, size]))  # one call, so that lines of several processes do not mix


def _drawn_name(source: Source) -> Path:
    if source.kind in ("camera", "stream"):
        return source.name.with_name(source.name.name + ".mp4")
    if source.kind == "video":
        return source.name.with_suffix(".mp4")
    if source.name.suffix.lower() in DRAWN_SUFFIXES:
        return source.name
    return source.name.with_name(source.name.name + ".png")


def predict_images(
    detector: Pipeline,
    images: Sequence[Source],
    out: Path,
    threshold: float,
    *,
    draw: bool = True,
    crops: bool = False,
    batch_size: int | None = None,
    num_processes: int = 1,
) -> Iterator[dict[str, Any]]:
    """Each image's entry of `detections.json`; its drawn copy and its crops are written to `out`.

    For an image that cannot be read: path and error.
    """

    def outcome(source: Source, detections: Detections) -> dict[str, Any]:
        about: dict[str, Any] = {"path": source.where}
        if detections.image is None:  # a large file, read in strips
            image = detector.read(source.where)
            assert isinstance(image, LargeImage)
            height, width = image.size_hw
            return about | {"width": width, "height": height, "detections": as_dicts(detections)}
        if draw:
            about["drawn"] = _saved(detections.draw(), out / source.name)
            _note(out, source.name.as_posix(), os.path.getsize(about["drawn"]))
        entries = as_dicts(detections)
        if crops:
            for number, (entry, one) in enumerate(zip(entries, detections, strict=True), start=1):
                entry["crop"] = _saved(_crop(one), crop_path(out, source.name, one.class_name(0), number))
        about |= {"width": detections.image.width, "height": detections.image.height}
        return about | {"detections": entries}

    results = predict_each(
        detector,
        images,
        lambda source: detector.read(source.path) if source.path else read_source(source),
        outcome,
        score_threshold=threshold,
        batch_size=batch_size,
        num_processes=num_processes,
    )
    for source, result in zip(images, results, strict=True):
        yield {"path": source.where, "error": result.what} if isinstance(result, DatasetError) else result


def check_crops(out: Path) -> None:
    """Reject existing crops before predicting."""
    if (out / CROPS).exists():
        raise OutputError(
            "the folder for crops already exists",
            where=str(out / CROPS),
            fix="remove the folder, or choose another one with --out",
        )


def crop_path(out: Path, name: Path, class_name: str, number: int) -> Path:
    """The path of the crop of one detection: ``crops/cat/photo_1.jpg``."""
    folder = re.sub(r"[^\w.-]+", "_", class_name)[:MOST_CHARACTERS].strip(".") or "_"
    return out / CROPS / folder / name.with_stem(f"{name.stem}_{number}")


def _crop(one: Detections) -> Image.Image:
    """The pixels of a box, including partly covered ones."""
    assert one.image is not None
    x1, y1, x2, y2 = one.boxes_xyxy[0].tolist()
    right, bottom = min(math.ceil(x2), one.image.width), min(math.ceil(y2), one.image.height)
    return one.image.crop((min(math.floor(x1), right - 1), min(math.floor(y1), bottom - 1), right, bottom))


def _saved(image: Image.Image, target: Path) -> str:
    with explained(target, f"{NO_SPACE}, or use --no-draw"):
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=JPEG_QUALITY)  # other formats ignore it
    return str(target)
