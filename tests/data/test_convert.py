from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcos.data.annotations import Annotations, select
from fcos.data.check import check
from fcos.data.formats import (
    convert,
    find_splits,
    read_annotations,
    read_names,
    read_with_classes_of,
    recognize,
    split_annotations,
)
from fcos.errors import DatasetError


@pytest.fixture
def write(tmp_path):
    def write_text(name: str, text: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_text


def by_image(annotations: Annotations) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Class name and box of each image's boxes, in an order that does not depend on the format."""
    return {
        record.path.stem: sorted(
            zip([annotations.class_names[i] for i in record.labels], record.boxes_xyxy.tolist(), strict=True)
        )
        for record in annotations
    }


def assert_same_boxes(first: Annotations, second: Annotations, atol: float) -> None:
    left, right = by_image(first), by_image(second)
    assert left.keys() == right.keys()
    for stem in left:
        assert [name for name, _ in left[stem]] == [name for name, _ in right[stem]]
        left_boxes = np.array([box for _, box in left[stem]]).reshape(-1, 4)
        right_boxes = np.array([box for _, box in right[stem]]).reshape(-1, 4)
        np.testing.assert_allclose(left_boxes, right_boxes, atol=atol)


@pytest.mark.parametrize(
    ("source", "format"),
    [
        ("bccd", "voc"),
        ("bccd/Annotations", "voc"),
        ("bccd/ImageSets/Main/val.txt", "voc"),
        ("raccoon", "voc"),
        ("coco_mini", "coco"),
        ("coco_mini/annotations/instances_val2017.json", "coco"),
        ("lists", "list"),
        ("lists/voc_test.txt", "list"),
        ("voc100/gts/pascalvoc_format", "voc"),
        ("voc100/gts/coco_format_v1", "coco"),
        ("voc100/gts/yolo_format", "yolo"),
        ("voc100/gts/yolo_format/obj.data", "yolo"),
        ("voc100/gts/yolo_format/train.txt", "yolo"),
        ("voc100/gts/yolo_format/obj_train_data", "yolo"),
    ],
)
def test_real_sources_are_recognized(shared, source, format):
    assert recognize(shared / "data" / source) == format


def test_a_list_of_background_images_is_a_list(write):
    assert recognize(write("train.txt", "a.jpg\nb.jpg\n")) == "list"


def test_a_list_with_mistakes_is_still_a_list_whose_reader_names_them(write):
    with pytest.raises(DatasetError, match="line 1: 'x' is not a number"):
        read_annotations(write("train.txt", "a.jpg 1 2 x 4 1\n"))


def test_names_without_suffix_belong_to_the_xml_files_near_them(write):
    write("Annotations/a.xml", "<annotation/>")

    assert recognize(write("train.txt", "a\n")) == "voc"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.txt", "0 0.5 0.5 0.1 0.1\n", "YOLO labels of one image"),
        ("empty.txt", "\n", "the file is empty"),
        ("prose.txt", "Dear reader,\n", "no annotations in a known format"),
        ("image.jpg", "", "no annotations in a known format"),
    ],
)
def test_what_is_not_annotations_is_refused_with_what_is_known(write, name, text, words):
    with pytest.raises(DatasetError, match=words):
        recognize(write(name, text))


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        DatasetError, match=r"annotations not found\n  in: .*train.txt\n  fix: correct the path"
    ):
        read_annotations(tmp_path / "train.txt")


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(
        DatasetError, match=r"no annotations in a known format(.|\n)*use one of COCO JSON, a list"
    ):
        recognize(tmp_path)


def test_a_folder_of_several_files_asks_which(shared):
    with pytest.raises(
        DatasetError, match=r"several files could be meant: .*instances_train2017(.|\n)*give one"
    ):
        read_annotations(shared / "data/coco_mini")


def test_annotations_without_images_are_refused(write):
    content = {"images": [], "annotations": [], "categories": []}

    with pytest.raises(DatasetError, match="no images in the annotations"):
        read_annotations(write("a.json", json.dumps(content)))


