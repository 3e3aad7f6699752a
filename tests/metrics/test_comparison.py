"""Two detectors on the same images: equal ones, better ones, and differences by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.metrics.analysis import analyze
from fcos.metrics.comparison import compare_results

NUM_IMAGES = 40


@pytest.fixture
def annotations() -> Annotations:
    """Three cats in each image."""
    boxes = [[110.0 * place, 0.0, 110.0 * place + 100, 100.0] for place in range(3)]
    records = [
        Record.make(Path(f"{number}.jpg"), boxes, [0] * 3, number, size_hw=(480, 640))
        for number in range(1, NUM_IMAGES + 1)
    ]
    return Annotations.from_records(records, ("cat", "dog"), source=Path("x"), format="list")


def finds(annotations: Annotations, share: float, seed: int) -> NDArray[np.float64]:
    """Results that find about this share of the cats."""
    rng = np.random.default_rng(seed)
    rows = [
        [record.image_id, x1, 0, 100, 100, rng.uniform(0.5, 1), 1]
        for record in annotations
        for x1, *_ in record.boxes_xyxy.tolist()
        if rng.random() < share
    ]
    return np.array(rows)


def test_equal_detectors_do_not_differ(annotations: Annotations) -> None:
    analysis = analyze(annotations, finds(annotations, 0.8, 0))
    compared = compare_results(annotations, analysis, analysis)
    assert compared.deltas[0].change == compared.deltas[0].margin == 0
    assert not any(delta.is_significant for delta in compared.deltas)
    assert not compared.f1_change.any()


def test_a_better_detector_is_better_by_more_than_chance(annotations: Annotations) -> None:
    worse, better = (analyze(annotations, finds(annotations, share, 0)) for share in (0.5, 0.9))
    compared = compare_results(annotations, worse, better)
    ap = compared.deltas[0]
    assert ap.change is not None
    assert ap.change == pytest.approx(better.metrics.map_mean - worse.metrics.map_mean)
    assert ap.is_significant
    assert ap.change > 0.2
    assert compared.f1_change.mean() > 0.1
    assert not compare_results(annotations, better, worse).deltas[0].change > 0  # the other way round


def test_detectors_that_differ_by_luck_do_not_differ_by_more_than_chance(annotations: Annotations) -> None:
    one, other = (analyze(annotations, finds(annotations, 0.7, seed)) for seed in (1, 2))
    ap = compare_results(annotations, one, other).deltas[0]
    assert ap.change
    assert ap.margin is not None
    assert ap.margin > 0.01
    assert not ap.is_significant


def test_what_is_not_there_has_no_difference(annotations: Annotations) -> None:
    analysis = analyze(annotations, finds(annotations, 0.8, 0))
    compared = compare_results(annotations, analysis, analysis)
    small = compared.deltas[3]
    assert (small.first, small.change, small.margin, small.is_significant) == (None, None, None, False)
    assert [row.name for row in compared.classes if row.change is None] == ["dog"]
