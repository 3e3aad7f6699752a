"""The feature pyramid: C3..C5 to P3..P7 (arXiv 1612.03144; P6 and P7 as in RetinaNet, 1708.02002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Top-down pyramid with extra coarse levels.

    Args:
        in_channels: of C3, C4, C5.
        channels: of every output level.
        num_levels: of the output; 3 (P3..P5) or more.
        extra_from: P6 is a convolution of P5 (all peers) or of C5 (the seed, and RetinaNet).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_levels: int,
        extra_from: Literal["p5", "c5"] = "p5",
    ) -> None:
        super().__init__()
        self.extra_from = extra_from
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        widths = [channels] * (num_levels - len(in_channels))
        if widths and extra_from == "c5":
            widths[0] = in_channels[-1]
        self.extra = nn.ModuleList(nn.Conv2d(c, channels, 3, stride=2, padding=1) for c in widths)
        for conv in [*self.lateral, *self.output, *self.extra]:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # as the official code ("Xavier" of Caffe2)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """P3, P4, ... finest first."""
        merged = [self.lateral[-1](features[-1])]
        for lateral, feature in zip(self.lateral[-2::-1], features[-2::-1], strict=True):
            above = F.interpolate(merged[0], size=feature.shape[-2:], mode="nearest")
            merged.insert(0, lateral(feature) + above)
        levels = [output(level) for output, level in zip(self.output, merged, strict=True)]
        coarse = levels[-1] if self.extra_from == "p5" else features[-1]
        for i, conv in enumerate(self.extra):
            # ReLU only between the extra levels, not before the first: as every peer has it.
            coarse = conv(coarse if i == 0 else F.relu(coarse))
            levels.append(coarse)
        return levels
