"""When training ends: after its epochs, or earlier because of `time_limit`, `patience` or a callback.

Each of them determines one number, the total steps. The learning rate depends only on that number and the
step, and a checkpoint is written as soon as the number changes, so a resumed run has the same schedule as the
run that was stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fcos.config import TrainConfig
from fcos.terminal import counted

# Settings that may change when a run resumes: the schedule is then recomputed.
LENGTH_SETTINGS = ("epochs", "time_limit", "patience")
FIRST_STEPS = (5, 20)  # after which the time per step is measured; later, whenever a checkpoint is due
WORTH_A_LINE = 0.05  # smaller changes of the length are not printed
FORWARD_SHARE = 1 / 3  # of the time of a training step; used until an evaluation has been timed


class Decision(NamedTuple):
    """How long training is, as known now.

    Attributes:
        total_steps: of the whole training; the current step to end it now.
        decided_by: "epochs", "time_limit", "patience" or "callback".
        line: a message for the user; empty if nothing important has changed.
    """

    total_steps: int
    decided_by: str
    line: str = ""


@dataclass
class Length:
    """Decides how long training is.

    Attributes:
        full_steps: steps of all epochs.
        steps_per_epoch: not rounded.
        num_eval_images: images per evaluation.
        laid_out_at: first step with these settings: 0, or later in a resumed run whose length was changed.
        stop_asked: a callback requested to end training here.
    """

    config: TrainConfig
    full_steps: int
    steps_per_epoch: float
    num_eval_images: int
    laid_out_at: int = 0
    stop_asked: bool = False

    def __post_init__(self) -> None:
        self.limit_s = math.inf if self.config.time_limit is None else 60 * self.config.time_limit
        self.first: tuple[int, float] | None = None
        self.evaluating_s, self.evaluation_s = 0.0, 0.0

    def stop(self) -> None:
        """End training after this step."""
        self.stop_asked = True

    def after_step(self, step: int, elapsed_s: float) -> bool:
        """Record the time; True if the length should be decided now.

        The time until the end of a session's first step includes the start of the loader, so it does not
        count towards the time per step.
        """
        if self.first is None:
            self.first, self.evaluating_s = (step, elapsed_s), 0.0
        is_early = step - self.laid_out_at in FIRST_STEPS
        return self.limit_s < math.inf and (is_early or step % self.config.save_steps == 0)

    def after_evaluation(self, elapsed_s: float) -> None:
        """Record how long an evaluation took."""
        self.evaluation_s = elapsed_s
        self.evaluating_s += elapsed_s

    def decide(self, step: int, total_steps: int, elapsed_s: float, since_best: int) -> Decision:
        """Decide how long training is, after a step; `elapsed_s` is the time over all sessions."""
        patience = self.config.patience
        if self.stop_asked:
            return Decision(step, "callback", "a callback ended training")
        if patience and since_best >= patience:
            line = f"no better AP in {counted(since_best, 'evaluation')} (patience): training ends here"
            return Decision(step, "patience", line)
        fits = self._fits(step, elapsed_s)
        if fits is None:
            return Decision(total_steps, "epochs" if total_steps == self.full_steps else "time_limit")
        if fits >= self.full_steps:
            return Decision(self.full_steps, "epochs", self._line(total_steps, self.full_steps))
        return Decision(fits, "time_limit", self._line(total_steps, fits))

    def _fits(self, step: int, elapsed_s: float) -> int | None:
        """Total steps that fit into the time limit; None if unknown."""
        if self.limit_s == math.inf or self.first is None or step == self.first[0]:
            return None
        first_step, started_s = self.first
        step_s = (elapsed_s - started_s - self.evaluating_s) / (step - first_step)
        image_s = FORWARD_SHARE * step_s / self.config.nbatch_train
        evaluation_s = self.evaluation_s or image_s * self.num_eval_images
        between = self.steps_per_epoch * self.config.eval_epochs
        return step + steps_that_fit(self.limit_s - elapsed_s, step_s, evaluation_s, between)

    def _line(self, former: int, now: int) -> str:
        if abs(now - former) < WORTH_A_LINE * former:
            return ""
        epochs = min(self.config.epochs, now / self.steps_per_epoch)
        return f"{counted(now, 'step')} ({epochs:.1f} epochs) fit into time_limit={self.config.time_limit:g}"


def steps_that_fit(left_s: float, step_s: float, evaluation_s: float, steps_between: float) -> int:
    """Further steps that fit into the time, with an evaluation every `steps_between` and at the end."""
    return max(0, math.floor((left_s - evaluation_s) / (step_s + evaluation_s / steps_between)))
