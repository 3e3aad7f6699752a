"""hotcoco's costs of errors against TIDE's definitions (2008.08115), one detection at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.metrics.analysis import TIDE_ERRORS, analyze
from fcos.metrics.confusion import box_overlap
from fcos.metrics.rows import Rows, rows_of, xyxy_of

NUM_CLASSES, NUM_IMAGES = 3, 30
BACKGROUND_IOU, MATCH_IOU = 0.1, 0.5
NONE = -1


@pytest.fixture(scope="module")
def made() -> tuple[Annotations, NDArray[np.float64]]:
    """Images with objects that are found well, badly, twice, as another class, or not at all."""
    rng = np.random.default_rng(3)
    records, rows = [], []
    for image_id in range(1, NUM_IMAGES + 1):
        count = int(rng.integers(1, 6))
        low = np.stack([120.0 * np.arange(count), rng.uniform(0, 200, count)], axis=1)
        boxes = np.concatenate([low, low + rng.uniform(60, 110, (count, 2))], axis=1)
        labels = rng.integers(0, NUM_CLASSES, count)
        records.append(Record.make(Path(f"{image_id}.jpg"), boxes, labels, image_id, size_hw=(480, 640)))
        for box, label in zip(boxes, labels.tolist(), strict=True):
            for _ in range(rng.choice([0, 1, 1, 2])):
                found = label if rng.random() < 0.8 else int(rng.integers(0, NUM_CLASSES))
                x, y = box[:2] + rng.normal(0, rng.choice([4, 30]), 2)
                rows.append([image_id, x, y, *(box[2:] - box[:2]), rng.random(), found + 1])
        rows.append([image_id, 500, 380, 80, 80, 0.7 * rng.random(), rng.integers(1, NUM_CLASSES + 1)])
    names = ("cat", "dog", "bird")
    array = np.array(rows)
    annotations = Annotations.from_records(records, names, source=Path("x"), format="list")
    return annotations, rows_of(array[np.argsort(-array[:, 5], kind="stable")])


def average_precision(scores: NDArray[np.float64], is_right: NDArray[np.bool_], num_objects: int) -> float:
    """At 101 recalls, as COCO has it."""
    is_right = is_right[np.argsort(-scores, kind="stable")]
    right, wrong = is_right.cumsum(), (~is_right).cumsum()
    recall, precision = right / num_objects, right / (right + wrong)
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(np.append(best_after, 0)[place].mean())


def slow_costs(annotations: Annotations, rows: Rows) -> dict[str, float]:
    """What AP at IoU 0.5 gains when each kind of error alone is mended."""
    labels, scores = rows["category_id"] - 1, rows["score"]
    image_of_box = np.repeat(np.arange(len(annotations)) + 1, np.diff(annotations.first_box))
    is_right, is_found = np.zeros(len(rows), bool), np.zeros(len(image_of_box), bool)
    kinds, meant = np.full(len(rows), "right"), np.full(len(rows), NONE)
    overlaps = box_overlap(xyxy_of(rows), annotations.boxes_xyxy)
    overlaps[rows["image_id"][:, None] != image_of_box[None]] = 0
    same = labels[:, None] == annotations.labels[None]
    for row in range(len(rows)):
        free = np.where(same[row] & ~is_found, overlaps[row], 0)
        if free.max() >= MATCH_IOU:
            is_right[row] = is_found[free.argmax()] = True
    for row in np.flatnonzero(~is_right):
        of_class, of_others = (np.where(mask, overlaps[row], 0) for mask in (same[row], ~same[row]))
        if BACKGROUND_IOU <= of_class.max() < MATCH_IOU:
            kinds[row], meant[row] = "Loc", of_class.argmax()
        elif of_others.max() >= MATCH_IOU:
            kinds[row], meant[row] = "Cls", of_others.argmax()
        elif of_class.max() >= MATCH_IOU:
            kinds[row] = "Dupe"
        else:
            kinds[row] = "Bkg" if overlaps[row].max() <= BACKGROUND_IOU else "Both"
    counts = np.bincount(annotations.labels, minlength=NUM_CLASSES)

    def mean_ap(
        kept: NDArray[np.bool_], right: NDArray[np.bool_], of: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> float:
        chosen = [kept & (of == label) for label in range(NUM_CLASSES)]
        return float(
            np.mean([average_precision(scores[c], right[c], n) for c, n in zip(chosen, counts, strict=True)])
        )

    def mended(kind: str) -> float:
        kept, right, of, left = np.ones(len(rows), bool), is_right.copy(), labels.copy(), counts.copy()
        if kind == "Miss":  # objects that no mended detection would find are no longer asked for
            others = ~is_found & ~np.isin(np.arange(len(is_found)), meant)
            left -= np.bincount(annotations.labels[others], minlength=NUM_CLASSES)
        elif kind in (
            "Loc",
            "Cls",
        ):  # made right, or left out where the object is found already
            taken = is_found.copy()
            for row in np.flatnonzero(meant != NONE):
                box = meant[row]
                if kinds[row] == kind:
                    kept[row], right[row], of[row] = not taken[box], True, annotations.labels[box]
                taken[box] = True
        else:
            kept = kinds != kind
        return mean_ap(kept, right, of, left)

    nothing = mean_ap(np.ones(len(rows), bool), is_right, labels, counts)
    assert {"Loc", "Cls", "Both", "Dupe", "Bkg"} <= set(kinds.tolist())
    return {kind: mended(kind) - nothing for kind in TIDE_ERRORS}


def test_costs_of_errors_are_those_of_a_slow_version(made: tuple[Annotations, NDArray[np.float64]]) -> None:
    costs = analyze(*made).error_costs
    assert costs == pytest.approx(slow_costs(*made), abs=1e-9)
    assert min(costs[kind] for kind in ("Loc", "Cls", "Bkg", "Miss")) > 0.001
