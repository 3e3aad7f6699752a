"""Predicting videos: frames, detections, tracks, JSON lines and the drawn video."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from PIL import Image

from fcos.errors import DatasetError, OutputError
from fcos.files import reason_of
from fcos.predict.detections import Detections, as_dicts
from fcos.predict.images import FRAMES_FILE, NO_SPACE
from fcos.predict.live import LiveReader
from fcos.predict.sources import Source
from fcos.predict.stop import StopSignal
from fcos.predict.stream import predict_each
from fcos.predict.tracker import Tracker
from fcos.predict.video_reader import Frame, VideoReader
from fcos.predict.video_writer import VideoWriter

if TYPE_CHECKING:
    from fcos.predict.pipeline import Pipeline

Progress = AbstractContextManager[
    Callable[[int], None]
]  # call the function it yields with the number of frames done


@dataclass(frozen=True)
class VideoOptions:
    """Options for predicting videos.

    Attributes:
        every: process every `every`th frame and skip the others.
        track: track objects, which keep their id in all frames.
        draw: write the drawn video.
        on_drawn: called with each drawn frame; None: draw only for the video.
        is_stopped: called after each frame; True stops, and keeps what has been written.
    """

    score_threshold: float
    every: int = 1
    track: bool = False
    draw: bool = True
    on_drawn: Callable[[Image.Image], None] | None = None
    is_stopped: Callable[[], bool] = lambda: False


def predict_videos(
    detector: Pipeline,
    videos: Sequence[Source],
    out: Path,
    options: VideoOptions,
    progress: Callable[[int | None], Progress],
) -> Iterator[dict[str, Any]]:
    """Each video's entry of `detections.json`; frames are written to `FRAMES_FILE`.

    Ctrl-C stops after a frame and leaves complete files.
    """
    with StopSignal(after="frame") as stop, _lines_to(out / FRAMES_FILE) as lines:
        asked = options.is_stopped
        options = replace(options, is_stopped=lambda: stop.number != 0 or asked())
        for video in videos:
            try:
                yield predict_video(detector, video, out / video.name, lines, options, progress)
            except DatasetError as error:
                yield {"path": video.where, "error": error.what}
            if options.is_stopped():
                return


@contextmanager
def _lines_to(path: Path) -> Iterator[TextIO]:
    """A file to append lines to; any error in writing in the block becomes an `OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="backslashreplace") as lines:
            yield lines
    except OSError as error:
        where = str(error.filename or path.parent)
        raise OutputError(f"cannot be written: {reason_of(error)}", where=where, fix=NO_SPACE) from error


def predict_video(
    detector: Pipeline,
    source: Source,
    target: Path,
    lines: IO[str],
    options: VideoOptions,
    progress: Callable[[int | None], Progress] = lambda num_frames: nullcontext(lambda done: None),
) -> dict[str, Any]:
    """A video's entry of `detections.json`; frames are written to `lines` and, drawn, to `target`.

    Args:
        target: the drawn mp4 file.
        lines: gets a line of JSON per frame, only complete lines.
        progress: makes a progress bar for this many frames, if their number is known.

    Raises:
        DatasetError: it cannot be opened.
    """
    with ExitStack() as stack:
        reader = _open(source, options.is_stopped)
        stack.enter_context(reader)
        num_frames = reader.num_frames and -(-reader.num_frames // options.every)
        advance = stack.enter_context(progress(num_frames))
        rate = reader.frame_rate / options.every
        tracker = Tracker(options.score_threshold, float(rate)) if options.track else None
        writer = None
        if options.draw:
            writer = stack.enter_context(
                VideoWriter(target, rate, reader.time_base, reader.audio, reader.pixel_aspect)
            )
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
        # Closed before the reader and the writer, since threads may still use frames.
        found = stack.enter_context(closing(_found(detector, frames, options, tracker)))
        for frame, detections in found:
            detections = tracker.update(detections, frame.time_s) if tracker else detections
            line = _line(source, frame, detections)
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            lines.flush()
            drawn = detections.draw() if writer or options.on_drawn else None
            if writer and drawn:
                writer.write(frame, drawn)
                about["drawn"] = str(target)
            if options.on_drawn and drawn:
                options.on_drawn(drawn)
            if detections.track_ids is not None:
                tracks |= {track for track in detections.track_ids.tolist() if track >= 0}
            about["num_frames"] += 1
            about["num_detections"] += len(detections)
            about |= {"width": line["width"], "height": line["height"], "num_tracks": len(tracks)}
            advance(1)
            if options.is_stopped():
                break
    about["stopped"] = options.is_stopped()  # also while a live stream sends nothing
    if isinstance(reader, LiveReader):
        about["num_reconnects"] = reader.num_reconnects
    if writer and writer.num_resized:
        about["num_resized"] = writer.num_resized
    if reader.num_damaged:
        about["num_damaged"] = reader.num_damaged
    if about["stopped"]:
        if not about["num_frames"]:
            about["error"] = "stopped before its first frame"
    elif reader.problem or reader.num_damaged or not about["num_frames"]:
        damaged = f"{reader.num_damaged} of its frames are damaged" if reader.num_damaged else ""
        about["error"] = reader.problem or damaged or "it has no decodable frames"
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
