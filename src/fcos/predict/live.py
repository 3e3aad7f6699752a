"""Frames of a live stream (RTSP, HTTP): always the newest frame; reconnects as needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from fcos.errors import DatasetError
from fcos.predict.video_reader import AudioStream, Frame, Packet, VideoReader

PATIENCE_S = 60.0  # without a connection, after which the stream has ended
WAIT_S = 1.0  # between two attempts
STOP_CHECK_S = 0.5


class LiveReader:
    """An open stream, with the attributes of a `VideoReader`; no sound.

    A thread receives all frames. Frames that arrive while the caller is busy are skipped: a network slower
    than the stream would otherwise fall further and further behind. Times are times of arrival, so they
    continue after reconnecting.

    Args:
        is_stopped: called at least twice a second; ends `frames`.

    Raises:
        DatasetError: it cannot be opened, or contains no video.
    """

    time_base = Fraction(1, 90_000)
    num_frames: int | None = None

    def __init__(self, address: str, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._address, self._is_stopped = address, is_stopped
        self._reader = VideoReader(address)
        self.frame_rate, self.pixel_aspect = self._reader.frame_rate, self._reader.pixel_aspect
        self.audio: list[AudioStream] = []
        self.num_damaged, self.num_reconnects, self.problem = 0, 0, ""
        self._newest: Frame | None = None
        self._is_over = False
        self._changed = threading.Condition()

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True  # the thread closes the reader

    def frames(self, on_audio: Callable[[Packet], None] = lambda packet: None) -> Iterator[Frame]:
        """The newest frame each time, until the stream ends or `is_stopped`."""
        threading.Thread(target=self._receive_all, name="stream", daemon=True).start()
        while not self._is_stopped():
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._is_over, STOP_CHECK_S)
                frame, self._newest = self._newest, None
                is_over = self._is_over
            if frame is not None:
                yield frame
            elif is_over:
                return

    def _receive_all(self) -> None:
        """The thread: runs `_receive`; any error there ends the stream."""
        try:
            self._receive()
        except Exception as error:
            self.problem = f"receiving the stream failed: {error!r}"
            raise
        finally:
            self._is_over = True
            with self._changed:
                self._changed.notify()

    def _receive(self) -> None:
        """Every frame of every connection becomes the newest one."""
        started_at, index, last_pts = time.monotonic(), 0, -1
        while not self._is_over:
            with self._reader as reader:
                for frame in reader.frames():
                    time_s = time.monotonic() - started_at
                    last_pts = max(round(time_s / self.time_base), last_pts + 1)
                    with self._changed:
                        self._newest = replace(frame, index=index, time_s=time_s, pts=last_pts)
                        self._changed.notify()
                    index += 1
                    if self._is_over:
                        break
            self.num_damaged += reader.num_damaged
            if not self._is_over:
                self._reconnect(reader.problem)

    def _reconnect(self, reason: str) -> None:
        """Open the stream again, or end it after `PATIENCE_S`."""
        lost_at = time.monotonic()
        while time.monotonic() - lost_at < PATIENCE_S and not self._is_over:
            time.sleep(WAIT_S)
            try:
                self._reader = VideoReader(self._address)
            except DatasetError as error:
                reason = error.what
            else:
                self.num_reconnects += 1
                return
        self.problem = f"the stream ended, and reconnecting failed for {PATIENCE_S:.0f} s"
        self.problem += f": {reason}" if reason else ""
        self._is_over = True
