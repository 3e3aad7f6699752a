"""Images to network size: the papers' rule, ours and those of the code bases that published weights.

The ways of resizing differ by up to dozens of grey levels at edges (antialiased or not), and their rounding
by one pixel: enough to move published scores. Each is exact to the last bit against its original.
"""

from __future__ import annotations

import torch
import torch.nn.functional
from jaxtyping import Float, UInt8
from PIL import Image as PilImage
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fcos.config.conventions import ResizeMethod, SizeRule

Pixels = UInt8[Tensor, "3 _ _"]
Resized = UInt8[Tensor, "3 _ _"] | Float[Tensor, "3 _ _"]


def resized_size(
    size_hw: tuple[int, int], short_side: int | None, longest_side: int, rule: SizeRule = "round"
) -> tuple[int, int]:
    """Height, width after resizing (the papers' rule).

    The shorter side becomes `short_side`, or less where the longer would pass `longest_side`; without
    `short_side` the longer becomes `longest_side`.

    Args:
        size_hw: of the image.
        short_side: pixels, or None.
        longest_side: pixels.
        rule: "round" to the nearest (ours, detectron2, mmdetection); "floor" (torchvision); "truncate": the
            shorter side is rounded, then the longer is cut off (official code; it may pass `longest_side`).
    """
    if rule == "truncate" and short_side is not None:
        return _truncated_size(size_hw, short_side, longest_side)
    scale = longest_side / max(size_hw)
    if short_side is not None:
        scale = min(scale, short_side / min(size_hw))
    half = 0.0 if rule == "floor" else 0.5
    return max(1, int(size_hw[0] * scale + half)), max(1, int(size_hw[1] * scale + half))


def _truncated_size(size_hw: tuple[int, int], short_side: int, longest_side: int) -> tuple[int, int]:
    low, high = min(size_hw), max(size_hw)
    if high / low * short_side > longest_side:
        short_side = round(longest_side * low / high)
    long_side = int(short_side * high / low)
    return (short_side, long_side) if size_hw[0] <= size_hw[1] else (long_side, short_side)


def resize(image: Pixels, size_hw: tuple[int, int], method: ResizeMethod = "antialiased") -> Resized:
    """Bilinear.

    Args:
        image: its pixels.
        size_hw: wanted.
        method: "antialiased" (torchvision on uint8, ours; one value in 400 is 1 off Pillow's); "pillow"
            (detectron2, AdelaiDet, official code); "opencv": not antialiased (mmdetection); "float": not
            antialiased and not rounded (torchvision's detectors).
    """
    if tuple(image.shape[1:]) == tuple(size_hw):
        return image
    if method == "opencv":
        return _resize_as_opencv(image, size_hw)
    if method == "float":
        floats = image[None].float()
        return torch.nn.functional.interpolate(floats, list(size_hw), mode="bilinear", align_corners=False)[0]
    if method == "pillow":
        pil_image = PilImage.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        resized = pil_image.resize((size_hw[1], size_hw[0]), PilImage.Resampling.BILINEAR)
        return v2.functional.pil_to_tensor(resized)  # type: ignore[no-any-return]
    smooth: Tensor = F.resize(
        image, list(size_hw), interpolation=v2.InterpolationMode.BILINEAR, antialias=True
    )
    return smooth


def _resize_as_opencv(image: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """OpenCV's INTER_LINEAR on uint8, which computes in whole numbers: weights have 11 bits."""
    low, high, weight_low, weight_high = _opencv_weights(image.shape[2], size_hw[1])
    pixels = image.int()
    rows = (pixels[:, :, low] * weight_low + pixels[:, :, high] * weight_high) >> 4
    low, high, weight_low, weight_high = _opencv_weights(image.shape[1], size_hw[0])
    above = (rows[:, low] * weight_low[:, None]) >> 16
    below = (rows[:, high] * weight_high[:, None]) >> 16
    return ((above + below + 2) >> 2).to(torch.uint8)


def _opencv_weights(old: int, new: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index and weight (of 2048) of the two old pixels that each new pixel of a row lies between."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    low = place.floor()
    share = torch.where((low < 0) | (low >= old - 1), 0.0, place - low)
    index = low.clamp(0, old - 1).long()
    weights = ((1 - share) * 2048).round().int(), (share * 2048).round().int()
    return index, (index + 1).clamp(max=old - 1), *weights
