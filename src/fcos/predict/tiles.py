"""Predict one image from many views of it: large images tile by tile, and test-time augmentation.

The views of a large image are overlapping tiles, for small objects, and the whole image, for objects larger
than a tile. Test-time augmentation adds mirrored and resized versions of each view. The detections of all
views are merged: boxes cut off by the border of their tile are removed where another view shows the object
whole, then NMS runs over the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fcos.data.strips import OVERLAP, LargeImage, Overview, starts
from fcos.data.transforms import EvalTransform
from fcos.errors import FcosError
from fcos.model.postprocess import ImageDetections, PostProcess

MOST_OVERLAP = 0.9  # fraction of the side of a tile
SMALLEST_TILE = 32  # pixels
TTA_SCALES = (0.75, 1.0, 1.25)  # of the sides of the network input
MARGIN = 0.02  # fraction of the side of a tile: a box that ends this close to its border is cut off there
INSIDE = 0.6  # minimum fraction of a cut-off box inside another box of the same object
SCORE_SHARE = 0.5  # minimum score of the other box, as a fraction of the score of the cut-off one

Detect = Callable[[list[Tensor], EvalTransform], list[ImageDetections]]


@dataclass(frozen=True)
class Views:
    """The views of an image to predict.

    Attributes:
        tile: side of the tiles, original pixels; 0: only the whole image.
        overlap: minimum overlap of neighboring tiles, as a fraction of their side.
        tta: each view also mirrored and at other sizes.
    """

    tile: int = 0
    overlap: float = OVERLAP
    tta: bool = False

    def __post_init__(self) -> None:
        if self.tile and self.tile < SMALLEST_TILE:
            raise FcosError(
                f"tiles of {self.tile} pixels are too small",
                fix=f"use at least {SMALLEST_TILE}, or 0 for none",
            )
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise FcosError(
                f"tiles cannot overlap by {self.overlap}", fix=f"use a fraction from 0 to {MOST_OVERLAP}"
            )

    def changed(self, tile: int | None, overlap: float | None, tta: bool | None) -> Views:
        """A copy with other values; None: unchanged."""
        given: dict[str, Any] = {"tile": tile, "overlap": overlap, "tta": tta}
        views = replace(self, **{name: value for name, value in given.items() if value is not None})
        if overlap is not None and not views.tile:
            raise FcosError(
                "an overlap has no effect without tiles", fix="set their size too: --tile 640, tile=640"
            )
        return views


class Part(NamedTuple):
    """A tile, or the whole image.

    Attributes:
        pixels: uint8 RGB.
        left, top: its corner, original pixels.
        reduction: original pixels per pixel, along each side.
        inner: whether there is more of the image at the left, top, right, bottom.
    """

    pixels: Tensor
    left: int = 0
    top: int = 0
    reduction: int = 1
    inner: tuple[bool, bool, bool, bool] = (False, False, False, False)


class ViewDetections(NamedTuple):
    """Detections of one view, in the frame of the image.

    Attributes:
        detections: original image pixels.
        is_cut: which boxes are cut off by the border of their tile.
    """

    detections: ImageDetections
    is_cut: Bool[Tensor, " detections"]


def detect_in_views(
    image: Tensor | LargeImage,
    views: Views,
    detect: Detect,
    transform: EvalTransform,
    postprocess: PostProcess,
    *,
    mirrors: bool = True,
    batch_size: int = 1,
    score_threshold: float = 0.0,
) -> ImageDetections:
    """Detections of an image, best first.

    Args:
        image: uint8 RGB `(3, height, width)`, or a file that is read strip by strip.
        detect: from images and a resize transform to the detections of each, in its own pixels.
        transform: the model's resize transform.
        postprocess: the model's; its limit of detections applies to each tile, not to an image with tiles.
        mirrors: test-time augmentation includes mirrored views (not for text, for example).
        batch_size: views of one size to predict together.
        score_threshold: minimum score; boxes below it do not suppress others.
    """
    found: list[ViewDetections] = []
    remaining = parts_of(image, views, transform.longest_side)
    while group := list(islice(remaining, batch_size)):
        for variant, mirrored in variants(transform, views.tta, mirrors):
            pixels = [part.pixels.flip(-1) if mirrored else part.pixels for part in group]
            for part, detections in zip(group, detect(pixels, variant), strict=True):
                above = detections.of(detections.scores >= score_threshold)
                if mirrored:
                    above = mirror(above, part.pixels.shape[2], postprocess.inclusive_boxes)
                found.append(_on_image(above, part))
    if len(found) == 1:
        return found[0].detections
    if views.tile:
        postprocess = replace(postprocess, detections_per_image=sum(len(one.is_cut) for one in found))
    return merge(found, postprocess)


def variants(transform: EvalTransform, tta: bool, mirrors: bool) -> list[tuple[EvalTransform, bool]]:
    """The resize transforms of a view, and whether it is mirrored."""
    if not tta:
        return [(transform, False)]
    short, longest = transform.short_side, transform.longest_side
    sizes = [
        replace(transform, short_side=short and round(short * scale), longest_side=round(longest * scale))
        for scale in TTA_SCALES
    ]
    return [(size, mirrored) for size in sizes for mirrored in ((False, True) if mirrors else (False,))]


# Cutting ----------------------------------------------------------------------------------------------------


def parts_of(image: Tensor | LargeImage, views: Views, longest_side: int) -> Iterator[Part]:
    """The tiles of an image, row by row, then the whole image; only the latter if one tile would cover it.

    The whole image of a file that is read in strips is reduced, but at least twice the `longest_side`
    (pixels).
    """
    height, width = image.size_hw if isinstance(image, LargeImage) else image.shape[1:]
    tile = views.tile or max(height, width)
    tops, lefts = starts(height, tile, views.overlap), starts(width, tile, views.overlap)
    if len(tops) * len(lefts) == 1 and isinstance(image, Tensor):
        yield Part(image)
        return
    rows, columns = min(tile, height), min(tile, width)
    reduction = max(1, min(height, width, max(height, width) // (2 * longest_side)))
    overview = Overview(width, reduction)
    for top, strip in zip(tops, _strips(image, tops, rows), strict=True):
        if isinstance(image, LargeImage):
            overview.add(strip, top)
        for left in lefts:
            inner = (left > 0, top > 0, left + columns < width, top + rows < height)
            yield Part(strip[:, :, left : left + columns], left, top, inner=inner)
    yield Part(image) if isinstance(image, Tensor) else Part(overview.pixels(), reduction=overview.reduction)


def _strips(image: Tensor | LargeImage, tops: Sequence[int], rows: int) -> Iterator[Tensor]:
    if isinstance(image, LargeImage):
        return image.strips(tops, rows)
    return (image[:, top : top + rows] for top in tops)


# Putting together -------------------------------------------------------------------------------------------


def mirror(found: ImageDetections, width: int, inclusive_boxes: bool = False) -> ImageDetections:
    """Map detections of a mirrored image of this width back to the image."""
    left, top, right, bottom = found.boxes_xyxy.unbind(dim=1)
    last = width - inclusive_boxes
    boxes = torch.stack([last - right, top, last - left, bottom], dim=1)
    if found.found_at is None:
        return found._replace(boxes_xyxy=boxes)
    x, y, stride = found.found_at.unbind(dim=1)
    return found._replace(boxes_xyxy=boxes, found_at=torch.stack([width - x, y, stride], dim=1))


def _on_image(found: ImageDetections, part: Part) -> ViewDetections:
    """Map detections of a part to the frame of the whole image."""
    height, width = part.pixels.shape[1:]
    far = torch.tensor([0, 0, width, height])
    margin = MARGIN * torch.tensor([width, height, width, height])
    is_cut = (((found.boxes_xyxy - far).abs() <= margin) & torch.tensor(part.inner)).any(dim=1)
    corner = torch.tensor([part.left, part.top])
    placed = found._replace(boxes_xyxy=found.boxes_xyxy * part.reduction + corner.repeat(2))
    if found.found_at is not None:
        points = found.found_at[:, :2] * part.reduction + corner
        placed = placed._replace(found_at=torch.cat([points, found.found_at[:, 2:]], dim=1))
    return ViewDetections(placed, is_cut)


def merge(found: Sequence[ViewDetections], postprocess: PostProcess) -> ImageDetections:
    """Merge the detections of all views, each object once, best first."""
    points = [one.detections.found_at for one in found]
    together = ImageDetections(
        torch.cat([one.detections.boxes_xyxy for one in found]),
        torch.cat([one.detections.scores for one in found]),
        torch.cat([one.detections.labels for one in found]),
        None if any(at is None for at in points) else torch.cat([at for at in points if at is not None]),
    )
    boxes, labels = postprocess.compared_by_nms(together.boxes_xyxy, together.labels)
    cut = [one.is_cut for one in found]
    together = together.of(~fragments(boxes, together.scores, labels, cut))
    together = together.of(postprocess.suppress(together))
    return together.of(together.scores.argsort(descending=True, stable=True))


def fragments(
    boxes_xyxy: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    labels: Int64[Tensor, " boxes"],
    cut: Sequence[Bool[Tensor, " _"]],
) -> Bool[Tensor, " boxes"]:
    """Which boxes are cut off and mostly inside another box of their class that is whole, or larger.

    NMS would keep most of them, since their IoU with the whole object is low; if it is high, NMS may keep the
    fragment instead.

    Args:
        boxes_xyxy, scores, labels: of all views, concatenated.
        cut: for each view, which of its boxes are cut off.
    """
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1)
    is_cut = torch.cat(list(cut))
    is_fragment = torch.zeros_like(is_cut)
    first = 0
    for of_view in cut:  # not all pairs at once: for a large image they would fill the memory
        mine = of_view.nonzero()[:, 0] + first
        first += len(of_view)
        if len(mine) == 0:
            continue
        low, high = boxes_xyxy[mine, :2].amin(dim=0), boxes_xyxy[mine, 2:].amax(dim=0)
        near = ((boxes_xyxy[:, :2] < high) & (boxes_xyxy[:, 2:] > low)).all(dim=1).nonzero()[:, 0]
        one, other = boxes_xyxy[mine, None], boxes_xyxy[near]
        sides = torch.minimum(one[..., 2:], other[:, 2:]) - torch.maximum(one[..., :2], other[:, :2])
        is_inside = sides.clamp(min=0).prod(dim=2) > INSIDE * areas[mine, None]
        is_same = labels[mine, None] == labels[near]
        is_likely = scores[near] >= SCORE_SHARE * scores[mine, None]
        is_more = ~is_cut[near] | (areas[near] > areas[mine, None])
        is_fragment[mine] = (is_inside & is_same & is_likely & is_more).any(dim=1)
    return is_fragment
