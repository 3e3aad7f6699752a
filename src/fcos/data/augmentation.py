"""Data augmentation: the policies of the setting `augmentation`.

Geometric transforms are torchvision's (`transforms.v2` on `tv_tensors`); random numbers come from torch's
generator, which the data set seeds from (seed, position in the stream). Color jitter is one affine map of
RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as torchvision and Pillow have it
MEAN_STRIDE = 4  # the mean gray value is that of every fourth pixel of every fourth row
TILES_WITH_A_BOX = 0.75  # fraction; tiles of background alone teach less, but are needed too
COLOR_RANGES = (0.3, 0.3, 0.4)  # factors of brightness, contrast and saturation are drawn from 1 +- this
COLOR_CHANGED = 0.7  # fraction of the images


@dataclass(frozen=True)
class Augmentation:
    """A policy.

    Attributes:
        geometry: moves pixels and boxes; a torchvision v2 transform of the original image.
        color: changes only pixel values, before or after resizing, whichever has fewer pixels.
        quarter_turns: in half of the steps, turn all images by 90 degrees.
        smallest_crop: minimum fraction of each side that `geometry` keeps.
    """

    geometry: v2.Transform | None = None
    color: Callable[[Tensor], Tensor] | None = None
    quarter_turns: bool = False
    smallest_crop: float = 1.0


NO_AUGMENTATION = Augmentation()


class RandomCropOfBoxes(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Crop at a random place, keeping the aspect ratio. (SSD's RandomIoUCrop crops more and is far slower.)

    With other aspect ratios, each image would be padded to the widest and tallest of its batch: on BCCD
    that was 60 % more pixels.

    Args:
        smallest: minimum fraction of each side to keep.
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
        """Crop an image, or shift its boxes."""
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            shift = torch.tensor([params["left"], params["top"]]).repeat(2)
            return tv_tensors.wrap(inpt - shift, like=inpt, canvas_size=(params["height"], params["width"]))
        return v2.functional.crop(inpt, **params)


class RandomTile(RandomCropOfBoxes):
    """Crop a square tile; most contain a randomly chosen box, the others are at random places.

    Args:
        side: pixels; a shorter side of an image is not cropped.
    """

    def __init__(self, side: int) -> None:
        super().__init__(1.0)
        self.side = side

    def make_params(self, flat_inputs: Sequence[object]) -> dict[str, int]:
        """Place and size of the tile."""
        height, width = v2.functional.get_size(flat_inputs[0])
        new_height, new_width = min(self.side, height), min(self.side, width)
        lowest, highest = (0.0, 0.0), (width - new_width, height - new_height)  # left, top
        chance, which, right, down = torch.rand(4).tolist()
        boxes = next(entry for entry in flat_inputs if isinstance(entry, tv_tensors.BoundingBoxes))
        if len(boxes) and chance < TILES_WITH_A_BOX:  # then its center is inside
            x1, y1, x2, y2 = boxes[int(which * len(boxes))].tolist()
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            lowest = max(0, x - new_width), max(0, y - new_height)
            highest = min(width - new_width, x), min(height - new_height, y)
        left, top = (
            round(low + share * (high - low))
            for low, high, share in zip(lowest, highest, (right, down), strict=True)
        )
        return {"top": top, "left": left, "height": new_height, "width": new_width}


def random_color(image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
    """Randomly change the colors of an image, or leave it unchanged; uses torch's generator."""
    chance, *drawn = torch.rand(4).tolist()
    if chance >= COLOR_CHANGED:
        return image
    factors = [1 + extent * (2 * number - 1) for extent, number in zip(COLOR_RANGES, drawn, strict=True)]
    return change_color(image, *factors)


def change_color(
    image: UInt8[Tensor, "3 height width"], brightness: float, contrast: float, saturation: float
) -> UInt8[Tensor, "3 height width"]:
    """Multiply saturation, contrast and brightness by these factors; 1 leaves each unchanged.

    With gray value g = w . rgb of each pixel and its mean m, saturation is s rgb + (1 - s) g, contrast
    c rgb + (1 - c) m, brightness b rgb. Saturation does not change g, so all three in sequence are
    b c s rgb + b c (1 - s) g + b (1 - c) m: a 3 x 4 matrix, and one pass over the bytes. torchvision's
    `ColorJitter` makes three passes, and rounds after each.
    """
    few = image[:, ::MEAN_STRIDE, ::MEAN_STRIDE].float().mean(dim=(1, 2)).tolist()
    mean = sum(weight * value for weight, value in zip(GRAY_WEIGHTS, few, strict=True))
    own = brightness * contrast * saturation
    gray = brightness * contrast * (1 - saturation)
    offset = brightness * (1 - contrast) * mean
    matrix: list[float] = []
    for channel in range(3):
        matrix += [own * (column == channel) + gray * GRAY_WEIGHTS[column] for column in range(3)]
        matrix.append(offset)
    # Pillow's matrix conversion rounds and clips, and works on bytes.
    pil_image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    changed = pil_image.convert("RGB", tuple(matrix))
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


_CROP = v2.RandomApply([RandomCropOfBoxes(0.6)], p=0.5)
_STRONG = [
    v2.RandomZoomOut(fill=127, side_range=(1.0, 2.0), p=0.25),
    v2.RandomApply([v2.RandomRotation(10, fill=127)], p=0.3),
    v2.RandomApply([RandomCropOfBoxes(0.4)], p=0.6),
]
# "overhead" is for aerial and microscope images, in which no direction is up.
POLICIES = {
    "color": Augmentation(None, random_color),
    "standard": Augmentation(_CROP, random_color, smallest_crop=0.6),
    "strong": Augmentation(v2.Compose(_STRONG), random_color, smallest_crop=0.4),
    "overhead": Augmentation(
        v2.Compose([v2.RandomVerticalFlip(0.5), _CROP]), random_color, quarter_turns=True, smallest_crop=0.6
    ),
}


def build_policy(name: bool | str) -> Augmentation:
    """The policy with this name; True is "standard", False is none."""
    return POLICIES["standard" if name is True else name] if name else NO_AUGMENTATION
