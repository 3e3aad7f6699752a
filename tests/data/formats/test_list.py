from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcos.data.annotations import Annotations, Record
from fcos.data.formats import list as image_list
from fcos.data.formats import read_annotations, recognize
from fcos.errors import DatasetError


@pytest.fixture
def write_list(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "train.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_y_comes_before_x_and_class_ids_start_at_1(write_list):
    annotations = image_list.read(write_list("a.jpg 1 2 30 40 1 5.5 6 7 8 3\n"))

    assert annotations.boxes_xyxy.tolist() == [[2, 1, 40, 30], [6, 5.5, 8, 7]]
    assert annotations.labels.tolist() == [0, 2]
    assert annotations.class_names == ("class_1", "class_2", "class_3")
    assert annotations.category_ids == (1, 2, 3)


def test_a_name_alone_is_an_image_without_boxes_and_blank_lines_are_nothing(write_list):
    annotations = image_list.read(write_list("a.jpg 1 2 30 40 1\n\nb.jpg\n  \nc.jpg\n"))

    assert [record.path.name for record in annotations] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [len(record.labels) for record in annotations] == [1, 0, 0]
    assert [record.image_id for record in annotations] == [1, 2, 3]
    assert annotations[2].where.endswith("train.txt, line 5")


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbfa.jpg 1 2 30 40 1\r\nb.jpg\r\n")

    assert [record.path.name for record in image_list.read(path)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("line", "name", "num_words"),
    [
        ("my photo 2.jpg 1 2 3 4 5", "my photo 2.jpg", 5),
        ("my photo 2.JPG", "my photo 2.JPG", 0),
        ("1 2 3 4 5.png", "1 2 3 4 5.png", 0),
        ("a.jpg b.png 1 2 3 4 5", "a.jpg b.png", 5),
        ("000012 1 2 3 4 5", "000012", 5),
        ("folder/a.b.jpeg\t1\t2\t3\t4\t5", "folder/a.b.jpeg", 5),
        ("a.jpgx 1 2 3 4 5", "a.jpgx", 5),
        ("a.mpo\t1\t2\t3\t4\t5", "a.mpo", 5),
        ("000012", "000012", 0),
    ],
)
def test_the_name_ends_with_the_last_image_suffix(line, name, num_words):
    found, words = image_list.split_line(line)

    assert (found, len(words)) == (name, num_words)


def test_every_bad_line_is_named(write_list):
    path = write_list("a.jpg 1 2 30\nb.jpg 1 2 30 40 1\nc.jpg 1 2 x 40 1\nd.jpg 1 2 3 4 1.5\n")

    with pytest.raises(DatasetError) as error:
        image_list.read(path)

    assert "3 lines cannot be read" in str(error.value)
    assert "line 1: 3 numbers after the image name, but a box has 5" in str(error.value)
    assert "line 3: 'x' is not a number" in str(error.value)
    assert "line 4: every fifth number is a class id" in str(error.value)
    assert "fix: the format of a line is: name.jpg ymin xmin ymax xmax class_id" in str(error.value)


def test_impossible_class_ids_are_kept_for_the_check(write_list):
    annotations = image_list.read(write_list("a.jpg 1 2 3 4 0 1 2 3 4 9\n"), names=["cat", "dog"])

    assert annotations.labels.tolist() == [-1, 8]
    assert annotations.class_names == ("cat", "dog")


def test_images_are_found_beside_the_list_or_under_root(write_list, make_image, tmp_path):
    make_image("images/a.jpg")
    path = write_list("a.jpg 1 2 3 4 1\n")

    assert image_list.read(path)[0].path == tmp_path / "images" / "a.jpg"
    assert image_list.read(path, root=tmp_path)[0].path == tmp_path / "a.jpg"


def test_images_are_found_in_a_folder_called_like_the_list(make_image, tmp_path):
    for part in ("train", "eval"):
        make_image(f"images/{part}/a.jpg")
        (tmp_path / f"{part}.txt").write_text("a.jpg 1 2 3 4 1\n")

        assert image_list.read(tmp_path / f"{part}.txt")[0].path == tmp_path / "images" / part / "a.jpg"


def test_a_root_that_is_not_there_is_refused(write_list, tmp_path):
    with pytest.raises(DatasetError, match="folder of images does not exist"):
        read_annotations(write_list("a.jpg\n"), root=tmp_path / "nowhere")


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0")

    with pytest.raises(DatasetError, match="not a UTF-8 text file"):
        image_list.read(path)


coordinates = st.integers(0, 5_000_000).map(lambda number: number / 1000)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
names = st.text(string.ascii_letters + string.digits + " ._-é", min_size=1, max_size=12).map(
    lambda text: "x" + text.rstrip() + "y.jpg"
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=st.dictionaries(names, st.lists(st.tuples(boxes, st.integers(0, 2)), max_size=4), min_size=1))
def test_what_is_written_is_read_back(tmp_path, images):
    records = [
        Record.make(tmp_path / name, [box for box, _ in found], [label for _, label in found], image_id)
        for image_id, (name, found) in enumerate(images.items(), start=1)
    ]
    written = Annotations.from_records(records, ["a", "b", "c"], source=tmp_path, format="list")

    image_list.write_lines(written, tmp_path / "out.txt", root=tmp_path)
    found = image_list.read(tmp_path / "out.txt", root=tmp_path, names=["a", "b", "c"])

    np.testing.assert_allclose(found.boxes_xyxy, written.boxes_xyxy, atol=1e-6)
    assert found.labels.tolist() == written.labels.tolist()
    assert [record.path for record in found] == [record.path for record in written]


def test_the_folder_of_images_is_found_where_the_first_ones_are_missing(write_list, make_image):
    path = make_image("images/last.jpg")
    names = [*(f"gone_{number}" for number in range(30)), "last"]
    source = write_list("".join(f"{name}.jpg 1 2 3 4 1\n" for name in names))

    assert image_list.read(source)[30].path == path


def test_a_name_that_could_not_be_read_back_is_not_written(tmp_path):
    records = [Record.make(tmp_path / "no suffix 1 2 3", [], [], 1, where="somewhere")]
    annotations = Annotations.from_records(records, ["a"], source=tmp_path, format="list")

    with pytest.raises(DatasetError, match="cannot be separated from the numbers"):
        image_list.write_lines(annotations, tmp_path / "out.txt", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "num_images", "num_boxes"),
    [("coco_val2017", 4952, 36334), ("voc_test", 4952, 12032), ("voc_trainval", 22136, 55800)],
)
def test_the_lists_of_the_seed_are_read_whole(shared, name, num_images, num_boxes):
    annotations = image_list.read(shared / "data" / "lists" / f"{name}.txt")

    assert (len(annotations), len(annotations.labels)) == (num_images, num_boxes)
    assert annotations.num_classes == (80 if "coco" in name else 20)
    assert (annotations.boxes_xyxy[:, 2:] > annotations.boxes_xyxy[:, :2]).all()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.jpg,1,2,3,4,1", "line 1: numbers must be separated by spaces"),
        ("a.jpg;1;2;3;4;1", "line 1: numbers must be separated by spaces"),
        ("a.jpg 1,2,3,4,1", "line 1: 1 number after the image name, but a box has 5"),
        ("a.jpg 1 2 3 4", "line 1: 4 numbers after the image name, but a box has 5"),
        ("a.jpg 1_0 2 30 40 1", "line 1: '1_0' is not a number"),
        ("a.jpg 1 2 3 4 1e300", "class id and must be an integer"),
        ("a.jpg 1 2 3 4 4294967296", "4,294,967,296 classes; the limit is 65,536"),
        ("x" * 2**20 + ".jpg 1 2 3 4 1", "the name of image 1, .* is not a valid file name"),
        ("a\0.jpg 1 2 3 4 1", "the name of image 1, .* is not a valid file name"),
    ],
)
def test_lines_that_mean_something_else_are_refused(write_list, line, words):
    with pytest.raises(DatasetError, match=words):
        image_list.read(write_list(line + "\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.jpg,1,2,3,4,1", "line 1: numbers must be separated by spaces"),
        ("a.jpg; 1; 2; 3; 4; 1", "line 1: numbers must be separated by spaces"),
        ('"a.jpg",1,2,3,4,1', "line 1: numbers must be separated by spaces"),
        ('"a b.jpg" 1 2 3 4 1', "line 1: image names must not be quoted"),
    ],
)
def test_lists_with_commas_or_quotes_are_recognized_and_say_what_is_wrong(write_list, line, words):
    with pytest.raises(DatasetError, match=words):
        read_annotations(write_list(line + "\n"))


def test_a_name_with_a_space_at_its_end_is_not_written(tmp_path):
    records = [Record.make(tmp_path / " a.jpg", [], [], 1, where="somewhere")]
    annotations = Annotations.from_records(records, ["a"], source=tmp_path, format="list")

    with pytest.raises(DatasetError, match="cannot be separated from the numbers"):
        image_list.write_lines(annotations, tmp_path / "out.txt", root=tmp_path)


def test_names_of_windows_are_read_with_slashes(write_list, make_image, tmp_path):
    make_image("images/sub/a.jpg")
    make_image("images/b.jpg")
    source = write_list("sub\\a.jpg 1 2 3 4 1\nb.jpg 1 2 3 4 1\n")

    annotations = image_list.read(source)

    assert [record.path for record in annotations] == [
        tmp_path / "images" / "sub" / "a.jpg",
        tmp_path / "images" / "b.jpg",
    ]


def test_a_list_in_a_folder_may_begin_with_many_images_without_boxes(write_list, tmp_path):
    write_list("".join(f"{number}.jpg\n" for number in range(500)) + "last.jpg 1 2 3 4 1\n")

    assert recognize(tmp_path) == "list"