def test_the_format_can_be_forced(write):
    path = write("a.weird", "a.jpg 1 2 3 4 1\n")

    assert len(read_annotations(path, format="list")) == 1


def test_infinite_coordinates_are_read_for_the_check(write):
    annotations = read_annotations(write("a.txt", "a.jpg inf 2 inf inf 1 nan 1 2 3 1\n"))

    assert not np.isfinite(annotations.boxes_xyxy).all(axis=1).any()


# Names


@pytest.mark.parametrize(
    ("text", "names", "had_background"),
    [
        ("background\ncat\ndog\n\n", ("cat", "dog"), True),
        ("Background\ntraffic light\n", ("traffic light",), True),
        ("cat\ndog", ("cat", "dog"), False),
    ],
)
def test_names_with_and_without_background(write, text, names, had_background):
    assert read_names(write("names.txt", text)) == (names, had_background)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "cat\n\ndog\ncat\n",
            "line 2: the name is empty(.|\n)*line 4: class 'cat' appears twice",
        ),
        ("background\n", "no class names"),
        ("", "no class names"),
    ],
)
def test_name_files_that_would_shift_ids_are_refused(write, text, words):
    with pytest.raises(DatasetError, match=words):
        read_names(write("names.txt", text))


def test_the_seeds_name_files_fit_its_lists(shared):
    names, had_background = read_names(shared / "data/lists/coco_name.txt")

    assert (len(names), names[0], had_background) == (80, "person", True)


# Splits


def test_train_and_val_are_preferred_and_test_is_kept_apart(shared):
    splits = find_splits(shared / "data/bccd")

    assert splits.format == "voc"
    assert [split.source.name for split in splits.all()] == ["train.txt", "val.txt", "test.txt"]
    sizes = [len(read_annotations(split.source, root=split.root)) for split in splits.all()]
    assert sizes == [205, 87, 72]


def test_without_val_test_is_the_evaluation(shared):
    splits = find_splits(shared / "data/raccoon")

    assert splits.train.source.name == "trainval.txt"
    assert splits.evaluation is not None
    assert splits.evaluation.source.name == "test.txt"
    assert splits.test is None


@pytest.mark.parametrize("name", ["trainval", "train_val", "instances_train-val2017"])
def test_train_and_val_in_one_file_are_trained_on_and_never_the_evaluation(write, tmp_path, name):
    for stem in (name, "test"):
        write(f"{stem}.json", '{"images": []}')
    assert [split.source.stem for split in find_splits(tmp_path).all()] == [name, "test"]

    for stem in ("train", "val"):
        write(f"{stem}.json", '{"images": []}')
    assert [split.source.stem for split in find_splits(tmp_path).all()] == ["train", "val", "test"]


def test_what_is_trained_on_is_not_the_evaluation_too(write, tmp_path):
    write("train_test.json", '{"images": []}')

    assert [split.source.stem for split in find_splits(tmp_path).all()] == ["train_test"]


def test_coco_files_are_paired(shared):
    splits = find_splits(shared / "data/coco_mini")

    assert [split.source.name for split in splits.all()] == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]


def test_lists_are_paired_by_the_rest_of_their_names(shared):
    splits = find_splits(shared / "data/lists")

    assert [split.source.name for split in splits.all()] == ["voc_trainval.txt", "voc_test.txt"]
    assert splits.name_file == shared / "data/lists/voc_name.txt"


def test_only_coco_files_count_among_the_json_files_of_a_folder(write, tmp_path):
    write("train.json", '{"images": [], "annotations": [], "categories": []}')
    write("settings.json", '{"list_train": "train.json"}')
    write("results.json", '[{"image_id": 1}]')

    assert recognize(tmp_path) == "coco"
    assert find_splits(tmp_path).train.source.name == "train.json"


def test_a_folder_without_parts_says_so(shared):
    splits = find_splits(shared / "data/voc100/gts/pascalvoc_format")

    assert splits.evaluation is None
    assert len(read_annotations(splits.train.source)) == 100


