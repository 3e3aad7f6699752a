"""Conventions that differ between FCOS code bases with the same network: the setting `rules`.

Weights reach their published AP only if images are preprocessed and boxes decoded as in training. Each value
of the setting is an entry of `CONVENTIONS`; its fields are arguments of resizing, points, targets, losses and
post-processing (`model/build.py`, `data/loader.py`), where they are documented.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

SizeRule = Literal["round", "floor", "truncate"]
ResizeMethod = Literal["antialiased", "pillow", "opencv", "float"]
PointPlace = Literal["center", "corner"]
Score = Literal["sqrt", "product"]
RankBy = Literal["score", "class"]
ThresholdOn = Literal["class", "product", "score"]
ClipBoxes = Literal["resized", "original", "after_nms"]
Areas = Literal["exact", "float32", "inclusive"]


class Conventions(NamedTuple):
    """The conventions of one code base; the defaults are ours."""

    size: SizeRule = "round"  # how the sides of the resized image are rounded to whole pixels
    resize: ResizeMethod = "antialiased"  # the interpolation
    points: PointPlace = "center"  # position of a point in its cell
    score: Score = "sqrt"  # how the final score is computed from class score and quality
    rank_by: RankBy = "score"  # the score that ranks the candidates of a level
    clip: ClipBoxes = "resized"  # when boxes are clipped to the image
    keep_empty: bool = False  # keep boxes without area
    inclusive_boxes: bool = False  # x2 and y2 are the last pixels of a box, not one past them
    point_order: bool = False  # detections in the order of their points, not best first
    keep_ties: bool = False  # keep more than `detections_per_image` if the last ones have equal scores
    strict_ranges: bool = False  # the limits of a level's range belong to neither level, not to both
    areas: Areas = "exact"  # how areas are compared when a point lies in several boxes
    iou_plus_one: bool = False  # add 1 to intersection and union in the box loss, in units of the box branch
    weight_boxes: bool = True  # weight the box loss by centerness (and divide it by its sum)


CONVENTIONS = {
    "fcos": Conventions(),
    "official": Conventions(
        size="truncate",
        resize="pillow",
        keep_empty=True,
        inclusive_boxes=True,
        point_order=True,
        keep_ties=True,
        areas="inclusive",
        iou_plus_one=True,
    ),
    "adelaidet": Conventions(resize="pillow", clip="after_nms", keep_ties=True, iou_plus_one=True),
    "detectron2": Conventions(
        resize="pillow", clip="after_nms", strict_ranges=True, areas="float32", weight_boxes=False
    ),
    "mmdetection": Conventions(resize="opencv", score="product", rank_by="class", clip="original"),
    "torchvision": Conventions(
        size="floor",
        resize="float",
        points="corner",
        keep_empty=True,
        strict_ranges=True,
        areas="float32",
        weight_boxes=False,
    ),
}
