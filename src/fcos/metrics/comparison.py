"""Compare two detectors on the same images: what changed, and whether it is significant.

The bootstrap is paired: each sample resamples the images, the same for both detectors, so that images which
are hard for both do not blur the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.metrics.analysis import Analysis, margins_between, resamples_for
from fcos.metrics.coco import measured


@dataclass(frozen=True)
class Delta:
    """One of COCO's twelve numbers of both detectors.

    Attributes:
        first, second: None if there are no objects.
        margin: half of the 95 % interval of the change; None if there are too few images.
    """

    first: float | None
    second: float | None
    margin: float | None = None

    @property
    def change(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def is_significant(self) -> bool:
        """Whether the interval of the change excludes 0."""
        return self.change is not None and self.margin is not None and abs(self.change) > self.margin


@dataclass(frozen=True, kw_only=True)
class ClassChange(Delta):
    """AP of a class of both detectors."""

    name: str
    num_boxes: int


@dataclass(frozen=True)
class Comparison:
    """The changes between two detectors.

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
    margins = margins_between(annotations, first.rows, second.rows, num_resamples)
    stats = zip(first.metrics.stats, second.metrics.stats, margins, strict=True)
    classes = [
        ClassChange(before.ap, after.ap, name=before.name, num_boxes=before.num_boxes)
        for before, after in zip(first.classes, second.classes, strict=True)
    ]
    return Comparison(
        deltas=tuple(Delta(measured(before), measured(after), margin) for before, after, margin in stats),
        num_resamples=num_resamples,
        classes=tuple(sorted(classes, key=lambda row: -abs(row.change or 0))),
        f1_change=second.shown.f1() - first.shown.f1(),
    )
