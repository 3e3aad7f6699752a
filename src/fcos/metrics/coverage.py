"""Objects without a positive point: their share of a data set, the reasons, and settings that would help.

An object without a positive point is never a training target, so the detector does not learn such objects.
That depends on the boxes, the size that images are resized to and the levels, not on any weights: the
assigner of the configuration answers it before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations, Record
from fcos.data.loader import PADDING_MULTIPLE, build_eval_transform
from fcos.data.splits import spread
from fcos.data.strips import starts
from fcos.data.transforms import keep_visible, padded_size
from fcos.model.build import build_fixed_assigner
from fcos.model.points import PointGrid, make_grid

MAX_IMAGES = 500  # of a data set: about 1 s for each configuration
REASONS = {
    "no point inside": "the box lies between the points of every level that could learn it",
    "out of range": "there are points inside, but their distances are out of the range of each level",
    "smaller boxes": "all of its points are assigned to smaller boxes",
}


class Placed(NamedTuple):
    """An image's objects at network size.

    Attributes:
        size_hw: of the resized image.
        grid: its points.
        boxes_xyxy: `(objects, 4)`, input pixels.
        objects: index of each among the boxes of its record; crowds are left out.
    """

    size_hw: tuple[int, int]
    grid: PointGrid
    boxes_xyxy: Tensor
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Remedy:
    """What the share would be with other settings.

    Attributes:
        what: the settings, as in a train.json.
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
        images: indices of those that were examined: all, or evenly spread ones of a large data set.
        targets: `(boxes,)` objects to learn: no crowd, in examined images of known size.
        without: `(boxes,)` those of them without a positive point.
        reasons: how many for each of `REASONS`.
        remedies: what would help, best first.
    """

    annotations: Annotations
    images: Sequence[int]
    targets: NDArray[np.bool_]
    without: NDArray[np.bool_]
    reasons: dict[str, int]
    remedies: tuple[Remedy, ...]

    @property
    def share(self) -> float:
        """Share of the objects without a positive point."""
        return float(self.without.sum() / max(1, self.targets.sum()))


def place_objects(record: Record, config: TrainConfig) -> Placed:
    """The points and objects of an image as the assigner of the configuration sees them."""
    assert record.size_hw is not None, "checked annotations have sizes"
    objects = np.flatnonzero(~record.is_crowd)
    return _placed(record.size_hw, torch.from_numpy(record.boxes_xyxy[objects]), objects, config)


def place_on_tiles(record: Record, config: TrainConfig) -> Iterator[Placed]:
    """The same for the tiles that a model with the setting `tile` predicts, where objects are visible."""
    assert record.size_hw is not None, "checked annotations have sizes"
    (height, width), side = record.size_hw, config.tile or max(record.size_hw)
    tile_hw = min(side, height), min(side, width)
    objects = torch.from_numpy(np.flatnonzero(~record.is_crowd))
    boxes = torch.from_numpy(record.boxes_xyxy)[objects]
    for top, left in product(starts(height, side), starts(width, side)):
        on_tile = boxes - torch.tensor([left, top, left, top])
        visible, kept = keep_visible(on_tile, objects, tile_hw)
        if len(kept):
            yield _placed(tile_hw, visible, kept.numpy(), config)


def _placed(
    original_hw: tuple[int, int], boxes_xyxy: Tensor, objects: NDArray[np.int64], config: TrainConfig
) -> Placed:
    size_hw = build_eval_transform(config).resized_size(original_hw)
    padded_hw = padded_size([size_hw], PADDING_MULTIPLE)
    grid = make_grid(padded_hw, config.strides, place=CONVENTIONS[config.rules].points)
    scale_hw = torch.tensor(size_hw, dtype=torch.float64) / torch.tensor(original_hw)
    return Placed(size_hw, grid, (boxes_xyxy * scale_hw[[1, 0, 1, 0]]).float(), objects)


def cover(annotations: Annotations, config: TrainConfig) -> Coverage:
    """Which objects get a positive point with this configuration, and which settings would help."""
    images = spread(len(annotations), MAX_IMAGES)
    known = [image for image in images if annotations.sizes_hw[image, 0] > 0]
    targets = ~annotations.is_crowd & np.isin(annotations.image_of_box, known)
    found = eligibility(annotations, config, known)
    without = targets & ~found.learned
    holds = (~found.inside, found.inside & ~found.in_range, found.in_range)
    return Coverage(
        annotations=annotations,
        images=images,
        targets=targets,
        without=without,
        reasons={reason: int((without & held).sum()) for reason, held in zip(REASONS, holds, strict=True)},
        remedies=tuple(_remedies(annotations, config, known, targets, without)),
    )


class Eligibility(NamedTuple):
    """For each box, `(boxes,)`: is a point inside, is one also in range, is one assigned to it."""

    inside: NDArray[np.bool_]
    in_range: NDArray[np.bool_]
    learned: NDArray[np.bool_]


def eligibility(annotations: Annotations, config: TrainConfig, images: Iterable[int]) -> Eligibility:
    """The result of the configuration's assigner for each box of some images; crowd regions are ignored."""
    assigner = build_fixed_assigner(config)
    result = Eligibility(*np.zeros((3, len(annotations.labels)), bool))
    for image in images:
        first = annotations.first_box[image]
        if first == annotations.first_box[image + 1]:
            continue
        record = annotations[image]
        views = place_on_tiles(record, config) if config.tile else [place_objects(record, config)]
        for _, grid, boxes, objects in views:
            eligible = assigner.eligible(grid, boxes)
            matched = assigner.choose(grid, boxes, eligible)
            result.inside[first + objects] |= eligible.inside.any(dim=0).numpy()
            result.in_range[first + objects] |= (eligible.inside & eligible.in_range).any(dim=0).numpy()
            result.learned[first + objects[np.unique(matched[matched >= 0].numpy())]] = True
    return result


