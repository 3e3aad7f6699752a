"""A summary of a run's training and evaluation data, saved in the run folder as `data.json`.

The report uses it instead of reading the training set again, which may be large, or have been moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.data.balance import images_per_class
from fcos.files import read_json, write_json

if TYPE_CHECKING:
    from fcos.data.check import CheckReport

COCO_SMALL, COCO_LARGE = 32.0**2, 96.0**2  # square pixels, limits of COCO's area ranges
FILE_NAME = "data.json"
MAX_LINES = 20  # of problems, and of warnings, that are saved
SIDE_ENDS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)  # pixels
RATIO_ENDS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)


@dataclass(frozen=True)
class Counts:
    """Counts of a data set's images and boxes."""

    num_images: int
    num_boxes: int
    num_empty: int
    num_crowd: int
    num_difficult: int
    most_boxes: int
    boxes_per_class: dict[str, int]  # classes without boxes included
    images_per_class: dict[str, int]
    boxes_per_size: dict[str, int]  # COCO's small (below 32^2 square pixels), medium, large (from 96^2)
    sides: dict[str, tuple[int, int, int]] | None  # minimum, median, maximum of height and width


def count(annotations: Annotations, sizes_hw: NDArray[np.int32] | None = None) -> Counts:
    """Count images and boxes; image sizes are `sizes_hw` (as in `CheckReport`), or else as stated."""
    sizes = annotations.sizes_hw if sizes_hw is None else sizes_hw
    counts = np.diff(annotations.first_box)
    boxes_of = np.bincount(annotations.labels[annotations.has_known_class], minlength=annotations.num_classes)
    images_of = images_per_class(annotations, crowds=True)
    areas = annotations.areas[np.isfinite(annotations.areas)]
    size_range = np.digitize(areas, [COCO_SMALL, COCO_LARGE])
    opened = sizes[sizes[:, 0] > 0]
    return Counts(
        num_images=len(annotations),
        num_boxes=len(annotations.labels),
        num_empty=int((counts == 0).sum()),
        num_crowd=int(annotations.is_crowd.sum()),
        num_difficult=int(annotations.is_difficult.sum()),
        most_boxes=int(counts.max(initial=0)),
        boxes_per_class=dict(zip(annotations.class_names, boxes_of.tolist(), strict=True)),
        images_per_class=dict(zip(annotations.class_names, images_of.tolist(), strict=True)),
        boxes_per_size={
            name: int((size_range == place).sum()) for place, name in enumerate(("small", "medium", "large"))
        },
        sides={
            name: (int(side.min()), int(np.median(side)), int(side.max()))
            for name, side in zip(("height", "width"), opened.T, strict=True)
        }
        if len(opened)
        else None,
    )


class DataSummary(msgspec.Struct, frozen=True, rename={"counts": "card"}):
    """One data set."""

    counts: Counts
    box_sides: dict[str, int]  # number of boxes by the square root of their area, original pixels
    box_ratios: dict[str, int]  # number of boxes by width / height
    problems: tuple[str, ...] = ()  # unusable images and boxes, which were skipped: the first `MAX_LINES`
    warnings: tuple[str, ...] = ()  # of the data check, the first `MAX_LINES`
    num_problems: int | None = None  # all of them; None if the data was not checked
    num_warnings: int | None = None


def summarize(
    annotations: Annotations, report: CheckReport | None = None, more_warnings: Sequence[str] = ()
) -> DataSummary:
    """Describe annotations, with the findings of their check and further warnings."""
    sides = annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]
    sides = sides[(np.isfinite(sides) & (sides > 0)).all(axis=1)]
    problems = [] if report is None else [str(problem) for problem in report.problems]
    warnings = list(more_warnings) + ([] if report is None else [str(warning) for warning in report.warnings])
    return DataSummary(
        counts=count(annotations),
        box_sides=_histogram(np.sqrt(sides.prod(axis=1)), SIDE_ENDS),
        box_ratios=_histogram(sides[:, 0] / sides[:, 1], RATIO_ENDS),
        problems=tuple(problems[:MAX_LINES]),
        warnings=tuple(warnings[:MAX_LINES]),
        num_problems=None if report is None else len(problems),
        num_warnings=None if report is None else len(warnings),
    )


def write_summaries(summaries: Mapping[str, DataSummary], folder: Path) -> None:
    """Save the summaries in a run folder; the counts are called "card" in the file."""
    write_json(folder / FILE_NAME, summaries)


def read_summaries(folder: Path) -> dict[str, DataSummary]:
    """The summaries of a run folder; empty if it has no such file."""
    file = folder / FILE_NAME
    if not file.is_file():
        return {}
    kind, fix = dict[str, DataSummary], "remove it: it is created again from the data"
    summaries: dict[str, DataSummary] = read_json(file, kind, "a summary of a run's data", fix)
    return summaries


def _histogram(values: NDArray[np.float64], ends: Sequence[float]) -> dict[str, int]:
    """Number of values below the first end, between consecutive ends, and from the last end up."""
    counts = np.bincount(np.digitize(values, ends), minlength=len(ends) + 1).tolist()
    names = [f"<{ends[0]:g}", *(f"{low:g}–{high:g}" for low, high in pairwise(ends))]
    return dict(zip([*names, f"≥{ends[-1]:g}"], counts, strict=True))
