"""Mix training images: mosaic, mixup and copy-paste.

All three work on augmented images at network size, and keep the size of the first, so a batch needs no more
padding. They use torch's generator, which the data set seeds from (seed, position). Mixed images look unlike
real ones, so mixing is off in the last part of training (YOLOX, 2107.08430).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fcos.data.transforms import Augmented, Image, keep_large, keep_visible, resize

GRAY = 127  # fill value, as in `RandomZoomOut`
CENTER = 0.25, 0.75  # range of the point where the four images of a mosaic meet, fraction of each side
SHRINK = 0.5, 1.0  # range of the resize factor of each of the four
MAX_COVERED = 0.3  # fraction of a box that a pasted object may cover
PASTED = 0.5  # fraction of the other image's objects that are pasted


@dataclass(frozen=True)
class Mixing:
    """How many of the training images are mixed.

    Attributes:
        mosaic: fraction of images that are mosaics of four.
        mixup: fraction that are the mean of two.
        copy_paste: fraction with objects of another image pasted in.
        until: first position in the training stream at which no image is mixed.
        min_area: boxes that become smaller than this are dropped, square pixels.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    until: int = 0
    min_area: float = 0.0

    def __call__(self, first: Augmented, position: int, draw: Callable[[], Augmented]) -> Augmented:
        """The image at a position of the stream; `draw` returns another one, with a random index."""
        if position >= self.until:
            return first
        chances = torch.rand(3).tolist()
        if chances[0] < self.mosaic:
            first = mosaic([first, draw(), draw(), draw()])
        if chances[1] < self.copy_paste:
            first = paste_objects(first, draw())
        if chances[2] < self.mixup:
            first = mixup(first, draw())
        image, boxes, labels = first
        return image, *keep_large(boxes, labels, self.min_area)


NO_MIXING = Mixing()


def mosaic(parts: list[Augmented]) -> Augmented:
    """Four images that meet at a random point, each shrunk by a random factor (YOLOv4, 2004.10934).

    Each has one corner at the point and is cropped to the first image's size; boxes with less than a quarter
    left are dropped.
    """
    height, width = parts[0][0].shape[1:]
    canvas = torch.full_like(parts[0][0], GRAY)
    y, x = (round(_between(*CENTER) * side) for side in (height, width))
    kept = []
    for (image, boxes, labels), is_right, is_below in zip(parts, (0, 1, 0, 1), (0, 0, 1, 1), strict=True):
        old_hw = image.shape[1:]
        factor = _between(*SHRINK)
        image = resize(image, (max(1, round(factor * old_hw[0])), max(1, round(factor * old_hw[1]))))
        new_hw = image.shape[1:]
        top, left = y - (0 if is_below else new_hw[0]), x - (0 if is_right else new_hw[1])
        place_image(canvas, image, top, left)
        boxes = boxes * torch.tensor(2 * [new_hw[1] / old_hw[1], new_hw[0] / old_hw[0]])
        boxes = boxes + torch.tensor([left, top, left, top])
        kept.append(keep_visible(boxes, labels, (height, width)))
    return canvas, torch.cat([boxes for boxes, _ in kept]), torch.cat([labels for _, labels in kept])


def mixup(first: Augmented, second: Augmented) -> Augmented:
    """The mean of two images, with the boxes of both (1902.04103).

    The second is cropped or padded with gray to the size of the first.
    """
    image, boxes, labels = first
    other = torch.full_like(image, GRAY)
    place_image(other, second[0], 0, 0)
    other_boxes, other_labels = keep_visible(second[1], second[2], (image.shape[1], image.shape[2]))
    mean = ((image.to(torch.int16) + other) // 2).to(torch.uint8)
    return mean, torch.cat([boxes, other_boxes]), torch.cat([labels, other_labels])


def paste_objects(first: Augmented, second: Augmented) -> Augmented:
    """Some objects of the second image, as rectangles at random places of the first (2012.07177).

    An object that would cover a box by more than `MAX_COVERED` is not pasted.
    """
    image, boxes, labels = first[0].clone(), first[1], first[2]
    height, width = image.shape[1:]
    for box, label in zip(second[1].round().int().tolist(), second[2], strict=True):
        chance, down, right = torch.rand(3).tolist()
        cut = second[0][:, box[1] : box[3], box[0] : box[2]]
        free_height, free_width = height - cut.shape[1], width - cut.shape[2]
        if chance >= PASTED or min(free_height, free_width) < 0 or cut.numel() == 0:
            continue
        top, left = int(down * (free_height + 1)), int(right * (free_width + 1))
        pasted = torch.tensor([left, top, left + cut.shape[2], top + cut.shape[1]], dtype=boxes.dtype)
        common = (torch.minimum(boxes[:, 2:], pasted[2:]) - torch.maximum(boxes[:, :2], pasted[:2])).clamp(
            min=0
        )
        covered = common.prod(dim=1) / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        if (covered <= MAX_COVERED).all():
            place_image(image, cut, top, left)
            boxes, labels = torch.cat([boxes, pasted[None]]), torch.cat([labels, label[None]])
    return image, boxes, labels


def place_image(canvas: Image, image: Image, top: int, left: int) -> None:
    """Paste an image into another, cropped at its borders."""
    height, width = canvas.shape[1:]
    y1, x1 = max(0, top), max(0, left)
    y2, x2 = min(height, top + image.shape[1]), min(width, left + image.shape[2])
    if y1 < y2 and x1 < x2:
        canvas[:, y1:y2, x1:x2] = image[:, y1 - top : y2 - top, x1 - left : x2 - left]


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
