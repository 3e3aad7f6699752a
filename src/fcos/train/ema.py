"""An exponential moving average of the weights, as a second module."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """Averaged weights; never swapped into the live model. The decay warms up to `decay`."""

    def __init__(self, model: Network, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Network, step: int) -> None:
        """Update the average after optimizer step `step` (from 0).

        The decay rises as (1 + step) / (10 + step), to forget the random initialization quickly.
        """
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, live in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if average.dtype.is_floating_point:
                average.lerp_(live, weight)
            else:
                average.copy_(live)