def _remedies(
    annotations: Annotations,
    config: TrainConfig,
    images: Sequence[int],
    targets: NDArray[np.bool_],
    without: NDArray[np.bool_],
) -> list[Remedy]:
    """Settings that would leave fewer objects without a point, best first."""
    remedies = []
    for what, changed, note in _candidates(config) if without.any() else ():
        left = targets & ~eligibility(annotations, config.model_copy(update=changed), images).learned
        if left.sum() < without.sum():
            remedies.append(Remedy(what, float(left.sum() / targets.sum()), note))
    return sorted(remedies, key=lambda remedy: remedy.share)


def _candidates(config: TrainConfig) -> Iterator[tuple[str, Mapping[str, object], str]]:
    """Other settings, one change each: words, settings, remark."""
    for factor in (1.5, 2.0):
        # sides in whole strides of 32, as images are padded to
        larger: dict[str, object] = {
            key: round(side * factor / 32) * 32
            for key, side in (("short_side", config.short_side), ("view_size", config.view_size))
            if side is not None
        }
        words = ", ".join(f"{key} {side}" for key, side in larger.items())
        yield words, larger, f"{factor**2:.3g} times the pixels and the time"
    ends = config.regress_ranges
    doubled = [2 * end for end in ends]
    words = ", ".join(f"{end:g}" for end in doubled)
    yield f"regress_ranges [{words}]", {"regress_ranges": doubled}, "finer levels learn larger objects too"
    if config.center_sampling:
        note = "points far from the center are positive too"
        yield "center_sampling false", {"center_sampling": False}, note
    finer: dict[str, list[float]] = {
        "strides": [config.strides[0] // 2, *config.strides],
        "regress_ranges": [ends[0] / 2, *ends] if ends else [config.strides[0] * 4],
    }
    words = " and ".join(f"{key} [{', '.join(f'{n:g}' for n in numbers)}]" for key, numbers in finer.items())
    if config.strides[0] > 4:
        yield words, finer, "a finer level: four times the points"
    else:
        note = "not a setting: the backbone would need features of this stride; four times the points"
        yield f"one more level, of stride {config.strides[0] // 2}", finer, note
