"""Evaluation beyond the twelve COCO metrics: confidence intervals, and where AP is lost.

`analyze` gets all of it from hotcoco. There are two evaluations: of all detections, for AP, and of the
detections above the best threshold, which a user of the detector sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hotcoco import compare
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.data.summary import COCO_LARGE, COCO_SMALL
from fcos.metrics.coco import (
    F1_IOU,
    SIZES,
    STATS,
    BestF1,
    CocoMetrics,
    best_f1,
    boxes_by_id,
    class_places,
    judge,
    match,
    mean_of_valid,
    measured,
    numbers_of,
    result_array,
)
from fcos.metrics.confusion import LabelPairs, pair_up
from fcos.metrics.rows import ROW, Results, Rows, xyxy_of

TIDE_ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")

# A resample of the images costs 0.4 microseconds per detection.
RESAMPLED_DETECTIONS = 15_000_000
MIN_RESAMPLES, MAX_RESAMPLES = 30, 400
MIN_IMAGES = 10  # with fewer images that contain such objects, resampling is meaningless
STANDARD_ERRORS = 1.96  # on each side: 95 %


@dataclass(frozen=True)
class ClassResult:
    """Metrics of a class; None where there are no objects.

    Attributes:
        by_size: AP of small, medium and large objects.
        boxes_by_size: number of small, medium and large objects; objects on a limit count in both.
        best: its own best threshold.
        calibration_error: expected difference between score and fraction of correct detections.
    """

    name: str
    num_boxes: int
    ap: float | None
    ap_50: float | None
    by_size: tuple[float | None, ...]
    boxes_by_size: tuple[int, ...]
    best: BestF1 | None
    calibration_error: float | None


@dataclass(frozen=True)
class Disagreement:
    """A confident detection that contradicts the annotations: the detector or the annotation is wrong.

    Attributes:
        image: index of the image.
        found: name of the detected class.
        there: name of the class annotated at this place; None: nothing is annotated.
        num_elsewhere: detections of the class in other images with at least this score.
        num_right: how many of those are correct.
    """

    image: int
    box_xyxy: NDArray[np.float64]
    score: float
    found: str
    there: str | None
    num_elsewhere: int
    num_right: int

    @property
    def trust(self) -> float:
        """Fraction of such detections that are correct if this one is wrong: low if few are elsewhere."""
        return self.num_right / (self.num_elsewhere + 1)


@dataclass(frozen=True)
class Shown:
    """The detections at the threshold, and the result of each image.

    Attributes:
        pairs: which detection matches which object.
        num_right, num_wrong, num_missed: `(images,)`.
        error_counts: number of TIDE errors of each kind.
        disagreements: most trusted first, then by score.
        missed: `(boxes,)` objects that no detection of their class matches.
    """

    pairs: LabelPairs
    num_right: NDArray[np.int64]
    num_wrong: NDArray[np.int64]
    num_missed: NDArray[np.int64]
    error_counts: dict[str, int]
    disagreements: tuple[Disagreement, ...]
    missed: NDArray[np.bool_]

    def f1(self) -> NDArray[np.float64]:
        """`(images,)` F1; 1 if there are no objects and no detections."""
        wanted = 2 * self.num_right + self.num_wrong + self.num_missed
        f1: NDArray[np.float64] = np.ones(len(wanted))
        np.divide(2 * self.num_right, wanted, out=f1, where=wanted > 0)
        return f1


@dataclass(frozen=True)
class Analysis:
    """Everything about one evaluation.

    Attributes:
        rows: all detections.
        curves: precision at 101 recalls 0, 0.01, ..., over all classes, by name.
        class_precision: `(classes, 101)` at IoU 0.5; -1 for classes without boxes.
        error_costs: AP50 that each kind of TIDE error costs.
        calibration: for each tenth of the scores: mean score, fraction correct, number of detections.
        best: F1 over all classes; None if no detection is correct.
        threshold: minimum score of shown detections.
        is_right: `(N,)` for each row: 1 correct, 0 wrong, -1 not counted.
        found_with: `(boxes,)` score of the detection that matches each object; -1 if none does.
    """

    rows: Rows
    metrics: CocoMetrics
    classes: tuple[ClassResult, ...]
    curves: dict[str, NDArray[np.float64]]
    class_precision: NDArray[np.float64]
    error_costs: dict[str, float]
    calibration: tuple[tuple[float, float, int], ...]
    calibration_error: float
    best: BestF1 | None
    threshold: float
    is_right: NDArray[np.int8]
    found_with: NDArray[np.float64]
    shown: Shown


def analyze(annotations: Annotations, results: Results) -> Analysis:
    """Analyze results; arguments as in `metrics.coco.evaluate_detections`."""
    rows = result_array(annotations, results)
    evaluation = match(annotations, rows)
    metrics = numbers_of(evaluation, annotations)
    diagnostics = evaluation.image_diagnostics(iou_thr=F1_IOU)
    is_right = np.full(len(rows), -1, np.int8)
    counted, right, best, threshold = judge(annotations, rows, diagnostics["dt_status"])
    is_right[counted] = right
    calibration = evaluation.calibration(n_bins=10, iou_threshold=F1_IOU)
    curves = evaluation.report()["curves"]
    precision = evaluation.eval["precision"][:, :, :, :, -1]  # (IoUs, recalls, classes, sizes)
    costs = evaluation.tide_errors(pos_thr=F1_IOU)["delta_ap"]
    return Analysis(
        rows=rows,
        metrics=metrics,
        classes=_classes(annotations, rows, is_right, precision, calibration["per_category"]),
        curves={f"IoU {iou:.2f}": np.array(curves[f"pr@{iou:.2f}"]) for iou in (0.5, 0.75, 0.9)},
        class_precision=precision[0, :, class_places(annotations), 0],
        error_costs={name: float(costs[name]) for name in TIDE_ERRORS},
        calibration=tuple((b["avg_confidence"], b["avg_accuracy"], b["count"]) for b in calibration["bins"]),
        calibration_error=float(calibration["ece"]),
        best=best,
        threshold=threshold,
        is_right=is_right,
        found_with=_found_with(annotations, rows, diagnostics["gt_match"]),
        shown=_shown(annotations, rows, is_right, threshold),
    )


def margins_of(annotations: Annotations, results: Results) -> list[float | None]:
    """Half of the 95 % interval of each COCO metric, compared with a detector without detections.

    It takes as long as all of `analyze`; in a separate thread, hotcoco releases the interpreter lock.
    """
    rows = result_array(annotations, results)
    return margins_between(annotations, np.zeros(0, ROW), rows, resamples_for(len(rows)))


def margins_between(
    annotations: Annotations, first: Rows, second: Rows, num_resamples: int
) -> list[float | None]:
    """Half of the 95 % interval of the change of each COCO metric, by hotcoco's paired bootstrap.

    None if too few images contain such objects.
    """
    one, other = (match(annotations, rows) for rows in (first, second))
    errors = compare(one, other, n_bootstrap=num_resamples, seed=0)["ci"]
    num_images = {
        size: len(np.unique(annotations.image_of_box[annotations.is_counted & of_size]))
        for size, of_size in zip(SIZES, _of_sizes(annotations.areas), strict=True)
    }
    return [
        STANDARD_ERRORS * float(errors[stat.key]["std_err"]) if num_images[stat.size] >= MIN_IMAGES else None
        for stat in STATS
    ]


def resamples_for(num_rows: int) -> int:
    """Number of bootstrap samples: as many as a report has time for."""
    return int(np.clip(RESAMPLED_DETECTIONS // max(1, num_rows), MIN_RESAMPLES, MAX_RESAMPLES))


def _classes(
    annotations: Annotations,
    rows: Rows,
    is_right: NDArray[np.int8],
    precision: NDArray[np.float64],
    calibration: dict[str, float],
) -> tuple[ClassResult, ...]:
    """Metrics of each class, in the order of the labels."""
    counts, *counts_by_size = (
        np.bincount(annotations.labels[annotations.is_counted & of_size], minlength=annotations.num_classes)
        for of_size in _of_sizes(annotations.areas)
    )
    classes, places = [], class_places(annotations)
    for label, name in enumerate(annotations.class_names):
        of_class = precision[:, :, places[label]]
        mine = (rows["category_id"] == annotations.category_ids[label]) & (is_right >= 0)
        classes.append(
            ClassResult(
                name=name,
                num_boxes=int(counts[label]),
                ap=measured(mean_of_valid(of_class[:, :, 0])),
                ap_50=measured(mean_of_valid(of_class[0, :, 0])),
                by_size=tuple(measured(mean_of_valid(of_class[:, :, size])) for size in (1, 2, 3)),
                boxes_by_size=tuple(int(of_size[label]) for of_size in counts_by_size),
                best=best_f1(rows["score"][mine], is_right[mine] == 1, int(counts[label])),
                calibration_error=calibration.get(name) if mine.any() else None,
            )
        )
    return tuple(classes)


def _of_sizes(areas: NDArray[np.float64]) -> tuple[NDArray[np.bool_], ...]:
    """Which objects count in AP of each of `SIZES`; COCO's ranges include both limits."""
    limits = ((0, np.inf), (0, COCO_SMALL), (COCO_SMALL, COCO_LARGE), (COCO_LARGE, np.inf))
    return tuple((areas >= least) & (areas <= most) for least, most in limits)


