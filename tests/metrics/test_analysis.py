"""Beyond the twelve numbers: worked out by hand, and the intervals against drawing images one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record, select
from fcos.metrics.analysis import MAX_RESAMPLES, MIN_RESAMPLES, Analysis, analyze, margins_of, resamples_for
from fcos.metrics.coco import evaluate_detections, measure
from fcos.metrics.rows import rows_of

CAT, DOG = 0, 1
A, B, C = [0.0, 0.0, 100.0, 100.0], [200.0, 0.0, 300.0, 100.0], [400.0, 0.0, 500.0, 100.0]


def annotations_of(*images: tuple[list[list[float]], list[int]]) -> Annotations:
    records = [
        Record.make(Path(f"{number}.jpg"), boxes, labels, number, size_hw=(480, 640))
        for number, (boxes, labels) in enumerate(images, start=1)
    ]
    return Annotations.from_records(
        records, ("cat", "dog"), category_ids=(7, 3), source=Path("x"), format="coco"
    )


def found(image_id: int, box_xyxy: list[float], score: float, label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box_xyxy
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": (7, 3)[label], "bbox": bbox, "score": score}


@pytest.fixture
def two_images() -> tuple[Annotations, list[dict[str, Any]]]:
    """A cat found, a dog taken for a cat, a cat found too timidly, and three things where nothing is."""
    annotations = annotations_of(([A, B], [CAT, DOG]), ([A], [CAT]))
    results = [
        found(1, A, 0.9, CAT),
        found(1, B, 0.8, CAT),
        found(1, C, 0.7, DOG),
        found(2, B, 0.6, DOG),
        found(2, C, 0.5, CAT),
        found(2, A, 0.1, CAT),
    ]
    return annotations, results


def test_the_numbers_are_those_of_the_evaluation(
    two_images: tuple[Annotations, list[dict[str, Any]]],
) -> None:
    analysis = analyze(*two_images)
    assert analysis.metrics == evaluate_detections(*two_images)
    assert analysis.threshold == measure(*two_images)[1]
    by_class = {row.name: row.ap for row in analysis.classes}
    assert by_class == pytest.approx(analysis.metrics.per_class_ap)


def test_every_detection_and_object_has_its_fate(
    two_images: tuple[Annotations, list[dict[str, Any]]],
) -> None:
    analysis = analyze(*two_images)
    assert analysis.is_right.tolist() == [1, 0, 0, 0, 0, 1]
    assert analysis.found_with.tolist() == [0.9, -1, 0.1]
    assert 0.8 < analysis.threshold < 0.9  # only the first: F1 is 2 / (1 + 3)
    assert analysis.shown.missed.tolist() == [False, True, True]
    assert analysis.shown.num_right.tolist() == [1, 0]
    assert analysis.shown.num_missed.tolist() == [1, 1]
    assert analysis.shown.f1().tolist() == pytest.approx([2 / 3, 0])


def test_an_image_without_objects_and_detections_is_perfect() -> None:
    analysis = analyze(annotations_of(([A], [CAT]), ([], [])), [found(1, A, 0.9, CAT)])
    assert analysis.shown.f1().tolist() == [1, 1]


def test_each_class_has_its_own_threshold() -> None:
    annotations = annotations_of(([A, B], [CAT, DOG]))
    results = [found(1, A, 0.9, CAT), found(1, C, 0.6, CAT), found(1, B, 0.3, DOG), found(1, C, 0.2, DOG)]
    cat, dog = analyze(annotations, results).classes
    assert cat.best is not None
    assert dog.best is not None
    assert (cat.best.threshold, dog.best.threshold) == pytest.approx((0.75, 0.25))
    assert (cat.best.precision, cat.best.recall, cat.best.f1) == (1, 1, 1)


def test_what_cannot_be_measured_has_no_number() -> None:
    annotations, results = annotations_of(([A], [CAT])), [found(1, A, 0.9, CAT)]
    analysis = analyze(annotations, results)
    dog = analysis.classes[DOG]
    assert (dog.ap, dog.best, dog.calibration_error, dog.num_boxes) == (None, None, None, 0)
    assert analysis.classes[CAT].by_size[:2] == (None, None)
    assert analysis.classes[CAT].by_size[2] == pytest.approx(1)
    assert margins_of(annotations, results) == [None] * 12  # one image


def test_confident_detections_that_the_annotations_contradict_are_told() -> None:
    annotations = annotations_of(([A, B], [CAT, DOG]))
    results = [found(1, A, 0.95, CAT), found(1, B, 0.9, CAT), found(1, C, 0.85, DOG), found(1, C, 0.1, CAT)]
    analysis = analysed_with_more(annotations, results)
    errors = [(error.found, error.there, round(error.score, 2)) for error in analysis.shown.disagreements]
    assert errors == [("cat", "dog", 0.9), ("dog", None, 0.85)]
    assert analysis.shown.disagreements[1].box_xyxy.tolist() == C


def test_disagreements_of_a_class_that_is_right_elsewhere_come_first() -> None:
    annotations = annotations_of(*[([A, B], [CAT, DOG])] * 5)
    results = [
        found(1, C, 0.97, CAT),  # of the cats that are as sure, one elsewhere is right and two are wrong
        found(1, A, 0.96, CAT),  # in the same image: it says nothing
        *(found(2, A, 0.98, CAT), found(3, C, 0.99, CAT), found(4, C, 0.99, CAT)),
        found(5, C, 0.9, DOG),  # three of three dogs elsewhere
        *(found(image_id, B, 0.95, DOG) for image_id in (1, 2, 3)),
        *(found(image_id, A, 0.8, CAT) for image_id in (3, 4, 5)),
        *(found(image_id, B, 0.8, DOG) for image_id in (4, 5)),
    ]
    ranked = [
        (one.found, round(one.score, 2), one.num_right, one.num_elsewhere, one.trust)
        for one in analyze(annotations, results).shown.disagreements
    ]
    assert ranked == [
        ("dog", 0.9, 3, 3, 3 / 4),
        ("cat", 0.97, 1, 3, 1 / 4),
        ("cat", 0.99, 0, 1, 0),  # each of the two knows of the other alone
        ("cat", 0.99, 0, 1, 0),
    ]


def test_boxes_are_counted_by_size_as_coco_measures_them() -> None:
    sides = (31, 32, 33, 96, 97)  # 32 and 96 are on a limit: AP of both sizes counts them
    boxes = [[100.0 * place, 0.0, 100.0 * place + side, float(side)] for place, side in enumerate(sides)]
    analysis = analyze(annotations_of((boxes, [CAT] * 5)), [found(1, boxes[0], 0.9, CAT)])
    assert [row.boxes_by_size for row in analysis.classes] == [(2, 3, 2), (0, 0, 0)]
    alone = [
        analyze(annotations_of(([box], [CAT])), [found(1, box, 0.9, CAT)]).classes[CAT].by_size
        for box in boxes
    ]
    assert [[ap is not None for ap in by_size] for by_size in alone] == [
        *([True, False, False], [True, True, False], [False, True, False]),
        *([False, True, True], [False, False, True]),
    ]


def analysed_with_more(annotations: Annotations, results: list[dict[str, Any]]) -> Analysis:
    """With objects in a second image, found with a low score, so that the threshold lies at 0.5 or so."""
    records = [*annotations, *(annotations[0],) * 3]
    records = [replace(record, image_id=number) for number, record in enumerate(records, start=1)]
    more = Annotations.from_records(
        records, ("cat", "dog"), category_ids=(7, 3), source=Path("x"), format="coco"
    )
    extra = [
        entry
        for image_id in (2, 3, 4)
        for entry in (found(image_id, A, 0.5, CAT), found(image_id, B, 0.5, DOG))
    ]
    return analyze(more, [*results, *extra])


def test_costs_of_errors_are_tides() -> None:
    annotations = annotations_of(([A], [CAT]), ([A], [CAT]))
    # a detection of nothing that is surer than the right ones: without it AP would be 1
    analysis = analyze(annotations, [found(1, C, 0.9, CAT), found(1, A, 0.8, CAT), found(2, A, 0.7, CAT)])
    assert analysis.error_costs["Bkg"] == pytest.approx(1 - analysis.metrics.map_50)
    assert [analysis.error_costs[kind] for kind in ("Cls", "Miss")] == pytest.approx([0, 0])


def noisy(seed: int, num_images: int) -> tuple[Annotations, NDArray[np.float64]]:
    """Images of one to four cats of which some are found, with false alarms."""
    rng = np.random.default_rng(seed)
    images, rows = [], []
    for image_id in range(1, num_images + 1):
        count = rng.integers(1, 5)
        boxes = [[110.0 * place, 0.0, 110.0 * place + 100, 100.0] for place in range(count)]
        images.append((boxes, [CAT] * count))
        for x1, y1, _, _ in boxes:
            if rng.random() < 0.7:
                rows.append([image_id, x1 + rng.normal(0, 8), y1, 100, 100, rng.random(), 7])
        rows.append([image_id, 0, 300, 100, 100, rng.random() * 0.8, 7])
    return annotations_of(*images), rows_of(np.array(rows))


def test_margins_are_those_of_drawing_images_one_by_one() -> None:
    annotations, rows = noisy(0, 40)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(120):
        drawn = rng.integers(0, 40, 40)
        ids = np.arange(1, 41)
        sample = replace(select(annotations, drawn.tolist()), image_ids=ids)
        parts = []
        for image_id, image in zip(ids, drawn, strict=True):
            part = rows[rows["image_id"] == image + 1].copy()
            part["image_id"] = image_id
            parts.append(part)
        values.append(evaluate_detections(sample, np.concatenate(parts)).map_mean)
    margins = margins_of(annotations, rows)
    assert margins[0] == pytest.approx(1.96 * np.std(values), rel=0.25)
    assert margins[3] is None  # there are no small objects


def test_large_evaluations_are_resampled_less_often() -> None:
    assert resamples_for(0) == resamples_for(8_000) == MAX_RESAMPLES
    assert MIN_RESAMPLES < resamples_for(200_000) < MAX_RESAMPLES
    assert resamples_for(10_000_000) == MIN_RESAMPLES


def test_nothing_found_can_be_analyzed() -> None:
    analysis = analyze(annotations_of(([A], [CAT]), ([], [])), [])
    assert analysis.best is None
    assert analysis.shown.missed.tolist() == [True]
    assert analysis.shown.f1().tolist() == [0, 1]


def test_nothing_to_find_can_be_analyzed() -> None:
    analysis = analyze(annotations_of(([], [])), [found(1, A, 0.9, CAT)])
    assert analysis.metrics.map_mean == -1
    assert analysis.shown.num_wrong.tolist() == [1]


@pytest.mark.parametrize("kind", ["is_crowd", "is_difficult"])
def test_objects_that_nobody_has_to_find_are_neither_missed_nor_found(kind: str) -> None:
    annotations = annotations_of(([A, B], [CAT, CAT]))
    annotations = replace(annotations, **{kind: np.array([False, True])})
    analysis = analyze(annotations, [found(1, A, 0.9, CAT), found(1, B, 0.8, CAT), found(1, B, 0.7, CAT)])
    assert analysis.shown.missed.tolist() == [False, False]
    assert (analysis.shown.num_right[0], analysis.shown.num_wrong[0]) == (1, 0)
    assert analysis.is_right.tolist() == [1, -1, -1]
    assert analyze(annotations, [found(1, A, 0.9, CAT)]).shown.missed.tolist() == [False, False]
