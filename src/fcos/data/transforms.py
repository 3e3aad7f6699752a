"""Pixels and boxes together: resizing for every image, augmentation for training.

Geometry is torchvision's (`transforms.v2` on `tv_tensors`), drawn from torch's generator, which the data
set seeds from (seed, position in the stream). Pixels stay bytes, channels last, up to the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fcos.config.conventions import ResizeMethod, SizeRule
from fcos.data.color import ColorChange
from fcos.data.resize import Resized, resize, resized_size
from fcos.errors import ConfigError

Image = UInt8[Tensor, "3 _ _"]
Boxes = Float[Tensor, "boxes 4"]
Labels = Int64[Tensor, " boxes"]
Augmented = tuple[Image, Float[Tensor, "kept 4"], Int64[Tensor, " kept"]]

# An image is decoded no smaller than this times the size that it is resized to: reduced and full decoding
# then differ by one grey level in the mean; by two and a half at 1.0 (docs/data.md).
DECODE_MARGIN = 1.5


@dataclass(frozen=True)
class EvalTransform:
    """Resizing alone, for evaluation and prediction.

    Attributes:
        short_side: pixels, or None.
        longest_side: pixels.
        size: how the new sides become whole numbers, see `resized_size`.
        method: how the new pixels are computed, see `resize`.
    """

    short_side: int | None
    longest_side: int
    size: SizeRule = "round"
    method: ResizeMethod = "antialiased"

    def __call__(self, image: Image) -> Resized:
        """The image at network size."""
        return resize(image, self.resized_size((image.shape[1], image.shape[2])), self.method)

    def resized_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height, width at network size of an image of this height, width."""
        return resized_size(size_hw, self.short_side, self.longest_side, self.size)


@dataclass(frozen=True)
class Augmentation:
    """A policy.

    Attributes:
        geometry: moves pixels and boxes; a torchvision v2 transform of the original image.
        color: changes pixels alone, before or after resizing, whichever is on fewer pixels.
        quarter_turns: turn all images of half of the steps by 90 degrees.
        smallest_crop: share of each side that `geometry` leaves at least.
    """

    geometry: v2.Transform | None = None
    color: Callable[[Image], Image] | None = None
    quarter_turns: bool = False
    smallest_crop: float = 1.0


