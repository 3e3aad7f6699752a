from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from fcos.data.formats import coco
from fcos.data.formats.coco_entries import load
from fcos.errors import DatasetError


def content() -> dict:
    return {
        "images": [
            {"id": 70, "file_name": "sub/b.jpg", "height": 30, "width": 40},
            {"id": 7, "file_name": "a.jpg", "height": 0, "width": 0},
            {"id": 12, "file_name": "empty.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 1},
            {
                "id": 2,
                "image_id": 70,
                "category_id": 3,
                "bbox": [0.5, 1, 10, 20],
                "segmentation": [[1, 2, 3, 4, 5, 6]],
            },
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [5, 6, 7, 8], "ignore": 1},
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "cat"}, {"id": 44, "name": "unused"}],
    }


@pytest.fixture
def write_coco(tmp_path):
    def write(data: object, name: str = "instances_val.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(data))
        return path

    return write


def test_ids_with_gaps_become_labels_in_ascending_order(write_coco):
    annotations = coco.read(write_coco(content()))

    assert annotations.class_names == ("cat", "unused", "zebra")
    assert annotations.category_ids == (3, 44, 90)
    assert [record.image_id for record in annotations] == [70, 7, 12]
    assert [record.labels.tolist() for record in annotations] == [[0], [2, 0], []]


def test_boxes_crowd_area_and_ignore_stay_with_their_image(write_coco):
    first, second, empty = coco.read(write_coco(content()))

    assert first.boxes_xyxy.tolist() == [[0.5, 1, 10.5, 21]]
    assert second.boxes_xyxy.tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert second.is_crowd.tolist() == [True, False]
    assert second.is_difficult.tolist() == [False, True]
    assert second.areas.tolist() == [5.5, 56]
    assert empty.boxes_xyxy.shape == (0, 4)
    assert (first.size_hw, second.size_hw, empty.size_hw) == ((30, 40), None, None)


def test_images_lie_in_the_folder_named_like_the_split(write_coco, make_image, tmp_path):
    make_image("val/sub/b.jpg")
    (tmp_path / "annotations").mkdir()
    source = write_coco(content(), "annotations/instances_val.json")

    assert coco.read(source)[0].path == tmp_path / "val/sub/b.jpg"
    assert coco.read(source, root=tmp_path)[0].path == tmp_path / "sub/b.jpg"


def test_given_names_set_the_order_of_the_labels(write_coco):
    annotations = coco.read(write_coco(content()), names=["zebra", "horse", "cat"])

    assert annotations.class_names == ("zebra", "horse", "cat")
    assert [record.labels.tolist() for record in annotations] == [[2], [0, 2], []]
    assert annotations.category_ids[0] == 90
    assert annotations.category_ids[2] == 3
    assert len(set(annotations.category_ids)) == 3


def test_a_category_in_use_that_is_not_among_the_names_is_refused(write_coco):
    with pytest.raises(DatasetError, match="not among the class names: 'zebra'"):
        coco.read(write_coco(content()), names=["cat"])


def test_an_unknown_category_is_kept_for_the_check(write_coco):
    data = content()
    data["annotations"][1]["category_id"] = 5

    assert coco.read(write_coco(data))[0].labels.tolist() == [-1]


def test_boxes_that_are_none_are_all_named(write_coco):
    data = content()
    data["annotations"][0]["bbox"] = [1, 2, 3]
    del data["annotations"][2]["bbox"]

    with pytest.raises(DatasetError) as error:
        coco.read(write_coco(data))

    assert "2 annotations cannot be used" in str(error.value)
    assert "annotation 1: bbox is a list of length 3, not [x, y, width, height] in pixels" in str(error.value)
    assert "annotation 3: bbox is null" in str(error.value)
    assert "fix: correct or remove them" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda data: data["annotations"][0].update(image_id=99),
            "annotation 1: image 99 is not in the file",
        ),
        (lambda data: data["annotations"][0].pop("category_id"), "annotation 1: no category_id"),
        (lambda data: data["images"][0].update(id=7), "image 2: id 7 appears twice"),
        (lambda data: data["images"][0].update(id="x"), 'image 1: id is the string "x", not an integer'),
        (lambda data: data["categories"][0].update(id=3), "category 2: id 3 appears twice"),
        (
            lambda data: data["categories"][0].pop("name"),
            "category 1: the name is null",
        ),
        (lambda data: data.pop("annotations"), "missing 'annotations'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_place(write_coco, change, words):
    data = content()
    change(data)

    with pytest.raises(DatasetError) as error:
        coco.read(write_coco(data))

    assert words in str(error.value)


def test_detections_are_not_annotations(write_coco):
    with pytest.raises(DatasetError, match="not a COCO annotation file"):
        coco.read(write_coco([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))


def test_broken_json_is_refused_with_its_line(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [],\n "annotations": [}')

    with pytest.raises(DatasetError, match=r"not JSON: .*\n  in: .*x.json, line 2, column 18"):
        coco.read(tmp_path / "x.json")


def test_writing_and_reading_keeps_everything(write_coco, tmp_path):
    first = coco.read(write_coco(content()))
    coco.write(first, tmp_path / "out.json", root=tmp_path)
    second = coco.read(tmp_path / "out.json", root=tmp_path)

    for name in ("boxes_xyxy", "labels", "is_crowd", "is_difficult", "areas", "image_ids", "sizes_hw"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert (first.class_names, first.category_ids) == (second.class_names, second.category_ids)
    assert [record.path for record in first] == [record.path for record in second]


@pytest.mark.parametrize(
    ("split", "facts"), [("train2017", (128, 939, 71, 10)), ("val2017", (50, 382, 48, 5))]
)
def test_real_coco_agrees_with_pycocotools(shared, split, facts, capsys):
    source = shared / "data/coco_mini/annotations" / f"instances_{split}.json"
    annotations = coco.read(source)
    peer = COCO(str(source))

    assert facts == (
        len(annotations),
        len(annotations.labels),
        len(np.unique(annotations.labels)),
        annotations.is_crowd.sum(),
    )
    assert annotations.num_classes == 80
    assert annotations.category_ids == tuple(sorted(peer.getCatIds()))
    for record in annotations:
        entries = peer.imgToAnns[record.image_id]
        assert record.path.name == peer.imgs[record.image_id]["file_name"]
        assert record.path.is_file()
        assert [annotations.category_ids[label] for label in record.labels] == [
            e["category_id"] for e in entries
        ]
        np.testing.assert_array_equal(record.areas, [e["area"] for e in entries])
        xywh = np.array([e["bbox"] for e in entries]).reshape(-1, 4)
        np.testing.assert_allclose(record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2], xywh[:, 2:])
        np.testing.assert_array_equal(record.boxes_xyxy[:, :2], xywh[:, :2])
    assert "index created" in capsys.readouterr().out


def test_real_coco_written_again_is_the_same(shared, tmp_path):
    source = shared / "data/coco_mini/annotations/instances_val2017.json"
    first = coco.read(source)
    coco.write(first, tmp_path / "out.json", root=shared / "data/coco_mini/val2017")
    boxes = {entry["image_id"]: [] for entry in load(source)["annotations"]}
    again = {entry["image_id"]: [] for entry in load(source)["annotations"]}
    for entries, into in ((load(source), boxes), (load(tmp_path / "out.json"), again)):
        for entry in entries["annotations"]:
            into[entry["image_id"]].append((entry["category_id"], entry["bbox"], entry["iscrowd"]))

    assert boxes == again


@given(
    values=st.lists(st.integers(-20, 20) | st.sampled_from([-(2**62), 2**53])),
    among=st.lists(st.integers(-20, 20) | st.integers(-(2**53), 2**53), unique=True),
)
def test_places_of_ids_that_lie_close_together_or_far_apart(values: list[int], among: list[int]) -> None:
    found = coco._find(np.array(values, np.int64), np.array(among, np.int64))
    assert found.tolist() == [among.index(value) if value in among else -1 for value in values]


def test_names_of_windows_are_read_with_slashes(write_coco, make_image, tmp_path):
    make_image("images/sub/b.jpg")
    data = content()
    data["images"][0]["file_name"] = "sub\\b.jpg"

    annotations = coco.read(write_coco(data))

    assert annotations[0].path == tmp_path / "images" / "sub" / "b.jpg"
    assert annotations[1].path == tmp_path / "images" / "a.jpg"


def test_the_folder_of_the_split_comes_before_folders_above(write_coco, make_image, tmp_path):
    data = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    file = write_coco(data, "set/annotations/instances_val.json")
    make_image("images/a.jpg")  # of another data set
    own = make_image("set/val/a.jpg")
    assert [record.path for record in coco.read(file)] == [own]


def test_images_of_fiftyone_lie_in_data(write_coco, make_image):
    image = make_image("data/a.jpg")
    data = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
    assert [record.path for record in coco.read(write_coco(data, "labels.json"))] == [image]
