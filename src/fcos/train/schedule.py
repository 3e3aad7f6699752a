"""The learning rate as one function of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


def in_steps(entry: float, total_steps: int) -> float:
    """A moment of the training in steps: entries below 1 are fractions of it."""
    return entry * total_steps if entry < 1 else entry


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a step or cosine fall.

    Attributes:
        total_steps: of the training.
        warmup: steps, or below 1 a fraction of the training.
        policy: "step" or "cosine" (to 0).
        milestones: steps or fractions at which "step" multiplies by gamma.
        gamma: that factor.
    """

    total_steps: int
    warmup: float
    policy: Literal["step", "cosine"]
    milestones: Sequence[float]
    gamma: float

    def factor(self, step: int) -> float:
        """What the base rate is multiplied by at a step (the first is 0)."""
        warmup = in_steps(self.warmup, self.total_steps)
        rise = min(1.0, (step + 1) / max(warmup, 1))
        if self.policy == "cosine":
            done = min(1.0, max(0.0, (step - warmup) / max(1, self.total_steps - warmup)))
            return rise * 0.5 * (1 + math.cos(math.pi * done))
        moments = [in_steps(entry, self.total_steps) for entry in self.milestones]
        return rise * self.gamma ** bisect.bisect_right(moments, step)
