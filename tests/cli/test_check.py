from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from fcos.cli import main


@pytest.fixture
def fcos():
    def run(*words: object):
        return CliRunner().invoke(main, [str(word) for word in words])

    return run


def test_the_real_set_is_checked_part_by_part(fcos, shared):
    result = fcos("check", shared / "data/bccd")

    problems = [line for line in result.output.splitlines() if line.startswith("problem: ")]
    assert result.exit_code == 1
    assert len(problems) == 2
    assert "BloodImage_00343.xml, object 4" in problems[0]
    assert "BloodImage_00338.xml, object 13" in problems[1]
    assert "no image is in more than one split" in result.output
    assert "skip_invalid" in result.output


def test_a_clean_set_ends_well_with_its_card(fcos, shared):
    result = fcos("check", shared / "data/coco_mini/annotations/instances_val2017.json", "--headers-only")

    assert result.exit_code == 0
    assert "50, 2 of them without boxes" in result.output
    assert "5 crowd regions, 0 difficult boxes" in result.output
    assert "no problems" in result.output


def test_two_lists_are_compared_and_names_without_background_are_told(fcos, make_image, tmp_path):
    make_image("a.jpg")
    make_image("b.jpg", color=7)
    (tmp_path / "train.txt").write_text("a.jpg 1 2 3 4 1\nb.jpg\n")
    (tmp_path / "val.txt").write_text("a.jpg 1 2 3 4 1\n")
    (tmp_path / "names.txt").write_text("cat\n")

    result = fcos("check", tmp_path / "train.txt", tmp_path / "val.txt", "--names", tmp_path / "names.txt")

    assert result.exit_code == 0
    assert "names.txt does not start with 'background'" in result.output
    assert "warning: 1 image is in both" in result.output
    assert "cat" in result.output


def test_a_config_is_checked_as_a_training_reads_it(fcos, make_image, tmp_path):
    make_image("images/a.jpg")
    (tmp_path / "train.txt").write_text("a.jpg 1 2 3 4 1\n")
    (tmp_path / "eval.txt").write_text("a.jpg 1 2 3 4 2\n")
    (tmp_path / "names.txt").write_text("background\ncat\n")
    config = {
        "root_train": "images",
        "list_train": "train.txt",
        "root_eval": "images",
        "list_eval": "eval.txt",
        "name_file": "names.txt",
    }
    (tmp_path / "train.json").write_text(json.dumps(config))

    result = fcos("check", tmp_path / "train.json")

    assert result.exit_code == 1, result.output
    assert "eval.txt, line 1, box 1, image 'a.jpg': class id 2 is not 1, the only class" in result.output
    assert "1 image is in both" in result.output


def test_of_many_problems_the_first_are_shown_and_the_rest_counted(fcos, make_image, tmp_path):
    make_image("a.jpg")
    lines = ["a.jpg 1 2 3 4 1", *(f"missing{number}.jpg 1 2 3 4 1" for number in range(30))]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")

    output = fcos("check", tmp_path / "train.txt").output

    assert output.count("problem: ") == 20
    assert "... and 10 more problems (--json lists all)" in output
    assert (
        len(json.loads(fcos("check", tmp_path / "train.txt", "--json").stdout)["parts"][0]["problems"]) == 30
    )


def test_what_cannot_be_read_ends_with_code_2_and_no_traceback(fcos, tmp_path):
    result = fcos("check", tmp_path / "nowhere")

    assert result.exit_code == 2
    assert "annotations not found" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ["check", "convert"])
