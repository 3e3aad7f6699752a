"""COCO metrics: overall, per class, and the score threshold with the best F1.

The evaluation is hotcoco's, a Rust port of pycocotools that gives the same numbers a hundred times faster.
Preparing annotations and results for it is our code, because it determines what is measured:

- A crowd region is COCO's `iscrowd`: it need not be detected, and any number of detections may match it; the
  overlap is divided by the detection's own area, since one person covers little of a crowd.
- A Pascal VOC `difficult` box is ignored too, but it is a single object: the VOC development kit uses the
  ordinary IoU and ignores every detection that matches, also the second and third. COCO's format cannot
  express that. Its `ignore` flag is overwritten by `iscrowd` when it is read (in pycocotools as in hotcoco),
  and `iscrowd` would excuse any small box inside the object. So a difficult box gets an area outside of all
  of COCO's area ranges, which ignores it at its ordinary IoU; and since such a box matches only one
  detection, it is repeated for as many detections as its class has in its image. A detection that matches an
  ordinary and a difficult box is assigned to the ordinary one, as for everything that COCO ignores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.metrics.rows import Results, Rows, rows_of

IGNORED_AREA = 1e15  # COCO's widest range, "all", ends at 1e10 square pixels
F1_IOU = 0.5
NOTHING_FOUND_THRESHOLD = 0.3  # a default for drawing if no detection is correct, so no threshold is best


class Stat(NamedTuple):
    """One of COCO's twelve metrics.

    Attributes:
        key: hotcoco's name.
        name: our name, in files and for programs.
        iou, size, most: overlaps, objects and detections of an image that count, as pycocotools prints them.
        meaning: for readers of a report.
    """

    key: str
    name: str
    iou: str
    size: str
    most: int
    meaning: str

    @property
    def title(self) -> str:
        """AP50, AP small, AR100."""
        return self.key if self.size == "all" else f"{self.key[:2]} {self.size}"


SIZES = ("all", "small", "medium", "large")
STATS = (  # in COCO's order
    Stat("AP", "map_mean", "0.50:0.95", "all", 100, "averaged over IoU 0.50 to 0.95"),
    Stat("AP50", "map_50", "0.50", "all", 100, "at IoU 0.50: roughly located"),
    Stat("AP75", "map_75", "0.75", "all", 100, "at IoU 0.75: precisely located"),
    Stat("APs", "map_small", "0.50:0.95", "small", 100, "below 32² square pixels"),
    Stat("APm", "map_medium", "0.50:0.95", "medium", 100, "up to 96² square pixels"),
    Stat("APl", "map_large", "0.50:0.95", "large", 100, "from 96² square pixels"),
    Stat("AR1", "recall_1", "0.50:0.95", "all", 1, "recall with 1 detection per image"),
    Stat("AR10", "recall_10", "0.50:0.95", "all", 10, "recall with 10"),
    Stat("AR100", "recall_100", "0.50:0.95", "all", 100, "recall with 100"),
    Stat("ARs", "recall_small", "0.50:0.95", "small", 100, "recall on small objects"),
    Stat("ARm", "recall_medium", "0.50:0.95", "medium", 100, "on medium objects"),
    Stat("ARl", "recall_large", "0.50:0.95", "large", 100, "on large objects"),
)


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's metrics; -1 where there are no objects, as in pycocotools.

    Attributes:
        stats: COCO's twelve metrics in COCO's order.
        per_class_ap: AP over IoU 0.50:0.95 of each class, in the order of the labels.
    """

    stats: tuple[float, ...]
    per_class_ap: dict[str, float]

    @property
    def map_mean(self) -> float:
        """AP averaged over IoU 0.50:0.95."""
        return self.stats[0]

    @property
    def map_50(self) -> float:
        """AP at IoU 0.50."""
        return self.stats[1]

    @property
    def map_75(self) -> float:
        """AP at IoU 0.75."""
        return self.stats[2]

    def summary(self) -> str:
        """The twelve lines exactly as pycocotools prints them."""
        return summary_of(self.stats)


def summary_of(stats: Sequence[float]) -> str:
    """COCO's twelve metrics in twelve lines, as pycocotools prints them."""
    kinds = {"AP": "Average Precision  (AP)", "AR": "Average Recall     (AR)"}
    return "\n".join(
        f" {kinds[stat.key[:2]]} @[ IoU={stat.iou:<9} | area={stat.size:>6} | maxDets={stat.most:>3} ] = "
        f"{value:.3f}"
        for stat, value in zip(STATS, stats, strict=True)
    )


