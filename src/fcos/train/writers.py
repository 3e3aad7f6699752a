"""Where training metrics are written: `metrics.jsonl` in the run folder, and TensorBoard.

To add a logger, write a class with `write` and `close`, and add a line to `open_writers`; the loggers of the
setting `loggers` are in `loggers.py`.
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
    """Receives the metrics of a run, on its first process."""

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

    When a run that was killed is resumed, it repeats the steps since its last checkpoint and writes their
    lines again, with the same numbers: if a step has two lines, the later one counts.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        with writing(self.path):
            _remove_torn_line(self.path)
            self.file = self.path.open("ab")

    def write(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Write one line, flushed; non-finite numbers become null."""
        with writing(self.path):
            self.file.write(msgspec.json.encode({"kind": kind, **entry}) + b"\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file; everything is already written."""
        with suppress(OSError):
            self.file.close()


class TensorBoard:
    """Writes every scalar of an entry as ``kind/name``, immediately.

    tensorboardX's own writer passes them to a thread through a short queue. If the disk is full, the thread
    dies, and training waits forever for room in the queue.

    Args:
        run: its folder; each session of a run has its own file.
        next_step: first step to be written; TensorBoard hides earlier entries from this step on.
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
        """Write a value for each number."""
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
    """Every scalar of an entry, as ``kind/name``."""
    return {
        f"{kind}/{name}": float(value)
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in ("step", "epoch")
    }


def open_writers(run: Path, next_step: int, *, tensorboard: bool) -> list[MetricsWriter]:
    """The writers that the settings request."""
    writers: list[MetricsWriter] = [JsonLines(run)]
    if tensorboard:
        writers.append(TensorBoard(run, next_step))
    return writers


def _remove_torn_line(path: Path) -> None:
    """Remove an incomplete last line (full disk, power cut), to which the next one would be appended."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
