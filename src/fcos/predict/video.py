"""Predicting a video: frames, detections, tracks, JSON lines and the drawn video."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fcos.predict.detections import Detections, as_dicts
from fcos.predict.sources import Source
from fcos.predict.stream import predict_each
from fcos.predict.tracker import Tracker
from fcos.predict.video_reader import Frame, VideoReader
from fcos.predict.video_writer import VideoWriter

if TYPE_CHECKING:
    from fcos.predict.predictor import Predictor

Progress = AbstractContextManager[Callable[[int], None]]  # call what it gives with the number of frames done


@dataclass(frozen=True)
class VideoOptions:
    """How videos are predicted.

    Attributes:
        score_threshold: minimum score of a detection.
        every: process every `every`th frame and skip the others.
        track: give an object the same number in all frames.
        draw: write the drawn video.
    """

    score_threshold: float
    every: int = 1
    track: bool = False
    draw: bool = True


def predict_video(
    detector: Predictor,
    source: Source,
    target: Path,
    lines: IO[str],
    options: VideoOptions,
    *,
    progress: Callable[[int | None], Progress] = lambda num_frames: nullcontext(lambda done: None),
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """What `detections.json` says about a video; its frames go to `lines` and, drawn, to `target`.

    Args:
        detector: the model.
        source: a video or camera.
        target: the drawn mp4 file.
        lines: gets a line of JSON per frame, complete lines only.
        options: how.
        progress: makes a progress bar for so many frames, if their number is known.
        is_stopped: called after each frame: whether to stop; what has been written is kept.

    Raises:
        DatasetError: it cannot be opened.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(
            VideoReader(source.address or source.where, camera=source.kind == "camera")
        )
        num_frames = reader.num_frames and -(-reader.num_frames // options.every)
        advance = stack.enter_context(progress(num_frames))
        rate = reader.frame_rate / options.every
        tracker = Tracker(options.score_threshold, float(rate)) if options.track else None
        writer = None
        if options.draw:
            writer = stack.enter_context(VideoWriter(target, rate, reader.time_base, reader.audio))
        counts = _Counts()
        frames = reader.frames(writer.write_audio if writer else lambda packet: None)
        # Closed before reader and writer: threads may still use frames.
        found = stack.enter_context(closing(_found(detector, frames, options, tracker)))
        for frame, detections in found:
            detections = tracker.update(detections, frame.time_s) if tracker else detections
            counts.add(detections)
            lines.write(json.dumps(_line(source, frame, detections), ensure_ascii=False) + "\n")
            lines.flush()
            if writer:
                writer.write(frame, detections.draw())
            advance(1)
            if is_stopped():
                counts.was_stopped = True
                break
    return counts.about(source, reader, str(target) if options.draw else None)


def _found(
    detector: Predictor, frames: Iterator[Frame], options: VideoOptions, tracker: Tracker | None
) -> Generator[tuple[Frame, Detections], None, None]:
    """Each processed frame with its detections."""
    results = predict_each(
        detector,
        (frame for frame in frames if frame.index % options.every == 0),
        Frame.pixels,
        lambda frame, detections: (frame, detections),
        score_threshold=tracker.least_score if tracker else options.score_threshold,
        batch_size=1,  # a camera's frame should not wait for others
    )
    for result in results:
        assert isinstance(result, tuple), "a decoded frame needs no file"
        yield result


def _line(source: Source, frame: Frame, detections: Detections) -> dict[str, Any]:
    assert detections.image is not None, "Detector.predict keeps the image"
    return {
        "path": source.where,
        "frame": frame.index,
        "time_s": round(frame.time_s, 6),
        "width": detections.image.width,
        "height": detections.image.height,
        "detections": as_dicts(detections),
    }


class _Counts:
    """Counts over the frames of a video so far."""

    def __init__(self) -> None:
        self.num_frames, self.num_detections, self.was_stopped = 0, 0, False
        self.tracks: set[int] = set()
        self.size = (0, 0)

    def add(self, detections: Detections) -> None:
        """One more frame."""
        self.num_frames += 1
        self.num_detections += len(detections)
        if detections.image is not None:
            self.size = detections.image.size
        if detections.track_ids is not None:
            self.tracks |= {track for track in detections.track_ids.tolist() if track >= 0}

    def about(self, source: Source, reader: VideoReader, drawn: str | None) -> dict[str, Any]:
        """The entry of `detections.json`."""
        about: dict[str, Any] = {
            "path": source.where,
            "drawn": drawn if self.num_frames else None,
            "num_frames": self.num_frames,
            "width": self.size[0],
            "height": self.size[1],
            "frame_rate": round(float(reader.frame_rate), 3),
            "num_detections": self.num_detections,
            "num_tracks": len(self.tracks),
            "stopped": self.was_stopped,
        }
        if reader.num_damaged and not self.was_stopped:
            about["num_damaged"] = reader.num_damaged
        if problem := self._problem(reader):
            about["error"] = problem
        return about

    def _problem(self, reader: VideoReader) -> str:
        if self.was_stopped:
            return ""
        if reader.problem:
            return reader.problem
        if reader.num_damaged:
            return f"{reader.num_damaged} of its frames are damaged"
        return "" if self.num_frames else "it has no decodable frame"
