"""The charts of an evaluation: precision over recall, calibration, and metrics by threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fcos.metrics.analysis import Analysis, ClassResult
from fcos.report.chart import Chart, line_chart

MAX_CURVES = 8  # of classes; as many as there are colors


def precision_charts(analysis: Analysis, ranked: Sequence[ClassResult]) -> list[Chart | None]:
    """Precision over recall: for all classes, and for each class, or the best and worst of `ranked`."""
    recalls = np.linspace(0, 1, analysis.class_precision.shape[1])
    overall = {
        name: np.stack([recalls, np.where(values < 0, np.nan, values)], axis=1)
        for name, values in analysis.curves.items()
    }
    measured = [row.name for row in ranked if row.ap is not None]
    if len(measured) > MAX_CURVES:  # the best and the worst are most informative
        measured = measured[: MAX_CURVES // 2] + measured[-MAX_CURVES // 2 :]
    label_of = {row.name: label for label, row in enumerate(analysis.classes)}
    by_class = {
        name: np.stack([recalls, analysis.class_precision[label_of[name]]], axis=1) for name in measured
    }
    which = "each class" if len(by_class) == len(analysis.classes) else "the best and worst classes"
    return [
        line_chart("Precision over recall, all classes", "recall", overall, whole_x=False),
        line_chart(f"Precision over recall of {which}, IoU 0.50", "recall", by_class, whole_x=False),
    ]


def score_charts(analysis: Analysis) -> list[Chart | None]:
    """Calibration of the scores, and metrics by threshold."""
    bins = np.array([(score, right) for score, right, count in analysis.calibration if count])
    diagonal = np.array([[0.0, 0.0], [1.0, 1.0]])
    return [
        line_chart(
            "Fraction of correct detections, by score",
            "score",
            {"detections": bins.reshape(-1, 2), "perfectly calibrated": diagonal},
            whole_x=False,
        ),
        line_chart(
            "F1, precision and recall, by threshold", "threshold", _by_threshold(analysis), whole_x=False
        ),
    ]


def _by_threshold(analysis: Analysis) -> dict[str, NDArray[np.float64]]:
    """Over all classes, at IoU 0.5."""
    counted = analysis.is_right >= 0
    scores, is_right = analysis.rows["score"][counted], analysis.is_right[counted] == 1
    num_objects = sum(row.num_boxes for row in analysis.classes)
    if not num_objects or not len(scores):
        return {}
    thresholds = np.linspace(0, 1, 101)
    num_shown = np.array([(scores >= threshold).sum() for threshold in thresholds])
    num_right = np.array([(scores[is_right] >= threshold).sum() for threshold in thresholds])
    with np.errstate(invalid="ignore"):
        values = {
            "F1": 2 * num_right / (num_shown + num_objects),
            "precision": num_right / num_shown,  # NaN (a gap) if nothing is shown
            "recall": num_right / num_objects,
        }
    return {name: np.stack([thresholds, value], axis=1) for name, value in values.items()}
