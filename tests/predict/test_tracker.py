"""Numbers of tracks, on boxes that move by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from fcos import Detections
from fcos.errors import FcosError
from fcos.predict.tracker import Tracker

RATE = 10.0


def seen(*boxes: tuple[float, float, float]) -> Detections:
    """Boxes of 40 x 40 pixels from left edge, top edge and score."""
    corners = [[x, y, x + 40, y + 40] for x, y, _ in boxes]
    return Detections(
        torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, _, score in boxes], dtype=torch.float32),
        torch.zeros(len(boxes), dtype=torch.int64),
        ("cell",),
    )


def follow(frames: list[Detections], threshold: float = 0.5) -> list[dict[float, int]]:
    """Of each frame, the track of each detection by its score."""
    tracker = Tracker(threshold, RATE)
    followed = []
    for number, detections in enumerate(frames):
        tracked = tracker.update(detections, number / RATE)
        assert tracked.track_ids is not None
        ids, scores = tracked.track_ids.tolist(), tracked.scores.tolist()
        assert scores == sorted(scores, reverse=True)
        followed.append({round(score, 2): track for score, track in zip(scores, ids, strict=True)})
    return followed


def test_two_objects_that_pass_each_other_keep_their_numbers() -> None:
    frames = [seen((10 + 6 * n, 20, 0.9), (190 - 6 * n, 80, 0.8)) for n in range(24)]

    first, *later = follow(frames)

    assert first == {0.9: -1, 0.8: -1}  # one frame is no track yet
    assert later == [{0.9: 1, 0.8: 2}] * 23


def test_an_object_that_is_missed_for_some_frames_is_the_same_afterwards() -> None:
    frames = [seen((10 + 4 * n, 20, 0.9)) if not 8 <= n < 12 else seen() for n in range(20)]

    followed = follow(frames)

    assert followed[7] == followed[12] == followed[19] == {0.9: 1}
    assert followed[9] == {}


def test_an_object_that_comes_after_a_second_without_it_is_another() -> None:
    frames = [seen((10, 20, 0.9)) if not 5 <= n < 5 + 2 * RATE else seen() for n in range(40)]

    assert follow(frames)[-1] == {0.9: 2}


def test_a_weak_detection_goes_on_with_a_track_and_begins_none() -> None:
    frames = [seen((10, 20, 0.9 if n < 4 else 0.3), (300, 20, 0.35)) for n in range(10)]

    followed = follow(frames)

    assert followed[3] == {0.9: 1}
    assert followed[9] == {0.3: 1}  # without 0.35, which no strong one came before


def test_a_time_without_any_detection_is_no_problem() -> None:
    assert follow([seen(), seen(), seen((10, 20, 0.9)), seen((11, 20, 0.9))])[-1] == {0.9: 1}


def test_what_the_tracker_wants_to_see_is_weaker_than_what_is_shown() -> None:
    assert Tracker(0.5, RATE).min_score == 0.1
    assert Tracker(0.03, RATE).min_score == 0.03


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)

    with pytest.raises(FcosError, match=r"tracking needs trackers\n  fix: pip install 'fcos-torch\[track\]"):
        Tracker(0.5, RATE)
