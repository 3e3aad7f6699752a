"""Where training metrics are written: `metrics.jsonl` in the run folder, and TensorBoard.

Another logger is a class with `write` and `close`, and a line in `open_writers`; those of the setting
`loggers` are in `loggers.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from fcos.train.checkpoint import writing


@runtime_checkable
class MetricsWriter(Protocol):
    """Takes the numbers of a run, on its first process."""

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Add an entry.

        Args:
            kind: "train" (averages over some steps), "epoch" (its times) or "eval".
            entry: names to values; always with "step".
        """
        ...

    def close(self) -> None:
        """Finish; also after an error."""
        ...


class JsonLines:
    """`metrics.jsonl`, which only ever grows.

    A run that was killed repeats the steps since its last checkpoint when it is resumed, and writes their
    lines again, with the same numbers: of two lines of a step the later counts.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        with writing(self.path):
            _remove_torn_line(self.path)
            self.file = self.path.open("ab")

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        """One line, flushed; numbers that are not finite become null."""
        with writing(self.path):
            self.file.write(msgspec.json.encode({"kind": kind, **entry}) + b"\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file; all that counts is written already."""
        with suppress(OSError):
            self.file.close()


class TensorBoard:
    """Every single number of an entry as a scalar ``kind/name``, written at once.

    tensorboardX's own writer hands them to a thread by a short queue. The thread dies of a full disk, and the
    training waits for ever for room in the queue.

    Args:
        run: its folder; each session of a run has a file of its own.
        next_step: first step that will be written; what TensorBoard has from there on is hidden.
    """

    def __init__(self, run: Path, next_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder = run / "tensorboard"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(self.folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(wall_time=time.time(), step=next_step, session_log=start))
            self.writer.flush()

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        """A value for each number."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with writing(self.folder):
            for name, value in numbers_of(kind, entry).items():
                event = Event(wall_time=time.time(), step=entry["step"], summary=scalar(name, value))
                self.writer.write_event(event)
            self.writer.flush()

    def close(self) -> None:
        """Finish the file."""
        with suppress(OSError):
            self.writer.close()


def numbers_of(kind: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """Every single number of an entry, as ``kind/name``."""
    return {
        f"{kind}/{name}": float(value)
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in ("step", "epoch")
    }


def open_writers(run: Path, next_step: int, *, tensorboard: bool) -> list[MetricsWriter]:
    """Those that the settings ask for."""
    writers: list[MetricsWriter] = [JsonLines(run)]
    if tensorboard:
        writers.append(TensorBoard(run, next_step))
    return writers


def _remove_torn_line(path: Path) -> None:
    """Remove the beginning of a line that a full disk or a power cut left: one would be appended to it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