def test_help_has_examples_and_imports_no_torch(name):
    code = (
        "import sys; from fcos.cli import main; "
        f"main(['{name}', '--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert f"  fcos {name} " in result.stdout.split("Examples:")[1]


def test_images_without_a_box_end_with_code_1(fcos, make_image, tmp_path):
    make_image("set/images/0.jpg")
    (tmp_path / "set/data.yaml").write_text("train: images\nnames: [cat]\n")

    result = fcos("check", tmp_path / "set")
    described = json.loads(fcos("check", tmp_path / "set", "--json").stdout)

    assert result.exit_code == 1
    assert "problem: " in result.output
    assert "1 image, but no boxes (read as format yolo)" in result.output
    assert [problem["record"] for problem in described["parts"][0]["problems"]] == [None]


def test_splits_whose_classes_training_would_refuse_are_refused(fcos, make_image, tmp_path):
    for split, names in (("train", ["cat"]), ("val", ["cat", "dog"])):
        make_image(f"set/{split}.jpg")
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        box = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 1, 5, 5]}
        images = [{"id": 1, "file_name": f"{split}.jpg"}]
        content = {"images": images, "annotations": [box], "categories": categories}
        (tmp_path / f"set/{split}.json").write_text(json.dumps(content))

    result = fcos("check", tmp_path / "set")

    assert result.exit_code == 2
    assert "only in the annotations: 'dog'; only in the model: none" in result.output


def test_a_single_list_is_checked_with_the_names_beside_it(fcos, make_image, tmp_path):
    make_image("a.jpg")
    (tmp_path / "train.txt").write_text("a.jpg 1 2 20 30 2\n")
    (tmp_path / "names.txt").write_text("background\ncat\ndog\n")

    result = fcos("check", tmp_path / "train.txt")

    assert result.exit_code == 0, result.output
    assert f"class names from {tmp_path / 'names.txt'}" in result.output
    assert "dog" in result.output
    assert "class_1" not in result.output


def test_the_last_line_totals_the_problems_of_all_parts(fcos, make_image, tmp_path):
    make_image("a.jpg")
    make_image("b.jpg", color=7)
    (tmp_path / "train.txt").write_text("a.jpg 1 2 3 4 1 9 9 2 2 1\n")
    (tmp_path / "val.txt").write_text("b.jpg 1 2 3 4 1\n")

    result = fcos("check", tmp_path)

    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "in total: 1 problem in 1 of 2 splits"
    (tmp_path / "train.txt").write_text("a.jpg 1 2 3 4 1\n")
    assert fcos("check", tmp_path).output.splitlines()[-1] == "in total: no problems in 2 splits"


def test_an_empty_test_split_is_a_warning(fcos, make_image, tmp_path):
    for split in ("train", "val"):
        make_image(f"images/{split}/{split}.jpg")
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / f"{split}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "images/test").mkdir()
    splits = "train: images/train\nval: images/val\ntest: images/test\n"
    (tmp_path / "data.yaml").write_text(f"path: .\n{splits}names: [cat]\n")

    result = fcos("check", tmp_path)

    assert result.exit_code == 0
    assert "data.yaml:test: no images in the annotations" in result.stderr
    assert "in total: no problems in 2 splits" in result.stdout

    (tmp_path / "data.yaml").write_text(f"path: .\n{splits.replace('val: images/val', 'val: images/test')}")
    assert fcos("check", tmp_path).exit_code == 2  # training needs it


def test_evaluation_data_may_lack_a_class_as_in_training(fcos, make_image, tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    for stem, split, name in (("a", "train", "cat"), ("b", "train", "dog"), ("c", "val", "cat")):
        make_image(f"{split}/JPEGImages/{stem}.jpg")
        folder = tmp_path / split / "Annotations"
        folder.mkdir(exist_ok=True)
        (folder / f"{stem}.xml").write_text(
            f"<annotation><object><name>{name}</name>{box}</object></annotation>"
        )
    answer = fcos("check", tmp_path)
    assert answer.exit_code == 0, answer.output
    assert "no problems in 2 splits" in answer.output


def test_a_warning_says_what_to_do(fcos, make_image, tmp_path):
    make_image("a.jpg")
    (tmp_path / "train.txt").write_text("a.jpg 1 2 20 30 1\na.jpg 1 2 20 30 1\n")
    output = " ".join(fcos("check", tmp_path / "train.txt").output.split())
    assert f"image 'a.jpg' is listed twice (merge it with {tmp_path / 'train.txt'}, line 1)" in output
