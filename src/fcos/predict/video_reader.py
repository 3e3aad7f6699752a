"""Frames of a video file or a camera, upright, with their times; decoded by PyAV (ffmpeg's libraries)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcos.errors import DatasetError, FcosError, needs_extra
from fcos.files import check_regular
from fcos.predict.download import without_secrets

# PyAV's own annotations differ between its versions.
AudioStream = Any
InputContainer = Any
Packet = Any
VideoFrame = Any

SILENCE_S = 15.0  # timeout for a video at an address
SHORT_BY_S = 0.5  # files that end this much before the stated end still count as complete
# Formats whose duration is counted from time 0, not from the first frame.
COUNTED_FROM_0 = {"matroska,webm", "nut", "asf"}
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}:none", "avfoundation")}


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        index: counted from 0, including skipped frames.
        time_s: presentation time, from the beginning of the video.
        pts: presentation time in units of `VideoReader.time_base`.
        image: as decoded.
    """

    index: int
    time_s: float
    pts: int
    image: VideoFrame

    def pixels(self) -> Tensor:
        """RGB uint8 `(3, height, width)`, upright."""
        rgb = self.image.to_ndarray(format="rgb24")
        # Phones store frames in the sensor's orientation, with the angle by which to turn them.
        upright = np.rot90(rgb, round(self.image.rotation / 90))
        return torch.from_numpy(np.ascontiguousarray(upright)).permute(2, 0, 1)


class VideoReader:
    """An open video.

    Args:
        where: a path, an address, or with `camera` its number.
        camera: read a camera of this machine.

    Attributes:
        frame_rate: frames per second, on average.
        time_base: seconds, the unit of `Frame.pts`.
        num_frames: as stated in the file; None: unknown.
        pixel_aspect: width / height of a pixel as stored, before frames are turned upright.
        audio: its audio streams.
        num_damaged: frames and packets that were not decoded, or only in part.
        problem: why the last call of `frames` ended before the stated end of the file; "" if it did not.

    Raises:
        DatasetError: it cannot be opened, or contains no video.
    """

    def __init__(self, where: str, *, camera: bool = False) -> None:
        self.where = f"camera {where}" if camera else without_secrets(where)
        self._av = import_av()
        self._container: InputContainer = self._open_camera(where) if camera else self._open(where)
        stream = self._container.streams.best("video")  # the first may be a cover picture
        if stream is None:
            raise DatasetError("the file contains no video", where=self.where, fix="give another file")
        self._stream = stream
        stream.thread_type = "AUTO"
        assert stream.time_base is not None
        self.time_base: Fraction = stream.time_base
        self.frame_rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        self._starts_at_s = (self._container.start_time or 0) / self._av.time_base
        self.duration_s = (self._container.duration or 0) / self._av.time_base
        if self._container.format.name in COUNTED_FROM_0:
            self.duration_s = max(0.0, self.duration_s - self._starts_at_s)
        self.num_frames: int | None = stream.frames or round(self.duration_s * self.frame_rate) or None
        self.audio: list[AudioStream] = list(self._container.streams.audio)
        self.num_damaged, self.problem = 0, ""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self, on_audio: Callable[[Packet], None] = lambda packet: None) -> Iterator[Frame]:
        """All decodable frames, in presentation order.

        Args:
            on_audio: called with the audio packets in between, shifted like the frames so that the video
                begins at 0.
        """
        last_pts, ends_at_s, index = -1, 0.0, 0
        step = max(1, round(1 / (self.frame_rate * self.time_base)))
        for packet in self._packets():
            if packet.pts is not None:
                ends_at_s = max(ends_at_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.type == "audio":
                if packet.dts is not None:
                    shift = round(Fraction(self._starts_at_s) / packet.time_base)
                    packet.pts, packet.dts = (packet.pts or packet.dts) - shift, packet.dts - shift
                    on_audio(packet)
                continue
            for image in self._decoded(packet):
                shift = round(Fraction(self._starts_at_s) / self.time_base)
                pts = last_pts + step if image.pts is None else image.pts - shift
                last_pts = max(pts, last_pts + 1)  # broken files repeat times
                yield Frame(index, float(last_pts * self.time_base), last_pts, image)
                index += 1
        missing_s = self.duration_s - (ends_at_s - self._starts_at_s)
        if not self.problem and missing_s > max(SHORT_BY_S, 0.01 * self.duration_s):
            self.problem = f"it ends {missing_s:.1f} s before its stated end"

    def _packets(self) -> Iterator[Packet]:
        """Packets of the file, up to its end or to the first error."""
        wanted = [self._stream, *self.audio]
        packets = self._container.demux(wanted)
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except (self._av.FFmpegError, OSError) as error:
                self.problem = f"it cannot be read to its end: {_words(error)}"
                break
        # An empty packet flushes the decoder, as at a regular end.
        flush = self._av.Packet()
        flush.stream = self._stream
        yield flush

    def _decoded(self, packet: Packet) -> Iterator[VideoFrame]:
        try:
            for image in packet.decode():
                self.num_damaged += image.is_corrupt  # concealed by the decoder: kept
                yield image
        except self._av.EOFError:
            return
        except self._av.FFmpegError:
            self.num_damaged += 1

    def _open(self, where: str) -> InputContainer:
        if "://" not in where:
            check_regular(Path(where))
        try:
            return self._av.open(where, timeout=SILENCE_S, metadata_errors="replace")
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise DatasetError(
                f"the video cannot be opened: {_words(error)}",
                where=self.where,
                fix="check whether it plays in a media player; a recording interrupted before its index "
                "was written can only be repaired with special tools",
            ) from error

    def _open_camera(self, number: str) -> InputContainer:
        if sys.platform not in CAMERAS:
            raise FcosError(
                f"cameras are not supported on {sys.platform}", fix="record a video and give its file"
            )
        file, kind = CAMERAS[sys.platform]
        try:
            return self._av.open(file.format(number), format=kind, metadata_errors="replace")
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise DatasetError(
                f"camera {number} cannot be opened: {_words(error)}",
                where=file.format(number),
                fix="connect it, close other programs that use it, try another number, or use a video file",
            ) from error


def import_av() -> Any:
    """PyAV (the extra "video")."""
    with needs_extra("a video", "video"):
        import av
        import av.filter  # loads ffmpeg's devices too
    return av


def _words(error: Exception) -> str:
    """ffmpeg's message, without the error number and the file name."""
    return str(getattr(error, "strerror", None) or error)
