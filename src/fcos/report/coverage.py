"""The report's section on objects without a positive point; for the training set, cached in `coverage.json`.

The training set determines what can be learned, and only training reads it: `fcos report` uses the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.summary import COCO_LARGE, COCO_SMALL
from fcos.files import read_json, write_json
from fcos.metrics.coverage import REASONS, Coverage, Remedy, cover

FILE_NAME = "coverage.json"


@dataclass(frozen=True)
class CoverageCell:
    """Objects of a class and size: those without a point, and all."""

    without: int
    total: int


@dataclass(frozen=True)
class CoverageRow:
    """A class: small, medium, large and all objects."""

    name: str
    cells: tuple[CoverageCell, ...]


class CoverageFacts(
    msgspec.Struct, frozen=True, rename={"num_images": "num_pictures", "num_all_images": "num_all_pictures"}
):
    """Statistics of objects without a positive point.

    Attributes:
        share: fraction of the objects.
        num_images: images examined, out of `num_all_images`.
        size: to which images are resized, as text.
        reasons: reason, meaning, number of objects.
        by_class: classes with such objects, most first.
    """

    share: float
    num_without: int
    num_objects: int
    num_images: int
    num_all_images: int
    size: str
    reasons: tuple[tuple[str, str, int], ...]
    remedies: tuple[Remedy, ...]
    by_class: tuple[CoverageRow, ...]


def coverage_facts(coverage: Coverage, config: TrainConfig) -> CoverageFacts:
    """Statistics of coverage, by class and size."""
    annotations, without, targets = coverage.annotations, coverage.without, coverage.targets
    size = np.digitize(annotations.areas, [COCO_SMALL, COCO_LARGE])
    rows = []
    for label, name in enumerate(annotations.class_names):
        mine = targets & (annotations.labels == label)
        masks = [*(mine & (size == place) for place in range(3)), mine]
        cells = tuple(CoverageCell(int((mask & without).sum()), int(mask.sum())) for mask in masks)
        if cells[-1].without:
            rows.append(CoverageRow(name, cells))
    tiles = f"tiles of {config.tile} pixels, " if config.tile else ""
    short = "" if config.short_side is None else f"shorter side {config.short_side}, "
    return CoverageFacts(
        share=coverage.share,
        num_without=int(without.sum()),
        num_objects=int(targets.sum()),
        num_images=len(coverage.images),
        num_all_images=len(annotations),
        size=f"{tiles}{short}longer side at most {config.view_size}",
        reasons=tuple(
            (reason, REASONS[reason], count) for reason, count in coverage.reasons.items() if count
        ),
        remedies=coverage.remedies,
        by_class=tuple(sorted(rows, key=lambda row: -row.cells[-1].without)),
    )


def keep_coverage(run: Path, train_set: Annotations, config: TrainConfig) -> None:
    """Compute the coverage of the training set and write it to the run folder."""
    facts = coverage_facts(cover(train_set, config), config)
    write_json(run / FILE_NAME, facts)


def read_coverage(run: Path) -> CoverageFacts | None:
    """The coverage of a run's training set; None if it was not saved."""
    file = run / FILE_NAME
    if not file.is_file():
        return None
    fix = "remove it: the report does not need it"
    facts: CoverageFacts = read_json(file, CoverageFacts, "a coverage file", fix)
    return facts
