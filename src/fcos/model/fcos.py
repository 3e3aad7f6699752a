"""The network: images in, predictions at every point out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn

from fcos.config.conventions import PointPlace
from fcos.model.backbone import Backbone
from fcos.model.fpn import FeaturePyramid
from fcos.model.head import Head, HeadOutput
from fcos.model.points import PointGrid, make_grid


class FCOS(nn.Module):
    """Backbone, pyramid and head, with the normalisation of the pixels that the backbone wants.

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
        """Pixels minus mean over std; the padding is 0 after normalisation, as all peers have it."""
        rows = torch.arange(images.shape[2], device=images.device) < sizes_hw[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes_hw[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        return (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std * inside
