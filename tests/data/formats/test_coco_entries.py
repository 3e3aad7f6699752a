"""COCO files as exporters write them: used where they are certain, else told which entry is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcos.data.annotations import Annotations
from fcos.data.formats import coco
from fcos.data.formats.coco_columns import read_columns
from fcos.errors import DatasetError

HUGE = 10**400


@pytest.fixture
def read(tmp_path: Path):
    """Reads a file of one image, box and category, each with some values of its own."""

    def read_content(image=(), box=(), category=(), **lists: Any) -> Annotations:
        content = {
            "images": [{"id": 1, "file_name": "0.jpg", "width": 64, "height": 48, **dict(image)}],
            "annotations": [
                {"id": 5, "image_id": 1, "category_id": 1, "bbox": [3, 4, 20, 30], "area": 7, **dict(box)}
            ],
            "categories": [{"id": 1, "name": "cat", **dict(category)}],
            **lists,
        }
        file = tmp_path / "x.json"
        file.write_text(json.dumps(content))
        return coco.read(file, root=tmp_path)

    return read_content


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    ("value", "wanted"),
    [("0", False), ("false", False), ("1", True), ("True", True), (None, False), (1.0, True)],
)
def test_flags_mean_what_they_say(read, key, value, wanted):
    annotations = read(box={key: value})

    flags = annotations.is_crowd if key == "iscrowd" else annotations.is_difficult
    assert flags.tolist() == [wanted]


@pytest.mark.parametrize("value", ["", "yes", 2, -1, 0.5, math.nan, [0]])
def test_flags_that_can_mean_anything_are_refused(read, value):
    with pytest.raises(DatasetError, match=r"annotation 5: iscrowd is .*, not 0 or 1"):
        read(box={"iscrowd": value})


@pytest.mark.parametrize("number", [1, -5, 2**53 + 1, 2**63 - 2, -(2**63) + 2])
@pytest.mark.parametrize("dress", [int, str])
def test_ids_stay_whole_numbers(read, number, dress):
    annotations = read(
        image={"id": number},
        box={"image_id": dress(number), "category_id": dress(number)},
        category={"id": number},
    )

    assert (annotations[0].image_id, annotations.category_ids, annotations.labels.tolist()) == (
        number,
        (number,),
        [0],
    )


@pytest.mark.parametrize(
    "value", ["x", "01", 1.5, True, None, [1], {}, math.nan, math.inf, 2**63, 1e20, HUGE]
)
@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_that_are_none_are_named(read, key, value):
    with pytest.raises(
        DatasetError, match=rf"annotation 5: {key} (is .*, not an integer|.*fit into 64 bits)"
    ):
        read(box={key: value})


@pytest.mark.parametrize("value", ["x", None, True, [1], {}, math.nan, 2**63])
def test_ids_of_images_and_categories_that_are_none_are_named(read, value):
    with pytest.raises(DatasetError, match=r"x.json, image 1: id is"):
        read(image={"id": value})
    with pytest.raises(DatasetError, match=r"x.json, category 1: id is"):
        read(category={"id": value})


@pytest.mark.parametrize("value", [None, "x", "", math.nan, math.inf, -3, 0, 0.5, 1e300, [64], {}, HUGE])
def test_sizes_and_areas_that_make_no_sense_are_not_stated(read, value):
    annotations = read(image={"width": value}, box={"area": value if value not in (0, 0.5, 1e300) else None})

    assert annotations[0].size_hw is None
    assert annotations.areas.tolist() == [600]
    assert read(image={"width": "64.0"}, box={"area": "12.5"}).areas.tolist() == [12.5]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (None, "bbox is null"),
        ([], "bbox is a list of length 0"),
        ([1, 2, 3], "bbox is a list of length 3"),
        ([[1, 2, 3, 4]], "bbox is a list of length 1"),
        ({"x": 1}, "bbox is an object"),
        (["1", "2", "3", "4"], 'bbox contains the string "1", not a number'),
        ([1, 2, True, 4], "bbox contains true, not a number"),
        ([1, 2, HUGE, 4], "bbox contains a number with more than 40 digits, which is too large"),
    ],
)
def test_a_box_is_four_numbers(read, box, words):
    with pytest.raises(DatasetError, match=rf"annotation 5: {words}"):
        read(box={"bbox": box})


def test_boxes_beyond_all_numbers_are_for_the_check(read):
    assert np.isnan(read(box={"bbox": [1, 2, math.nan, 4]}).boxes_xyxy).any()


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"annotations": [None]}, "annotation number 1: is null, not an object"),
        ({"annotations": [[1]]}, "annotation number 1: is a list of length 1, not an object"),
        ({"annotations": [{"bbox": [1, 2, 3, 4]}]}, "annotation number 1: no image_id"),
        ({"images": ["0.jpg"]}, 'image 1: is the string "0.jpg", not an object'),
        ({"categories": ["cat"]}, 'category 1: is the string "cat", not an object'),
        ({"categories": None}, "missing 'categories'"),
    ],
)
def test_what_is_no_entry_is_named(read, lists, words):
    with pytest.raises(DatasetError, match=words):
        read(**lists)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, "file_name is null"),
        ("", 'file_name is the string ""'),
        (1, "file_name is 1, not a file name"),
        ("\ud800.jpg", "the name of image 1, .* is not a valid file name"),
        ("a\0b.jpg", "the name of image 1, .* is not a valid file name"),
        ("x" * 2**20, "the name of image 1, 'x{40}...', is not a valid file name"),
    ],
)
def test_names_that_no_file_can_have_are_refused(read, name, words):
    with pytest.raises(DatasetError, match=words):
        read(image={"file_name": name})


@pytest.mark.parametrize("name", [None, 1, "", " ", "\ud800", "x" * 2**20])
def test_names_that_no_class_can_have_are_refused(read, name):
    with pytest.raises(DatasetError, match=r"category 1: the name "):
        read(category={"name": name})


def test_two_categories_of_one_name_are_refused_if_both_have_boxes(read):
    twice = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}]
    both = [{"id": i, "image_id": 1, "category_id": i, "bbox": [1, 2, 3, 4]} for i in (0, 1)]

    assert read(categories=twice).category_ids == (1,)  # 0 is the group of them, as in Roboflow's files
    with pytest.raises(DatasetError, match="category 1: has the same name as category 0: 'cat'"):
        read(categories=twice, annotations=both)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"x": ' + "[" * 200_000, "nested too deeply"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "not JSON: Exceeds the limit"),
        (
            '{"images": [], "annotations": [], "annotations": [], "categories": []}',
            "'annotations' appears twice",
        ),
        ('{"images": [], "annotations": [' + '{"a": [{}]},' * 50_000, "not JSON"),
        ('{"images": "\xe9"}'.encode("latin-1"), "not a UTF-8 text file"),
    ],
)
def test_files_made_to_hurt_end_in_a_message(tmp_path, text, words):
    file = tmp_path / "x.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(DatasetError, match=words):
        coco.read(file)


@pytest.mark.parametrize(
    "change", [{"iscrowd": 2}, {"image_id": 2.0**53}, {"image_id": 1.5}, {"bbox": [1, 2, 3]}]
)
def test_the_fast_reader_leaves_what_is_not_certain_to_the_careful_one(tmp_path, change):
    box = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [3, 4, 20, 30], "area": -1}
    content = {
        "images": [{"id": 1, "file_name": "0.jpg", "width": 1e12}],
        "annotations": [box],
        "categories": [],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    columns = read_columns(tmp_path / "x.json")

    assert columns is not None
    assert np.isnan(columns.areas).all()
    assert columns.sizes_hw.tolist() == [[-1, -1]]
    (tmp_path / "x.json").write_text(json.dumps({**content, "annotations": [box | change]}))
    assert read_columns(tmp_path / "x.json") is None


def test_a_rotated_box_becomes_the_upright_box_around_it(read):
    turned = read(box={"bbox": [3, 4, 20, 30], "attributes": {"rotation": 90, "occluded": False}})
    # about (13, 19): 30 wide, 20 high
    np.testing.assert_allclose(turned.boxes_xyxy, [[-2, 9, 28, 29]], atol=1e-12)
    assert turned.notes == ("1 box is rotated: the axis-aligned boxes around them are used",)

    tilted = read(box={"bbox": [0, 0, 10, 10], "attributes": {"rotation": 45}}).boxes_xyxy
    np.testing.assert_allclose(tilted, [[5 - 50**0.5, 5 - 50**0.5, 5 + 50**0.5, 5 + 50**0.5]])

    upright = read(box={"attributes": {"rotation": 0.0}})
    assert (upright.boxes_xyxy.tolist(), upright.notes) == ([[3, 4, 23, 34]], ())
    with pytest.raises(DatasetError, match='rotation contains the string "much", not a number'):
        read(box={"attributes": {"rotation": "much"}})


def test_a_segmentation_without_a_box_says_what_to_do(read):
    with pytest.raises(DatasetError, match="bbox is null; segmentations are not read: compute"):
        read(box={"bbox": None, "segmentation": [[1, 2, 3, 4, 5, 6]]})
