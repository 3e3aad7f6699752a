"""The optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fcos.config import TrainConfig
from fcos.terminal import counted


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; no weight decay on norms (AdelaiDet, detectron2) and biases (official).

    Each group has an `lr_factor`, by which the schedule's learning rate is multiplied.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    in_backbone = {name: name.startswith("backbone.") and config.lr_backbone != 1 for name, _ in trained}
    groups = [
        {
            "params": [p for name, p in trained if in_backbone[name] == slower and (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_factor": config.lr_backbone if slower else 1.0,
        }
        for slower in ((False, True) if any(in_backbone.values()) else (False,))
        for decays in (True, False)
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr_base)
    return torch.optim.SGD(groups, lr=config.lr_base, momentum=config.momentum)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then step or cosine decay (to 0), over all training steps."""

    config: TrainConfig
    total_steps: int

    def factor(self, step: int) -> float:
        """The factor of the base learning rate at a step (the first is 0)."""
        warmup = self._in_steps(self.config.warmup_iter)
        rise = min(1.0, (step + 1) / max(warmup, 1))
        if self.config.lr_policy == "cosine":
            done = min(1.0, max(0.0, (step - warmup) / max(1, self.total_steps - warmup)))
            return rise * 0.5 * (1 + math.cos(math.pi * done))
        moments = [self._in_steps(entry) for entry in self.config.lr_schedule]
        return rise * self.config.lr_gamma ** bisect.bisect_right(moments, step)

    def problems(self) -> Iterator[str]:
        """Warnings about schedules that do not fit into the training steps."""
        warmup, steps = self._in_steps(self.config.warmup_iter), counted(self.total_steps, "step")
        if warmup >= self.total_steps:
            yield (
                f"training ({steps}) ends during warm-up ({warmup:g}): lr_base is never reached. "
                "Set warmup_iter to a fraction, such as 0.05, or train longer"
            )
        late = [entry for entry in self.config.lr_schedule if entry >= max(1, self.total_steps)]
        if late and self.config.lr_policy == "step":
            yield (
                f"lr_schedule {', '.join(f'{entry:g}' for entry in late)} is never reached in "
                f"{steps}. Fractions, such as 0.67, fit any length"
            )

    def _in_steps(self, entry: float) -> float:
        """Convert an entry to steps: entries below 1 are fractions of training."""
        return entry * self.total_steps if entry < 1 else entry
