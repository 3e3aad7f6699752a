"""What a training writes and shows: `metrics.jsonl` (it only ever grows), TensorBoard, a progress display."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich import progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class MetricsFile:
    """Append-only JSON lines, and TensorBoard beside them."""

    def __init__(self, run: Path, *, tensorboard: bool) -> None:
        self.file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self.writer: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(run / "tensorboard"))

    def write(self, kind: str, entry: dict[str, Any]) -> None:
        """One line, flushed; numbers that are not finite become null."""
        line = {"kind": kind, **entry}
        self.file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")
        self.file.flush()
        if self.writer is not None:
            for key, value in entry.items():
                if isinstance(value, int | float) and key not in ("step", "epoch"):
                    self.writer.add_scalar(f"{kind}/{key}", value, entry["step"])

    def close(self) -> None:
        """Finish the files."""
        self.file.close()
        if self.writer is not None:
            self.writer.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Meter:
    """Averages between two log lines."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.text = ""
        self._clear()

    def _clear(self) -> None:
        self.num_steps, self.sums = 0, torch.zeros(5)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time of an evaluation."""
        self.timed_steps, self.started_at = 0, time.monotonic()

    def add(self, losses: torch.Tensor, grad_norm: torch.Tensor, num_positive: torch.Tensor, lr: float) -> None:
        """After every step."""
        self.num_steps += 1
        self.timed_steps += 1
        self.sums += torch.cat([losses, grad_norm.reshape(1), num_positive.reshape(1)]).detach().cpu()
        self.lr = lr
        classification, box, quality, _, _ = (self.sums / self.num_steps).tolist()
        self.text = (
            f"loss {classification + box + quality:.3f} (class {classification:.3f} box {box:.3f} "
            f"quality {quality:.3f})  lr {lr:.2g}  {self.images_per_s:.1f} img/s"
        )

    @property
    def images_per_s(self) -> float:
        """Since the last log line, without evaluation."""
        return self.timed_steps * self.images_per_step / max(time.monotonic() - self.started_at, 1e-9)

    def take(self) -> dict[str, float]:
        """The averages, and start again."""
        classification, box, quality, grad_norm, num_positive = (self.sums / max(1, self.num_steps)).tolist()
        entry = {
            "loss": classification + box + quality,
            "loss_classification": classification,
            "loss_box": box,
            "loss_quality": quality,
            "lr": self.lr,
            "images_per_s": self.images_per_s,
            "num_positive": num_positive,
            "grad_norm": grad_norm,
        }
        self._clear()
        return entry


class Display:
    """A live bar in a terminal, plain lines elsewhere, nothing on other ranks."""

    PLAIN_SECONDS = 10.0

    def __init__(self, total_steps: int, start_step: int, *, enabled: bool) -> None:
        self.console = Console(file=sys.stderr, quiet=not enabled)
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
        if not self.live and numbers and now - self.printed_at >= self.PLAIN_SECONDS:
            self.printed_at = now
            left = (now - self.started_at) / max(1, step - self.first_step) * (self.total_steps - step)
            self.console.print(
                f"step {step}/{self.total_steps}  {numbers}  left {clock(left)}", highlight=False, soft_wrap=True
            )

    def evaluating(self, num_images: int) -> Any:
        """A second bar for an evaluation; call the result with the number of images done."""
        task = self.progress.add_task("evaluate", total=num_images, numbers="images")

        def advance(done: int) -> None:
            self.progress.advance(task, done)
            if self.progress.tasks[-1].finished:
                self.progress.remove_task(task)

        return advance

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

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
    return progress.track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)
