"""COCO's numbers: by hand, and equal to pycocotools on real annotations with noisy detections."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcos.data.annotations import Annotations, Record
from fcos.metrics.coco import (
    CocoMetrics,
    best_f1,
    coco_ground_truth,
    evaluate_detections,
    measure,
    named_numbers,
    summary_of,
)
from fcos.metrics.rows import results_json, rows_of

CLASSES = ("cat", "dog")
CATEGORY_IDS = (3, 7)


def annotations_of(*images: dict[str, Any], classes: Sequence[str] = CLASSES) -> Annotations:
    """Images 1, 2, ... from keyword arguments of `Record.make`."""
    records = [
        Record.make(Path(f"{number}.jpg"), image_id=number, size_hw=(480, 640), **image)
        for number, image in enumerate(images, start=1)
    ]
    ids = CATEGORY_IDS if len(classes) == 2 else None
    return Annotations.from_records(records, classes, category_ids=ids, source=Path("x"), format="coco")


def found(box_xyxy: Sequence[float], score: float, label: int = 0, image_id: int = 1) -> dict[str, Any]:
    """One entry of COCO's results format."""
    x1, y1, x2, y2 = box_xyxy
    return {
        "image_id": image_id,
        "category_id": CATEGORY_IDS[label],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": score,
    }


