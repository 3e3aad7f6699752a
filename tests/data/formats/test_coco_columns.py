"""Piece by piece gives what reading everything at once gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcos.data.formats import coco_columns
from fcos.data.formats.coco_columns import read_columns
from fcos.data.formats.coco_entries import read_entries

TEXTS = st.text(alphabet='ab}]{[",:\\ é图', max_size=8)
NAMES = TEXTS.filter(bool)
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "segmentation": st.just({"counts": [1, 2], "size": [3, 4]}) | st.just([[1.5, 2.5]]),
        "tags": st.lists(st.fixed_dictionaries({"name": TEXTS}), max_size=3),
        "area": st.floats(0, 1e6) | st.integers(0, 1000) | st.none(),
        "iscrowd": st.sampled_from([0, 1, True, False, None]),
        "ignore": st.sampled_from([0, 1, True]),
    },
)


@st.composite
def coco_contents(draw: st.DrawFn) -> dict[str, Any]:
    image_ids = draw(st.lists(st.integers(0, 10**9), max_size=5, unique=True))
    images = [{"file_name": draw(NAMES), "id": number} for number in image_ids]
    for image in images:
        image |= draw(st.sampled_from([{}, {"height": 3, "width": 4.0}, {"height": 0, "width": 0}]))
    numbers = st.integers(-100, 1000) | st.floats(-100, 1000)
    annotations = [
        {
            "id": number,
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from([1, 7, 90])),
            "bbox": draw(st.lists(numbers, min_size=4, max_size=4)),
            **draw(EXTRAS),
        }
        for number in range(draw(st.integers(0, 8)) if image_ids else 0)
    ]
    parts = {
        "info": {"year": 2017, "text": draw(TEXTS)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": draw(TEXTS)}, {"id": 1, "name": "cat"}],
        "version": 1.25,
    }
    return {key: parts[key] for key in draw(st.permutations(list(parts)))}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=coco_contents(),
    piece=st.integers(1, 200),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
)
def test_pieces_of_any_size_give_the_columns_of_the_whole(
    tmp_path: Path, content: dict[str, Any], piece: int, indent: int | None, ascii: bool
) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_columns, "PIECE_BYTES", piece)
        patch.setattr(coco_columns, "VALUE_BYTES", piece)
        ours = read_columns(file)
    assert ours is not None
    wanted = read_entries(file)
    assert ours.categories == wanted.categories
    assert ours.num_rotated == wanted.num_rotated == 0
    for field in dataclasses.fields(wanted)[1:-1]:
        found, expected = getattr(ours, field.name), getattr(wanted, field.name)
        np.testing.assert_array_equal(found, expected, err_msg=field.name)
        assert found.shape == expected.shape
        assert found.dtype.kind == expected.dtype.kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"images": [], "annotations": []}',
        '{"images": [], "annotations": [], "categories": []',
        '{"images": [], "annotations": [], "categories": []} x',
        '{"images": [{"id": 1}], "annotations": [], "categories": []}',
        '{"images": [{"id": "1", "file_name": "a"}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1]}], "categories": []}',
        '{"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}], "categories": []}',
        '{"images": [], "annotations": [{"image_id": 1.5, "category_id": 1, "bbox": [1, 2, 3, 4]}],'
        ' "categories": []}',
        '{"images": [], "annotations": [{"image_id": 9007199254740993, "category_id": 1, "bbox": [1, 2, 3, 4]'
        '}], "categories": []}',
        '{"images": [{"id": 1, "file_name": "a"}, "annotations": [], "categories": []}',
        '{"images": [{"id": 1, "file_name": "a"},], "annotations": [], "categories": []}',
        '{"images": {}, "annotations": [], "categories": []}',
    ],
)
def test_what_is_not_as_coco_defines_it_is_left_to_the_ordinary_reader(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    assert read_columns(file) is None


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"images": [], "annotations": [], "categories": [{"id": 1}]}', encoding="utf-8-sig")
    columns = read_columns(file)
    assert columns is not None
    assert columns.categories == [{"id": 1}]


def test_real_coco_is_read_in_pieces(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shared / "data/coco_mini/annotations/instances_train2017.json"
    monkeypatch.setattr(coco_columns, "PIECE_BYTES", 10_000)
    ours, wanted = read_columns(file), read_entries(file)
    assert ours is not None
    for field in dataclasses.fields(wanted)[1:]:
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(wanted, field.name))
