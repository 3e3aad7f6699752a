"""AP against latency of several detectors, measured on the same images in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fcos.data.annotations import Annotations
from fcos.data.image import read_image
from fcos.errors import WeightsError
from fcos.files import written
from fcos.metrics.coco import CocoMetrics, evaluate_detections
from fcos.metrics.rows import result_rows
from fcos.model.postprocess import ImageDetections
from fcos.predict.detections import Detections
from fcos.terminal import printable_line

IMAGES_OF_A_TURN = 8


@dataclass(frozen=True)
class Candidate:
    """A detector to compare.

    Attributes:
        predict: all detections in an RGB uint8 image `(3, height, width)`.
        device: the device that it runs on, as text.
        inclusive_boxes: as in `result_rows`.
    """

    name: str
    predict: Callable[[Tensor], Detections]
    class_names: tuple[str, ...]
    num_bytes: int
    device: str = "cpu"
    inclusive_boxes: bool = False


@dataclass(frozen=True)
class Measured:
    """The measurements of a candidate.

    Attributes:
        latency_ms: median time from pixels to detections.
        unknown: classes of the data that it lacks; their AP counts as 0.
        is_best: no other candidate is both faster and at least as accurate.
    """

    candidate: Candidate
    metrics: CocoMetrics
    latency_ms: float
    unknown: tuple[str, ...]
    is_best: bool = False


def measure_candidates(
    candidates: Sequence[Candidate],
    annotations: Annotations,
    on_images: Callable[[int], None] = lambda num_images: None,
) -> list[Measured]:
    """Measure every candidate on every image, in turn, so that other load on the machine affects all of them.

    A turn is a few images; before it, the first is predicted untimed: the threads of the previous runtime are
    still spinning, and would occupy the cores (74 instead of 29 ms after an ONNX file).

    Args:
        candidates: classes are matched by name.
        annotations: checked.
        on_images: called with the number of images of each turn, for a progress bar.

    Returns:
        The candidates, fastest first.
    """
    label_of = {name: label for label, name in enumerate(annotations.class_names)}
    tables = [torch.tensor([label_of.get(name, -1) for name in one.class_names]) for one in candidates]
    for one, table in zip(candidates, tables, strict=True):
        if not (table >= 0).any():
            raise WeightsError(
                f"{one.name} has none of the classes of the data",
                where=str(annotations.source),
                fix=f"give data with its classes: {', '.join(one.class_names[:10])}, ...",
            )
    found: list[list[tuple[int, ImageDetections]]] = [[] for _ in candidates]
    times: list[list[float]] = [[] for _ in candidates]
    for first in range(0, len(annotations), IMAGES_OF_A_TURN):
        records = [annotations[i] for i in range(first, min(first + IMAGES_OF_A_TURN, len(annotations)))]
        images = [read_image(record.path) for record in records]
        for one, table, entries, values in zip(candidates, tables, found, times, strict=True):
            one.predict(images[0])
            for record, image in zip(records, images, strict=True):
                started_at = time.perf_counter()
                detections = one.predict(image)
                values.append(1000 * (time.perf_counter() - started_at))
                labels = table[detections.labels]
                of_all = ImageDetections(detections.boxes_xyxy, detections.scores, labels)
                entries.append((record.image_id, of_all.of(labels >= 0)))
        on_images(len(records))
    rows = []
    for one, entries, values in zip(candidates, found, times, strict=True):
        metrics = evaluate_detections(
            annotations, result_rows(entries, annotations, inclusive_boxes=one.inclusive_boxes)
        )
        unknown = tuple(name for name in annotations.class_names if name not in one.class_names)
        rows.append(Measured(one, metrics, statistics.median(values), unknown))
    return marked(rows)


def marked(rows: Sequence[Measured]) -> list[Measured]:
    """Sort by latency, and mark candidates that are more accurate than every faster one."""
    ordered, most = [], -np.inf
    for row in sorted(rows, key=lambda row: (row.latency_ms, -row.metrics.map_mean)):
        ordered.append(replace(row, is_best=row.metrics.map_mean > most))
        most = max(most, row.metrics.map_mean)
    return ordered


def plot(rows: Sequence[Measured], out: Path) -> None:
    """Plot AP against latency; the best candidates are connected by a line."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    best = [(row.latency_ms, row.metrics.map_mean) for row in rows if row.is_best]
    ax.plot(*zip(*best, strict=True), color="#2563eb", linewidth=1.2, alpha=0.6)
    for row in rows:
        point = (row.latency_ms, row.metrics.map_mean)
        ax.plot(*point, "o", color="#2563eb" if row.is_best else "#64748b")
        label = printable_line(row.candidate.name).replace("$", r"\$")
        ax.annotate(label, point, xytext=(6, 5), textcoords="offset points", fontsize=9)
    ax.set_xlabel("ms per image (median)")
    ax.set_ylabel("AP")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.margins(0.15)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    with written(out) as partial:
        figure.savefig(partial, dpi=110)
