"""What code bases of FCOS do differently with the same network: the setting `rules`.

Weights give their authors' numbers only if images are prepared and boxes decoded as in training.
Each name of the setting is a row of `CONVENTIONS`; the values are arguments of resizing, points, targets,
losses and post-processing (`model/build.py`, `data/loader.py`), which explain them.
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
    """The conventions of one code base; the defaults are ours.

    Attributes:
        size: how the sides of the resized image become whole numbers.
        resize: how its pixels are computed.
        points: where in its cell a point lies.
        score: final score from class score and quality.
        rank_by: what chooses the candidates of a level.
        clip: when boxes are clipped to the image.
        keep_empty: boxes without area stay.
        inclusive_boxes: the right and bottom sides are the last pixels of a box, not the ends after them.
        keep_ties: more than `detections_per_image` stay where the last have equal scores.
        strict_ranges: the ends of a level's range belong to no level, instead of to both.
        areas: how the areas are compared that decide which box a point in several of them learns.
        iou_plus_one: intersection and union of the box loss have 1 added, in the units of the box branch.
        weight_boxes: the box loss is weighted by centerness (and divided by its sum).
    """

    size: SizeRule = "round"
    resize: ResizeMethod = "antialiased"
    points: PointPlace = "center"
    score: Score = "sqrt"
    rank_by: RankBy = "score"
    clip: ClipBoxes = "resized"
    keep_empty: bool = False
    inclusive_boxes: bool = False
    keep_ties: bool = False
    strict_ranges: bool = False
    areas: Areas = "exact"
    iou_plus_one: bool = False
    weight_boxes: bool = True


CONVENTIONS = {
    "fcos": Conventions(),
    "official": Conventions(
        size="truncate",
        resize="pillow",
        keep_empty=True,
        inclusive_boxes=True,
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
