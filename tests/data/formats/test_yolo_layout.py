"""Which labels belong to which image: for certain, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fcos.data.check import check
from fcos.data.formats import read_annotations, yolo
from fcos.data.formats.yolo_layout import LabelFiles, listed_files
from fcos.errors import DatasetError

ROW = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def folder(tmp_path: Path, make_image):
    """Makes the files of a folder: images where the name is one, text elsewhere."""

    def make(*images: str, **texts: str) -> Path:
        for name in images:
            make_image(f"set/{name}")
        (tmp_path / "set").mkdir(exist_ok=True)
        for name, text in texts.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "set"

    return make


@pytest.mark.parametrize(
    ("image", "label_file"),
    [
        ("0.jpg", "0.txt"),
        ("0.jpg", "0.jpg.txt"),
        ("0.JPG", "0.TXT"),
        ("0.jpg", "0.JPG.txt"),
        ("a.b.jpg", "a.b.txt"),
        ("images/0.jpg", "labels/0.txt"),
        ("Images/0.JPG", "Labels/0.TXT"),
        ("IMAGES/Train/0.jpg", "labels/train/0.txt"),
        ("images/images/0.jpg", "images/labels/0.txt"),
        ("images/0.jpg", "images/0.txt"),
    ],
)
def test_labels_are_found_whatever_the_case_of_folders_and_suffixes(folder, image, label_file):
    source = folder(image, **{label_file: ROW})

    if label_file == "0.JPG.txt":  # not the name of the image: reported, as it may be of another one
        report = check(yolo.read(source))
        assert [problem.what for problem in report.problems] == ["image not found"]
        return
    assert LabelFiles().of(source / image) == source / label_file
    assert len(yolo.read(source).labels) == 1


def test_labels_of_no_image_are_reported_and_other_text_is_not(folder):
    source = folder(
        "0.jpg",
        "1.jpg",
        **{"0.txt": ROW, "zero.txt": ROW, "README.txt": "five images", "classes.txt": "cat"},
    )

    problems = check(yolo.read(source)).problems

    assert [(Path(problem.where.split(",")[0]).name, problem.what) for problem in problems] == [
        ("zero.txt", "image not found")
    ]


def test_two_label_files_of_one_image_must_agree(folder):
    source = folder("0.jpg", **{"0.txt": ROW, "0.jpg.txt": ROW})

    assert check(yolo.read(source)).problems == ()
    (source / "0.jpg.txt").write_text(ROW + ROW)
    with pytest.raises(DatasetError, match=r"several label files for one image: .*0.txt, .*0.jpg.txt"):
        yolo.read(source)


def test_labels_that_two_images_claim_are_refused(folder):
    source = folder("0.jpg", "0.png", **{"0.txt": ROW})

    with pytest.raises(DatasetError, match=r"0.txt: belongs to '0.jpg' or to '0.png'"):
        yolo.read(source)
    (source / "0.txt").rename(source / "0.png.txt")
    assert [len(record.labels) for record in yolo.read(source)] == [0, 1]


def test_hidden_folders_and_those_of_systems_hold_no_data(folder):
    hidden = [
        f"images/{name}" for name in (".ipynb_checkpoints/0-checkpoint.jpg", "__MACOSX/0.jpg", "._0.jpg")
    ]
    source = folder("images/0.jpg", *hidden, **{"labels/0.txt": ROW, "labels/.ipynb_checkpoints/1.txt": ROW})

    assert [record.path for record in yolo.read(source)] == [source / "images/0.jpg"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "0.txt: this is a pipe, not a file"),
        (lambda path: os.symlink("/nowhere", path), "0.txt: this is a broken link"),
        (lambda path: os.symlink("/dev/zero", path), "0.txt: this is a device, not a file"),
        (os.mkdir, "0.txt: this is a folder, not a file"),
        (lambda path: path.write_text(ROW, encoding="utf-16"), "0.txt: not a UTF-8 text file"),
    ],
)
def test_labels_that_cannot_be_read_are_not_taken_for_none(folder, make, words):
    source = folder("images/0.jpg", **{"labels/1.txt": ROW})
    make(source / "labels/0.txt")

    with pytest.raises(DatasetError, match=words):
        yolo.read(source)


def test_pipes_devices_and_dangling_links_among_images_are_reported_not_waited_for(folder):
    source = folder("images/0.jpg", **{"labels/0.txt": ROW})
    os.mkfifo(source / "images/1.jpg")
    (source / "images/2.jpg").symlink_to("/nowhere")
    (source / "images/3.jpg").symlink_to("/dev/zero")

    problems = check(yolo.read(source)).problems

    assert [problem.what for problem in problems] == [
        "this is a pipe, not a file",
        "this is a broken link",
        "this is a device, not a file",
    ]


def test_a_list_takes_no_image_of_that_name_from_elsewhere(folder):
    source = folder(
        "images/train/0.png", "images/train/1.jpg", "images/val/0.jpg", "0.jpg", **{"labels/train/1.txt": ROW}
    )
    (source / "train.txt").write_text("images/train/0.jpg\nimages/train/1.jpg\n")

    first, second = yolo.read(source / "train.txt")

    assert first.path == source / "images/train/0.jpg"
    assert not first.path.exists()
    assert len(second.labels) == 1


def test_a_list_of_missing_images_only_is_not_answered_by_others(folder):
    source = folder("images/train/7.jpg", "0.jpg")

    assert listed_files(["images/train/0.jpg"], [source]) == [source / "images/train/0.jpg"]


def test_a_list_of_another_machine_is_read_by_one_rule(folder):
    source = folder("images/train/0.JPG", "images/train/1.jpg")
    lines = [f"/home/me/set/images/train/{name}.jpg" for name in (0, 1, 2)]

    assert listed_files(lines, [source]) == [
        source / "images/train" / name for name in ("0.JPG", "1.jpg", "2.jpg")
    ]


def test_what_fcos_wrote_below_the_images_is_no_data(folder):
    drawn = ("0.png", "crops/cat/0_1.png", "labels_yolo/images/train/0.png")
    source = folder(
        "0.jpg",
        "predictions/mine.jpg",
        *(f"predictions/{name}" for name in drawn),
        "runs/set/curves.png",
        "other/curves.png",
        **{
            "0.txt": ROW,
            "predictions/labels_yolo/labels/train/0.txt": ROW,
            "runs/set/config.json": '{"list_train": "train.json"}',
        },
    )
    size = (source / "predictions/0.png").stat().st_size
    marker = source / "predictions/.fcos-predict"
    marker.write_text(f'\n["detections.json", null]\n["0.png", {size}]\n["mine.jpg", 1]')

    found = [record.path.relative_to(source).as_posix() for record in yolo.read(source)]

    assert found == ["0.jpg", "other/curves.png", "predictions/mine.jpg"]
    assert len(yolo.read(source / "predictions/labels_yolo")) == 1


@pytest.mark.parametrize("place", ["images", "labels", "images/train", "labels/train"])
def test_the_working_directory_may_be_among_the_images_or_labels(folder, monkeypatch, place):
    source = folder("images/train/0.jpg", **{"labels/train/0.txt": ROW})
    monkeypatch.chdir(source / place)

    [record] = read_annotations(Path("."))

    assert len(record.labels) == 1
    assert record.path.is_file()


def test_images_without_labels_are_read_from_the_folder_of_labels_too(folder):
    source = folder("Images/0.jpg", "Images/1.jpg", **{"labels/0.txt": ROW})

    found = [(record.path.name, len(record.labels)) for record in yolo.read(source / "labels")]

    assert found == [("0.jpg", 1), ("1.jpg", 0)]


def test_with_a_root_labels_are_those_of_the_source(folder):
    source = folder(
        "images/train/0.jpg",
        "elsewhere/0.jpg",
        **{"labels/train/0.txt": ROW, "data.yaml": "train: images/train\nnames: [a]"},
    )

    for given in (source / "data.yaml", source / "images/train", source / "labels/train"):
        [record] = yolo.read(given, root=source / "elsewhere")
        assert (record.path, len(record.labels)) == (source / "elsewhere/0.jpg", 1)
    with pytest.raises(DatasetError, match=r"no label files in the folder\n  in: .*elsewhere"):
        yolo.read(source / "elsewhere", root=source / "images")
