"""Transform pixels and boxes together: resizing for every image, augmentation for training.

Pixels stay bytes, channels last, up to the network. Resize methods differ by up to dozens of gray levels at
edges (antialiased or not), and rounding of sizes by one pixel: enough to change published scores. Each method
is bit-identical to the original.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional
from jaxtyping import Float, Int64, UInt8
from PIL import Image as PilImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fcos.config.conventions import ResizeMethod, SizeRule
from fcos.data.augmentation import NO_AUGMENTATION, Augmentation, RandomTile

Image = UInt8[Tensor, "3 _ _"]
Boxes = Float[Tensor, "boxes 4"]
Labels = Int64[Tensor, " boxes"]
KeptBoxes = tuple[Float[Tensor, "kept 4"], Int64[Tensor, " kept"]]
Augmented = tuple[Image, Float[Tensor, "_ 4"], Int64[Tensor, " _"]]
Resized = UInt8[Tensor, "3 _ _"] | Float[Tensor, "3 _ _"]


# An image is decoded at no less than this times the size that it is resized to: reduced and full decoding
# then differ by one gray level on average; by two and a half at 1.0 (docs/data.md).
DECODE_MARGIN = 1.5
MIN_VISIBLE = 0.25  # fraction of a box's area that must remain after a crop


@dataclass(frozen=True)
class EvalTransform:
    """Only resizing, for evaluation and prediction.

    Attributes:
        short_side: pixels, or None.
        longest_side: pixels.
        size: how the new size is rounded, see `resized_size`.
        method: how the new pixels are computed, see `resize`.
    """

    short_side: int | None
    longest_side: int
    size: SizeRule = "round"
    method: ResizeMethod = "antialiased"

    def __call__(self, image: Image) -> Resized:
        """The image at network size."""
        return resize(image, self.resized_size((image.shape[1], image.shape[2])), self.method)

    def resized_size(self, size_hw: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """Height, width of an image of this height, width at network size times `scale`."""
        short_side = None if self.short_side is None else max(1, round(self.short_side * scale))
        return resized_size(size_hw, short_side, max(1, round(self.longest_side * scale)), self.size)


@dataclass(frozen=True)
class TrainTransform:
    """Random tile, augmentation, resizing at a random scale, horizontal flip.

    Attributes:
        resizing: as in evaluation, but rounded to bytes.
        scale_min: the size is scaled at random in [scale_min, 1].
        horizontal_flip: mirror half of the images.
        augment: further augmentation.
        min_area: boxes smaller than this after resizing are dropped, square pixels.
        reduced_decode: large images need not be decoded at full size.
        tile: train on a random tile of this side, original pixels, instead of the whole image.
    """

    resizing: EvalTransform
    scale_min: float = 1.0
    horizontal_flip: bool = True
    augment: Augmentation = NO_AUGMENTATION
    min_area: float = 0.0
    reduced_decode: bool = False
    tile: int | None = None

    def enough(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The smallest height, width that an image of this size may be decoded at."""
        if not self.reduced_decode or self.tile or self.resizing.method != "antialiased":
            return size_hw  # tiles are in original pixels; other methods must be identical to the original
        height, width = self.resizing.resized_size(size_hw)
        margin = max(DECODE_MARGIN, 1 / self.augment.smallest_crop)
        return math.ceil(height * margin), math.ceil(width * margin)

    def __call__(self, image: Image, boxes_xyxy: Boxes, labels: Labels, *, turned: bool = False) -> Augmented:
        """The augmented image and its boxes (xyxy, in pixels of the input and of the returned image).

        `turned` rotates them by 90 degrees. The caller draws it once per step: a batch with portrait and
        landscape images would be padded to squares, and a third of the computation spent on padding.
        """
        if self.tile is not None:
            image, boxes_xyxy, labels = _apply(RandomTile(self.tile), image, boxes_xyxy, labels)
        if self.augment.geometry is not None:
            image, boxes_xyxy, labels = _apply(self.augment.geometry, image, boxes_xyxy, labels)
        scale = 1 - (1 - self.scale_min) * float(torch.rand(()))
        old_hw = (image.shape[1], image.shape[2])
        new_hw = self.resizing.resized_size(old_hw, scale)
        image = self._recolored_and_resized(image, new_hw)
        boxes_xyxy = boxes_xyxy * torch.tensor(2 * [new_hw[1] / old_hw[1], new_hw[0] / old_hw[0]])
        if self.horizontal_flip and float(torch.rand(())) < 0.5:
            image, boxes_xyxy = mirror(image, boxes_xyxy)
        if turned:  # after resizing: fewer pixels; after both flips: between them, the second undid the first
            image, boxes_xyxy = quarter_turn(image, boxes_xyxy)
        return image, *keep_large(boxes_xyxy, labels, self.min_area)

    def _recolored_and_resized(self, image: Image, new_hw: tuple[int, int]) -> Image:
        color = self.augment.color
        shrinks = new_hw[0] * new_hw[1] < image.shape[1] * image.shape[2]
        if color is not None and not shrinks:
            image = color(image)
        resized = resize(image, new_hw, self.resizing.method)
        # color changes and the copy to the device need bytes
        image = resized if resized.dtype == torch.uint8 else resized.round().to(torch.uint8)
        return color(image) if color is not None and shrinks else image


