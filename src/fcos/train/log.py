"""Training output: averages over steps, a progress display, and messages."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import progress
from rich.console import Console

from fcos.terminal import printable, progress_console

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class StepReport(NamedTuple):
    """Metrics of one optimizer step, over all devices.

    Attributes:
        losses: the parts of the loss by name.
        num_positive: number of positive points.
        grad_norm: norm of the gradient before clipping.
    """

    losses: dict[str, float]
    num_positive: float
    grad_norm: float
    lr: float

    @property
    def loss(self) -> float:
        """The total loss."""
        return sum(self.losses.values())

    def numbers(self) -> dict[str, float]:
        """All metrics, named as in `metrics.jsonl`."""
        parts = {f"loss_{name}": value for name, value in self.losses.items()}
        rest = {"num_positive": self.num_positive, "grad_norm": self.grad_norm, "lr": self.lr}
        return {"loss": self.loss, **parts, **rest}


class Meter:
    """Averages over the steps between two lines of `metrics.jsonl`."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self._clear()

    def _clear(self) -> None:
        self.num_steps, self.sums, self.lr = 0, defaultdict[str, float](float), 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time of an evaluation."""
        self.timed_steps, self.started_at = 0, time.monotonic()

    def add(self, step: StepReport) -> None:
        """Add a step."""
        self.num_steps += 1
        self.timed_steps += 1
        for name, value in step.numbers().items():
            self.sums[name] += value
        self.lr = step.lr

    @property
    def average(self) -> dict[str, float]:
        """Averages over the steps since the last line; the learning rate is that of the last step."""
        return {name: total / max(1, self.num_steps) for name, total in self.sums.items()} | {"lr": self.lr}

    @property
    def images_per_s(self) -> float:
        """Throughput since the last line, without evaluation."""
        return self.timed_steps * self.images_per_step / max(time.monotonic() - self.started_at, 1e-9)

    @property
    def text(self) -> str:
        """The averages for the display."""
        average = self.average
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in average.items()
            if name.startswith("loss_")
        )
        speed = f"{self.images_per_s:.1f} img/s"
        return f"loss {average.get('loss', 0):.3f} ({parts})  lr {average['lr']:.2g}  {speed}"

    def take(self) -> dict[str, float]:
        """Return the averages for a line, and reset."""
        entry = {**self.average, "images_per_s": self.images_per_s}
        self._clear()
        return entry

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, so that the next line of a resumed run is the same as without stopping."""
        return {"num_steps": self.num_steps, "sums": dict(self.sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume between two lines."""
        self.num_steps, self.sums = state["num_steps"], defaultdict(float, state["sums"])


class Display:
    """A live bar in a terminal, plain lines elsewhere, nothing on processes other than the first."""

    PLAIN_SECONDS = 10.0

    def __init__(
        self, total_steps: int, start_step: int, *, enabled: bool, console: Console | None = None
    ) -> None:
        self.console = console or progress_console(quiet=not enabled)
        self.live = enabled and self.console.is_terminal
        self.total_steps, self.first_step = total_steps, start_step
        self.started_at = self.printed_at = time.monotonic()
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=start_step, numbers="")
        self.progress.start()

    def step(self, step: int, numbers: str) -> None:
        """Show an optimizer step."""
        self.progress.update(self.task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self.live and now - self.printed_at >= self.PLAIN_SECONDS:
            self.printed_at = now
            left = (now - self.started_at) / max(1, step - self.first_step) * (self.total_steps - step)
            self.line(f"step {step}/{self.total_steps}  {numbers}  left {timedelta(seconds=round(left))}")

    def resize(self, total_steps: int) -> None:
        """Change the length of training."""
        self.total_steps = total_steps
        self.progress.update(self.task, total=total_steps)

    def evaluating(self, num_images: int) -> Callable[[int], None]:
        """A second bar for an evaluation; call the result with the number of images done."""
        task = self.progress.add_task("evaluate", total=num_images, numbers="images")

        def advance(done: int) -> None:
            self.progress.advance(task, done)
            if self.progress.tasks[-1].finished:
                self.progress.remove_task(task)

        return advance

    def line(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Restore the terminal."""
        self.progress.stop()


def say(fabric: Fabric, text: str) -> None:
    """Print a line for the user, from the first process only."""
    if fabric.is_global_zero:
        print(printable(text), file=sys.stderr, flush=True)
