"""What a training writes and shows: `metrics.jsonl`, TensorBoard, a progress display.

`metrics.jsonl` only ever grows. A run that was killed and goes on from its last checkpoint does the steps
since then again and writes their lines again, with the same numbers: of two lines of a step the later counts.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich import progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fcos.engine.checkpoint import writing


class MetricsFile:
    """Append-only JSON lines, and TensorBoard beside them; nothing on other processes than the first.

    Args:
        run: folder of the run.
        next_step: first step that will be written; TensorBoard hides what it has from there on.
        tensorboard: write for it too.
        enabled: on the first process.
    """

    def __init__(self, run: Path, next_step: int, *, tensorboard: bool, enabled: bool) -> None:
        self.path, self.enabled, self.writer = run / "metrics.jsonl", enabled, None
        if not enabled:
            return
        with writing(self.path):
            _remove_torn_line(self.path)
            self.file = self.path.open("a", encoding="utf-8")
        if tensorboard:
            self.writer = TensorBoardFile(run / "tensorboard", next_step)

    def write(self, kind: str, entry: dict[str, Any]) -> None:
        """One line, flushed; numbers that are not finite become null."""
        if not self.enabled:
            return
        with writing(self.path):
            self.file.write(json.dumps(_finite({"kind": kind, **entry}), ensure_ascii=False) + "\n")
            self.file.flush()
        if self.writer is not None:
            numbers = {
                f"{kind}/{key}": float(value)
                for key, value in entry.items()
                if isinstance(value, int | float) and key not in ("step", "epoch")
            }
            self.writer.write(numbers, entry["step"])

    def close(self) -> None:
        """Finish the files; all that counts is written already."""
        with suppress(OSError):
            if self.enabled:
                self.file.close()
            if self.writer is not None:
                self.writer.close()


class TensorBoardFile:
    """Numbers for TensorBoard, written at once.

    tensorboardX's own writer hands them to a thread by a short queue. The thread dies of a full disk, and the
    training waits for ever for room in the queue.

    Args:
        folder: of the files; each session of a run has its own.
        next_step: TensorBoard hides what it has from there on.
    """

    def __init__(self, folder: Path, next_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(wall_time=time.time(), step=next_step, session_log=start))
            self.writer.flush()

    def write(self, numbers: dict[str, float], step: int) -> None:
        """One value for each name."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with writing(self.folder):
            for name, number in numbers.items():
                event = Event(wall_time=time.time(), step=step, summary=scalar(name, number))
                self.writer.write_event(event)
            self.writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()


def _remove_torn_line(path: Path) -> None:
    """Remove the beginning of a line that a full disk or a power cut left: one would be appended to it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class StepReport(NamedTuple):
    """One optimizer step in numbers, over all devices.

    Attributes:
        num_positive: points that learned a box.
        grad_norm: of the gradient before clipping.
    """

    loss_classification: float
    loss_box: float
    loss_quality: float
    num_positive: float
    grad_norm: float
    lr: float

    @property
    def loss(self) -> float:
        """What is minimised."""
        return self.loss_classification + self.loss_box + self.loss_quality


class Meter:
    """Averages over the steps between two lines of `metrics.jsonl`."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self._clear()

    def _clear(self) -> None:
        self.num_steps, self.sums = 0, [0.0] * len(StepReport._fields)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time of an evaluation."""
        self.timed_steps, self.started_at = 0, time.monotonic()

    def add(self, step: StepReport) -> None:
        """After every step."""
        self.num_steps += 1
        self.timed_steps += 1
        self.sums = [total + value for total, value in zip(self.sums, step, strict=True)]
        self.lr = step.lr

    @property
    def average(self) -> StepReport:
        """Of the steps since the last line; the learning rate is that of the last step."""
        averages = StepReport(*(total / max(1, self.num_steps) for total in self.sums))
        return averages._replace(lr=self.lr)

    @property
    def images_per_s(self) -> float:
        """Since the last line, without evaluation."""
        return self.timed_steps * self.images_per_step / max(time.monotonic() - self.started_at, 1e-9)

    @property
    def text(self) -> str:
        """The averages for the display."""
        average = self.average
        return (
            f"loss {average.loss:.3f} (class {average.loss_classification:.3f} box {average.loss_box:.3f} "
            f"quality {average.loss_quality:.3f})  lr {average.lr:.2g}  {self.images_per_s:.1f} img/s"
        )

    def take(self) -> dict[str, float]:
        """The averages for a line, and start again."""
        entry = {"loss": self.average.loss, **self.average._asdict(), "images_per_s": self.images_per_s}
        self._clear()
        return entry

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the next line of a resumed run is the same as if it had not stopped."""
        return {"num_steps": self.num_steps, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of two lines."""
        self.num_steps, self.sums = state["num_steps"], state["sums"]


class Display:
    """A live bar in a terminal, plain lines elsewhere, nothing on other processes than the first."""

    PLAIN_SECONDS = 10.0

    def __init__(
        self, total_steps: int, start_step: int, *, enabled: bool, console: Console | None = None
    ) -> None:
        self.console = console or Console(file=sys.stderr, quiet=not enabled)
        self.live = enabled and self.console.is_terminal
        self.total_steps, self.first_step = total_steps, start_step
        self.started_at = self.printed_at = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=start_step, numbers="")
        self.progress.start()

    def step(self, step: int, numbers: str) -> None:
        """After every optimizer step."""
        self.progress.update(self.task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self.live and now - self.printed_at >= self.PLAIN_SECONDS:
            self.printed_at = now
            left = (now - self.started_at) / max(1, step - self.first_step) * (self.total_steps - step)
            self.line(f"step {step}/{self.total_steps}  {numbers}  left {clock(left)}")

    def evaluating(self, num_images: int) -> Callable[[int], None]:
        """A second bar for an evaluation; call the result with the number of images done."""
        task = self.progress.add_task("evaluate", total=num_images, numbers="images")

        def advance(done: int) -> None:
            self.progress.advance(task, done)
            if self.progress.tasks[-1].finished:
                self.progress.remove_task(task)

        return advance

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def track(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The same items, with a bar that goes away when done; no bar where there is no terminal."""
    console = Console(file=sys.stderr)
    return progress.track(
        items, what, total=total, console=console, transient=True, disable=not console.is_terminal
    )
