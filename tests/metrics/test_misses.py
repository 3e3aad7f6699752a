"""Each reason for a miss, in an image that has just that reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fcos.data.annotations import Annotations, Record
from fcos.metrics.analysis import analyze
from fcos.metrics.misses import Miss, why_missed
from fcos.model.postprocess import ImageDetections

CAT, DOG = 0, 1
A, B = [0.0, 0.0, 100.0, 100.0], [200.0, 0.0, 300.0, 100.0]
HALF_OF_A = [0.0, 0.0, 100.0, 40.0]  # an IoU of 0.4
NEXT_TO_A = [20.0, 0.0, 120.0, 100.0]  # 2 / 3

# Objects found well in an image of their own, so that the threshold lies between 0.4 and 0.6.
ANCHORS = [[110.0 * place, 300.0, 110.0 * place + 100, 400.0] for place in range(4)]


def annotations_of(boxes: list[list[float]], labels: list[int]) -> Annotations:
    records = [
        Record.make(Path("1.jpg"), boxes, labels, 1, size_hw=(480, 640)),
        Record.make(Path("2.jpg"), ANCHORS, [CAT] * 4, 2, size_hw=(480, 640)),
    ]
    return Annotations.from_records(records, ("cat", "dog"), source=Path("x"), format="list")


def found(box_xyxy: list[float], score: float, label: int, image_id: int = 1) -> dict[str, Any]:
    x1, y1, x2, y2 = box_xyxy
    return {
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": score,
    }


def missed(
    boxes: list[list[float]],
    labels: list[int],
    results: list[dict[str, Any]],
    *,
    without_point: bool = False,
    candidates: dict[int, ImageDetections] | None = None,
    agnostic_nms: bool = False,
) -> list[Miss]:
    annotations = annotations_of(boxes, labels)
    # so many are wrong below 0.4 that the threshold stays above
    wrong = [found([500.0, 0.0, 520.0 + place, 20.0], 0.35, CAT, 2) for place in range(20)]
    anchors = [found(box, 0.6, CAT, 2) for box in ANCHORS]
    analysis = analyze(annotations, [*results, *anchors, *wrong])
    assert 0.4 <= analysis.threshold <= 0.6
    without = np.array([without_point] * len(boxes) + [False] * 4)
    return why_missed(annotations, analysis, without, candidates, agnostic_nms=agnostic_nms)


@pytest.mark.parametrize(
    ("results", "reason", "told"),
    [
        ([], "nothing", "no detection of its class nearby"),
        ([found(A, 0.9, DOG)], "class", "detected as dog, 0.90"),
        ([found(A, 0.3, CAT)], "score", "its score 0.30 is below the threshold"),
        ([found(HALF_OF_A, 0.9, CAT)], "box", "the closest box has an IoU of 0.40"),
        ([found(A, 0.9, DOG), found(A, 0.3, CAT)], "class", "detected as dog, 0.90"),
        ([found(B, 0.9, CAT)], "nothing", "no detection of its class nearby"),
    ],
)
def test_a_miss_has_its_reason(results: list[dict[str, Any]], reason: str, told: str) -> None:
    [miss] = missed([A], [CAT], results)
    assert (miss.image, miss.box, miss.reason, miss.told) == (0, 0, reason, told)


def test_what_is_found_is_not_missed() -> None:
    assert missed([A], [CAT], [found(A, 0.9, CAT)]) == []


def test_no_positive_point_is_the_first_reason() -> None:
    [miss] = missed([A], [CAT], [found(A, 0.3, CAT)], without_point=True)
    assert miss.reason == "no point"


def test_one_detection_for_two_objects() -> None:
    [miss] = missed([A, NEXT_TO_A], [CAT, CAT], [found(A, 0.9, CAT)])
    assert (miss.box, miss.reason) == (1, "shared")


def test_what_nms_took_away_is_told_with_the_box_that_it_lost_to() -> None:
    entered = ImageDetections(
        torch.tensor([A, NEXT_TO_A]), torch.tensor([0.9, 0.7]), torch.tensor([CAT, CAT])
    )
    [miss] = missed([A, NEXT_TO_A], [CAT, CAT], [found(A, 0.9, CAT)], candidates={1: entered})
    assert (miss.reason, miss.told) == ("nms", "its score 0.70 was suppressed by NMS for a box with 0.90")


def test_with_agnostic_nms_the_box_that_it_lost_to_may_be_of_another_class() -> None:
    entered = ImageDetections(
        torch.tensor([A, NEXT_TO_A]), torch.tensor([0.9, 0.7]), torch.tensor([DOG, CAT])
    )
    results, candidates = [found(A, 0.9, DOG)], {1: entered}
    [miss] = missed([NEXT_TO_A], [CAT], results, candidates=candidates, agnostic_nms=True)
    assert (miss.reason, miss.told) == ("nms", "its score 0.70 was suppressed by NMS for a box with 0.90")
    [miss] = missed([NEXT_TO_A], [CAT], results, candidates=candidates)
    assert miss.reason != "nms"


@pytest.mark.parametrize(
    ("score", "label", "box"), [(0.3, CAT, NEXT_TO_A), (0.7, DOG, NEXT_TO_A), (0.7, CAT, B)]
)
def test_nms_is_no_reason_where_the_candidate_would_not_have_counted(
    score: float, label: int, box: list[float]
) -> None:
    entered = ImageDetections(torch.tensor([A, box]), torch.tensor([0.9, score]), torch.tensor([CAT, label]))
    [miss] = missed([A, NEXT_TO_A], [CAT, CAT], [found(A, 0.9, CAT)], candidates={1: entered})
    assert miss.reason == "shared"
