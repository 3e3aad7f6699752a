from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.data.formats import convert, read_annotations, yolo
from fcos.errors import DatasetError


@pytest.fixture
def write(tmp_path):
    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_text


@pytest.fixture
def dataset(tmp_path, write, make_image) -> Path:
    """`images` and `labels` with train and val, and a data.yaml."""
    for name in ("train/a.jpg", "train/b.png", "val/c.jpg"):
        make_image(f"images/{name}", width=40, height=20)
    write("labels/train/a.txt", "1 0.5 0.5 0.5 1.0\n0 0.25 0.5 0.1 0.2\n")
    write("labels/val/c.txt", "0 0.5 0.5 1 1\n")
    write("data.yaml", "path: .\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 1: dog}\n")
    return tmp_path


def test_fractions_become_pixels_of_the_image(dataset):
    annotations = yolo.read(dataset / "data.yaml")

    np.testing.assert_allclose(annotations[0].boxes_xyxy, [[10, 0, 30, 20], [8, 8, 12, 12]])
    assert annotations[0].labels.tolist() == [1, 0]
    assert annotations[0].size_hw == (20, 40)
    assert annotations.class_names == ("cat", "dog")


def test_an_image_without_a_label_file_has_no_boxes(dataset):
    annotations = yolo.read(dataset)

    assert [(record.path.name, len(record.labels)) for record in annotations] == [("a.jpg", 2), ("b.png", 0)]


def test_a_split_of_the_yaml_is_named_behind_a_colon(dataset):
    annotations = yolo.read(dataset / "data.yaml:val")

    assert [record.path.name for record in annotations] == ["c.jpg"]
    with pytest.raises(DatasetError, match=r"no split 'test'(.|\n)*its splits are: train, val"):
        yolo.read(dataset / "data.yaml:test")


def test_a_folder_of_images_finds_its_labels_and_the_names_above_it(dataset):
    annotations = yolo.read(dataset / "images" / "val")

    assert len(annotations.labels) == 1
    assert annotations.class_names == ("cat", "dog")
    assert annotations.notes == (f"the class names are from {dataset / 'data.yaml'}",)


def test_paths_of_another_machine_are_found_beside_the_yaml(dataset, write):
    path = write(
        "data.yaml", "path: /home/me/set\ntrain: ../images/train\nval: images/val\nnames: [cat, dog]\n"
    )

    assert len(yolo.read(path)) == 2


def test_a_plain_folder_has_its_labels_beside_the_images(write, make_image, tmp_path):
    make_image("set/a.jpg")
    write("set/a.txt", "1 0.5 0.5 0.5 0.5")
    write("set/classes.txt", "cat\ndog\n")

    annotations = yolo.read(tmp_path / "set")

    assert (len(annotations), annotations.class_names) == (1, ("cat", "dog"))


