"""Tracking: an object has the same id in all frames of a video; ByteTrack (arXiv 2110.06864).

Uses the package `trackers`; `supervision` has removed its own implementation.
"""

from __future__ import annotations

from typing import Any

from fcos.errors import needs_extra
from fcos.predict.detections import Detections

MIN_SCORE = 0.1  # below it, detections are hardly ever objects; above it, a weak one may continue a track


class Tracker:
    """Assigns detections to tracks.

    A track begins with a detection of at least `threshold`, gets an id in its second frame, and continues
    with weaker detections; a second without any ends it. Classes are ignored.

    Args:
        threshold: minimum score of detections to show.
        frame_rate: frames per second passed to `update`.

    Attributes:
        min_score: minimum score of the detections to pass to `update`.
    """

    def __init__(self, threshold: float, frame_rate: float) -> None:
        self.threshold, self.min_score = threshold, min(MIN_SCORE, threshold)
        self._tracker = import_trackers().ByteTrackTracker(
            frame_rate=frame_rate, track_activation_threshold=threshold, high_conf_det_threshold=threshold
        )

    def update(self, detections: Detections, time_s: float) -> Detections:
        """Detections of at least `threshold`, and weaker ones of a track, with `track_ids` from 1.

        Args:
            detections: of the next frame, with scores of at least `min_score`.
            time_s: time of the frame, later than the last one.
        """
        found = self._tracker.update(detections.to_supervision(), timestamp=time_s)
        tracked = Detections.from_supervision(found, detections.class_names, detections.image)
        assert tracked.track_ids is not None
        tracked.track_ids[tracked.track_ids >= 0] += 1
        return tracked[(tracked.track_ids > 0) | (tracked.scores >= self.threshold)].by_score()


def import_trackers() -> Any:
    """The package `trackers` (the extra "track")."""
    with needs_extra("tracking", "track"):
        import trackers
    return trackers