def test_exported_coco_folders_are_paired(write):
    for split in ("train", "valid", "test"):
        write(f"{split}/_annotations.coco.json", '{"images": []}')

    splits = find_splits(write("README.md").parent)

    assert [split.source.parent.name for split in splits.all()] == ["train", "valid", "test"]


def test_two_coco_files_of_one_name_are_both_named(write, tmp_path):
    write("train.json", '{"images": []}')
    write("annotations/train.json", '{"images": []}')
    write("annotations/val.json", '{"images": []}')

    words = r"several files could be the training split: train.json, annotations/train.json"
    with pytest.raises(DatasetError, match=words):
        find_splits(tmp_path)


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_yolo_folders_are_paired(make_image, write, tmp_path, layout):
    for split in ("train", "val"):
        make_image(f"{layout.format(split)}/a.jpg")
        write(f"{layout.replace('images', 'labels').format(split)}/a.txt", "0 0.5 0.5 0.5 0.5\n")

    splits = find_splits(tmp_path)

    assert splits.format == "yolo"
    assert [len(read_annotations(split.source).labels) for split in splits.all()] == [1, 1]


def test_what_belongs_to_no_split_is_told_of(make_image, write, tmp_path):
    for name in ("train/0", "val/1", "more/2", "3"):
        make_image(f"set/images/{name}.jpg")
        write(f"set/labels/{name}.txt", "0 0.5 0.5 0.5 0.5\n")
    for name in ("instances_Train", "instances_val", "instances_default"):
        write(f"coco/annotations/{name}.json", '{"images": []}')
    for folder, note in (
        ("set", "2 images belong to no split, for example 'images/3.jpg'"),
        ("coco", "1 annotation file belongs to no split, for example 'annotations/instances_default.json'"),
    ):
        assert find_splits(tmp_path / folder).notes == (note,)
    assert find_splits(tmp_path / "set/images/val").notes == ()


def test_images_of_a_split_that_are_read_with_others_are_told_of(make_image, write, tmp_path):
    for name in ("val/1", "3"):
        make_image(f"set/images/{name}.jpg")
        write(f"set/labels/{name}.txt", "0 0.5 0.5 0.5 0.5\n")

    [part] = find_splits(tmp_path / "set").all()

    note = "the images of 'val' are read together with images outside of any split"
    assert read_annotations(part.source).notes == (note,)
    assert read_annotations(tmp_path / "set/images/val").notes == ()


