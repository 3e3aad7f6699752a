"""Predicting a video: frames, detections, tracks, JSON lines and the drawn video."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fcos.predict.detections import Detections, as_dicts
from fcos.predict.live import LiveReader
from fcos.predict.sources import Source
from fcos.predict.stream import predict_each
from fcos.predict.tracker import Tracker
from fcos.predict.video_reader import Frame, VideoReader
from fcos.predict.video_writer import VideoWriter

if TYPE_CHECKING:
    from fcos.predict.pipeline import Pipeline

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
    detector: Pipeline,
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
        reader = _open(source, is_stopped)
        stack.enter_context(reader)
        num_frames = reader.num_frames and -(-reader.num_frames // options.every)
        advance = stack.enter_context(progress(num_frames))
        rate = reader.frame_rate / options.every
        tracker = Tracker(options.score_threshold, float(rate)) if options.track else None
        writer = None
        if options.draw:
            writer = stack.enter_context(VideoWriter(target, rate, reader.time_base, reader.audio))
        about: dict[str, Any] = {
            "path": source.where,
            "drawn": None,
            "num_frames": 0,
            "width": 0,
            "height": 0,
            "frame_rate": round(float(reader.frame_rate), 3),
            "num_detections": 0,
            "num_tracks": 0,
            "stopped": False,
        }
        tracks = set[int]()
        frames = reader.frames(writer.write_audio if writer else lambda packet: None)
        # Closed before reader and writer: threads may still use frames.
        found = stack.enter_context(closing(_found(detector, frames, options, tracker)))
        for frame, detections in found:
            detections = tracker.update(detections, frame.time_s) if tracker else detections
            line = _line(source, frame, detections)
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            lines.flush()
            if writer:
                writer.write(frame, detections.draw())
                about["drawn"] = str(target)
            if detections.track_ids is not None:
                tracks |= {track for track in detections.track_ids.tolist() if track >= 0}
            about["num_frames"] += 1
            about["num_detections"] += len(detections)
            about |= {"width": line["width"], "height": line["height"], "num_tracks": len(tracks)}
            advance(1)
            if is_stopped():
                return about | {"stopped": True}
    if isinstance(reader, LiveReader):
        about["num_reconnects"] = reader.num_reconnects
    if reader.num_damaged:
        about["num_damaged"] = reader.num_damaged
    if reader.problem or reader.num_damaged or not about["num_frames"]:
        damaged = f"{reader.num_damaged} of its frames are damaged" if reader.num_damaged else ""
        about["error"] = reader.problem or damaged or "it has no decodable frame"
    return about


def _open(source: Source, is_stopped: Callable[[], bool]) -> VideoReader | LiveReader:
    if source.kind == "stream":
        return LiveReader(source.address, is_stopped)
    return VideoReader(source.address or source.where, camera=source.kind == "camera")


def _found(
    detector: Pipeline, frames: Iterator[Frame], options: VideoOptions, tracker: Tracker | None
) -> Generator[tuple[Frame, Detections], None, None]:
    """Each processed frame with its detections."""
    results = predict_each(
        detector,
        (frame for frame in frames if frame.index % options.every == 0),
        Frame.pixels,
        lambda frame, detections: (frame, detections),
        score_threshold=tracker.min_score if tracker else options.score_threshold,
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
