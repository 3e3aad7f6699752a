"""Predicting image files: where drawn copies go, and what is written about each image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fcos.errors import DatasetError
from fcos.files import explained
from fcos.predict.detections import Detections
from fcos.predict.sources import Source, numbered, read_picture, real_path
from fcos.predict.stream import search

if TYPE_CHECKING:
    from fcos.predict.predictor import Predictor

RESULT_FILE = "detections.json"
FRAMES_FILE = "detections.jsonl"
DRAWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # others are drawn to .png
JPEG_QUALITY = 92
_KINDS = {"picture": "an image", "video": "a video", "camera": "a video"}


def plan(sources: Sequence[Source], out: Path) -> list[Source]:
    """Name the drawn copies below `out`; different sources with the same name are numbered.

    Raises:
        DatasetError: a file would be overwritten that `fcos predict` did not write.
    """
    planned = numbered(replace(source, name=_drawn_name(source)) for source in sources)
    given = {real_path(source.path) for source in planned if source.path is not None}
    is_ours = (out / RESULT_FILE).is_file() or (out / FRAMES_FILE).is_file()
    for source in planned:
        target = out / source.name
        if real_path(target) in given or (os.path.lexists(target) and not is_ours):
            raise DatasetError(
                f"{_KINDS[source.kind]} would be overwritten by its drawn copy",
                where=str(target),
                fix="give another folder with --out",
            )
    return planned


def _drawn_name(source: Source) -> Path:
    if source.kind == "camera":
        return source.name.with_name(source.name.name + ".mp4")
    if source.kind == "video":
        return source.name.with_suffix(".mp4")
    if source.name.suffix.lower() in DRAWN_SUFFIXES:
        return source.name
    return source.name.with_name(source.name.name + ".png")


def search_pictures(
    detector: Predictor,
    sources: Sequence[Source],
    out: Path,
    score_threshold: float,
    *,
    draw: bool = True,
    batch_size: int | None = None,
    num_processes: int = 1,
) -> Iterator[dict[str, Any]]:
    """What `detections.json` says about each image; its drawn copy is written.

    For one that cannot be read: path and error. `batch_size` as in `Detector.predict`, `num_processes` as in
    `fcos.predict.stream.search`.
    """

    def describe(source: Source, detections: Detections) -> dict[str, Any]:
        assert detections.image is not None, "Detector.predict keeps the image"
        about: dict[str, Any] = {"path": source.where}
        if draw:
            target = out / source.name
            _save(detections.draw(), target)
            about["drawn"] = str(target)
        about |= {"width": detections.image.width, "height": detections.image.height}
        return about | {"detections": as_dicts(detections)}

    results = search(
        detector,
        sources,
        read_picture,
        describe,
        score_threshold=score_threshold,
        batch_size=batch_size,
        num_processes=num_processes,
    )
    for source, result in zip(sources, results, strict=True):
        yield {"path": source.where, "error": result.what} if isinstance(result, DatasetError) else result


def _save(drawn: Image.Image, target: Path) -> None:
    with explained(target, "make room on the disk, give another folder with --out, or give --no-draw"):
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(target, quality=JPEG_QUALITY)  # formats without a quality ignore it


def as_dicts(detections: Detections) -> list[dict[str, Any]]:
    """Detections as JSON values, boxes to a hundredth of a pixel."""
    entries: list[dict[str, Any]] = [
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
    if detections.track_ids is not None:
        for entry, track_id in zip(entries, detections.track_ids.tolist(), strict=True):
            entry["track_id"] = track_id if track_id >= 0 else None
    return entries
