"""Which objects no point learns: their share of a data set, why, and what would change it.

An object without a positive point is never a training target: the detector cannot learn the likes of it. That
depends on the boxes, the size that pictures are resized to, and the levels: not on any weights. The rule
is the assigner's (`model/targets.py`), here for all boxes of a data set at once: each level only looks at the
points near a box, where the assigner looks at every pair of point and box. A test holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.batch import padded_size
from fcos.data.loader import PADDING_MULTIPLE
from fcos.data.resize import resized_size
from fcos.data.splits import select

MAX_BOXES = 60_000  # looked at in a data set: for a second of time
REASONS = {
    "no point inside": "the box lies between the points of every level that looks at it",
    "out of range": "there are points inside, but on no level whose range holds the box's size there",
    "smaller boxes": "every point in question belongs to a smaller box",
}


@dataclass(frozen=True)
class PointRules:
    """What decides which points learn a box.

    Attributes:
        short_side: that pictures are resized to, pixels, or None.
        view_size: longest side, pixels.
        strides: of the levels.
        regress_ranges: upper end of each level's range but the last.
        center_radius: in strides; None: everywhere inside of the box.
    """

    short_side: int | None
    view_size: int
    strides: tuple[int, ...]
    regress_ranges: tuple[float, ...]
    center_radius: float | None

    @staticmethod
    def of(config: TrainConfig) -> PointRules:
        """The rules of a run."""
        return PointRules(
            config.short_side,
            config.view_size,
            tuple(config.strides),
            tuple(map(float, config.regress_ranges)),
            config.center_radius if config.center_sampling else None,
        )

    def scaled(self, factor: float) -> PointRules:
        """With larger pictures; sides in whole strides of 32, as pictures are padded to."""
        view_size = round(self.view_size * factor / 32) * 32
        short_side = None if self.short_side is None else round(self.short_side * factor / 32) * 32
        return replace(self, view_size=view_size, short_side=short_side)


@dataclass(frozen=True)
class Change:
    """What the share would be with other settings.

    Attributes:
        what: the settings, as one writes them.
        share: of objects without a point.
        note: what it costs, or why it is more than a setting.
    """

    what: str
    share: float
    note: str


@dataclass(frozen=True)
class Coverage:
    """Which objects get a point.

    Attributes:
        annotations: the pictures that were looked at: all, or evenly spread ones of a large data set.
        targets: `(boxes,)` objects to learn: no crowd, in pictures of known size.
        without: `(boxes,)` those of them that no point learns.
        reasons: how many for each of `REASONS`.
        changes: what would help, best first.
    """

    annotations: Annotations
    targets: NDArray[np.bool_]
    without: NDArray[np.bool_]
    reasons: dict[str, int]
    changes: tuple[Change, ...]

    @property
    def share(self) -> float:
        """Of the objects that no point learns."""
        return float(self.without.sum() / max(1, self.targets.sum()))


def cover(annotations: Annotations, rules: PointRules) -> Coverage:
    """Which objects get a point under these rules, and what would change it."""
    if len(annotations.labels) > MAX_BOXES:
        wanted = max(1, len(annotations) * MAX_BOXES // len(annotations.labels))
        annotations = select(
            annotations, np.linspace(0, len(annotations) - 1, wanted).round().astype(int).tolist()
        )
    is_known = np.repeat(annotations.sizes_hw[:, 0] > 0, np.diff(annotations.first_box))
    targets = ~annotations.is_crowd & is_known
    without = targets & ~learned(annotations, rules)
    share = float(without.sum() / max(1, targets.sum()))
    changes: list[Change] = []
    if without.any():
        for what, changed, note in _candidates(rules):
            left = float((targets & ~learned(annotations, changed)).sum() / targets.sum())
            if left < share:
                changes.append(Change(what, left, note))
    return Coverage(
        annotations=annotations,
        targets=targets,
        without=without,
        reasons=_reasons(annotations, rules, without),
        changes=tuple(sorted(changes, key=lambda change: change.share)),
    )


def learned(annotations: Annotations, rules: PointRules) -> NDArray[np.bool_]:
    """`(boxes,)` whether a point learns each box; crowd boxes take no part."""
    placed = _Placed.of(annotations, rules)
    near = [_points_near(placed, rules, level) for level in range(len(rules.strides))]
    points = np.concatenate([point for _, point in near])
    boxes = np.concatenate([box for box, _ in near])
    areas = (placed.boxes[:, 2:] - placed.boxes[:, :2]).prod(axis=1)[boxes]
    # of each point the smallest box first, of equal ones the first
    order = np.lexsort((boxes, areas, points))
    is_first = np.append(True, np.diff(points[order]) != 0)[: len(order)]
    result = np.zeros(len(annotations.labels), bool)
    result[boxes[order][is_first]] = True
    return result


def _candidates(rules: PointRules) -> Iterator[tuple[str, PointRules, str]]:
    """Other rules, one change each: words, rules, remark."""
    for factor in (1.5, 2.0):
        larger = rules.scaled(factor)
        short = "" if larger.short_side is None else f"short_side {larger.short_side}, "
        yield f"{short}view_size {larger.view_size}", larger, f"{factor**2:.3g} times the pixels and the time"
    doubled = tuple(2 * end for end in rules.regress_ranges)
    yield (
        f"regress_ranges {_listed(doubled)}",
        replace(rules, regress_ranges=doubled),
        "finer levels learn more",
    )
    if rules.center_radius is not None:
        yield (
            "center_sampling false",
            replace(rules, center_radius=None),
            "points far from the centre learn too",
        )
    finer = replace(
        rules,
        strides=(rules.strides[0] // 2, *rules.strides),
        regress_ranges=(rules.regress_ranges[0] / 2, *rules.regress_ranges),
    )
    note = "no setting: the backbone would have to give features of this stride; four times the points"
    yield f"one more level, of stride {finer.strides[0]}", finer, note


def _listed(numbers: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"


def _input_sizes(annotations: Annotations, rules: PointRules) -> NDArray[np.int64]:
    """`(images, 2)` height, width of the resized pictures."""
    sizes = np.maximum(annotations.sizes_hw, 1)
    unique, place = np.unique(sizes, axis=0, return_inverse=True)
    resized = [resized_size((int(h), int(w)), rules.short_side, rules.view_size) for h, w in unique]
    return np.array(resized, np.int64).reshape(-1, 2)[place.reshape(-1)]


def input_boxes(annotations: Annotations, rules: PointRules) -> NDArray[np.float32]:
    """`(boxes, 4)` xyxy in pixels of the resized pictures."""
    scale_hw = _input_sizes(annotations, rules) / np.maximum(annotations.sizes_hw, 1)
    scale = np.repeat(scale_hw[:, [1, 0, 1, 0]], np.diff(annotations.first_box), axis=0)
    return (annotations.boxes_xyxy * scale).astype(np.float32)


class _Placed(NamedTuple):
    """Boxes at network size.

    Attributes:
        boxes: `(boxes, 4)` xyxy.
        padded_wh: `(boxes, 2)` of the padded picture of each box.
        images: `(boxes,)` index of it.
        is_crowd: `(boxes,)`.
    """

    boxes: NDArray[np.float32]
    padded_wh: NDArray[np.int64]
    images: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]

    @staticmethod
    def of(annotations: Annotations, rules: PointRules) -> _Placed:
        images = np.repeat(np.arange(len(annotations)), np.diff(annotations.first_box))
        sizes, place = np.unique(_input_sizes(annotations, rules), axis=0, return_inverse=True)
        padded = [padded_size([(int(h), int(w))], PADDING_MULTIPLE) for h, w in sizes]
        padded_wh = np.array(padded, np.int64).reshape(-1, 2)[place.reshape(-1)][images, ::-1]
        return _Placed(input_boxes(annotations, rules), padded_wh, images, annotations.is_crowd)


def _grid_rectangles(
    placed: _Placed, rules: PointRules, level: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First column, row, and number of columns, rows of each box's points on a level, whatever its range."""
    stride = np.float32(rules.strides[level])
    low, high = placed.boxes[:, :2], placed.boxes[:, 2:]
    if rules.center_radius is not None:
        center, radius = (low + high) / 2, np.float32(rules.center_radius) * stride
        low, high = np.maximum(center - radius, low), np.minimum(center + radius, high)
    last_cell = -(-placed.padded_wh // rules.strides[level]) - 1
    # points at (i + 0.5) strides, strictly between low and high
    first = np.maximum(np.floor(low / stride - 0.5).astype(np.int64) + 1, 0)
    last = np.minimum(np.ceil(high / stride - 0.5).astype(np.int64) - 1, last_cell)
    count = np.where(placed.is_crowd[:, None], 0, np.maximum(last - first + 1, 0))
    return first, count


def _points_near(
    placed: _Placed, rules: PointRules, level: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Box and point of each pair that a level may learn; a point is one number for level, picture, place."""
    ends = (0.0, *rules.regress_ranges, np.inf)
    lower, upper = ends[level], ends[level + 1]
    boxes = placed.boxes
    first, count = _grid_rectangles(placed, rules, level)
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    possible = (longest >= lower) & (longest / 2 <= upper)  # the largest distance is between these two
    number = np.where(possible, count.prod(axis=1), 0)
    box = np.repeat(np.arange(len(boxes)), number)
    place = np.arange(len(box)) - np.repeat(np.cumsum(number) - number, number)
    column, row = first[box, 0] + place % count[box, 0], first[box, 1] + place // count[box, 0]
    stride = np.float32(rules.strides[level])
    point = (np.stack([column, row], axis=1).astype(np.float32) + np.float32(0.5)) * stride
    largest = np.concatenate([point - boxes[box, :2], boxes[box, 2:] - point], axis=1).max(axis=1)
    kept = (largest >= lower) & (largest <= upper)
    key = (((placed.images[box] * len(rules.strides)) + level) * 2**20 + row) * 2**12 + column
    return box[kept], key[kept]


def _reasons(annotations: Annotations, rules: PointRules, without: NDArray[np.bool_]) -> dict[str, int]:
    num_boxes = len(annotations.labels)
    has_point, in_range = np.zeros(num_boxes, bool), np.zeros(num_boxes, bool)
    placed = _Placed.of(annotations, rules)
    for level in range(len(rules.strides)):
        has_point |= _grid_rectangles(placed, rules, level)[1].prod(axis=1) > 0
        in_range[_points_near(placed, rules, level)[0]] = True
    holds = (~has_point, has_point & ~in_range, in_range)
    return {reason: int((without & held).sum()) for reason, held in zip(REASONS, holds, strict=True)}
