from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos.data.check import check, drop_invalid, require_boxes
from fcos.data.formats import read_annotations
from fcos.data.image import Header
from fcos.data.image_files import common_images
from fcos.data.summary import count
from fcos.errors import DatasetError


@pytest.fixture
def write_list(tmp_path):
    def write(*lines: str, name: str = "train.txt") -> Path:
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    return write


def test_the_real_set_has_exactly_its_two_known_faults(shared):
    annotations = read_annotations(shared / "data/bccd")

    report = check(annotations)

    assert [(p.where.split("/")[-1], p.what) for p in report.problems] == [
        (
            "BloodImage_00338.xml, object 13, image 'BloodImage_00338.jpg'",
            "box [504, 337, 504, 337] has no area",
        ),
        (
            "BloodImage_00343.xml, object 4, image 'BloodImage_00343.jpg'",
            "box [181, 329, 181, 329] has no area",
        ),
    ]
    assert report.summary() == "2 boxes cannot be used"
    kept = drop_invalid(annotations, report)
    assert (len(kept), len(kept.labels)) == (364, 4886)


@pytest.mark.parametrize(
    "source", ["raccoon", "coco_mini/annotations/instances_train2017.json", "voc100/gts/yolo_format"]
)
def test_other_real_sets_are_clean(shared, source):
    report = check(read_annotations(shared / "data" / source))

    assert report.problems == ()
    assert report.warnings == ()


def test_every_kind_of_impossible_box_is_reported_with_its_line(write_list, make_image):
    make_image("a.jpg", width=40, height=30)
    lines = [
        "a.jpg 1 2 20 30 1 10 20 10 30 1",  # fine, no height
        "a.jpg 20 2 10 30 2",  # inverted
        "a.jpg 1 2 nan 30 1 1 2 20 inf 1",  # not finite, twice
        "a.jpg 1 2 20 30 0 1 2 20 30 3",  # classes
        "a.jpg 1 2 33 30 1 1 -2.5 20 30 1 5 41 6 42 1",  # outside: below, left, wholly
        "a.jpg -2 -2 32 42 1",  # sticks out a little: accepted
    ]
    annotations = read_annotations(write_list(*lines), names=["cat", "dog"])

    report = check(annotations)

    found = [(p.where.split(", ")[1:3], p.what) for p in report.problems]
    assert found == [
        (["line 1", "box 2"], "box [20, 10, 30, 10] has no area"),
        (["line 2", "box 1"], "box [2, 20, 30, 10] is inverted: a maximum is below its minimum"),
        (["line 3", "box 1"], "box [2, 1, 30, nan] has non-finite coordinates"),
        (["line 3", "box 2"], "box [2, 1, inf, 20] has non-finite coordinates"),
        (["line 4", "box 1"], "class id 0 is not one of the 2 classes (1 to 2)"),
        (["line 4", "box 2"], "class id 3 is not one of the 2 classes (1 to 2)"),
        (["line 5", "box 1"], "box [2, 1, 30, 33] extends beyond the image (width 40, height 30)"),
        (["line 5", "box 2"], "box [-2.5, 1, 30, 20] extends beyond the image (width 40, height 30)"),
        (["line 5", "box 3"], "box [41, 5, 42, 6] extends beyond the image (width 40, height 30)"),
    ]
    kept = drop_invalid(annotations, report)
    assert [len(record.labels) for record in kept] == [1, 0, 0, 0, 0, 1]
    assert check(kept).problems == ()


@pytest.mark.parametrize("decode", [True, False])
def test_every_broken_image_is_reported(write_list, make_image, tmp_path, decode):
    for name in "abcd":
        make_image(f"{name}.jpg", 64, 64)
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(make_image("b.jpg", 64, 64).read_bytes()[:-80])
    (tmp_path / "c.jpg").write_text("no image")
    names = [*"abcd", "gone"]
    annotations = read_annotations(write_list(*[f"{name}.jpg 1 2 20 30 1" for name in names]))

    report = check(annotations, decode=decode)

    whats = {p.where.split("/")[-1]: p.what for p in report.problems}
    assert whats["a.jpg'"] == "image file is empty (0 bytes)"
    assert whats["c.jpg'"].startswith("image cannot be decoded: not an image")
    assert whats["gone.jpg'"] == "image not found"
    assert ("b.jpg'" in whats) is decode
    assert "train.txt, line 5, image" in report.problems[-1].where
    expected = ["d.jpg"] if decode else ["b.jpg", "d.jpg"]
    kept = drop_invalid(annotations, report)
    assert [record.path.name for record in kept] == expected
    assert report.summary() == f"{5 - len(expected)} images cannot be used"


