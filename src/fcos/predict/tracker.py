"""Tracking: an object has the same number in all frames of a video; ByteTrack (arXiv 2110.06864).

From the package `trackers`; `supervision`, which used to have it, has dropped its own.
"""

from __future__ import annotations

from typing import Any

from fcos.errors import needs_extra
from fcos.predict.detections import Detections

MIN_SCORE = 0.1  # below it, there is hardly ever an object; above it, a weak detection may continue a track


class Tracker:
    """Assigns detections to tracks.

    A track begins with a detection of at least `threshold`, has a number from its second frame on, and
    continues with weaker ones; a second without any ends it. Classes are ignored.

    Args:
        threshold: as for showing detections.
        frame_rate: frames per second that are given.

    Attributes:
        min_score: minimum score of the detections to give it.
    """

    def __init__(self, threshold: float, frame_rate: float) -> None:
        self.threshold, self.min_score = threshold, min(MIN_SCORE, threshold)
        self._tracker = import_trackers().ByteTrackTracker(
            frame_rate=frame_rate, track_activation_threshold=threshold, high_conf_det_threshold=threshold
        )

    def update(self, detections: Detections, time_s: float) -> Detections:
        """Those of at least `threshold`, and weaker ones of a track; with `track_ids`, from 1 on.

        Args:
            detections: of the next frame, from `min_score` on.
            time_s: of the frame, later than the last one.
        """
        found = self._tracker.update(detections.to_supervision(), timestamp=time_s)
        tracked = Detections.from_supervision(found, detections.class_names, detections.image)
        assert tracked.track_ids is not None
        tracked.track_ids[tracked.track_ids >= 0] += 1
        return tracked[(tracked.track_ids > 0) | (tracked.scores >= self.threshold)].by_score()


def import_trackers() -> Any:
    """The package `trackers`, the extra "track"."""
    with needs_extra("tracking", "track"):
        import trackers
    return trackers