def _found_with(annotations: Annotations, rows: Rows, match_of: dict[int, int]) -> NDArray[np.float64]:
    scores = np.full(len(annotations.labels), -1.0)
    box_of = boxes_by_id(annotations, rows)
    for box_id, row_id in match_of.items():
        scores[box_of[box_id - 1]] = rows["score"][row_id - 1]
    return scores


def _shown(annotations: Annotations, rows: Rows, is_right: NDArray[np.int8], threshold: float) -> Shown:
    chosen = np.flatnonzero(rows["score"] >= threshold)
    shown = rows[chosen]
    evaluation = match(annotations, shown)
    diagnostics = evaluation.image_diagnostics(iou_thr=F1_IOU, score_thr=threshold)
    box_of = boxes_by_id(annotations, shown)
    missed = np.zeros(len(annotations.labels), bool)
    for box_id, status in diagnostics["gt_status"].items():
        missed[box_of[box_id - 1]] = status == "fn"
    missed &= annotations.is_counted

    image_of = {image_id: image for image, image_id in enumerate(annotations.image_ids.tolist())}
    image_of_row = np.array([image_of[image_id] for image_id in shown["image_id"].tolist()], np.int64)
    fate = is_right[chosen]
    num_right, num_wrong, num_missed = (
        np.bincount(images, minlength=len(annotations))
        for images in (image_of_row[fate == 1], image_of_row[fate == 0], annotations.image_of_box[missed])
    )
    counts = evaluation.tide_errors(pos_thr=F1_IOU)["counts"]
    errors = [error for error in diagnostics["label_errors"] if fate[error["dt_id"] - 1] == 0]
    disagreements = [
        Disagreement(
            image=int(image_of_row[error["dt_id"] - 1]),
            box_xyxy=xyxy_of(shown[[error["dt_id"] - 1]])[0],
            score=float(error["dt_score"]),
            found=error["dt_category"],
            there=error["gt_category"],
            **_elsewhere(shown, fate, error["dt_id"] - 1),
        )
        for error in errors
    ]
    return Shown(
        pairs=pair_up(annotations, shown, fate >= 0),
        num_right=num_right,
        num_wrong=num_wrong,
        num_missed=num_missed,
        error_counts={name: int(counts[name]) for name in TIDE_ERRORS},
        disagreements=tuple(sorted(disagreements, key=lambda one: (-one.trust, -one.score))),
        missed=missed,
    )


def _elsewhere(shown: Rows, fate: NDArray[np.int8], row: int) -> dict[str, int]:
    """Count detections of the same class with at least the same score in other images."""
    one = shown[row]
    alike = (shown["category_id"] == one["category_id"]) & (shown["score"] >= one["score"])
    alike &= (shown["image_id"] != one["image_id"]) & (fate >= 0)
    return {"num_elsewhere": int(alike.sum()), "num_right": int((fate[alike] == 1).sum())}