def read_coco(file: Path) -> Annotations:
    """A COCO file, read in the simplest way: this test must not depend on the readers."""
    data = json.loads(file.read_text())
    categories = sorted(data["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    records = []
    for image in data["images"]:
        boxes = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        xywh = np.array([a["bbox"] for a in boxes], np.float64).reshape(-1, 4)
        records.append(
            Record.make(
                Path(image["file_name"]),
                np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
                [label_of[a["category_id"]] for a in boxes],
                image["id"],
                is_crowd=[bool(a["iscrowd"]) for a in boxes],
                areas=[float(a["area"]) for a in boxes],
                size_hw=(image["height"], image["width"]),
            )
        )
    return Annotations.from_records(
        records, [c["name"] for c in categories], category_ids=tuple(label_of), source=file, format="coco"
    )


def noisy_results(annotations: Annotations, seed: int) -> NDArray[np.float64]:
    """What a mediocre detector might find: jittered boxes, doubles, wrong classes, equal scores, rubbish."""
    rng = np.random.default_rng(seed)
    rows = []
    for record in annotations:
        for (x1, y1, x2, y2), label in zip(record.boxes_xyxy, record.labels, strict=True):
            for _ in range(rng.integers(0, 4)):
                w, h = x2 - x1, y2 - y1
                x, y = x1 + rng.normal(0, 0.08) * w, y1 + rng.normal(0, 0.08) * h
                w, h = w * rng.uniform(0.8, 1.25), h * rng.uniform(0.8, 1.25)
                wrong = rng.integers(len(annotations.class_names)) if rng.random() < 0.15 else label
                score = round(rng.random(), 1) if rng.random() < 0.5 else rng.random()  # ties
                rows.append((record.image_id, x, y, w, h, score, annotations.category_ids[wrong]))
        for _ in range(rng.integers(0, 4)):
            category = annotations.category_ids[rng.integers(len(annotations.class_names))]
            rows.append((record.image_id, *rng.uniform(5, 200, 4), rng.random(), category))
    return np.array(rows, np.float64).reshape(-1, 7)


def as_entries(results: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {"image_id": int(row[0]), "category_id": int(row[6]), "bbox": row[1:5], "score": row[5]}
        for row in results.tolist()
    ]


def pycocotools_says(
    ground_truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[list[float], list[float], str]:
    """The reference: twelve numbers, AP of each category in order of the ids, printed summary."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [p[p > -1].mean() if (p > -1).any() else -1.0 for p in np.moveaxis(precision, 2, 0)]
    return list(evaluation.stats), per_class, printed.getvalue()


def assert_equals_pycocotools(metrics: CocoMetrics, reference: tuple[list[float], list[float], str]) -> None:
    stats, per_class, printed = reference
    np.testing.assert_allclose(metrics.stats, stats, rtol=0, atol=1e-9)
    np.testing.assert_allclose(list(metrics.per_class_ap.values()), per_class, rtol=0, atol=1e-9)
    assert metrics.summary() + "\n" == printed


@pytest.mark.parametrize("split", ["val2017", "train2017"])
def test_real_coco_annotations_give_the_numbers_and_lines_of_pycocotools(shared: Path, split: str) -> None:
    file = shared / "data" / "coco_mini" / "annotations" / f"instances_{split}.json"
    annotations = read_coco(file)
    results = noisy_results(annotations, seed=0)
    assert annotations.is_crowd.any()

    metrics = evaluate_detections(annotations, results)

    assert 0.1 < metrics.map_mean < 0.9  # else the comparison shows little
    assert list(metrics.per_class_ap) == list(annotations.class_names)
    # pycocotools reads the original file, not what we made of it
    assert_equals_pycocotools(metrics, pycocotools_says(json.loads(file.read_text()), as_entries(results)))


@pytest.mark.parametrize("seed", range(5))
def test_random_scenes_with_crowds_and_difficult_boxes_give_the_numbers_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(8):
        count = rng.integers(0, 9)
        corner = rng.uniform(0, 200, (count, 2))
        images.append(
            {
                "boxes_xyxy": np.concatenate([corner, corner + rng.uniform(10, 150, (count, 2))], axis=1),
                "labels": rng.integers(0, 2, count),
                "is_crowd": rng.random(count) < 0.15,
                "is_difficult": rng.random(count) < 0.2,
            }
        )
    annotations = annotations_of(*images)
    results = noisy_results(annotations, seed)
    entries = as_entries(results)
    reference = pycocotools_says(coco_ground_truth(annotations, results), entries)

    assert_equals_pycocotools(evaluate_detections(annotations, results), reference)
    assert_equals_pycocotools(evaluate_detections(annotations, entries), reference)


def test_ap_worked_out_by_hand() -> None:
    # Three cats. By score: right (IoU 1), wrong, right (IoU 0.6), and the third cat is never found.
    # IoU 0.50 to 0.60: precision 1 up to recall 1/3, then 2/3 up to recall 2/3, then 0. COCO reads it at
    # recalls 0, 0.01 ... 1: 34 of them are <= 1/3, 33 in (1/3, 2/3], 34 beyond.
    annotations = annotations_of(
        {"boxes_xyxy": [[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]], "labels": [0, 0, 0]}
    )
    results = [
        found([0, 0, 10, 10], 0.9),
        found([300, 0, 310, 10], 0.8),
        found([100, 0, 106.1, 10], 0.7),
    ]
    at_60 = (34 * 1 + 33 * 2 / 3) / 101
    above = 34 / 101

    metrics = evaluate_detections(annotations, results)

    assert metrics.map_50 == pytest.approx(at_60, abs=1e-12)
    assert metrics.map_75 == pytest.approx(above, abs=1e-12)
    assert metrics.map_mean == pytest.approx((3 * at_60 + 7 * above) / 10, abs=1e-12)
    assert metrics.per_class_ap == {"cat": pytest.approx(metrics.map_mean), "dog": -1.0}


def test_classes_keep_their_names_when_the_category_ids_are_not_in_order() -> None:
    record = Record.make(Path("1.jpg"), [[0, 0, 10, 10], [50, 50, 90, 90]], [0, 1], image_id=1)
    annotations = Annotations.from_records(
        [record], ("last", "first"), category_ids=(90, 5), source=Path("x"), format="coco"
    )
    only_last = [{"image_id": 1, "category_id": 90, "bbox": [0, 0, 10, 10], "score": 0.5}]

    assert evaluate_detections(annotations, only_last).per_class_ap == {
        "last": pytest.approx(1),
        "first": 0.0,
    }


def test_a_detection_on_a_difficult_box_is_neither_right_nor_wrong() -> None:
    ordinary, difficult = [0, 0, 10, 10], [100, 100, 140, 140]
    annotations = annotations_of(
        {"boxes_xyxy": [ordinary, difficult], "labels": [0, 0], "is_difficult": [False, True]}
    )
    # Twice on the difficult box with the best scores, the second off by 2 of 40 pixels (IoU 38 / 42).
    doubles = [found(difficult, 0.9), found([102, 100, 142, 140], 0.8)]

    assert evaluate_detections(annotations, [*doubles, found(ordinary, 0.7)]).map_50 == pytest.approx(1)
    assert evaluate_detections(annotations, [found(ordinary, 0.7)]).map_mean == pytest.approx(
        1
    )  # and it is not missed
    assert evaluate_detections(annotations, doubles).map_50 == 0.0


def test_a_small_box_inside_a_difficult_one_is_wrong() -> None:
    # Not so for a crowd region, where the overlap is measured by the detection's area alone.
    ordinary, large, inside = [0, 0, 10, 10], [100, 100, 140, 140], [100, 100, 110, 110]
    results = [found(inside, 0.9), found(ordinary, 0.7)]
    boxes = {"boxes_xyxy": [ordinary, large], "labels": [0, 0]}

    difficult = evaluate_detections(annotations_of({**boxes, "is_difficult": [False, True]}), results)
    crowd = evaluate_detections(annotations_of({**boxes, "is_crowd": [False, True]}), results)

    assert difficult.map_50 == pytest.approx(0.5)  # wrong before right: precision 1/2 at every recall
    assert crowd.map_50 == pytest.approx(1)


def test_a_difficult_box_of_another_class_excuses_nothing() -> None:
    box = [100, 100, 140, 140]
    annotations = annotations_of(
        {"boxes_xyxy": [[0, 0, 10, 10], box], "labels": [0, 1], "is_difficult": [False, True]}
    )
    results = [found(box, 0.9, label=0), found([0, 0, 10, 10], 0.8, label=0)]

    assert evaluate_detections(annotations, results).map_50 == pytest.approx(0.5)


def test_the_area_of_the_annotation_decides_small_and_large_not_its_box() -> None:
    # COCO's area is that of the segment: a 100 x 100 box of a thin object is small.
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 100, 100]], "labels": [0], "areas": [900.0]})
    metrics = evaluate_detections(annotations, [found([0, 0, 100, 100], 0.9)])

    assert metrics.stats[3:6] == pytest.approx((1, -1, -1))


def test_results_on_images_outside_of_the_annotations_are_left_out() -> None:
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 10, 10]], "labels": [0]})
    results = [found([0, 0, 10, 10], 0.5), found([50, 50, 80, 80], 0.9, image_id=2)]

    assert evaluate_detections(annotations, results).map_mean == pytest.approx(1)


def test_a_false_alarm_on_an_image_without_boxes_counts() -> None:
    annotations = annotations_of(
        {"boxes_xyxy": [[0, 0, 10, 10]], "labels": [0]}, {"boxes_xyxy": [], "labels": []}
    )
    results = [found([0, 0, 10, 10], 0.5), found([50, 50, 80, 80], 0.9, image_id=2)]

    assert evaluate_detections(annotations, results).map_50 == pytest.approx(0.5)


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 7))], ids=["list", "array"])
def test_without_any_detection_the_numbers_are_zero(nothing: Any) -> None:
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 10, 10]], "labels": [0]})
    metrics = evaluate_detections(annotations, nothing)

    assert metrics.stats == (0, 0, 0, 0, -1, -1, 0, 0, 0, 0, -1, -1)
    assert metrics.per_class_ap == {"cat": 0.0, "dog": -1.0}


def test_without_any_box_the_numbers_are_minus_one() -> None:
    annotations = annotations_of({"boxes_xyxy": [], "labels": []})
    metrics = evaluate_detections(annotations, [found([0, 0, 10, 10], 0.5)])

    assert metrics.stats == (-1.0,) * 12
    assert metrics.summary().splitlines()[0].endswith("maxDets=100 ] = -1.000")


def test_summary_is_the_readme_of_the_seed_word_for_word() -> None:
    stats = (0.336, 0.516, 0.355, 0.180, 0.371, 0.443, 0.280, 0.429, 0.450, 0.253, 0.498, 0.575)
    lines = CocoMetrics(stats, {}).summary().splitlines()

    assert len(lines) == 12
    assert lines[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.336"
    assert lines[1] == " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.516"
    assert lines[6] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.280"
    assert lines[11] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.575"


def test_best_threshold_shows_the_right_ones_and_hides_the_wrong_ones() -> None:
    # Right at 0.9 and 0.6, wrong at 0.4, and one that nobody finds. F1 = 2 TP / (shown + 3 objects):
    # down to 0.9: 2/4, to 0.6: 4/5, to 0.4: 4/6. So the threshold lies midway between 0.6 and 0.4.
    annotations = annotations_of(
        {"boxes_xyxy": [[0, 0, 10, 10], [50, 50, 90, 90], [200, 200, 250, 250]], "labels": [0, 1, 1]}
    )
    results = [
        found([300, 300, 320, 320], 0.4),
        found([50, 50, 90, 90], 0.6, label=1),
        found([0, 0, 10, 10], 0.9),
    ]

    assert measure(annotations, results)[1] == pytest.approx(0.5)


def test_best_threshold_may_be_the_lowest_score() -> None:
    best = best_f1(np.array([0.8, 0.9, 0.85]), np.array([True, True, False]), num_objects=4)
    assert best is not None
    assert best.threshold == 0.8  # 2 of 3 shown are right: F1 = 4 / 7; from 0.9 on only 2 / 5
    assert (best.f1, best.precision, best.recall) == pytest.approx((4 / 7, 2 / 3, 2 / 4))


def test_the_twelve_numbers_have_names_and_nothing_to_find_is_none() -> None:
    numbers = named_numbers([0.5, 0.75, 0.625, -1.0, 0.0, 1.0, 0.25, 0.375, 0.5, -1.0, 0.125, 0.875])
    assert list(numbers.items()) == [
        ("map_mean", 0.5),
        ("map_50", 0.75),
        ("map_75", 0.625),
        ("map_small", None),
        ("map_medium", 0.0),
        ("map_large", 1.0),
        ("recall_1", 0.25),
        ("recall_10", 0.375),
        ("recall_100", 0.5),
        ("recall_small", None),
        ("recall_medium", 0.125),
        ("recall_large", 0.875),
    ]
    for say in (named_numbers, summary_of):
        with pytest.raises(ValueError, match="shorter"):
            say([0.5])


def test_results_of_unknown_categories_change_nothing() -> None:
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 10, 10], [50, 50, 90, 90]], "labels": [0, 1]})
    results = [found([0, 0, 10, 10], 0.8), found([50, 50, 90, 80], 0.6, label=1)]
    for unknown in (1, 5, 99):  # below, between and above 3 and 7
        others = [{**found([0, 0, 10, 10], 0.9), "category_id": unknown}]
        assert measure(annotations, results + others) == measure(annotations, results)


def test_best_threshold_does_not_part_equal_scores() -> None:
    # Of three detections at 0.6 one is right; alone it would be perfect, but no threshold shows it alone.
    # Down to 0.8: 2 * 1 / (1 + 2) = 0.67; to 0.6: 2 * 2 / (4 + 2) = 0.67; to 0.8 comes first and hides more.
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 10, 10], [50, 50, 90, 90]], "labels": [0, 0]})
    results = [
        found([0, 0, 10, 10], 0.8),
        found([50, 50, 90, 90], 0.6),
        found([300, 0, 310, 10], 0.6),
        found([400, 0, 410, 10], 0.6),
    ]

    assert measure(annotations, results)[1] == pytest.approx(0.7)


def test_best_threshold_ignores_difficult_boxes_and_crowds() -> None:
    annotations = annotations_of(
        {
            "boxes_xyxy": [[0, 0, 10, 10], [50, 50, 90, 90], [100, 100, 200, 200]],
            "labels": [0, 0, 0],
            "is_difficult": [False, True, False],
            "is_crowd": [False, False, True],
        }
    )
    ignored = [found([50, 50, 90, 90], 0.9), found([110, 110, 120, 120], 0.8)]
    counted = [found([0, 0, 10, 10], 0.6), found([300, 0, 310, 10], 0.2)]

    assert measure(annotations, ignored + counted)[1] == pytest.approx(0.4)


@pytest.mark.parametrize("results", [[], [found([300, 300, 320, 320], 0.4)]], ids=["nothing", "all wrong"])
def test_best_threshold_where_nothing_is_right_is_a_usable_value(results: list[dict[str, Any]]) -> None:
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 10, 10]], "labels": [0]})

    assert 0 < measure(annotations, results)[1] < 1


def test_five_thousand_images_with_a_hundred_detections_each_take_seconds_not_minutes() -> None:
    rng = np.random.default_rng(0)
    num_images, num_boxes = 4952, 36334
    counts = np.bincount(rng.integers(0, num_images, num_boxes), minlength=num_images)
    corner = rng.uniform(0, 300, (num_boxes, 2))
    annotations = Annotations(
        class_names=tuple(f"class {label}" for label in range(80)),
        category_ids=tuple(range(1, 81)),
        source=Path("x"),
        format="coco",
        boxes_xyxy=np.concatenate([corner, corner + rng.uniform(5, 200, (num_boxes, 2))], axis=1),
        labels=rng.integers(0, 80, num_boxes),
        is_crowd=np.zeros(num_boxes, bool),
        is_difficult=np.zeros(num_boxes, bool),
        areas=rng.uniform(100, 40000, num_boxes),
        first_box=np.concatenate([[0], np.cumsum(counts)]),
        image_ids=np.arange(1, num_images + 1),
        sizes_hw=np.full((num_images, 2), 640, np.int32),
        _paths=np.zeros(num_images, "S1"),
        _wheres=np.zeros(num_images, "S1"),
    )
    num_results = num_images * 100
    results = np.concatenate(
        [
            np.repeat(annotations.image_ids, 100)[:, None],
            rng.uniform(0, 300, (num_results, 4)),
            rng.random((num_results, 1)),
            rng.integers(1, 81, (num_results, 1)),
        ],
        axis=1,
    )
    started_at = time.perf_counter()
    metrics = evaluate_detections(annotations, results)
    elapsed_s = time.perf_counter() - started_at

    assert 0 <= metrics.map_mean < 0.1
    assert elapsed_s < 15  # about 1 s when nothing else runs; pycocotools takes 70


@pytest.mark.parametrize("base", [0, 2**53, 2**63 - 12])
def test_ids_of_64_bits_give_the_same_numbers(base: int) -> None:
    pairs = [([0, 0, 10, 10], 3), ([50, 50, 90, 90], 2), ([5, 5, 40, 40], 1)]
    records = [
        Record.make(Path("x.jpg"), [box], [label], base + id_, size_hw=(100, 100), is_difficult=[id_ == 1])
        for label, (box, id_) in enumerate(pairs)
    ]
    annotations = Annotations.from_records(
        records,
        ["a", "b", "c"],
        category_ids=[base + 7, base + 11, base + 8],
        source=Path("x"),
        format="coco",
    )
    results = [
        {"image_id": base + 3, "category_id": base + 7, "bbox": [0, 0, 10, 10], "score": 0.9},
        {"image_id": base + 2, "category_id": base + 7, "bbox": [0, 0, 10, 10], "score": 0.8},
        {"image_id": base + 2, "category_id": base + 11, "bbox": [50, 50, 40, 40], "score": 0.7},
        {"image_id": base + 1, "category_id": base + 8, "bbox": [5, 5, 35, 35], "score": 0.6},
        {"image_id": base + 4, "category_id": base + 7, "bbox": [0, 0, 10, 10], "score": 0.6},
        {"image_id": base + 3, "category_id": base + 9, "bbox": [0, 0, 10, 10], "score": 0.5},
    ]

    metrics = evaluate_detections(annotations, results)

    assert metrics.per_class_ap == {"a": pytest.approx(1), "b": pytest.approx(1), "c": -1}
    assert json.loads(results_json(rows_of(results))) == results


def test_one_matching_gives_numbers_and_threshold() -> None:
    annotations = annotations_of({"boxes_xyxy": [[0, 0, 10, 10], [50, 50, 90, 90]], "labels": [0, 1]})
    results = [found([0, 0, 10, 10], 0.8), found([50, 50, 90, 80], 0.6, label=1), found([9, 9, 30, 30], 0.5)]

    measured, threshold = measure(annotations, results)

    assert measured == evaluate_detections(annotations, results)
    assert threshold == pytest.approx(0.55)