def named_numbers(stats: Sequence[float]) -> dict[str, float | None]:
    """COCO's twelve metrics by name, for programs; None where there are no objects."""
    return {stat.name: measured(value) for stat, value in zip(STATS, stats, strict=True)}


def measured(number: float) -> float | None:
    """One of COCO's metrics; None for -1 (there are no objects)."""
    return None if number < 0 else float(number)


def evaluate_detections(annotations: Annotations, results: Results) -> CocoMetrics:
    """Compute COCO's metrics on the images of `annotations`; results for other images are ignored.

    Args:
        annotations: the ground truth.
        results: the detections: entries of a COCO results file (`image_id`, `category_id`, `bbox` xywh in
            original pixels, `score`), or the same as an array, see `metrics.rows`.
    """
    return numbers_of(match(annotations, result_array(annotations, results)), annotations)


def numbers_of(evaluation: Any, annotations: Annotations) -> CocoMetrics:
    """COCO's metrics of an evaluation from `match`, which is accumulated."""
    evaluation.accumulate()
    evaluation.summary_lines()  # fills `stats`, and unlike `summarize` prints nothing
    all_areas, most_detections = 0, -1
    precision = evaluation.eval["precision"][:, :, :, all_areas, most_detections]  # (IoUs, recalls, classes)
    classes = zip(annotations.class_names, class_places(annotations), strict=True)
    return CocoMetrics(
        stats=tuple(float(value) for value in evaluation.stats),
        per_class_ap={name: mean_of_valid(precision[:, :, place]) for name, place in classes},
    )


def class_places(annotations: Annotations) -> NDArray[np.intp]:
    """The index of each label in hotcoco's arrays, which sort classes by category id."""
    return np.argsort(np.argsort(annotations.category_ids))


class BestF1(NamedTuple):
    """The threshold with the best F1, at IoU 0.5.

    Attributes:
        threshold: minimum score; midway between the lowest score to keep and the next lower one, so that
            rounding does not remove a detection.
        f1, precision, recall: at this threshold.
    """

    threshold: float
    f1: float
    precision: float
    recall: float


def measure(annotations: Annotations, results: Results) -> tuple[CocoMetrics, float]:
    """`evaluate_detections`, and the score with the best F1 over all classes at IoU 0.5."""
    rows = result_array(annotations, results)
    evaluation = match(annotations, rows)
    diagnostics = evaluation.image_diagnostics(iou_thr=F1_IOU)
    return numbers_of(evaluation, annotations), judge(annotations, rows, diagnostics["dt_status"]).threshold


class Judged(NamedTuple):
    """Detections classified as correct or wrong at IoU 0.5.

    Attributes:
        rows: indices of the detections that count; those in crowd regions do not.
        is_right: whether each of these is correct.
        best: None if no detection is correct.
        threshold: that of `best`, or `NOTHING_FOUND_THRESHOLD`.
    """

    rows: NDArray[np.int64]
    is_right: NDArray[np.bool_]
    best: BestF1 | None
    threshold: float


def judge(annotations: Annotations, rows: Rows, status: Mapping[int, str]) -> Judged:
    """Which rows are right, by hotcoco's `dt_status` at `F1_IOU`, and the best threshold."""
    counted = np.fromiter(status.keys(), np.int64, len(status)) - 1  # ids count rows from 1
    is_right = np.array([value == "tp" for value in status.values()], bool)
    best = best_f1(rows["score"][counted], is_right, int(annotations.is_counted.sum()))
    return Judged(counted, is_right, best, NOTHING_FOUND_THRESHOLD if best is None else best.threshold)


def best_f1(scores: NDArray[np.float64], is_right: NDArray[np.bool_], num_objects: int) -> BestF1 | None:
    """The threshold with the best F1; None if no detection is correct.

    Args:
        scores: `(N,)` of the detections that count, in any order.
        is_right: `(N,)` whether each matches an object.
        num_objects: in the annotations.
    """
    if not is_right.any():
        return None
    order = np.argsort(-scores)
    scores, num_right = scores[order], np.cumsum(is_right[order])
    num_shown = np.arange(1, len(scores) + 1)
    f1 = 2 * num_right / (num_shown + num_objects)  # 2 TP / (2 TP + FP + FN)
    is_last = np.append(scores[:-1] != scores[1:], True)  # no threshold separates equal scores
    last = int(np.argmax(np.where(is_last, f1, -1)))
    following = scores[last + 1] if last + 1 < len(scores) else scores[last]
    right = num_right[last]
    return BestF1(
        threshold=float((scores[last] + following) / 2),
        f1=float(f1[last]),
        precision=float(right / num_shown[last]),
        recall=float(right / num_objects),
    )


