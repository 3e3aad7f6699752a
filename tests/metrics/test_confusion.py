"""Pairs of objects and detections: by hand, and the counts of hotcoco's confusion matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record, select
from fcos.data.formats import read_annotations, read_names
from fcos.metrics.coco import match
from fcos.metrics.confusion import box_overlap, pair_up
from fcos.metrics.rows import Rows, rows_by_image, rows_of

CAT, DOG, BACKGROUND = 0, 1, 2


def annotations_of(*images: tuple[list[list[float]], list[int]]) -> Annotations:
    records = [
        Record.make(Path(f"{number}.jpg"), boxes, labels, number, size_hw=(480, 640))
        for number, (boxes, labels) in enumerate(images, start=1)
    ]
    return Annotations.from_records(
        records, ("cat", "dog"), category_ids=(3, 7), source=Path("x"), format="coco"
    )


def row(image_id: int, box_xyxy: list[float], score: float, label: int) -> list[float]:
    x1, y1, x2, y2 = box_xyxy
    return [image_id, x1, y1, x2 - x1, y2 - y1, score, (3, 7)[label]]


A, B, C = [0.0, 0.0, 100.0, 100.0], [200.0, 0.0, 300.0, 100.0], [400.0, 0.0, 500.0, 100.0]


def rows_from(rows: list[list[float]]) -> Rows:
    return rows_of(np.array(rows))


def everything(rows: Rows) -> NDArray[np.bool_]:
    return np.ones(len(rows), bool)


def test_each_cell_counts_what_it_says() -> None:
    annotations = annotations_of(([A, B], [CAT, DOG]), ([A], [CAT]))
    rows = rows_from(
        [
            row(1, A, 0.9, CAT),  # right
            row(1, B, 0.8, CAT),  # a dog taken for a cat
            row(1, C, 0.7, DOG),  # there is nothing
        ]
    )
    pairs = pair_up(annotations, rows, everything(rows))
    np.testing.assert_array_equal(pairs.matrix(), [[1, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert pairs.images_of(CAT, BACKGROUND) == [1]
    assert pairs.images_of(DOG, CAT) == pairs.images_of(BACKGROUND, DOG) == [0]


def test_the_better_score_takes_the_object_whatever_its_class() -> None:
    annotations = annotations_of(([A], [CAT]))
    rows = rows_from([row(1, A, 0.5, CAT), row(1, A, 0.9, DOG)])
    matrix = pair_up(annotations, rows, everything(rows)).matrix()
    np.testing.assert_array_equal(matrix, [[0, 1, 0], [0, 0, 0], [1, 0, 0]])


def test_images_with_most_of_a_cell_come_first() -> None:
    annotations = annotations_of(([A], [CAT]), ([A, B], [CAT, CAT]))
    pairs = pair_up(annotations, rows_of([]), np.zeros(0, bool))
    assert pairs.images_of(CAT, BACKGROUND) == [1, 0]


def test_what_the_evaluation_ignores_is_in_no_cell() -> None:
    annotations = annotations_of(([A, B, C], [CAT, CAT, DOG]))
    annotations = replace(
        annotations, is_crowd=np.array([True, False, False]), is_difficult=np.array([False, True, False])
    )
    rows = rows_from([row(1, A, 0.9, CAT), row(1, C, 0.8, DOG)])
    matrix = pair_up(annotations, rows, np.array([False, True])).matrix()
    np.testing.assert_array_equal(matrix, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_counts_are_those_of_hotcoco_on_real_annotations(shared: Path) -> None:
    lists = shared / "data" / "lists"
    names = read_names(lists / "voc_name.txt")[0]
    annotations = select(
        read_annotations(lists / "voc_test.txt", names=names, format="list"), list(range(300))
    )
    rng = np.random.default_rng(0)
    image_ids = np.repeat(annotations.image_ids, np.diff(annotations.first_box))
    sides = annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]
    parts = []
    for _ in range(3):
        corner = annotations.boxes_xyxy[:, :2] + rng.normal(0, 0.15, sides.shape) * sides
        labels = np.where(
            rng.random(len(sides)) < 0.3, rng.integers(0, len(names), len(sides)), annotations.labels
        )
        scores = rng.random(len(sides))
        parts.append(np.column_stack([image_ids, corner, sides, scores, labels + 1]))
    rows = rows_of(np.concatenate(parts))
    wanted = match(annotations, rows).confusion_matrix(iou_thr=0.5)["matrix"]
    matrix = pair_up(annotations, rows, everything(rows)).matrix()
    assert 100 < np.trace(matrix) < 0.8 * matrix.sum()
    np.testing.assert_array_equal(matrix, wanted.astype(np.int64))


def test_rows_of_an_image_are_best_first() -> None:
    annotations = annotations_of(([A], [CAT]), ([A], [CAT]), ([], []))
    rows = rows_from([row(2, A, 0.2, CAT), row(1, A, 0.5, CAT), row(2, A, 0.9, CAT)])
    assert [found.tolist() for found in rows_by_image(annotations, rows)] == [[1], [2, 0], []]


def test_overlap_of_boxes() -> None:
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    others = np.array([[5.0, 0.0, 15.0, 10.0], [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    np.testing.assert_allclose(box_overlap(boxes, others), [[1 / 3, 1, 0], [0, 0, 0]])
