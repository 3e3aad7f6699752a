"""Output of a run during training: the display, the metrics writers and the user's callbacks.

Nothing here affects training, except a callback that ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.train.callbacks import Callback, TrainEvent
from fcos.train.checkpoint import RunState
from fcos.train.devices import local_world_size
from fcos.train.evaluation import Evaluated
from fcos.train.log import Display, Meter, StepReport
from fcos.train.loggers import LOGGERS
from fcos.train.throughput import EpochClock, advice, describe
from fcos.train.writers import MetricsWriter, open_writers


@dataclass
class RunOutput:
    """Reports a run, on the first process only.

    Attributes:
        meter: gets every step, and is reset when its averages are logged.
        steps_per_epoch: not rounded.
        stop: called by a callback to end training.
    """

    fabric: Fabric
    config: TrainConfig
    run: Path
    state: RunState
    meter: Meter
    steps_per_epoch: float
    callbacks: Sequence[Callback]
    stop: Callable[[], None]

    def __post_init__(self) -> None:
        self.clock = EpochClock()
        self.advice_given: set[str] = set()
        self.measured: dict[str, float] = {}  # by the last evaluation
        state, is_first = self.state, self.fabric.is_global_zero
        self.writers: list[MetricsWriter] = []
        if is_first:
            with ExitStack() as opened:
                for writer in self._open_writers():
                    self.writers.append(writer)
                    opened.callback(writer.close)
                opened.pop_all()
        # Last, since it takes over the terminal.
        self.display = Display(state.total_steps, state.step, enabled=is_first)

    def _open_writers(self) -> Iterator[MetricsWriter]:
        yield from open_writers(self.run, self.state.step + 1, tensorboard=self.config.tensorboard)
        for name in self.config.loggers:
            yield LOGGERS[name](self.run, self.config)

    def close(self) -> None:
        """Close all output, also after an error."""
        self.display.close()
        for writer in self.writers:
            writer.close()
        self.tell("on_end", self.measured)

    def tell(self, moment: Literal["on_step", "on_epoch", "on_end"], metrics: Mapping[str, float]) -> None:
        """Call the callbacks."""
        if not self.callbacks or not self.fabric.is_global_zero:
            return
        epoch = self.state.step / self.steps_per_epoch
        event = TrainEvent(self.state.step, epoch, metrics, self.run, self.stop)
        for callback in self.callbacks:
            getattr(callback, moment)(event)

    def after_step(self, report: StepReport) -> None:
        """Show an optimizer step."""
        self.meter.add(report)
        self.display.step(self.state.step, self.meter.text)
        self.tell("on_step", report.numbers())

    def write_averages(self) -> None:
        """Log the averages since the last call."""
        epoch, averages = self.state.step / self.steps_per_epoch, self.meter.take()
        self._write("train", epoch, {**averages, "elapsed_s": self.state.elapsed_s})

    def write_times(self, epoch: int | float) -> None:
        """Print the bottleneck of this epoch; nothing if this session only evaluates the end of one."""
        times = self.clock.take()
        if not times.num_images:
            return
        # If one device waits for images, the others wait for it in their own steps.
        waited_s = torch.tensor(times.waited_s, device=self.fabric.device)
        waited_s = self.fabric.all_reduce(waited_s, reduce_op="max")  # type: ignore[assignment]
        times.waited_s = round(waited_s.item(), 3)
        self._write("epoch", epoch, asdict(times))
        line = describe(times, epoch)
        change = advice(times, self.config, local_world_size(self.fabric), self.fabric.device.type)
        if change not in self.advice_given:  # give each advice once
            self.advice_given.add(change)
            line += f": {change}"
        self.display.line(line)

    def write_evaluation(self, epoch: int | float, found: Evaluated, *, is_best: bool) -> None:
        """Log and show the metrics of an evaluation."""
        self.measured = found.numbers
        more = {"stats": list(found.metrics.stats), "per_class": found.metrics.per_class_ap}
        times = {"elapsed_s": found.elapsed_s, "network_s": found.network_s}
        self._write("eval", epoch, {**found.numbers, **more, **times})
        described = "  ".join(f"{name} {value:.4f}" for name, value in found.numbers.items())
        best = "  best" if is_best else ""
        self.display.line(f"epoch {epoch:3g}/{self.config.epochs}  {described}{best}")

    def _write(self, kind: str, epoch: int | float, entry: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write(kind, {"step": self.state.step, "epoch": epoch, **entry})