def test_darknet_lists_name_images_and_labels_of_another_folder(write, make_image, tmp_path):
    write("set/obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write("set/obj.names", "cat\ndog\n")
    write("set/train.txt", "data/obj_train_data/a.jpg\n")
    write("set/obj_train_data/a.txt", "1 0.5 0.5 0.5 0.5")
    image = make_image("elsewhere/a.jpg")

    annotations = yolo.read(tmp_path / "set/obj.data", root=tmp_path / "elsewhere")

    assert annotations[0].path == image
    assert annotations.labels.tolist() == [1]
    assert annotations.class_names == ("cat", "dog")


def test_without_names_classes_are_numbered_as_in_the_file(write, make_image, tmp_path):
    make_image("a/x/y/set/a.jpg")
    write("a/x/y/set/a.txt", "1 0.5 0.5 0.5 0.5")

    assert yolo.read(tmp_path / "a/x/y/set").class_names == ("class_0", "class_1")


def test_given_names_are_matched_by_name(dataset):
    annotations = yolo.read(dataset, names=["dog", "horse", "cat"])

    assert annotations.labels.tolist() == [0, 2]
    assert annotations.category_ids == (1, 2, 3)
    with pytest.raises(DatasetError, match="not among the class names: 'dog'"):
        yolo.read(dataset, names=["cat"])


def test_a_polygon_becomes_its_bounding_box(dataset, write):
    write("labels/train/b.txt", "1 0.1 0.2 0.5 0.1 0.3 0.9\n")

    boxes = yolo.read(dataset)[1].boxes_xyxy

    np.testing.assert_allclose(boxes, [[4, 2, 20, 18]])


def test_boxes_refer_to_the_upright_image(write, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "set/a.jpg", exif=exif)
    write("set/a.txt", "0 0.5 0.25 1 0.5")

    record = yolo.read(tmp_path / "set")[0]

    assert record.size_hw == (40, 20)
    assert record.boxes_xyxy.tolist() == [[0, 0, 20, 20]]


def test_every_bad_line_is_named(dataset, write):
    write(
        "labels/train/a.txt", "0 0.5 0.5\n\n0 0.5 0.5 0.5 0.5\n0.5 0.5 0.5 0.5 0.5\nx 1 1 1 1\ninf 1 1 1 1\n"
    )

    with pytest.raises(DatasetError) as error:
        yolo.read(dataset)

    assert "4 labels cannot be read" in str(error.value)
    assert "a.txt, line 1: 2 numbers after the class, but a box has 4, a polygon 6, 8, ..." in str(
        error.value
    )
    assert "a.txt, line 4: class id 0.5 is not an integer" in str(error.value)
    assert "a.txt, line 5: 'x' is not a number" in str(error.value)
    assert "a.txt, line 6: class id inf is not an integer" in str(error.value)


def test_impossible_class_ids_and_broken_images_are_kept_for_the_check(dataset, write):
    write("labels/train/a.txt", "7 0.5 0.5 0.5 0.5\n")
    write("labels/train/b.txt", "0 0.5 0.5 0.5 0.5\n")
    (dataset / "images/train/b.png").write_bytes(b"")

    first, second = yolo.read(dataset)

    assert first.labels.tolist() == [7]
    assert np.isnan(second.boxes_xyxy).all()
    assert second.size_hw is None


def test_labels_without_an_image_are_kept_for_the_check(dataset, write):
    write("labels/train/gone.txt", "0 0.5 0.5 0.5 0.5\n")

    gone = yolo.read(dataset)[-1]

    assert gone.path.stem == "gone"
    assert not gone.path.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train", "required field `names`"),
        ("names: [a", "not YAML"),
        ("train: nowhere\nnames: [cat]", "'nowhere' \\(split 'train'\\) does not exist"),
        ("train: images/train\nnames: {1: cat}", "must number the classes 0, 1, 2"),
    ],
)
def test_a_yaml_that_makes_no_sense_is_refused(dataset, write, text, words):
    with pytest.raises(DatasetError, match=words):
        yolo.read(write("data.yaml", text))


@pytest.mark.parametrize("copy_images", [False, True])
def test_what_is_written_is_read_back(make_image, tmp_path, copy_images):
    paths = [make_image("p/a.jpg", 333, 217), make_image("p/sub/b.png", 31, 57)]
    boxes = [[[0, 0, 333, 217], [10.25, 20, 10.25, 20]], [[1, 2, 30.5, 50]]]
    records = [Record.make(path, box, [0] * len(box), 1) for path, box in zip(paths, boxes, strict=True)]
    first = Annotations.from_records(records, ["überraschung"], source=tmp_path, format="list")

    yolo.write(first, tmp_path / "out", copy_images=copy_images)
    second = yolo.read(tmp_path / "out")

    np.testing.assert_allclose(second.boxes_xyxy, first.boxes_xyxy, atol=1e-5)
    assert second.class_names == ("überraschung",)
    assert all(record.path.is_symlink() is not copy_images for record in second)


