"""Objects that no point learns: by hand, and as the training assigns them, for every code base's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fcos.config import load_config
from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations, Record
from fcos.data.loader import build_eval_transform
from fcos.metrics import coverage
from fcos.metrics.coverage import cover, eligibility, place_on_tiles
from fcos.model.build import build_assigner
from fcos.model.points import make_grid

CONFIG = load_config(
    {
        **{"list_train": "none", "short_side": None, "view_size": 256, "strides": [8, 16, 32]},
        **{"regress_ranges": [64, 128], "center_radius": 1.5},
    }
)


def boxes_in_an_image(*boxes_xyxy: list[float], crowd: list[bool] | None = None) -> Annotations:
    """An image of 256 x 256, which `CONFIG` leaves at its size."""
    record = Record.make(
        Path("a.jpg"), list(boxes_xyxy), [0] * len(boxes_xyxy), 1, is_crowd=crowd, size_hw=(256, 256)
    )
    return Annotations.from_records([record], ("thing", "other"), source=Path("x"), format="list")


@pytest.mark.parametrize("rules", list(CONVENTIONS))
def test_it_is_what_a_training_would_learn(rules: str) -> None:
    """The targets of the training's own path: transform, padding, grid of the network, assigner."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(1, 4):
        low = rng.uniform(0, 250, (12, 2))
        boxes = np.concatenate([low, low + rng.uniform(2, 60, (12, 2))], axis=1)
        labels, crowd = rng.integers(0, 2, 12), rng.random(12) < 0.2
        size_hw = (int(rng.integers(310, 340)), 400)
        record = Record.make(Path("a.jpg"), boxes, labels, number, is_crowd=crowd, size_hw=size_hw)
        records.append(record)
    annotations = Annotations.from_records(records, ("thing", "other"), source=Path("x"), format="list")
    config = CONFIG.model_copy(update={"rules": rules, "short_side": 160, "view_size": 220})
    learned = []
    for record in records:
        assert record.size_hw is not None
        image = build_eval_transform(config)(torch.zeros(3, *record.size_hw, dtype=torch.uint8))
        scale = torch.tensor([image.shape[2] / 400, image.shape[1] / record.size_hw[0]]).repeat(2)
        boxes = (torch.from_numpy(record.boxes_xyxy).float() * scale)[torch.from_numpy(~record.is_crowd)]
        padded_hw = (-(-image.shape[1] // 32) * 32, -(-image.shape[2] // 32) * 32)
        grid = make_grid(padded_hw, config.strides, place=CONVENTIONS[rules].points)
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        matched = build_assigner(config)(grid, [boxes], [labels]).matched
        of_record = np.zeros(12, bool)
        of_record[np.flatnonzero(~record.is_crowd)[np.unique(matched[matched >= 0])]] = True
        learned.append(of_record)
    found = eligibility(annotations, config, range(len(annotations))).learned
    assert 0 < found.sum() < len(found) - annotations.is_crowd.sum()
    np.testing.assert_array_equal(found, np.concatenate(learned))


def test_a_box_between_the_points_is_not_learned_and_finer_points_would_help() -> None:
    # points of stride 8 lie at 4, 12, ..., 28, 36; of 16 at 24, 40; of 32 at 16, 48
    found = cover(boxes_in_an_image([29, 29, 35, 35], [100, 100, 130, 130]), CONFIG)
    assert found.without.tolist() == [True, False]
    assert found.reasons == {"no point inside": 1, "out of range": 0, "smaller boxes": 0}
    assert found.share == 0.5
    remedies = {remedy.what: remedy.share for remedy in found.remedies}
    assert remedies["strides [4, 8, 16, 32] and regress_ranges [32, 64, 128]"] == 0
    assert remedies["view_size 512"] == 0
    assert "center_sampling false" not in remedies  # would not help


def test_a_thin_box_is_out_of_range_where_points_lie_in_it() -> None:
    # 100 wide: its middle is 50 from both ends, so points of stride 8 near the center are in range ...
    assert not cover(boxes_in_an_image([100, 97, 200, 103]), CONFIG).without.any()
    # ... 200 wide: too far for stride 8, and no point of the other levels (8, 24, ..., 16, 48, ...) is in it
    found = cover(boxes_in_an_image([20, 106, 220, 110]), CONFIG)
    assert found.reasons == {"no point inside": 0, "out of range": 1, "smaller boxes": 0}
    doubled = next(remedy for remedy in found.remedies if remedy.what.startswith("regress_ranges"))
    assert doubled.what == "regress_ranges [128, 256]"
    assert doubled.share == 0


def test_the_smaller_of_two_boxes_at_the_same_place_takes_the_points() -> None:
    found = cover(boxes_in_an_image([96, 96, 128, 128], [97, 97, 127, 127]), CONFIG)
    assert found.without.tolist() == [True, False]
    assert found.reasons["smaller boxes"] == 1


def test_a_model_with_tiles_learns_what_is_large_enough_on_a_tile() -> None:
    # 512 x 512, which the network gets as 256 x 256: the first box is 5 x 5 there, between the points
    boxes = [[58.0, 58, 68, 68], [200, 200, 312, 312]]
    record = Record.make(Path("a.jpg"), boxes, [0, 0], 1, size_hw=(512, 512))
    annotations = Annotations.from_records([record], ("thing",), source=Path("x"), format="list")
    assert cover(annotations, CONFIG).without.tolist() == [True, False]
    # on tiles of 256 it is 10 x 10; of the other box the four tiles in the corners show just a quarter
    on_tiles = CONFIG.model_copy(update={"tile": 256})
    assert not cover(annotations, on_tiles).without.any()
    places = list(place_on_tiles(record, on_tiles))
    assert [place.objects.tolist() for place in places] == [[0], [1], [1], [1], [1], [1]]
    assert places[0].boxes_xyxy.tolist() == [[58, 58, 68, 68]]
    assert places[1].boxes_xyxy.tolist() == [[72, 200, 184, 256]]  # the tile at 128, 0
    assert places[3].boxes_xyxy.tolist() == [[72, 72, 184, 184]]  # at 128, 128


@pytest.mark.parametrize("assigner", ["static", "atss", "tal"])
def test_an_image_may_hold_nothing_but_crowds(assigner: str) -> None:
    config = CONFIG.model_copy(update={"assigner": assigner})
    found = cover(boxes_in_an_image([100, 100, 130, 130], crowd=[True]), config)
    assert not found.targets.any()
    assert found.share == 0


def test_crowds_are_nobodys_target() -> None:
    found = cover(boxes_in_an_image([29, 29, 35, 35], [100, 100, 130, 130], crowd=[True, False]), CONFIG)
    assert found.targets.tolist() == [False, True]
    assert found.share == 0


def test_no_objects_at_all_are_covered() -> None:
    found = cover(boxes_in_an_image(), CONFIG)
    assert (found.share, found.remedies) == (0, ())


def test_of_a_large_data_set_evenly_spread_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_IMAGES", 5)
    records = [
        Record.make(Path(f"{number}.jpg"), [[10, 10, 60, 60]] * 2, [0, 0], number, size_hw=(256, 256))
        for number in range(1, 21)
    ]
    annotations = Annotations.from_records(records, ("thing",), source=Path("x"), format="list")
    found = cover(annotations, CONFIG)
    assert found.images == [0, 5, 10, 14, 19]
    assert found.targets.nonzero()[0].tolist() == [0, 1, 10, 11, 20, 21, 28, 29, 38, 39]
