"""Write drawn frames to an mp4 file, with the audio and the frame times of the original."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fcos.predict.video_reader import AudioStream, Frame, Packet, import_av

QUALITY = {"crf": "23", "preset": "veryfast"}
COPIED = {
    "aac",
    "mp3",
    "ac3",
    "eac3",
    "opus",
    "alac",
    "flac",
}  # codecs that mp4 players expect; others become AAC


class VideoWriter:
    """Writes a video; once closed, the file is playable even if writing stopped early.

    Args:
        frame_rate: on average.
        time_base: of `Frame.pts`.
        audio: audio streams of an open `VideoReader`.
        pixel_aspect: of the frames, as in `VideoReader`.

    Attributes:
        num_resized: frames of another size than the first, which were resized to fit, keeping the aspect
            ratio.
    """

    def __init__(
        self,
        path: Path,
        frame_rate: Fraction,
        time_base: Fraction,
        audio: Sequence[AudioStream] = (),
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        self._av = import_av()
        self._path, self._time_base, self._pixel_aspect = path, time_base, pixel_aspect
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = self._av.open(str(path), "w", format="mp4")
        self._video = self._container.add_stream("h264", rate=frame_rate)
        self._audio = {stream.index: self._add_audio(stream) for stream in audio}
        self._early: list[Packet] = []  # audio before the first frame, whose size is needed to open the file
        self._size: tuple[int, int] | None = None  # of the first frame; None: the file is not open
        self.num_lost_audio = self.num_resized = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._size:  # flush the encoders; closing writes the index
            self._container.mux(self._video.encode())
            for out, is_copied in self._audio.values():
                if not is_copied:
                    self._container.mux(out.encode())
        self._container.close()
        if not self._size:  # no frames
            self._path.unlink(missing_ok=True)

    def write(self, frame: Frame, drawn: Image.Image) -> None:
        """Write the next frame: `drawn` at the time of `frame`."""
        if not self._size:
            self._open(frame, drawn.size)
        elif drawn.size != self._size:
            drawn = ImageOps.pad(drawn, self._size)
            self.num_resized += 1
        # 4:2:0 has one color for 2 x 2 pixels: an odd last row or column is dropped.
        pixels = np.asarray(drawn)[: self._video.height, : self._video.width]
        image = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        unit = self._video.codec_context.time_base
        image.pts, image.time_base = round(frame.pts * self._time_base / unit), unit
        self._container.mux(self._video.encode(image))

    def write_audio(self, packet: Packet) -> None:
        """Write an audio packet, unchanged if mp4 supports its codec."""
        if not self._size:
            self._early.append(packet)
            return
        out, is_copied = self._audio[packet.stream.index]
        try:
            if is_copied:
                packet.stream = out
                self._container.mux(packet)
            else:
                for piece in packet.decode():
                    self._container.mux(out.encode(piece))
        except (self._av.FFmpegError, ValueError):  # damaged audio must not fail the video
            self.num_lost_audio += 1

    def _open(self, first: Frame, size: tuple[int, int]) -> None:
        video, self._size = self._video, size
        video.width, video.height = (max(2, side // 2 * 2) for side in size)
        is_on_its_side = round(first.image.rotation / 90) % 2 == 1
        video.codec_context.sample_aspect_ratio = self._pixel_aspect ** (-1 if is_on_its_side else 1)
        video.pix_fmt = "yuv420p"
        video.codec_context.options, video.codec_context.time_base = QUALITY, self._time_base
        early, self._early = self._early, []
        for packet in early:
            self.write_audio(packet)

    def _add_audio(self, stream: AudioStream) -> tuple[AudioStream, bool]:
        if stream.codec_context.name in COPIED:
            return self._container.add_stream_from_template(stream), True
        return self._container.add_stream("aac", rate=stream.codec_context.sample_rate), False
