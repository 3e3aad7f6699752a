"""AP against latency: measured in turn, marked, plotted."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fcos.data.annotations import Annotations, Record
from fcos.errors import WeightsError
from fcos.metrics.coco import CocoMetrics
from fcos.predict.detections import Detections
from fcos.report import tradeoff
from fcos.report.tradeoff import Candidate, Measured, marked, measure_candidates, plot


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    """Two images with a cat at 10, 10, 50, 50, and a dog beside it."""
    records = []
    for number in (1, 2):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (100, 60), (number, 0, 0)).save(path)
        boxes = [[10, 10, 50, 50], [60, 10, 90, 50]]
        records.append(Record.make(path, boxes, [0, 1], number, size_hw=(60, 100)))
    return Annotations.from_records(records, ("cat", "dog"), source=tmp_path, format="coco")


def candidate(
    name: str, boxes: list[list[float]], labels: list[int], classes: tuple[str, ...], sleep_s: float = 0
) -> Candidate:
    def predict(image: Tensor) -> Detections:
        time.sleep(sleep_s)
        count = len(boxes)
        scores = torch.linspace(0.9, 0.5, count)
        return Detections(torch.tensor(boxes), scores, torch.tensor(labels), classes)

    return Candidate(name, predict, classes, num_bytes=1000)


def test_ap_is_that_of_the_classes_by_name_and_the_fastest_is_first(annotations: Annotations) -> None:
    cat, dog, nothing = [10.0, 10, 50, 50], [60.0, 10, 90, 50], [0.0, 0, 5, 5]
    right = candidate("right", [dog, cat, nothing], [0, 2, 1], ("dog", "cow", "cat"), sleep_s=0.05)
    cats = candidate("cats", [cat], [0], ("cat",))
    done: list[int] = []

    rows = measure_candidates([right, cats], annotations, done.append)

    assert [row.candidate.name for row in rows] == ["cats", "right"]
    assert [row.metrics.map_mean for row in rows] == pytest.approx([0.5, 1.0])
    assert [row.unknown for row in rows] == [("dog",), ()]
    assert rows[1].latency_ms >= 50 > rows[0].latency_ms
    assert [row.is_best for row in rows] == [True, True]
    assert done == [2]


def test_models_take_turns_of_a_few_images_after_one_that_is_not_timed(
    annotations: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def named(name: str) -> Candidate:
        def predict(image: Tensor) -> Detections:
            seen.append((name, int(image[0, 0, 0])))
            return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ("cat",))

        return Candidate(name, predict, ("cat",), 0)

    measure_candidates([named("a"), named("b")], annotations)
    assert seen == [("a", 1), ("a", 1), ("a", 2), ("b", 1), ("b", 1), ("b", 2)]

    monkeypatch.setattr(tradeoff, "IMAGES_OF_A_TURN", 1)
    seen.clear()
    measure_candidates([named("a"), named("b")], annotations)
    assert seen == [(name, image) for image in (1, 2) for name in "aabb"]


def test_inclusive_boxes_are_a_pixel_larger(annotations: Annotations) -> None:
    shifted = candidate("a", [[10.0, 10, 49, 49], [60.0, 10, 89, 49]], [0, 1], ("cat", "dog"))
    inclusive = Candidate("b", shifted.predict, shifted.class_names, 0, inclusive_boxes=True)

    aps = {
        row.candidate.name: row.metrics.map_mean
        for row in measure_candidates([shifted, inclusive], annotations)
    }
    assert aps["b"] == pytest.approx(1)
    assert aps["a"] == pytest.approx(0.95)  # IoU of the cat 39 * 39 / 1600 = 0.951, of the dog 0.9425


def test_a_model_without_a_class_of_the_data_is_an_error(annotations: Annotations) -> None:
    with pytest.raises(WeightsError, match=r"a has none of the classes of the data\n  in: .*\n  fix: .*cow"):
        measure_candidates([candidate("a", [], [], ("cow",))], annotations)


def measured(name: str, ap: float, latency_ms: float) -> Measured:
    metrics = CocoMetrics((ap, *[0.0] * 11), {})
    return Measured(candidate(name, [], [], ("cat",)), metrics, latency_ms, ())


def test_marked_are_those_that_no_faster_one_reaches() -> None:
    rows = marked(
        [
            measured("d", 0.6, 40.0),
            measured("a", 0.3, 10.0),
            measured("b", 0.5, 20.0),
            measured("c", 0.5, 30.0),
        ]
    )

    assert [row.candidate.name for row in rows] == ["a", "b", "c", "d"]
    assert [row.is_best for row in rows] == [True, True, False, True]
    tied = marked([measured("a", 0.3, 10.0), measured("b", 0.4, 10.0)])
    assert [(row.candidate.name, row.is_best) for row in tied] == [("b", True), ("a", False)]


def test_plot_is_an_image_with_a_point_for_each(tmp_path: Path) -> None:
    plot(marked([measured("a $ _b", 0.3, 10.0), measured("c", 0.5, 20.0)]), tmp_path / "deep" / "a.png")

    with Image.open(tmp_path / "deep" / "a.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    plot(marked([measured("only", 0.3, 10.0)]), tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()