def test_missing_images_are_named_before_anything_is_written(tmp_path):
    records = [Record.make(tmp_path / f"{name}.jpg", [], [], 1) for name in "ab"]
    annotations = Annotations.from_records(records, ["cat"], source=tmp_path, format="list")

    with pytest.raises(DatasetError, match=r"2 images cannot be found(.|\n)*a.jpg(.|\n)*b.jpg"):
        yolo.write(annotations, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["", "obj.data", "train.txt", "obj_train_data"])
def test_the_real_set_is_read_whole_from_any_of_its_parts(shared, source):
    annotations = yolo.read(shared / "data/voc100/gts/yolo_format" / source)

    assert (len(annotations), len(annotations.labels), annotations.num_classes) == (100, 273, 20)
    assert annotations.class_names[0] == "person"
    assert all(record.path.is_file() for record in annotations)


POINTS = "0.5 0.55 0.45 0.5 "
BOX = "0 0.5 0.5 0.2 0.4 "


def test_of_key_points_the_box_before_them_is_read(dataset, write):
    write("labels/train/a.txt", BOX + "0.5 0.5 2 " * 5 + "\n" + BOX)
    path = write("data.yaml", "train: images/train\nnames: [cow]\nkpt_shape: [5, 3]\n")

    np.testing.assert_allclose(yolo.read(path).boxes_xyxy, [[16, 6, 24, 14]] * 2)
    write("labels/train/a.txt", BOX + "0.5 0.5 " * 5)
    with pytest.raises(
        DatasetError, match=r"14 numbers after the class, but a box has 4, or 19 with the keypoints"
    ):
        yolo.read(path)


@pytest.mark.parametrize("row", [BOX + POINTS * 3, BOX + "0.5 0.55 2 0 0 0 " * 2])
def test_key_points_that_no_yaml_tells_of_are_not_taken_for_polygons(dataset, write, row):
    write("labels/train/a.txt", row)

    with pytest.raises(DatasetError, match=r"boxes with keypoints or polygons(.|\n)*kpt_shape"):
        yolo.read(dataset)
    write("labels/train/b.txt", "0 0.1 0.1 0.4 0.1 0.4 0.4 0.2 0.5 0.1 0.4")  # can be nothing but a polygon
    assert len(yolo.read(dataset).labels) == 2


def test_rotated_boxes_become_upright_ones(dataset, write):
    write("labels/train/a.txt", "0 0.5 0.5 0.6 0.6 0.5 0.7 0.4 0.6\n")

    np.testing.assert_allclose(yolo.read(dataset).boxes_xyxy, [[16, 10, 24, 14]])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0,0.5,0.5,0.2,0.2", "'0,0.5,0.5,0.2,0.2' is not a number"),
        ("0 0,5 0,5 0,2 0,2", "'0,5' is not a number"),
        ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers after the class, but .*; remove the scores of predictions"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "7 numbers after the class"),
        ("1e300 0.5 0.5 0.2 0.2", r"class id 1e\+300 is not an integer"),
        ("1_0 0.5 0.5 0.2 0.2", "'1_0' is not a number"),
    ],
)
def test_rows_of_other_forms_are_refused(dataset, write, row, words):
    write("labels/train/a.txt", row)

    with pytest.raises(DatasetError, match=words):
        yolo.read(dataset)


def test_a_class_id_of_billions_makes_no_names(write, make_image, tmp_path):
    make_image("a/x/y/set/a.jpg")
    write("a/x/y/set/a.txt", "4294967296 0.5 0.5 0.5 0.5")

    with pytest.raises(DatasetError, match="4,294,967,297 classes; the limit is 65,536"):
        yolo.read(tmp_path / "a/x/y/set")


def test_only_classes_with_boxes_must_be_among_given_names(dataset, write):
    write("data.yaml", "train: images/train\nnames: [background, cat, dog, unused]\n")
    write("labels/train/a.txt", "1 0.5 0.5 0.5 1.0\n2 0.25 0.5 0.1 0.2\n")

    assert yolo.read(dataset, names=["dog", "cat"]).labels.tolist() == [1, 0]


