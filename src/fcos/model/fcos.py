"""The network: images in, predictions at every point out.

C3..C5 of the backbone become P3..P7 (`FeaturePyramid`; C2 adds P2); one `Head`, shared by all levels,
predicts classes, distances to the four sides, and quality (figure 2 of the paper).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn

from fcos.config.conventions import PointPlace
from fcos.model.backbone import Backbone
from fcos.model.points import PointGrid, make_grid

# Initial probability of every class at every point (RetinaNet, 1708.02002, section 4.1).
PRIOR = 0.01


class FeaturePyramid(nn.Module):
    """Top-down pyramid with extra coarse levels (arXiv 1612.03144; P6 and P7 as in RetinaNet, 1708.02002).

    Args:
        in_channels: of the backbone's features, finest first.
        channels: of every output level.
        num_levels: of the output: one for each feature, or more.
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
        """The levels, finest first: P3, P4, ..."""
        merged = [self.lateral[-1](features[-1])]
        for lateral, feature in zip(self.lateral[-2::-1], features[-2::-1], strict=True):
            above = F.interpolate(merged[0], size=feature.shape[-2:], mode="nearest")
            merged.insert(0, lateral(feature) + above)
        levels = [output(level) for output, level in zip(self.output, merged, strict=True)]
        coarse = levels[-1] if self.extra_from == "p5" else features[-1]
        for i, conv in enumerate(self.extra):
            # ReLU only between the extra levels, not before the first, as in all peers.
            coarse = conv(coarse if i == 0 else F.relu(coarse))
            levels.append(coarse)
        return levels


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
    """The same predictions of one level, as maps with a cell for each point."""

    logits: Float[Tensor, "batch classes height width"]
    distances: Float[Tensor, "batch 4 height width"]
    quality: Float[Tensor, "batch 1 height width"] | None


class LevelNorms(nn.ModuleList):
    """A norm for each level; `Tower` chooses it."""


class Tower(nn.Sequential):
    """A sequence of layers; each level may have its own norms."""

    def forward(self, features: Tensor, level: int = 0) -> Tensor:
        """Features of one level; of a tower with `LevelNorms`, say which one."""
        for layer in self:
            features = layer[level](features) if isinstance(layer, LevelNorms) else layer(features)
        return features


class GroupNorm(nn.GroupNorm):
    """PyTorch's rejects groups of one value (a 1 x 1 level) for one image, but not for two."""

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
            is half of the work of the network.
        norm: in the towers; "none" is the paper's first version, "bn_per_level" AdelaiDet's FCOS-RT: its
            levels share convolutions but not statistics.
        quality_tower: which tower the quality branch reads (the improved paper: the box tower); None: no
            quality branch.
        box_activation: makes distances positive: relu (improved paper) or exp (first version).
        normalize_targets: the branch predicts in units of the level's stride.
        distance_init: what an untrained box branch predicts, in strides (pixels without `normalize_targets`).
            The papers start at 0, where half of the relu is dead and the boxes have no area; a short training
            run has no time to wait for that. (With exp, which cannot give 0, the papers' start is 1.)
        init: of the towers: "normal", with a standard deviation of 0.01 (papers, for SGD), or "kaiming", by
            the number of inputs. AdamW changes each weight by about the learning rate in a step, a tenth of
            0.01: before a norm, which hides how small the weights are, such towers stay noise for long.
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
        init: Literal["normal", "kaiming"] = "normal",
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
        self._initialize(distance_init, init)

    def _initialize(self, distance_init: float, init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module.groups > 1:  # a depthwise filter has few inputs: 0.01 would make its output vanish
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
                else:
                    nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for conv in (*self.classification_tower, *self.box_tower) if init == "kaiming" else ():
            if isinstance(conv, nn.Conv2d) and conv.groups == 1:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
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


class FCOS(nn.Module):
    """Backbone, pyramid and head, with the pixel normalization that the backbone expects.

    Args:
        backbone: images to C3, C4, C5.
        pyramid: to P3, P4, ...
        head: to predictions.
        strides: of the levels, input pixels.
        pixel_mean: RGB, in 0..255.
        pixel_std: RGB, in 0..255.
        points: where in its cell a point lies, see `make_grid`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        pyramid: FeaturePyramid,
        head: Head,
        strides: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        points: PointPlace = "center",
    ) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.head = backbone, pyramid, head
        self.strides, self.points = tuple(strides), points
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(3, 1, 1))

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return self.head.logits.out_channels

    def grid(self, image_hw: tuple[int, int]) -> PointGrid:
        """The points of an input of this (padded) size, on the device of the network."""
        return make_grid(image_hw, self.strides, self.pixel_mean.device, place=self.points)

    def forward(
        self, images: Real[Tensor, "batch 3 height width"], sizes_hw: Int64[Tensor, "batch 2"]
    ) -> HeadOutput:
        """Predictions for padded images.

        Args:
            images: RGB in 0..255, uint8 (or float32 from a resize that does not round), padded at the
                bottom and right.
            sizes_hw: height, width of each image inside the padding.
        """
        output: HeadOutput = self.head(self.features(images, sizes_hw))
        return output

    def features(
        self, images: Real[Tensor, "batch 3 height width"], sizes_hw: Int64[Tensor, "batch 2"]
    ) -> list[Tensor]:
        """P3, P4, ... of padded images; arguments as above."""
        levels: list[Tensor] = self.pyramid(self.backbone(self.normalize(images, sizes_hw)))
        return levels

    def normalize(
        self, images: Real[Tensor, "batch 3 height width"], sizes_hw: Int64[Tensor, "batch 2"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pixels minus mean over std; the padding is 0 after normalization, as in all peers."""
        rows = torch.arange(images.shape[2], device=images.device) < sizes_hw[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes_hw[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        return (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std * inside
