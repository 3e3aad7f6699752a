from __future__ import annotations

import pytest
from click.testing import CliRunner

from fcos.cli import main
from fcos.data.formats import read_annotations


@pytest.fixture
def fcos():
    def run(*words: object):
        return CliRunner().invoke(main, [str(word) for word in words])

    return run


def test_a_list_tells_where_its_images_and_names_are(fcos, shared, tmp_path):
    source = shared / "data/coco_mini/annotations/instances_val2017.json"
    out = tmp_path / "val.txt"

    result = fcos("convert", source, "--to", "list", "-o", out)

    assert result.exit_code == 0, result.output
    assert f"{out}: 50 images, 382 boxes, 80 classes" in result.output
    assert "coco_mini/val2017" in result.output
    assert f"class names: {tmp_path / 'val_names.txt'}" in result.output
    assert "note: 5 crowd regions were written as ordinary boxes" in result.output


def test_what_was_converted_passes_the_check(fcos, shared, tmp_path):
    source = shared / "data/raccoon/ImageSets/Main/test.txt"

    assert fcos("convert", source, "--to", "yolo", "-o", tmp_path / "yolo").exit_code == 0
    result = fcos("check", tmp_path / "yolo")

    assert result.exit_code == 0, result.output
    assert "50, 0 of them without boxes" in result.output


def test_copied_images_do_not_need_the_originals(fcos, make_image, tmp_path):
    image = make_image("a.jpg")
    (tmp_path / "a.txt").write_text("a.jpg 1 2 20 30 1\n")
    (tmp_path / "names.txt").write_text("background\ncat\n")
    words = ("--to", "voc", "-o", tmp_path / "voc", "--copy-images", "--names", tmp_path / "names.txt")

    assert fcos("convert", tmp_path / "a.txt", *words).exit_code == 0
    image.unlink()

    annotations = read_annotations(tmp_path / "voc")
    assert annotations[0].path.is_file()
    assert annotations.class_names == ("cat",)


def test_an_existing_output_is_kept(fcos, tmp_path):
    (tmp_path / "a.txt").write_text("a.jpg 1 2 20 30 1\n")

    result = fcos("convert", tmp_path / "a.txt", "--to", "list", "-o", tmp_path / "a.txt")

    assert result.exit_code == 2
    assert "the output already exists" in result.output
    assert (tmp_path / "a.txt").read_text() == "a.jpg 1 2 20 30 1\n"


@pytest.mark.parametrize("to", ["list", "coco", "voc", "yolo"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(fcos, tmp_path, to):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / {"list": "a.txt", "coco": "a.json"}.get(to, "a")

    result = fcos("convert", tmp_path / "nowhere", "--to", to, "-o", out)

    assert result.exit_code == 2
    assert "OutputError: cannot be written: Not a directory" in result.output
    assert f"in: {out}" in result.output


def test_a_list_does_not_replace_the_names_of_another(fcos, make_image, tmp_path):
    make_image("a.jpg")
    (tmp_path / "a.txt").write_text("a.jpg 1 2 20 30 1\n")
    (tmp_path / "b_names.txt").write_text("background\nbird\n")

    result = fcos("convert", tmp_path / "a.txt", "--to", "list", "-o", tmp_path / "b.txt")

    assert result.exit_code == 2
    assert "the output already exists" in result.output
    assert (tmp_path / "b_names.txt").read_text() == "background\nbird\n"


@pytest.mark.parametrize("name", ["names.txt", "classes.txt", "train_names.txt", "things.names"])
def test_a_single_list_takes_the_names_beside_it(fcos, make_image, tmp_path, name):
    make_image("data/a.jpg")
    (tmp_path / "data/train.txt").write_text("a.jpg 1 2 20 30 2\n")
    (tmp_path / "data" / name).write_text("background\ncat\ndog\n")

    result = fcos("convert", tmp_path / "data/train.txt", "--to", "yolo", "-o", tmp_path / "yolo")

    assert result.exit_code == 0, result.output
    assert f"note: the class names are from {tmp_path / 'data' / name}" in result.output
    assert read_annotations(tmp_path / "yolo").class_names == ("cat", "dog")
    assert read_annotations(tmp_path / "data/train.txt").class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["filenames.txt", "other_names.txt"])
def test_names_of_images_and_of_other_lists_are_not_taken(make_image, tmp_path, name):
    make_image("a.jpg")
    for file in ("train.txt", "other.txt"):
        (tmp_path / file).write_text("a.jpg 1 2 20 30 2\n")
    (tmp_path / name).write_text("background\ncat\ndog\n")

    assert read_annotations(tmp_path / "train.txt").class_names == ("class_1", "class_2")