def test_the_splits_of_a_yaml_are_its_keys(make_image, write, tmp_path):
    write("data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    make_image("images/train/a.jpg")
    make_image("images/val/b.jpg")

    splits = find_splits(tmp_path)

    assert [split.source.name for split in splits.all()] == ["data.yaml:train", "data.yaml:val"]
    assert [read_annotations(split.source)[0].path.name for split in splits.all()] == ["a.jpg", "b.jpg"]


def test_lists_with_their_names(write, tmp_path):
    write("train.txt", "a.jpg 1 2 3 4 1\n")
    write("eval.txt", "b.jpg 1 2 3 4 1\n")
    write("names.txt", "background\ncat\n")

    splits = find_splits(tmp_path)

    assert [split.source.name for split in splits.all()] == ["train.txt", "eval.txt"]
    assert splits.name_file == tmp_path / "names.txt"


@pytest.mark.parametrize("val_names", ["cat dog", "dog cat", "dog"])
def test_each_list_beside_others_is_read_with_its_own_names(write, tmp_path, val_names):
    for part, names in (("train", "cat dog"), ("val", val_names)):
        dog = names.split().index("dog") + 1
        write(f"{part}.txt", f"{part}.jpg 1 2 30 40 {dog}\n")
        write(f"{part}_names.txt", "\n".join(["background", *names.split(), ""]))

    splits = find_splits(tmp_path)
    train, val = (read_annotations(part.source, names=splits.name_file) for part in splits.all())
    alone = read_annotations(tmp_path / "val.txt")
    measured = read_with_classes_of(tmp_path / "val.txt", ["cat", "dog"])

    assert splits.name_file == tmp_path / "train_names.txt"
    assert train.class_names == val.class_names == ("cat", "dog")
    assert val.category_ids == (1, 2)
    for found in (train, val, alone, measured):
        assert [found.class_names[label] for label in found.labels] == ["dog"]


def test_own_names_that_the_other_lists_do_not_have_are_refused(write, tmp_path):
    write("val.txt", "a.jpg 1 2 30 40 1\n")
    write("val_names.txt", "background\nbird\n")

    with pytest.raises(DatasetError, match="classes that are not among the class names: 'bird'"):
        read_annotations(tmp_path / "val.txt", names=["cat"])


def test_several_name_files_of_a_list_are_named(write, tmp_path):
    source = write("test.txt", "a.jpg 1 2 30 40 1\n")
    write("train_names.txt", "background\ncat\n")
    write("val_names.txt", "background\ncat\n")
    assert read_annotations(source).class_names == ("cat",)

    write("val_names.txt", "background\ndog\n")
    words = (
        r"several files could hold the class names of test.txt: train_names.txt, val_names.txt"
        r"\n.*\n  fix: rename the right one to test_names.txt"
    )
    with pytest.raises(DatasetError, match=words):
        read_annotations(source)


def test_several_candidates_for_a_part_are_named(write, tmp_path):
    write("train.txt", "a.jpg 1 2 3 4 1\n")
    write("train_b.txt", "a.jpg 1 2 3 4 1\n")

    with pytest.raises(
        DatasetError, match=r"several files could be the training split: train.txt, train_b.txt"
    ):
        find_splits(tmp_path)


def test_a_made_split_is_by_image_seeded_and_complete(write):
    lines = [f"{index % 30}.jpg 1 2 3 4 {index % 3 + 1}" for index in range(40)]  # ten images stand twice
    annotations = read_annotations(write("all.txt", "\n".join(lines)))

    train, evaluation = split_annotations(annotations, 0.2, seed=0)
    again, _ = split_annotations(annotations, 0.2, seed=0)
    other, _ = split_annotations(annotations, 0.2, seed=1)

    train_paths, eval_paths = {r.path for r in train}, {r.path for r in evaluation}
    assert not train_paths & eval_paths
    assert (len(train_paths), len(eval_paths), len(train) + len(evaluation)) == (24, 6, 40)
    assert [r.path for r in again] == [r.path for r in train]
    assert [r.path for r in other] != [r.path for r in train]


def test_a_made_split_leaves_at_least_one_image_on_each_side(write):
    annotations = read_annotations(write("all.txt", "a.jpg 1 2 3 4 1\nb.jpg\n"))

    assert [len(part) for part in split_annotations(annotations, 0.0, 0)] == [1, 1]
    assert [len(part) for part in split_annotations(annotations, 1.0, 0)] == [1, 1]
    with pytest.raises(DatasetError, match="too few images to split"):
        split_annotations(select(annotations, [0]), 0.5, 0)


def test_a_selection_keeps_each_images_own_boxes(write):
    text = "a.jpg 1 2 3 4 1\nb.jpg\nc.jpg 5 6 7 8 2 9 10 11 12 3\nd.jpg 0 0 1 1 1\n"
    annotations = read_annotations(write("all.txt", text))

    chosen = select(annotations, [2, 1, 0])

    assert [record.path.stem for record in chosen] == ["c", "b", "a"]
    assert [record.labels.tolist() for record in chosen] == [[1, 2], [], [0]]
    assert chosen[0].boxes_xyxy.tolist() == [[6, 5, 8, 7], [10, 9, 12, 11]]
    assert len(select(annotations, [])) == 0


# Conversion


@pytest.fixture(params=["pascalvoc_format", "coco_format_v1", "coco_format_v2", "yolo_format"])
def voc100(request, shared) -> Path:
    return shared / "data/voc100/gts" / request.param


def test_one_real_set_is_the_same_in_all_its_formats(shared, voc100):
    reference = read_annotations(shared / "data/voc100/gts/pascalvoc_format")
    found = read_annotations(voc100)

    # YOLO's files have six decimals of an image of 500 pixels.
    assert_same_boxes(reference, found, atol=1e-3 if "yolo" in voc100.name else 1e-9)


@pytest.mark.parametrize("to", ["list", "coco", "voc", "yolo"])
def test_a_real_set_survives_conversion_to_every_format(voc100, tmp_path, to):
    out = tmp_path / {"list": "out.txt", "coco": "out.json"}.get(to, "out")

    result = convert(voc100, to, out)
    names = result.annotations.class_names if to == "list" else None
    found = read_annotations(out, root=result.root, names=names)

    assert found.format == to
    assert (len(found), len(found.labels)) == (100, 273)
    assert_same_boxes(result.annotations, found, atol=1e-5)
    assert all(record.path.is_file() for record in found)


def test_a_circle_through_all_formats_loses_no_box_of_real_coco(shared, tmp_path):
    first = read_annotations(shared / "data/coco_mini/annotations/instances_train2017.json")
    source, root, names = first.source, None, None
    for to, name in (("yolo", "y"), ("list", "l.txt"), ("voc", "v"), ("coco", "c.json")):
        root = convert(source, to, tmp_path / name, root=root, names=names).root
        source, names = tmp_path / name, first.class_names
    last = read_annotations(source, root=root)

    assert (len(last), len(last.labels)) == (128, 939)
    assert last.class_names == first.class_names
    assert_same_boxes(first, last, atol=1e-4)


@pytest.mark.parametrize("to", ["list", "coco", "voc", "yolo"])
def test_boxes_in_the_frame_of_the_sensor_lie_on_the_same_pixels_in_every_format(write, tmp_path, to):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise, to 20 x 40
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images/a.jpg", exif=exif)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [30, 2, 8, 5]}
    images = [{"id": 1, "file_name": "images/a.jpg", "width": 40, "height": 20}]
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}

    out = tmp_path / {"list": "out.txt", "coco": "out.json"}.get(to, "out")
    root = convert(write("a.json", json.dumps(content)), to, out).root

    np.testing.assert_allclose(check(read_annotations(out, root=root)).boxes_xyxy, [[13, 30, 18, 38]])


