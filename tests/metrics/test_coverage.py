"""Objects that no point learns: the assigner's rule, by hand and on real boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.data.batch import padded_size
from fcos.data.formats import read_annotations
from fcos.data.resize import resized_size
from fcos.data.splits import select
from fcos.metrics import coverage
from fcos.metrics.coverage import PointRules, cover, input_boxes, learned
from fcos.model.points import make_grid
from fcos.model.targets import StaticAssigner

RULES = PointRules(None, 256, (8, 16, 32), (64.0, 128.0), 1.5)


def boxes_in_a_picture(*boxes_xyxy: list[float], crowd: list[bool] | None = None) -> Annotations:
    """A picture of 256 x 256, which `RULES` leave at its size."""
    record = Record.make(
        Path("a.jpg"), list(boxes_xyxy), [0] * len(boxes_xyxy), 1, is_crowd=crowd, size_hw=(256, 256)
    )
    return Annotations.from_records([record], ("thing", "other"), source=Path("x"), format="list")


def learned_one_by_one(annotations: Annotations, rules: PointRules) -> NDArray[np.bool_]:
    """By the assigner, every pair of point and box."""
    result = np.zeros(len(annotations.labels), bool)
    boxes = input_boxes(annotations, rules)
    for image in range(len(annotations)):
        height, width = (int(side) for side in annotations.sizes_hw[image])
        size_hw = resized_size((height, width), rules.short_side, rules.view_size)
        first, last = annotations.first_box[image : image + 2]
        objects = first + np.flatnonzero(~annotations.is_crowd[first:last])
        grid = make_grid(padded_size([size_hw], 32), rules.strides)
        assign = StaticAssigner(rules.regress_ranges, rules.center_radius)
        labels = torch.zeros(len(objects), dtype=torch.int64)
        matched = assign(grid, [torch.from_numpy(boxes[objects])], [labels]).matched[0]
        result[objects[matched[matched >= 0].unique().numpy()]] = True
    return result


@pytest.mark.parametrize("center_radius", [None, 1.5, 2.5])
@pytest.mark.parametrize("short_side", [64, 160, 320])
def test_it_is_the_rule_of_the_assigner(shared: Path, center_radius: float | None, short_side: int) -> None:
    bccd = shared / "data" / "bccd"
    annotations = read_annotations(
        bccd / "ImageSets" / "Main" / "val.txt", root=bccd / "JPEGImages", format="voc"
    )
    chosen = np.arange(0, len(annotations), 10)
    annotations = select(annotations, chosen.tolist())
    ranges = (16.0, 48.0) if short_side < 320 else (64.0, 128.0)
    rules = PointRules(short_side, 400, (8, 16, 32), ranges, center_radius)
    rng = np.random.default_rng(short_side)
    corner, sides = (
        annotations.boxes_xyxy[:, :2],
        annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2],
    )
    smaller = np.concatenate([corner, corner + sides * rng.uniform(0.05, 1, sides.shape)], axis=1)
    annotations = replace(annotations, boxes_xyxy=smaller, is_crowd=rng.random(len(sides)) < 0.1)
    wanted = learned_one_by_one(annotations, rules)
    assert 0 < (~wanted & ~annotations.is_crowd).sum() < len(wanted)
    np.testing.assert_array_equal(learned(annotations, rules), wanted)


def test_a_box_between_the_points_is_not_learned_and_finer_points_would_help() -> None:
    # points of stride 8 lie at 4, 12, ..., 28, 36; of 16 at 24, 40; of 32 at 16, 48
    found = cover(boxes_in_a_picture([29, 29, 35, 35], [100, 100, 130, 130]), RULES)
    assert found.without.tolist() == [True, False]
    assert found.reasons == {"no point inside": 1, "out of range": 0, "smaller boxes": 0}
    assert found.share == 0.5
    changes = {change.what: change.share for change in found.changes}
    assert changes["one more level, of stride 4"] == 0
    assert changes["view_size 512"] == 0
    assert "center_sampling false" not in changes  # would not help


def test_a_thin_box_is_out_of_range_where_points_lie_in_it() -> None:
    # 100 wide: its middle is 50 from both ends, so points of stride 8 near the centre are in range ...
    assert not cover(boxes_in_a_picture([100, 97, 200, 103]), RULES).without.any()
    # ... 200 wide: too far for stride 8, and no point of the other levels (8, 24, ..., 16, 48, ...) is in it
    found = cover(boxes_in_a_picture([20, 106, 220, 110]), RULES)
    assert found.reasons == {"no point inside": 0, "out of range": 1, "smaller boxes": 0}
    doubled = next(change for change in found.changes if change.what.startswith("regress_ranges"))
    assert doubled.what == "regress_ranges [128, 256]"
    assert doubled.share == 0


def test_the_smaller_of_two_boxes_at_the_same_place_takes_the_points() -> None:
    found = cover(boxes_in_a_picture([96, 96, 128, 128], [97, 97, 127, 127]), RULES)
    assert found.without.tolist() == [True, False]
    assert found.reasons["smaller boxes"] == 1


def test_crowds_are_nobodys_target() -> None:
    found = cover(boxes_in_a_picture([29, 29, 35, 35], [100, 100, 130, 130], crowd=[True, False]), RULES)
    assert found.targets.tolist() == [False, True]
    assert found.share == 0


def test_no_objects_at_all_are_covered() -> None:
    found = cover(boxes_in_a_picture(), RULES)
    assert (found.share, found.changes) == (0, ())


def test_of_a_large_data_set_evenly_spread_pictures_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_BOXES", 10)
    records = [
        Record.make(Path(f"{number}.jpg"), [[10, 10, 60, 60]] * 2, [0, 0], number, size_hw=(256, 256))
        for number in range(1, 21)
    ]
    annotations = Annotations.from_records(records, ("thing",), source=Path("x"), format="list")
    found = cover(annotations, RULES)
    assert len(found.annotations) == 5
    assert found.annotations.image_ids[[0, -1]].tolist() == [1, 20]


def test_the_rules_are_those_of_the_settings() -> None:
    config = load_config({"list_train": "none", "model": "fcos_r50", "center_sampling": False})
    rules = PointRules.of(config)
    assert (rules.short_side, rules.view_size, rules.strides) == (800, 1333, (8, 16, 32, 64, 128))
    assert rules.regress_ranges == (64, 128, 256, 512)
    assert rules.center_radius is None