def test_boxes_of_a_broken_image_are_not_reported_besides(write_list):
    report = check(read_annotations(write_list("gone.jpg 1 2 0 0 1 1 2 3 nan 1")))

    assert [problem.box for problem in report.problems] == [None]


def test_training_is_refused_with_all_problems_and_the_remedy(write_list, make_image):
    make_image("a.jpg")
    report = check(read_annotations(write_list("a.jpg 1 2 1 3 1 1 2 20 30 1", "gone.jpg", "lost.jpg")))

    with pytest.raises(DatasetError) as error:
        report.raise_problems()

    assert str(error.value).startswith("2 images and 1 box cannot be used\n  in: ")
    assert "line 1, box 1, image 'a.jpg': box [2, 1, 3, 1] has no area" in str(error.value)
    assert "gone.jpg': image not found" in str(error.value)
    assert "lost.jpg': image not found" in str(error.value)
    assert '"skip_invalid": true' in str(error.value)
    assert "folder of images" not in str(error.value)  # some of them were found


def test_missing_images_alone_ask_for_their_folder(write_list):
    with pytest.raises(DatasetError, match=r"give the folder of images \(--root; in train.json root_train"):
        check(read_annotations(write_list("gone.jpg 1 2 20 30 1", "lost.jpg"))).raise_problems()


def test_a_clean_set_is_not_refused(write_list, make_image):
    make_image("a.jpg")
    report = check(read_annotations(write_list("a.jpg 1 2 20 30 1")))

    report.raise_problems()

    assert report.summary() == "everything can be used"


def test_nothing_left_is_an_error_that_points_to_the_folder(write_list):
    annotations = read_annotations(write_list("gone.jpg", "lost.jpg"))

    with pytest.raises(DatasetError, match=r"none of the images can be used(.|\n)*root_train"):
        drop_invalid(annotations, check(annotations))


def test_coco_problems_name_the_annotation(tmp_path, make_image):
    make_image("a.jpg")
    content = {
        "images": [{"id": 5, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 916, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 917, "image_id": 5, "category_id": 1, "bbox": [12, 10, 0, 4]},
            {"id": 918, "image_id": 5, "category_id": 77, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))

    problems = check(read_annotations(tmp_path / "train.json")).problems

    assert [p.where.split("/")[-1] for p in problems] == [
        "train.json, annotation 917, image 'a.jpg'",
        "train.json, annotation 918, image 'a.jpg'",
    ]
    assert problems[0].what == "box [12, 10, 12, 14] has no area"
    assert problems[1].what == "category_id 77 is not among the categories"


def test_yolo_class_ids_are_told_as_in_the_file_which_counts_from_0(tmp_path, make_image):
    make_image("set/a.jpg")
    (tmp_path / "set/a.txt").write_text("2 0.5 0.5 0.5 0.5\n-1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "set/classes.txt").write_text("cat\ndog\n")

    problems = check(read_annotations(tmp_path / "set")).problems

    assert [problem.what for problem in problems] == [
        "class id 2 is not one of the 2 classes (0 to 1)",
        "the class id is not one of the 2 classes (0 to 1)",
    ]


def test_an_image_listed_twice_and_a_wrong_stated_size_are_warnings(tmp_path, make_image):
    make_image("a.jpg", 40, 30)
    images = [
        {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 2, "file_name": "a.jpg", "width": 80, "height": 60},
    ]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))

    report = check(read_annotations(tmp_path / "train.json"))

    assert report.problems == ()
    assert [warning.what for warning in report.warnings] == [
        "image 'a.jpg' is listed twice, with different boxes: in each copy, the other's boxes count as "
        "background",
        "stated size 80 x 60, but 'a.jpg' is 40 x 30",
    ]


