"""The drawn points are those that training uses."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.metrics.coverage import eligibility
from fcos.report.assignment import assigned_image, choose_assigned, range_words

CONFIG = load_config(
    {
        **{"list_train": "none", "short_side": None, "view_size": 256, "strides": [8, 16, 32]},
        **{"regress_ranges": [64, 128], "center_radius": 1.5},
    }
)


def annotations_of(folder: Path, *images: list[list[float]]) -> Annotations:
    """Images of 512 x 512, which `CONFIG` halves."""
    records = []
    for number, boxes in enumerate(images, start=1):
        path = folder / f"{number}.png"
        Image.new("RGB", (512, 512)).save(path)
        records.append(Record.make(path, boxes, [0] * len(boxes), number, size_hw=(512, 512)))
    return Annotations.from_records(records, ("cat",), source=folder, format="list")


def test_the_points_of_one_box_by_hand(tmp_path: Path) -> None:
    # at the network 64 to 96, center at 80: points of stride 8 less than 12 from it lie at 76 and 84
    annotations = annotations_of(tmp_path, [[128, 128, 192, 192]])
    _, levels = assigned_image(annotations, 0, CONFIG)
    assert [(level.name, level.stride, len(level.learned)) for level in levels] == [
        ("P3", 8, 4),
        ("P4", 16, 0),
        ("P5", 32, 0),
    ]
    first = levels[0].learned[0]
    scale = 480 / 256  # the example is 480 pixels wide
    assert (first.x, first.y, first.side) == (72 * scale, 72 * scale, 8 * scale)
    # left 12, right 20: (12 / 20 * 12 / 20) ** 0.5
    assert first.title == "cat: centerness 0.60; point 76, 76; left 12, top 12, right 20, bottom 20"
    assert first.opacity == pytest.approx(0.1 + 0.8 * 0.6)


def test_a_box_between_the_points_is_marked(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, [[58, 58, 70, 70], [128, 128, 192, 192]])
    example, _ = assigned_image(annotations, 0, CONFIG)
    assert [(box.is_wrong, box.title) for box in example.panes[0].boxes] == [
        (True, "cat: no positive point"),
        (False, "cat"),
    ]


def test_crowds_take_no_points(tmp_path: Path) -> None:
    path = annotations_of(tmp_path, [])[0].path
    boxes = [[0, 0, 512, 512], [128, 128, 192, 192]]
    record = Record.make(path, boxes, [0, 0], 1, is_crowd=[True, False], size_hw=(512, 512))
    annotations = Annotations.from_records([record], ("cat",), source=tmp_path, format="list")
    _, levels = assigned_image(annotations, 0, CONFIG)
    assert [level.num_objects for level in levels] == [1, 0, 0]


def test_images_with_objects_that_no_point_learns_and_many_sizes_are_chosen(tmp_path: Path) -> None:
    plain, between = [128.0, 128.0, 192.0, 192.0], [58.0, 58.0, 70.0, 70.0]
    annotations = annotations_of(tmp_path, [plain], [], [plain, between], [plain, [0.0, 0.0, 500.0, 500.0]])
    chosen = choose_assigned(annotations, ~eligibility(annotations, CONFIG, range(4)).learned, 2)
    assert chosen == [2, 3]


def test_nothing_to_choose_from_is_no_image(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, [])
    assert choose_assigned(annotations, np.zeros(0, bool), 3) == []


def test_ranges_in_words() -> None:
    words = [range_words(CONFIG, level) for level in range(3)]
    assert words == ["distances 0 to 64", "distances 64 to 128", "distances above 128"]


def test_points_say_their_best_class(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, [[128, 128, 192, 192]])
    scores, labels = np.full(32**2 + 16**2 + 8**2, -1, np.float32), np.zeros(32**2 + 16**2 + 8**2, np.int64)
    scores[[3, 5, 7]] = 0.5, 0.7, 0.05  # the last is too little to be drawn
    scores[32**2 + 16] = 0.25  # the first point of the second row of stride 16
    _, (fine, middle, coarse) = assigned_image(annotations, 0, CONFIG, (scores, labels, None))
    assert [cell.title for cell in fine.predicted] == ["cat 0.70; point 44, 4", "cat 0.50; point 28, 4"]
    assert [cell.opacity for cell in fine.predicted] == [0.7, 0.5]
    [cell] = middle.predicted
    assert (cell.title, cell.x, cell.y) == ("cat 0.25; point 8, 24", 0, 16 * 480 / 256)
    assert coarse.predicted == ()
    assert fine.quality is None


def test_centerness_is_a_heat_map_of_a_pixel_a_point(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, [[128, 128, 192, 192]])
    num_points = 32**2 + 16**2 + 8**2
    scores, labels = np.full(num_points, -1, np.float32), np.zeros(num_points, np.int64)
    quality = np.zeros(num_points, np.float32)
    scores[0] = 0.5
    quality[32 * 2 + 3] = 0.6  # third row, fourth column of stride 8
    _, levels = assigned_image(annotations, 0, CONFIG, (scores, labels, quality))
    heat = levels[0].quality
    assert heat is not None
    assert [level.quality for level in levels[1:]] == [None, None]  # they say nothing
    assert (heat.width, heat.height, heat.largest) == (480, 480, pytest.approx(0.6))
    image = Image.open(io.BytesIO(base64.b64decode(heat.png)))
    assert image.size == (32, 32)
    values = np.asarray(image)
    assert values[2, 3] == round(0.6 * 255)
    assert values.sum() == values[2, 3]
    assert image.convert("RGB").getpixel((0, 0)) == (68, 1, 84)  # viridis at 0


def test_a_corner_point_is_drawn_as_the_cell_to_its_right_and_below(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path, [[128, 128, 192, 192]])
    config = CONFIG.model_copy(update={"rules": "torchvision"})
    # at the network 64 to 96, center at 80: corners of stride 8 less than 12 from it lie at 72, 80 and 88
    _, (fine, *_) = assigned_image(annotations, 0, config)
    scale = 480 / 256
    assert sorted({(cell.x, cell.y) for cell in fine.learned})[0] == (72 * scale, 72 * scale)
    assert len(fine.learned) == 9
