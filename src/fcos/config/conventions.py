"""The conventions in which FCOS code bases differ although their network is the same: the setting `rules`.

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
    """The conventions of one code base; the defaults are ours.

    Attributes:
        size: how the sides of the resized image are rounded to whole pixels.
        resize: the interpolation.
        points: position of a point in its cell.
        score: how the final score is computed from class score and quality.
        rank_by: the score that ranks the candidates of a level.
        clip: when boxes are clipped to the image.
        keep_empty: keep boxes without area.
        inclusive_boxes: x2 and y2 are the last pixels of a box, instead of the ends after them.
        keep_ties: keep more than `detections_per_image` if the last ones have equal scores.
        strict_ranges: the limits of a level's range belong to neither level, instead of to both.
        areas: how areas are compared when a point lies in several boxes.
        iou_plus_one: add 1 to intersection and union in the box loss, in the units of the box branch.
        weight_boxes: weight the box loss by centerness (and divide it by its sum).
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