def test_images_below_a_folder_called_images_keep_their_yolo_labels(make_image, write, tmp_path):
    paths = [make_image("data/Images/a.jpg"), make_image("data/more/images/b.jpg")]
    source = write("a.txt", "".join(f"{path} 1 2 30 40 1\n" for path in paths))

    convert(source, "yolo", tmp_path / "out")
    found = read_annotations(tmp_path / "out")

    assert [(record.path.name, len(record.labels)) for record in found] == [("a.jpg", 1), ("b.jpg", 1)]
    assert found.notes == ()


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_images_that_would_not_be_found_again_are_not_written(make_image, write, tmp_path, to):
    make_image("a.jpg").rename(tmp_path / "a")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 5]}
    images, categories = [{"id": 1, "file_name": "a"}], [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": [box], "categories": categories}

    with pytest.raises(DatasetError, match=r"'.*/a' has no image suffix, so it would be ignored"):
        convert(write("a.json", json.dumps(content)), to, tmp_path / "out")


def test_boxes_without_area_are_converted_too(shared, tmp_path):
    convert(shared / "data/bccd", "yolo", tmp_path / "out")

    assert len(read_annotations(tmp_path / "out").labels) == 4888


def test_what_a_format_cannot_hold_is_said(shared, tmp_path):
    crowded = shared / "data/coco_mini/annotations/instances_val2017.json"
    difficult = shared / "data/voc100/gts/pascalvoc_format"

    assert convert(crowded, "voc", tmp_path / "a").notes == (
        "5 crowd regions were written as difficult: voc has no crowd flag",
        "the category ids were not kept: voc does not store them",
        "the image ids were not kept: voc does not store them",
        "382 areas that differ from width times height were not kept: voc does not store areas",
    )
    assert (
        "5 crowd regions were written as ordinary boxes" in convert(crowded, "yolo", tmp_path / "b").notes[0]
    )
    assert (
        "38 difficult boxes were written as ordinary"
        in convert(difficult, "list", tmp_path / "c.txt").notes[0]
    )
    assert convert(difficult, "coco", tmp_path / "d.json").notes == ()
    assert read_annotations(tmp_path / "d.json").is_difficult.sum() == 38
    assert read_annotations(tmp_path / "a").is_difficult.sum() == 5


def test_boxes_without_class_or_numbers_are_not_converted(write, tmp_path):
    source = write("a.txt", "a.jpg 1 2 3 4 0\nb.jpg 1 nan 3 4 1 1 2 3 4 1\n")

    with pytest.raises(DatasetError) as error:
        convert(source, "coco", tmp_path / "out.json")

    assert "2 boxes without a known class or finite coordinates" in str(error.value)
    assert "a.txt, line 1, box 1" in str(error.value)
    assert "a.txt, line 2, box 1" in str(error.value)


@pytest.mark.parametrize(
    ("to", "out", "options", "words"),
    [
        ("coco", "out", {}, "format coco is written to a .json file"),
        ("list", "out.json", {}, "format list is written to a .txt file"),
        ("list", "a.txt", {}, "the output already exists"),
        ("list", "out.txt", {"copy_images": True}, "refers to images by path"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(write, tmp_path, to, out, options, words):
    source = write("a.txt", "a.jpg 1 2 3 4 1\n")

    with pytest.raises(DatasetError, match=words):
        convert(source, to, tmp_path / out, **options)


# What folders of others hold


ROW = "0 0.5 0.5 0.5 0.5\n"
XML = """<annotation><object><name>{}</name><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def test_exported_darknet_folders_are_paired_with_their_names(make_image, write, tmp_path):
    for split in ("train", "valid", "test"):
        make_image(f"{split}/{split}_jpg.rf.1.jpg")
        write(f"{split}/{split}_jpg.rf.1.txt", "1 0.5 0.5 0.5 0.5\n")
        write(f"{split}/_darknet.labels", "cat\ndog\n")
    write("README.roboflow.txt", "exported")

    splits = find_splits(tmp_path)
    parts = [read_annotations(split.source, root=split.root) for split in splits.all()]

    assert [split.source.name for split in splits.all()] == ["train", "valid", "test"]
    assert [(len(part), part.labels.tolist(), part.class_names) for part in parts] == [
        (1, [1], ("cat", "dog"))
    ] * 3


@pytest.mark.parametrize("layout", ["{}/{}.{}", "{}/Annotations/{}.{}"])
def test_exported_voc_folders_are_paired_and_agree_on_classes(make_image, write, tmp_path, layout):
    for split, name in (("train", "cat"), ("valid", "dog")):
        write(layout.format(split, split, "xml"), XML.format(name))
        make_image(layout.format(split, split, "jpg").replace("Annotations", "JPEGImages"))

    splits = find_splits(tmp_path)

    assert (splits.format, [split.source.name for split in splits.all()]) == ("voc", ["train", "valid"])
    if layout == "{}/{}.{}":
        parts = [read_annotations(split.source, root=split.root) for split in splits.all()]
        assert [(part.labels.tolist(), part.class_names) for part in parts] == [
            ([0], ("cat", "dog")),
            ([1], ("cat", "dog")),
        ]


def test_lists_of_images_beside_a_yolo_folder_are_its_split(make_image, write, tmp_path):
    for name in ("a", "b"):
        make_image(f"images/{name}.jpg")
        write(f"labels/{name}.txt", ROW)
    write("autosplit_train.txt", "./images/a.jpg\n")
    write("autosplit_val.txt", "./images/b.jpg\n")

    splits = find_splits(tmp_path)

    assert [read_annotations(split.source)[0].path.name for split in splits.all()] == ["a.jpg", "b.jpg"]


def test_both_parts_of_obj_data_are_used(make_image, write, tmp_path):
    for split in ("train", "valid"):
        make_image(f"{split}/{split}.jpg")
        write(f"{split}/{split}.txt", ROW)
        write(f"{split}.txt", f"{split}/{split}.jpg\n")
    write("obj.names", "cat\n")
    write("obj.data", "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n")

    splits = find_splits(tmp_path)

    assert [split.source.name for split in splits.all()] == ["obj.data:train", "obj.data:val"]
    assert [read_annotations(split.source)[0].path.name for split in splits.all()] == [
        "train.jpg",
        "valid.jpg",
    ]


def test_voc_folders_in_any_case_are_read_without_hidden_files(make_image, write, tmp_path):
    make_image("jpegimages/0.JPG")
    write("ANNOTATIONS/0.XML", XML.format("cat"))
    write("ANNOTATIONS/.ipynb_checkpoints/0-checkpoint.xml", XML.format("cat"))
    write("ANNOTATIONS/._0.xml", "\0")
    write("imagesets/main/TRAIN.TXT", "0.jpg\n")

    [split] = find_splits(tmp_path).all()

    assert split.source.name == "TRAIN.TXT"
    assert read_annotations(split.source, root=split.root)[0].path == tmp_path / "jpegimages/0.JPG"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_lists_in_another_encoding_are_not_overlooked(write, tmp_path, encoding):
    write("train.txt", "a.jpg 1 2 3 4 1\n")
    (tmp_path / "val.txt").write_bytes("é.jpg 1 2 3 4 1\n".encode(encoding))
    (tmp_path / "notes.txt").write_bytes("é".encode("latin-1"))

    with pytest.raises(DatasetError, match=r"not a UTF-8 text file\n  in: .*val.txt"):
        find_splits(tmp_path)


def test_imagesets_in_another_encoding_are_refused(make_image, write, tmp_path):
    write("Annotations/0.xml", XML.format("cat"))
    write("ImageSets/Main/train.txt")
    (tmp_path / "ImageSets/Main/train.txt").write_bytes("é\n".encode("latin-1"))

    with pytest.raises(DatasetError, match=r"not a UTF-8 text file\n  in: .*train.txt"):
        find_splits(tmp_path)


@pytest.mark.parametrize("name", ["train.txt", "train.json", "data.yaml"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)

    with pytest.raises(DatasetError, match="this is a pipe, not a file"):
        read_annotations(tmp_path / name)


@pytest.mark.parametrize("to", ["list", "coco", "voc", "yolo"])
def test_a_conversion_that_is_cut_short_leaves_nothing(make_image, write, tmp_path, monkeypatch, to):
    make_image("a.jpg")
    source = write("a.txt", "a.jpg 1 2 20 30 1\n")
    out = tmp_path / {"list": "out.txt", "coco": "out.json"}.get(to, "out")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source, to, out)

    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.txt"]


def test_names_that_the_new_format_could_not_give_back_are_refused(make_image, write, tmp_path):
    make_image("cat 1.jpg")
    make_image("x.jpg")
    content = {
        "images": [{"id": 1, "file_name": "cat 1.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "a\x1b[2J"}],
    }
    source = write("a.json", json.dumps(content))

    with pytest.raises(DatasetError, match="1 name with control characters"):
        convert(source, "voc", tmp_path / "voc")
    content["categories"] = [{"id": 1, "name": "a"}]
    with pytest.raises(DatasetError, match="'cat 1' would be read as a name and a flag"):
        convert(write("b.json", json.dumps(content)), "voc", tmp_path / "voc")


@pytest.mark.skipif(os.name == "nt", reason="a backslash is no letter of a name there")
def test_an_image_whose_name_would_be_read_as_a_windows_path_is_refused(make_image, write, tmp_path):
    make_image("set/a\\b.jpg")
    write("set/a\\b.txt", "0 0.5 0.5 0.5 0.5\n")
    write("set/classes.txt", "cat\n")

    with pytest.raises(
        DatasetError, match="1 name with control characters, backslashes, or leading or trailing spaces"
    ):
        convert(tmp_path / "set", "coco", tmp_path / "out.json")


@pytest.mark.parametrize("name", ["a.pdf", "a.svg", "a.docx", "list.txt", "list"])
@pytest.mark.parametrize("content", [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", b"PK\x03\x04\x14\x00\x00\x00"])
def test_a_document_is_answered_with_the_formats_that_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"no annotations in a known format\n.*\n.*COCO JSON, a list .*, Pascal VOC"
    ):
        read_annotations(tmp_path / name)
