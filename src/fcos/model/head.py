"""The head, shared by all levels: classes, distances to the four sides, quality (figure 2 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Probability that a fresh head gives every class everywhere (RetinaNet, 1708.02002, section 4.1).
PRIOR = 0.01


class HeadOutput(NamedTuple):
    """Predictions at every point, in the order of `PointGrid`.

    Attributes:
        logits: class scores before sigmoid.
        distances: ltrb in network input pixels, not negative.
        quality: centerness or IoU before sigmoid; None without that branch.
    """

    logits: Float[Tensor, "batch points classes"]
    distances: Float[Tensor, "batch points 4"]
    quality: Float[Tensor, "batch points"] | None


class LevelOutput(NamedTuple):
    """Predictions of one level as maps, a cell for each point.

    Attributes:
        logits: class scores before sigmoid.
        distances: ltrb in network input pixels, not negative.
        quality: centerness or IoU before sigmoid; None without that branch.
    """

    logits: Float[Tensor, "batch classes height width"]
    distances: Float[Tensor, "batch 4 height width"]
    quality: Float[Tensor, "batch 1 height width"] | None


class LevelNorms(nn.ModuleList):
    """A norm for each level; `Tower` chooses it."""


class Tower(nn.Sequential):
    """Layers one after another, in which levels may have norms of their own."""

    def forward(self, features: Tensor, level: int = 0) -> Tensor:
        """Features of one level; of a tower with `LevelNorms`, say which one."""
        for layer in self:
            features = layer[level](features) if isinstance(layer, LevelNorms) else layer(features)
        return features


class GroupNorm(nn.GroupNorm):
    """PyTorch's refuses groups of one value (a level of 1 x 1) for one image, and takes them for two."""

    def forward(self, input: Tensor) -> Tensor:
        """The same, for any number of values: one alone is normalized to 0."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class Head(nn.Module):
    """Two towers of convolutions and three predictors.

    Args:
        channels_in: of the pyramid.
        channels: of the towers.
        num_classes: without background.
        num_convs: in each tower.
        strides: of the levels; one learnable scale each.
        conv: "plain" 3x3 as in the paper, or "separable" (depthwise 5x5 and 1x1), for CPUs: the plain head
            is half of all work of the network.
        norm: in the towers; "none" is the paper's first version, "bn_per_level" AdelaiDet's FCOS-RT: its
            levels share the convolutions, and not their statistics.
        quality_tower: which tower the quality branch reads (the improved paper: the box tower); None: no
            quality branch.
        box_activation: makes distances positive: relu (improved paper) or exp (first version).
        normalize_targets: the branch predicts in units of the level's stride.
        distance_init: what a fresh box branch predicts, in strides (pixels without `normalize_targets`). The
            papers start at 0, where half of the relu is dead and the boxes have no area; a small training has
            no time to wait for that. (With exp, which cannot give 0, the papers' start is 1.)
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        num_classes: int,
        num_convs: int,
        strides: Sequence[int],
        *,
        conv: Literal["plain", "separable"] = "plain",
        norm: Literal["gn", "bn", "bn_per_level", "none"] = "gn",
        quality_tower: Literal["box", "classification"] | None = "box",
        box_activation: Literal["relu", "exp"] = "relu",
        normalize_targets: bool = True,
        distance_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.quality_tower = quality_tower
        self.box_activation = box_activation
        self.units = [float(stride) if normalize_targets else 1.0 for stride in strides]

        def tower() -> Tower:
            widths = [channels_in] + [channels] * num_convs
            layers = [_conv_block(a, b, conv, norm, len(strides)) for a, b in pairwise(widths)]
            return Tower(*(layer for block in layers for layer in block))

        width = channels if num_convs else channels_in
        size = 3 if conv == "plain" else 1
        self.classification_tower, self.box_tower = tower(), tower()
        self.logits = nn.Conv2d(width, num_classes, size, padding=size // 2)
        self.distances = nn.Conv2d(width, 4, size, padding=size // 2)
        self.quality = nn.Conv2d(width, 1, size, padding=size // 2) if quality_tower else None
        self.scales = nn.Parameter(torch.ones(len(strides)))
        self._initialise(distance_init)

    def _initialise(self, distance_init: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module.groups > 1:  # a depthwise filter sees few inputs: 0.01 would silence it
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
                else:
                    nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.box_activation == "exp":
            distance_init = math.log(distance_init) if distance_init else 0.0
        for conv, start in ((self.logits, math.log(PRIOR / (1 - PRIOR))), (self.distances, distance_init)):
            assert conv.bias is not None
            nn.init.constant_(conv.bias, start)

    def forward(self, levels: Sequence[Tensor]) -> HeadOutput:
        """Predictions for P3, P4, ... concatenated over levels, row by row."""
        maps = [self.level(features, index) for index, features in enumerate(levels)]
        quality = [_flatten(level.quality).squeeze(-1) for level in maps if level.quality is not None]
        return HeadOutput(
            torch.cat([_flatten(level.logits) for level in maps], dim=1),
            torch.cat([_flatten(level.distances) for level in maps], dim=1),
            torch.cat(quality, dim=1) if quality else None,
        )

    def level(self, features: Float[Tensor, "batch channels height width"], index: int) -> LevelOutput:
        """Predictions of one level, by its index."""
        classification, box = self.classification_tower(features, index), self.box_tower(features, index)
        raw = self.distances(box).float() * self.scales[index]
        positive = raw.relu() if self.box_activation == "relu" else raw.exp()
        quality = None
        if self.quality is not None:
            quality = self.quality(classification if self.quality_tower == "classification" else box)
        return LevelOutput(self.logits(classification), positive * self.units[index], quality)


def _conv_block(channels_in: int, channels: int, conv: str, norm: str, num_levels: int) -> list[nn.Module]:
    layers: list[nn.Module]
    if conv == "plain":
        layers = [nn.Conv2d(channels_in, channels, 3, padding=1)]
    else:
        layers = [
            nn.Conv2d(channels_in, channels_in, 5, padding=2, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels, 1),
        ]
    if norm == "gn":
        layers.append(GroupNorm(math.gcd(32, channels), channels))
    elif norm == "bn":
        layers.append(nn.BatchNorm2d(channels))
    elif norm == "bn_per_level":
        layers.append(LevelNorms(nn.BatchNorm2d(channels) for _ in range(num_levels)))
    return [*layers, nn.ReLU(inplace=True)]


def _flatten(level: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C); a view in channels-last memory."""
    return level.permute(0, 2, 3, 1).flatten(1, 2)
