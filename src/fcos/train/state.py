"""Where a run stands, besides weights and optimizer; a part of its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class RunState:
    """Where a run stands, besides weights and optimizer.

    Attributes:
        step: optimizer steps done.
        epoch_evaluated: last epoch whose end was dealt with: measured where due, model files written.
        best_map: best map_mean so far.
        elapsed_s: seconds of training and evaluation, over all sessions of the run.
        step_measured: step of the last evaluation, or of the last model file where there is none.
        since_best: evaluations since that of `best_map`.
        total_steps: of the whole training, as decided so far (`train/length.py`); 0: not yet.
        decided_by: what decided it, as in `Decision`.
        finished: the last step has been measured.
    """

    step: int = 0
    epoch_evaluated: int = 0
    best_map: float = -math.inf
    elapsed_s: float = 0.0
    step_measured: int = 0
    since_best: int = 0
    total_steps: int = 0
    decided_by: str = "epochs"
    finished: bool = False
