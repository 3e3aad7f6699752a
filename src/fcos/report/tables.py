"""The tables and bar rows of a report, for its templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from fcos.metrics.analysis import TIDE_ERRORS, Analysis
from fcos.metrics.coco import SIZES, STATS
from fcos.metrics.misses import REASONS as MISS_REASONS
from fcos.metrics.misses import Miss
from fcos.report.gallery import cell_tag, confusions, miss_tag

MAX_CONFUSED = 20  # classes in the confusion matrix
MAX_WORST = 8  # confusions that are listed

ERROR_MEANINGS = {
    "Cls": ("classification", "right place, wrong class"),
    "Loc": ("localization", "right class, inexact box"),
    "Both": ("both", "wrong class and poorly localized box"),
    "Dupe": ("duplicate", "the object is matched by another detection"),
    "Bkg": ("background", "no object nearby"),
    "Miss": ("undetected", "no detection matches it"),
}
SHORT_REASONS = {
    "no point": "no positive point",
    "nms": "suppressed by NMS",
    "class": "wrong class",
    "score": "score below the threshold",
    "shared": "one detection for two",
    "box": "box poorly localized",
    "nothing": "nothing near",
}


NO_OBJECT, NO_DETECTION = "no object", "no detection"  # last row and last column of the confusion matrix


def boxes_of_numbers(analysis: Analysis) -> list[int]:
    """The number of boxes behind each of COCO's twelve metrics."""
    by_size = [sum(sizes) for sizes in zip(*(row.boxes_by_size for row in analysis.classes), strict=True)]
    of_size = dict(zip(SIZES, [sum(row.num_boxes for row in analysis.classes), *by_size], strict=True))
    return [of_size[stat.size] for stat in STATS]


def fraction(value: float | None) -> str:
    """A metric with three digits as in COCO's summary; a dash for -1 and None (nothing to evaluate)."""
    return "–" if value is None or value < 0 else f"{value:.3f}"


@dataclass(frozen=True)
class ErrorRow:
    """A kind of TIDE error: the AP50 that it costs in one or two evaluations.

    Attributes:
        shares: lengths of the bars.
        count: number of such errors in the first evaluation, at the threshold.
        change: from the first evaluation to the second; for a single one, its cost.
    """

    name: str
    meaning: str
    costs: tuple[float, ...]
    shares: tuple[float, ...]
    count: int
    change: float


def error_rows(*analyses: Analysis) -> list[ErrorRow]:
    """TIDE's errors, the largest cost or change first."""
    costs = {kind: [max(0.0, one.error_costs[kind]) for one in analyses] for kind in TIDE_ERRORS}
    largest = max(1e-9, *chain.from_iterable(costs.values()))
    rows = [
        ErrorRow(
            *ERROR_MEANINGS[kind],
            tuple(of_kind),
            tuple(cost / largest for cost in of_kind),
            analyses[0].shown.error_counts[kind],
            of_kind[-1] - sum(of_kind[:-1]),
        )
        for kind, of_kind in costs.items()
    ]
    return sorted(rows, key=lambda row: -abs(row.change))


@dataclass(frozen=True)
class ConfusionCell:
    """An entry of the confusion matrix; `share` is its fraction of the row, `kind` right, wrong or none."""

    count: int
    share: float
    kind: str
    tag: str
    words: str


@dataclass(frozen=True)
class ConfusionTable:
    """The confusion matrix of the classes that are confused most; no object, no detection last.

    Attributes:
        names: of its columns.
        rows: the detected classes of the objects of each class; last, detections that match no object.
        num_left_out: number of classes not in the table.
        worst: largest confusions of two classes.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ConfusionCell, ...]], ...]
    num_left_out: int
    worst: tuple[ConfusionCell, ...]


def confusion_table(analysis: Analysis, class_names: Sequence[str]) -> ConfusionTable:
    """The confusion matrix with names, and a tag for the images of each cell."""
    matrix, background = analysis.shown.pairs.matrix(), len(class_names)
    mistakes = matrix - np.diag(np.diag(matrix))
    num_mistakes = (mistakes.sum(axis=0) + mistakes.sum(axis=1))[:background]
    kept = sorted(np.argsort(-num_mistakes, kind="stable")[:MAX_CONFUSED].tolist())
    kept.append(background)
    totals = matrix.sum(axis=1)

    def cell(there: int, found: int) -> ConfusionCell:
        count = int(matrix[there, found])
        return ConfusionCell(
            count=count,
            share=round(count / max(1, int(totals[there])), 3),
            kind="none" if there == found == background else "right" if there == found else "wrong",
            tag=cell_tag(there, found),
            words=_confusion_words(class_names, there, found, count),
        )

    of_classes = [(there, found) for there, found in confusions(analysis) if background not in (there, found)]
    return ConfusionTable(
        names=tuple((*class_names, NO_DETECTION)[label] for label in kept),
        rows=tuple(
            ((*class_names, NO_OBJECT)[there], tuple(cell(there, found) for found in kept)) for there in kept
        ),
        num_left_out=background + 1 - len(kept),
        worst=tuple(cell(there, found) for there, found in of_classes[:MAX_WORST]),
    )


def _confusion_words(names: Sequence[str], there: int, found: int, count: int) -> str:
    if there == found:
        return f"{names[there]} detected correctly: {count}" if there < len(names) else ""
    if found == len(names):
        return f"{names[there]}, {NO_DETECTION}: {count}"
    if there == len(names):
        return f"{names[found]}, {NO_OBJECT}: {count}"
    return f"{names[there]} detected as {names[found]}: {count}"


@dataclass(frozen=True)
class MissRow:
    """A reason why objects were missed."""

    meaning: str
    short: str
    count: int
    tag: str


def miss_rows(misses: Iterable[Miss]) -> list[MissRow]:
    """The reasons that occur, most frequent first."""
    counts = Counter(miss.reason for miss in misses)
    return [
        MissRow(MISS_REASONS[reason], SHORT_REASONS[reason], count, miss_tag(reason))
        for reason, count in counts.most_common()
    ]