def coco_ground_truth(annotations: Annotations, results: Results = ()) -> dict[str, Any]:
    """The annotations as a COCO JSON, for hotcoco or pycocotools.

    `results` (as in `evaluate_detections`) determine how often a difficult box is repeated: see above.
    """
    category_ids = np.asarray(annotations.category_ids, np.int64)
    # -1 would silently count as the last class
    assert annotations.has_known_class.all(), "unchecked labels"
    image_ids = annotations.image_ids[annotations.image_of_box]
    box_categories = category_ids[annotations.labels]
    boxes_xywh = annotations.boxes_xyxy.copy()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    areas = np.where(annotations.is_difficult, IGNORED_AREA, annotations.areas)
    boxes = boxes_by_id(annotations, results)
    columns = {
        "id": range(1, len(boxes) + 1),  # from 1: pycocotools takes an id 0 for "not matched"
        "image_id": image_ids[boxes].tolist(),
        "category_id": box_categories[boxes].tolist(),
        "bbox": boxes_xywh[boxes].tolist(),
        "area": areas[boxes].tolist(),
        "iscrowd": annotations.is_crowd[boxes].astype(int).tolist(),
    }
    return {
        "images": [
            {"id": image_id, "file_name": "", "height": max(height, 0), "width": max(width, 0)}
            for image_id, (height, width) in zip(
                annotations.image_ids.tolist(), annotations.sizes_hw.tolist(), strict=True
            )
        ],
        "categories": [
            {"id": int(category_id), "name": name}
            for category_id, name in zip(category_ids, annotations.class_names, strict=True)
        ],
        "annotations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }


def boxes_by_id(annotations: Annotations, results: Results = ()) -> NDArray[np.int64]:
    """Index among `annotations.boxes_xyxy` of each box of `coco_ground_truth`, whose ids count from 1."""
    num_boxes = len(annotations.labels)
    if not annotations.is_difficult.any():
        return np.arange(num_boxes)
    repeats = np.ones(num_boxes, np.int64)
    rows = result_array(annotations, results)
    num_results = Counter(zip(rows["image_id"].tolist(), rows["category_id"].tolist(), strict=True))
    image_ids = annotations.image_ids[annotations.image_of_box]
    for box in np.flatnonzero(annotations.is_difficult):
        category_id = annotations.category_ids[annotations.labels[box]]
        repeats[box] = max(1, num_results[image_ids[box], category_id])
    return np.repeat(np.arange(num_boxes), repeats)


def match(annotations: Annotations, rows: Rows) -> Any:
    """hotcoco's evaluation with every image matched, not yet accumulated; `rows` from `result_array`.

    hotcoco takes results as floats, so the ids that it sees count from 1, in the order of the true ones.
    """
    image_ids = np.unique(annotations.image_ids)
    category_ids = np.unique(annotations.category_ids).astype(np.int64)
    counted = replace(
        annotations,
        image_ids=_places(annotations.image_ids, image_ids),
        category_ids=tuple(_places(np.asarray(annotations.category_ids, np.int64), category_ids).tolist()),
    )
    images, categories = _places(rows["image_id"], image_ids), _places(rows["category_id"], category_ids)
    floats = np.column_stack([images, rows["bbox"], rows["score"], categories])
    ground_truth = COCO(coco_ground_truth(counted, floats))
    evaluation = COCOeval(ground_truth, ground_truth.load_res(floats), "bbox")
    evaluation.evaluate()
    return evaluation


def _places(ids: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each id among the known ones, which are sorted, counted from 1; 0: unknown."""
    places = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[places] == ids, places + 1, 0)


def result_array(annotations: Annotations, results: Results) -> Rows:
    """The results as rows, only for images of the annotations."""
    rows = rows_of(results)
    return rows[np.isin(rows["image_id"], annotations.image_ids)]


def mean_of_valid(precision: NDArray[np.float64]) -> float:
    """Mean of the valid entries; -1 if there are none (a class without boxes)."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else -1.0
