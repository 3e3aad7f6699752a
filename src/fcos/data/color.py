"""Random brightness, contrast and saturation, as one affine map of a pixel.

With grey value g = w . rgb of each pixel and its mean m, saturation is s rgb + (1 - s) g, contrast
c rgb + (1 - c) m, brightness b rgb. Saturation leaves g alone, so one after the other they are
b c s rgb + b c (1 - s) g + b (1 - c) m: a 3 x 4 matrix, and one pass over the bytes. torchvision's
`ColorJitter` makes three, with roundings in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as torchvision and Pillow have it
MEAN_STRIDE = 4  # the mean grey value is that of every fourth pixel of every fourth row


@dataclass(frozen=True)
class ColorChange:
    """Changes the colours of most images; drawn from torch's generator.

    Attributes:
        brightness: a factor in 1 +- this.
        contrast: likewise.
        saturation: likewise.
        p: share of the images that are changed.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    p: float = 0.7

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
        """The image with other colours, or as it is."""
        chance, *drawn = torch.rand(4).tolist()
        if chance >= self.p:
            return image
        ranges = (self.brightness, self.contrast, self.saturation)
        factors = [1 + extent * (2 * number - 1) for extent, number in zip(ranges, drawn, strict=True)]
        return change_color(image, *factors)


def change_color(
    image: UInt8[Tensor, "3 height width"], brightness: float, contrast: float, saturation: float
) -> UInt8[Tensor, "3 height width"]:
    """Saturation, contrast and brightness times these factors; 1 leaves each as it is."""
    few = image[:, ::MEAN_STRIDE, ::MEAN_STRIDE].float().mean(dim=(1, 2)).tolist()
    mean = sum(weight * value for weight, value in zip(GREY_WEIGHTS, few, strict=True))
    own = brightness * contrast * saturation
    grey = brightness * contrast * (1 - saturation)
    offset = brightness * (1 - contrast) * mean
    matrix: list[float] = []
    for channel in range(3):
        matrix += [own * (column == channel) + grey * GREY_WEIGHTS[column] for column in range(3)]
        matrix.append(offset)
    # Pillow's matrix conversion: rounds and clips, and reads and writes the bytes where they are.
    pil_image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    changed = pil_image.convert("RGB", tuple(matrix))
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)