def mirror(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """Flip an image and its boxes horizontally."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=1)
    width = image.shape[2]
    return image.flip(-1), torch.stack([width - right, top, width - left, bottom], dim=1)


def quarter_turn(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """Rotate an image and boxes by 90 degrees counterclockwise; with both flips, all eight orientations."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=1)
    width = image.shape[2]
    return image.rot90(1, (1, 2)), torch.stack([top, width - right, bottom, width - left], dim=1)


def _apply(transform: v2.Transform, image: Image, boxes_xyxy: Boxes, labels: Labels) -> Augmented:
    """Run a v2 transform, and keep the boxes that are still visible."""
    boxes = tv_tensors.BoundingBoxes(
        boxes_xyxy, format="XYXY", canvas_size=(image.shape[1], image.shape[2]), clamping_mode=None
    )
    new_image, new_boxes, new_labels = transform(tv_tensors.Image(image), boxes, labels)
    height, width = new_image.shape[-2:]
    kept = keep_visible(new_boxes.as_subclass(Tensor), new_labels, (height, width))
    return (new_image.as_subclass(Tensor), *kept)


def keep_large(boxes_xyxy: Boxes, labels: Labels, min_area: float) -> KeptBoxes:
    """Boxes of at least this many square pixels; boxes without area are always dropped."""
    kept = _areas(boxes_xyxy) >= max(min_area, 1e-6)
    return boxes_xyxy[kept], labels[kept]


def keep_visible(boxes_xyxy: Boxes, labels: Labels, size_hw: tuple[int, int]) -> KeptBoxes:
    """Boxes clipped to an image; boxes that lose three quarters of their area or more are dropped."""
    height, width = size_hw
    clipped = torch.minimum(
        boxes_xyxy.clamp(min=0), torch.tensor([width, height, width, height], dtype=boxes_xyxy.dtype)
    )
    kept = _areas(clipped) > MIN_VISIBLE * _areas(boxes_xyxy).clamp(min=1e-6)
    return clipped[kept], labels[kept]


def _areas(boxes_xyxy: Boxes) -> Float[Tensor, " boxes"]:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(dim=1)


def resized_size(
    size_hw: tuple[int, int], short_side: int | None, longest_side: int, rule: SizeRule = "round"
) -> tuple[int, int]:
    """Height, width after resizing (the papers' rule).

    The shorter side becomes `short_side`, or less if the longer would exceed `longest_side`; without
    `short_side` the longer becomes `longest_side`.

    Args:
        rule: "round" to the nearest (ours, detectron2, mmdetection); "floor" (torchvision); "truncate": the
            shorter side is rounded, then the longer is truncated (official code; it may exceed
            `longest_side`).
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
        short_side = max(1, round(longest_side * low / high))
    long_side = int(short_side * high / low)
    return (short_side, long_side) if size_hw[0] <= size_hw[1] else (long_side, short_side)


def resize(image: Image, size_hw: tuple[int, int], method: ResizeMethod = "antialiased") -> Resized:
    """Resize an image with bilinear interpolation.

    Args:
        method: "antialiased" (torchvision on uint8, ours; one value in 400 differs from Pillow by 1);
            "pillow" (detectron2, AdelaiDet, official code); "opencv": not antialiased (mmdetection); "float":
            not antialiased and not rounded (torchvision's detectors).
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


def _resize_as_opencv(image: Image, size_hw: tuple[int, int]) -> Image:
    """OpenCV's INTER_LINEAR on uint8, which uses integer arithmetic: weights have 11 bits."""
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


# Padding ----------------------------------------------------------------------------------------------------


def padded_size(sizes_hw: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """Smallest height, width that fit every image and are divisible by `multiple`."""
    height = max(size[0] for size in sizes_hw)
    width = max(size[1] for size in sizes_hw)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def same_padded_size(
    sizes_hw: Sequence[tuple[int, int]], multiple: int, max_pixels: int | None = None
) -> list[list[int]]:
    """Group the indices of images by padded size; images of more than `max_pixels` are alone.

    More padding would change the detections: group norm includes it.
    """
    groups: dict[object, list[int]] = {}
    for index, size_hw in enumerate(sizes_hw):
        padded_hw = padded_size([size_hw], multiple)
        is_alone = max_pixels is not None and math.prod(padded_hw) > max_pixels
        groups.setdefault(index if is_alone else padded_hw, []).append(index)
    return list(groups.values())


def pad(
    images: Sequence[Tensor], multiple: int, zeros: Callable[..., Tensor] = torch.zeros
) -> tuple[Tensor, Tensor]:
    """Pad at the bottom and right to one size divisible by `multiple`; channels last in memory.

    Returns:
        images `(N, 3, H, W)`, and `(N, 2)` int64 height, width of each inside the padding.
    """
    sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
    height, width = padded_size(sizes_hw, multiple)
    padded = zeros((len(images), height, width, 3), dtype=images[0].dtype).permute(0, 3, 1, 2)
    for place, image, (h, w) in zip(padded, images, sizes_hw, strict=True):
        place[:, :h, :w] = image
    return padded, torch.tensor(sizes_hw)
