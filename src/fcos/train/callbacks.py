"""Run your own code during training: `Detector.train(config, callbacks=[...])`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainEvent:
    """The argument of a callback.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data: 2.5 in the middle of the third.
        metrics: after a step, its loss, the parts of the loss, learning rate, gradient norm and number of
            positive points, named as in metrics.jsonl. After an epoch, map_mean, map_50 and map_75; empty
            if it was not evaluated. At the end, the metrics of the last evaluation.
        run: folder of the run.
        stop: call it to end training here: the weights are evaluated and saved, and the run is finished.
    """

    step: int
    epoch: float
    metrics: Mapping[str, float]
    run: Path
    stop: Callable[[], None]


class Callback:
    """Override the methods that you need. They are called only on the first process, which waits for them."""

    def on_step(self, event: TrainEvent) -> None:
        """After each optimizer step."""

    def on_epoch(self, event: TrainEvent) -> None:
        """After each epoch, once its evaluation is done and its model files are written."""

    def on_end(self, event: TrainEvent) -> None:
        """Once at the end, also after Ctrl-C or an error."""