def test_images_without_a_label_file_are_told_of(dataset, make_image):
    note = "1 image without a label file counts as background, for example 'b.png'"
    assert yolo.read(dataset / "data.yaml:train").notes == (note,)
    assert yolo.read(dataset / "data.yaml:val").notes == ()
    make_image("images/train/d.jpg")
    assert (
        yolo.read(dataset / "data.yaml:train")
        .notes[0]
        .startswith("2 images without a label file count as background")
    )


def test_the_splits_that_were_not_read_are_told_of(dataset, tmp_path):
    note = "only the split 'train' was read; others: data.yaml:val"

    assert note in yolo.read(dataset).notes
    assert note in yolo.read(dataset / "data.yaml").notes
    assert note in convert(dataset, "coco", tmp_path / "out.json").notes
    assert convert(dataset / "data.yaml:val", "coco", tmp_path / "val.json").notes == ()


def test_a_folder_called_like_a_label_file_is_refused(dataset):
    (dataset / "labels" / "train" / "b.txt").mkdir()
    with pytest.raises(DatasetError, match=r"1 label cannot be read\n.*b\.txt: this is a folder"):
        yolo.read(dataset)


def test_paths_of_windows_are_found(dataset, write, tmp_path):
    yaml = write("data.yaml", "train: images\\train\nval: ..\\set\\images\\val\nnames: [cat, dog]\n")
    assert [record.path.name for record in yolo.read(yaml)] == ["a.jpg", "b.png"]
    assert [record.path.name for record in yolo.read(Path(f"{yaml}:val"))] == ["c.jpg"]
    for line in ("images\\train\\a.jpg", "D:\\sets\\mine\\images\\train\\a.jpg"):
        [record] = yolo.read(write("train.txt", f"{line}\n"))
        assert record.path == tmp_path / "images" / "train" / "a.jpg"
        assert len(record.labels) == 2


def test_a_name_file_means_the_same_beside_the_images_and_elsewhere(write, make_image, tmp_path):
    make_image("a/b/c/set/a.jpg")
    write("a/b/c/set/a.txt", "1 0.5 0.5 0.5 0.5")
    elsewhere = write("classes.txt", "background\ncat\n")

    given = read_annotations(tmp_path / "a/b/c/set", names=elsewhere)
    write("a/b/c/set/classes.txt", "background\ncat\n")
    beside = read_annotations(tmp_path / "a/b/c/set")

    assert given.class_names == beside.class_names == ("background", "cat")
    assert given.labels.tolist() == beside.labels.tolist() == [1]


def test_background_in_a_name_file_is_no_class_where_the_data_name_theirs(dataset, write):
    names = write("elsewhere/names.txt", "background\ndog\ncat\n")

    annotations = read_annotations(dataset, names=names)

    assert (annotations.class_names, annotations.labels.tolist()) == (("dog", "cat"), [0, 1])


def test_rows_of_a_tracker_are_not_read_as_triangles(dataset, write):
    write("labels/train/a.txt", "0 0.5 0.5 0.2 0.2 0.9 1\n0 0.3 0.3 0.2 0.2 0.8 7\n")

    with pytest.raises(DatasetError, match=r"may be boxes of a tracker .* or triangles"):
        yolo.read(dataset)
    write("labels/train/b.txt", "0 0.1 0.2 0.5 0.1 0.3 0.9\n")  # a triangle, so all are
    assert len(yolo.read(dataset).labels) == 3


def test_rows_in_pixels_say_so(dataset, write):
    write("labels/train/a.txt", "0 20 10 8 6\n")
    write("labels/train/b.txt", "0 12 9 30 3\n")

    with pytest.raises(
        DatasetError, match="the coordinates seem to be in pixels, but YOLO boxes are normalized"
    ):
        yolo.read(dataset)
    write("labels/train/b.txt", "0 0.5 0.5 0.2 0.2\n")  # one wrong row is for `check` to report
    assert len(yolo.read(dataset).labels) == 2