@dataclass(frozen=True)
class TrainTransform:
    """Augmentation, resizing at a random scale, mirror.

    Attributes:
        short_side: pixels, or None.
        longest_side: pixels.
        scale_min: the size is scaled at random in [scale_min, 1].
        horizontal_flip: mirror half of the images.
        augment: what else is done.
        min_area: boxes smaller than this after resizing are left out, square pixels.
        size: how the new sides become whole numbers, see `resized_size`.
        method: how the new pixels are computed, see `resize`; here they are always rounded.
        reduced_decode: large images need not be decoded at full size.
    """

    short_side: int | None
    longest_side: int
    scale_min: float = 1.0
    horizontal_flip: bool = True
    augment: Augmentation = Augmentation()
    min_area: float = 0.0
    size: SizeRule = "round"
    method: ResizeMethod = "antialiased"
    reduced_decode: bool = False

    def enough(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The least height, width that an image of this size must be decoded at."""
        if not self.reduced_decode or self.method != "antialiased":
            return size_hw  # the other ways of resizing are exact against their originals
        height, width = resized_size(size_hw, self.short_side, self.longest_side, self.size)
        margin = max(DECODE_MARGIN, 1 / self.augment.smallest_crop)
        return math.ceil(height * margin), math.ceil(width * margin)

    def __call__(self, image: Image, boxes_xyxy: Boxes, labels: Labels, *, turned: bool = False) -> Augmented:
        """A new version of the image and its boxes (xyxy, pixels of the image given and returned).

        `turned` turns them by 90 degrees. Who calls draws it for a whole step: upright images beside lying
        ones are all padded to squares, and a third of the work is done on padding.
        """
        if self.augment.geometry is not None:
            image, boxes_xyxy, labels = _apply(self.augment.geometry, image, boxes_xyxy, labels)
        scale = 1 - (1 - self.scale_min) * float(torch.rand(()))
        old_hw = (image.shape[1], image.shape[2])
        short_side = None if self.short_side is None else max(1, round(self.short_side * scale))
        new_hw = resized_size(old_hw, short_side, max(1, round(self.longest_side * scale)), self.size)
        image = self._recolored_and_resized(image, new_hw)
        boxes_xyxy = boxes_xyxy * torch.tensor(2 * [new_hw[1] / old_hw[1], new_hw[0] / old_hw[0]])
        if self.horizontal_flip and float(torch.rand(())) < 0.5:
            image, boxes_xyxy = mirror(image, boxes_xyxy)
        if turned:  # after resizing: fewer pixels; after both mirrors: in between, the second undid the first
            image, boxes_xyxy = quarter_turn(image, boxes_xyxy)
        kept = _areas(boxes_xyxy) >= max(self.min_area, 1e-6)
        return image, boxes_xyxy[kept], labels[kept]

    def _recolored_and_resized(self, image: Image, new_hw: tuple[int, int]) -> Image:
        color = self.augment.color
        shrinks = new_hw[0] * new_hw[1] < image.shape[1] * image.shape[2]
        if color is not None and not shrinks:
            image = color(image)
        resized = resize(image, new_hw, self.method)
        # color changes and the way to the device want bytes
        image = resized if resized.dtype == torch.uint8 else resized.round().to(torch.uint8)
        return color(image) if color is not None and shrinks else image


def mirror(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """Image and boxes, left and right exchanged."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=1)
    width = image.shape[2]
    return image.flip(-1), torch.stack([width - right, top, width - left, bottom], dim=1)


def quarter_turn(image: Image, boxes_xyxy: Boxes) -> tuple[Image, Boxes]:
    """Image and boxes, a quarter turn against the clock; with both mirrors that gives all eight poses."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=1)
    width = image.shape[2]
    return image.rot90(1, (1, 2)), torch.stack([top, width - right, bottom, width - left], dim=1)


def _apply(transform: v2.Transform, image: Image, boxes_xyxy: Boxes, labels: Labels) -> Augmented:
    """Run a v2 transform; boxes that lose three quarters of their area at a border are left out."""
    boxes = tv_tensors.BoundingBoxes(
        boxes_xyxy, format="XYXY", canvas_size=(image.shape[1], image.shape[2]), clamping_mode=None
    )
    new_image, new_boxes, new_labels = transform(tv_tensors.Image(image), boxes, labels)
    whole = new_boxes.as_subclass(Tensor)
    height, width = new_image.shape[-2:]
    clipped = torch.minimum(
        whole.clamp(min=0), torch.tensor([width, height, width, height], dtype=whole.dtype)
    )
    kept = _areas(clipped) > 0.25 * _areas(whole).clamp(min=1e-6)
    return new_image.as_subclass(Tensor), clipped[kept], new_labels[kept]


def _areas(boxes_xyxy: Boxes) -> Float[Tensor, " boxes"]:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(dim=1)


class RandomCropOfBoxes(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Crop a part of the same shape, anywhere. (RandomIoUCrop of SSD crops harder and costs far more.)

    With a shape of its own, each image would be padded to the widest and the highest of its batch: on BCCD
    that was 60 % more pixels.

    Args:
        smallest: share of each side that is left at least.
    """

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def make_params(self, flat_inputs: Sequence[object]) -> dict[str, int]:
        """Place and size of the crop."""
        height, width = v2.functional.get_size(flat_inputs[0])
        size, down, right = torch.rand(3).tolist()
        share = self.smallest + (1 - self.smallest) * size
        new_height, new_width = max(1, round(height * share)), max(1, round(width * share))
        top, left = int(down * (height - new_height + 1)), int(right * (width - new_width + 1))
        return {"top": top, "left": left, "height": new_height, "width": new_width}

    def transform(self, inpt: object, params: dict[str, int]) -> object:
        """Crop an image, or move boxes along."""
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            shift = torch.tensor([params["left"], params["top"]]).repeat(2)
            return tv_tensors.wrap(inpt - shift, like=inpt, canvas_size=(params["height"], params["width"]))
        return v2.functional.crop(inpt, **params)


SMALLEST_CROP = {"standard": 0.6, "overhead": 0.6, "strong": 0.4}  # share of each side


def _sometimes(transform: v2.Transform, p: float) -> v2.Transform:
    return v2.RandomApply([transform], p=p)


def _geometry(name: str) -> list[v2.Transform]:
    if name == "standard":
        return [_sometimes(RandomCropOfBoxes(SMALLEST_CROP[name]), 0.5)]
    if name == "overhead":
        return [v2.RandomVerticalFlip(0.5), _sometimes(RandomCropOfBoxes(SMALLEST_CROP[name]), 0.5)]
    zoom_out = v2.RandomZoomOut(fill=127, side_range=(1.0, 2.0), p=0.25)
    return [
        zoom_out,
        _sometimes(v2.RandomRotation(10, fill=127), 0.3),
        _sometimes(RandomCropOfBoxes(SMALLEST_CROP[name]), 0.6),
    ]


POLICIES = {
    "color": "brightness, contrast, saturation",
    "standard": "color, and crops of at least 60 % of each side",
    "strong": "color, smaller crops, zooming out, rotation by up to 10 degrees",
    "overhead": "standard, quarter turns and mirrors: for images without up and down, as from a microscope",
}


def build_policy(name: bool | str) -> Augmentation:
    """The augmentation of this name; True is "standard", False none."""
    if name is False:
        return Augmentation()
    key = "standard" if name is True else name
    if key not in POLICIES:
        raise ConfigError(f'"augmentation": there is no policy "{key}"', fix=f"one of {', '.join(POLICIES)}")
    geometry = None if key == "color" else v2.Compose(_geometry(key))
    return Augmentation(
        geometry, ColorChange(), quarter_turns=key == "overhead", smallest_crop=SMALLEST_CROP.get(key, 1.0)
    )
