"""Compare two detectors on the same images: what changed, and whether it is significant.

The bootstrap is paired: each sample resamples the images, the same for both detectors, so that images which
are hard for both do not blur the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hotcoco import compare
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.metrics.analysis import (
    MIN_IMAGES,
    SIZE_OF_STAT,
    STANDARD_ERRORS,
    STATS,
    Analysis,
    images_by_size,
    resamples_for,
)
from fcos.metrics.coco import match


@dataclass(frozen=True)
class Delta:
    """One of COCO's twelve numbers of both detectors.

    Attributes:
        first, second: None where there is nothing to find.
        margin: half of the 95 % interval of the change; None where there is too little.
    """

    first: float | None
    second: float | None
    margin: float | None

    @property
    def change(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def is_significant(self) -> bool:
        """Whether the interval of the change leaves 0 out."""
        return self.change is not None and self.margin is not None and abs(self.change) > self.margin


@dataclass(frozen=True)
class ClassChange:
    """AP of a class; None where there is nothing to find."""

    name: str
    num_boxes: int
    first: float | None
    second: float | None

    @property
    def change(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """All that changed.

    Attributes:
        deltas: of COCO's twelve numbers, in COCO's order.
        num_resamples: number of bootstrap samples for the margins.
        classes: largest change first.
        f1_change: `(images,)` F1 at the threshold of each detector, second minus first.
    """

    deltas: tuple[Delta, ...]
    num_resamples: int
    classes: tuple[ClassChange, ...]
    f1_change: NDArray[np.float64]


def compare_results(annotations: Annotations, first: Analysis, second: Analysis) -> Comparison:
    """Compare two analyses of the same annotations."""
    num_resamples = resamples_for(len(first.rows) + len(second.rows))
    one, other = (match(annotations, analysis.rows) for analysis in (first, second))
    errors = compare(one, other, n_bootstrap=num_resamples, seed=0)["ci"]
    enough = np.array(images_by_size(annotations)) >= MIN_IMAGES
    deltas = []
    for place, (name, size) in enumerate(zip(STATS, SIZE_OF_STAT, strict=True)):
        before, after = (_known(analysis.metrics.stats[place]) for analysis in (first, second))
        is_known = before is not None and after is not None and bool(enough[size])
        deltas.append(
            Delta(before, after, STANDARD_ERRORS * float(errors[name]["std_err"]) if is_known else None)
        )
    classes = [
        ClassChange(before.name, before.num_boxes, before.ap, after.ap)
        for before, after in zip(first.classes, second.classes, strict=True)
    ]
    return Comparison(
        deltas=tuple(deltas),
        num_resamples=num_resamples,
        classes=tuple(sorted(classes, key=lambda row: -abs(row.change or 0))),
        f1_change=second.shown.f1() - first.shown.f1(),
    )


def _known(stat: float) -> float | None:
    return None if stat < 0 else stat