def test_boxes_in_the_cameras_frame_are_turned_before_they_are_judged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 10]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "train.json")

    report = check(annotations)
    upright = drop_invalid(annotations, report)

    assert report.problems == ()
    assert upright[0].boxes_xyxy.tolist() == [[20, 0, 30, 40]]
    assert upright[0].size_hw == (40, 30)


def test_the_card_counts_by_hand(write_list, make_image):
    make_image("a.jpg", 200, 100)
    make_image("b.jpg", 100, 100)
    lines = ["a.jpg 0 0 31 33 1 0 0 32 32 1 0 0 96 96 2", "b.jpg"]
    annotations = read_annotations(write_list(*lines), names=["cat", "dog", "emu"])

    card = check(annotations).counts

    assert (card.num_images, card.num_boxes, card.num_empty, card.most_boxes) == (2, 3, 1, 3)
    assert card.boxes_per_class == {"cat": 2, "dog": 1, "emu": 0}
    assert card.images_per_class == {"cat": 1, "dog": 1, "emu": 0}
    assert card.boxes_per_size == {"small": 1, "medium": 1, "large": 1}
    assert card.sides == {"height": (100, 100, 100), "width": (100, 150, 200)}


def test_the_card_of_real_coco_counts_as_the_file(shared):
    card = count(read_annotations(shared / "data/coco_mini/annotations/instances_val2017.json"))

    assert (card.num_images, card.num_boxes, card.num_empty, card.num_crowd) == (50, 382, 2, 5)
    assert sum(count > 0 for count in card.boxes_per_class.values()) == 48


def test_shared_images_are_found_by_path_and_by_content(write_list, make_image, tmp_path):
    make_image("a.png", color=1)
    make_image("b.png", color=2)
    make_image("c.png", color=3)
    shutil.copy(tmp_path / "b.png", tmp_path / "copy.png")
    first = read_annotations(write_list("a.png", "b.png", "gone.png"))
    second = read_annotations(write_list("c.png", "copy.png", "a.png", "lost.png", name="val.txt"))

    pairs = common_images(first, second)

    assert [(one.name, other.name) for one, other in pairs] == [("b.png", "copy.png"), ("a.png", "a.png")]


def test_the_splits_of_the_real_set_share_no_image(shared):
    sets = shared / "data/bccd/ImageSets/Main"

    assert common_images(read_annotations(sets / "train.txt"), read_annotations(sets / "test.txt")) == []
    assert (
        len(common_images(read_annotations(sets / "train.txt"), read_annotations(sets / "trainval.txt")))
        == 205
    )


def test_progress_sees_every_image(write_list, make_image):
    make_image("a.jpg")
    seen = []

    def track(results, total):
        for result in results:
            seen.append(total)
            yield result

    check(read_annotations(write_list("a.jpg", "gone.jpg")), track=track)

    assert seen == [2, 2]


def test_dropping_nothing_changes_nothing(shared):
    annotations = read_annotations(shared / "data/raccoon")

    kept = drop_invalid(annotations, check(annotations, decode=False))

    np.testing.assert_array_equal(kept.boxes_xyxy, annotations.boxes_xyxy)
    np.testing.assert_array_equal(kept.first_box, annotations.first_box)
    assert [record.path for record in kept] == [record.path for record in annotations]


@pytest.mark.parametrize("crowd", [[], [1], [1, True]])
def test_a_data_set_without_a_box_to_learn_from_is_a_problem_that_is_never_left_out(
    tmp_path, make_image, crowd
):
    make_image("a.jpg")
    boxes = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": flag}
        for n, flag in enumerate(crowd)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "a.json")
    what = "1 image, but no boxes other than crowd regions" if crowd else "1 image, but no boxes"

    report = check(annotations)

    assert [(problem.record, problem.what[: len(what)]) for problem in report.problems] == [(None, what)]
    assert report.summary().startswith(what)
    assert (report.num_images, report.num_boxes) == (0, 0)
    with pytest.raises(DatasetError, match=what):
        report.raise_problems()
    report.raise_problems(may_lack_boxes=True)
    assert len(drop_invalid(annotations, report)) == 1


def test_boxes_as_fractions_are_a_problem_of_the_whole_data_set(write_list, make_image):
    make_image("a.jpg")
    fractions = read_annotations(write_list("a.jpg 0.1 0.2 0.5 1 1 0 0 1 0.75 1"))
    pixels = read_annotations(write_list("a.jpg 0 0 1 1 1 0.5 0.5 1.5 20 1"))
    mixed = read_annotations(write_list("a.jpg 0.1 0.2 0.5 1 1 0 0 15 20 1"))
    whole = read_annotations(write_list("a.jpg 0 0 1 1 1"))

    report = check(fractions)

    assert "normalized to [0, 1]" in report.summary()
    for may_lack_boxes in (False, True):
        with pytest.raises(DatasetError, match="every box is smaller than a pixel"):
            report.raise_problems(may_lack_boxes=may_lack_boxes)
    assert check(pixels).problems == check(whole).problems == ()
    [problem] = check(mixed).problems
    assert problem.what == "box [0.2, 0.1, 1, 0.5] seems to be normalized to [0, 1], not in pixels"
    assert problem.box == 0


def test_what_is_left_without_a_box_is_refused_too(write_list, make_image):
    make_image("a.jpg")
    annotations = read_annotations(write_list("a.jpg 1 2 1 3 1"))

    with pytest.raises(DatasetError, match="1 image, but no boxes"):
        require_boxes(drop_invalid(annotations, check(annotations)))


def test_difficult_boxes_alone_are_a_warning(tmp_path, make_image):
    make_image("a.jpg")
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
        "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )

    report = check(read_annotations(tmp_path))

    assert report.problems == ()
    assert [warning.what for warning in report.warnings] == [
        "all boxes are difficult, so evaluation ignores them"
    ]


def test_classes_that_differ_in_letter_case_or_spaces_only_are_a_warning(write_list, make_image):
    make_image("a.jpg")
    names = ["Cat", "dog", "cat", "traffic light", "traffic  Light"]

    report = check(read_annotations(write_list("a.jpg 1 2 3 4 1"), names=names))

    assert report.problems == ()
    assert [warning.what for warning in report.warnings] == [
        "classes 'Cat' and 'cat' differ only in letter case or spaces, and count as two",
        "classes 'traffic light' and 'traffic  Light' differ only in letter case or spaces, and count as two",
    ]


def test_an_image_that_is_listed_often_is_read_once(write_list, make_image, monkeypatch):
    make_image("a.jpg")
    read = []
    monkeypatch.setattr(
        "fcos.data.check.read_header",
        lambda path, decode: read.append(path) or Header((30, 40), 1),
    )
    report = check(read_annotations(write_list(*["a.jpg 1 2 20 30 1"] * 5)))
    assert len(read) == 1
    assert report.sizes_hw.tolist() == [[30, 40]] * 5


def test_an_image_of_another_spelling_is_named(write_list, make_image):
    make_image("a.JPEG")
    make_image("Gro\u0308\u00dfe.jpg")  # o and a diaeresis, as macOS stores it
    lines = write_list("A.jpeg 1 2 20 30 1", "Gr\u00f6\u00dfe.jpg 1 2 20 30 1", "b.jpg 1 2 20 30 1")
    whats = [problem.what for problem in check(read_annotations(lines)).problems]
    assert whats == [
        "image not found, but 'a.JPEG' exists, with different letter case or Unicode normalization",
        "image not found, but 'Gro\u0308\u00dfe.jpg' exists, with different letter case or Unicode "
        "normalization",
        "image not found",
    ]


def test_boxes_that_are_there_twice_are_counted(write_list, make_image):
    make_image("a.jpg")
    make_image("b.jpg")
    repeated = " 1 2 20 30 1" * 3
    annotations = read_annotations(
        write_list(f"a.jpg{repeated} 1 2 20 30 2", "b.jpg 1 2 20 30 1 1 2 21 30 1"), names=["cat", "dog"]
    )
    [warning] = check(annotations).warnings
    assert (
        warning.what == "2 boxes are duplicated (same image, class and coordinates), for example in 'a.jpg'"
    )
    assert warning.where.endswith("line 1")
