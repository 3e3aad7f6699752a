"""data.yaml, obj.data and name files: names as they are written, splits as they are meant."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fcos.data.formats.yolo_description import (
    existing,
    find_description,
    names_near,
    read_description,
    read_yaml,
    split_source,
)
from fcos.errors import DatasetError


@pytest.fixture
def write(tmp_path: Path):
    def write_text(text: str, name: str = "data.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_text


@pytest.mark.parametrize(
    "names",
    [
        "yes no on off y n true".split(),
        "null ~ Null none".split(),
        "01 1 1.50 1_000 0x10 0o7 1e3 .inf 1:30 2020-01-01 =".split(),
        ["background", "a b", "é", "it's"],
    ],
)
@pytest.mark.parametrize("form", ["[{}]", "block", "numbered"])
def test_names_are_what_is_written(write, names, form):
    if form == "block":
        text = "names:\n" + "".join(f"  - {name}\n" for name in names)
    elif form == "numbered":
        text = "names:\n" + "".join(f"  '{number}': {name}\n" for number, name in enumerate(names))
    else:
        text = f"names: [{', '.join(names)}]\n"

    assert read_yaml(write(text)).class_names == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: cat", r"got `str` - at `\$.names`"),
        ("names: ~", "required field `names`"),
        ("names: {0: a, x: b}", r"Expected `int`, got `str` - at `key` in `\$.names`"),
        ("names: {0: a, 2: b}", "must number the classes 0, 1, 2"),
        ("names: {00: a}", r"Expected `int`, got `str` - at `key` in `\$.names`"),
        ("names: {0: a, 0: b}", "a key appears twice"),
        ("names: [a]\ntrain: x\ntrain: y", "a key appears twice"),
        ("names: [a, a]", "class 1: class 'a' appears twice"),
        ("names: [a, '']", "class 1: the name is empty"),
        ("names: [a, [b]]", r"Expected `str`, got `array` - at `\$.names\[1\]`"),
        ("names: &a [*a]", "not YAML"),
        ("names: []", "no class names"),
        ("names: [a, b]\nnc: 3", "'nc' is 3, but there are 2 class names"),
        ("names: [a]\ntrain: {x: y}", r"got `object` - at `\$.train`"),
        ("names: [a]\nval: x\nvalid: y", "val and valid disagree"),
        ("names: [a]\nkpt_shape: [17, 4]", r"value 4 - at `\$.kpt_shape\[1\]`"),
        ("names: [a]\nkpt_shape: 17", r"got `str` - at `\$.kpt_shape`"),
        ("names: [a]\n\tx: 1", "not YAML"),
        ("names: [a]\n---\nnames: [b]", "not YAML"),
        ("x: " + "[" * 100_000, "not YAML"),
        ("names: [" + "a, " * 400_000 + "]", "the file has 1 MB; the limit is 1"),
    ],
)
def test_a_yaml_that_is_not_certain_is_refused(write, text, words):
    with pytest.raises(DatasetError, match=words):
        read_yaml(write(text))


def test_a_yaml_that_unfolds_to_billions_of_names_is_refused_at_once(write):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i},' * 9}]\n" for i in range(20))

    with pytest.raises(DatasetError, match=r"got `array` - at `\$.names\[0\]`"):
        read_yaml(write(f"{bomb}names: *a20"))
    with pytest.raises(DatasetError, match=r"got `array` - at `\$.train\[0\]`"):
        read_yaml(write(f"{bomb}names: [a]\ntrain: *a20"))


@pytest.mark.parametrize("merge", ["*base", "[*base, {val: z}]"])
def test_merged_keys_are_read(write, merge):
    found = read_yaml(write(f"base: &base {{names: [a], val: y, train: w}}\n<<: {merge}\ntrain: x\n"))

    assert found.class_names == ["a"]
    assert found.splits == {"train": ["x"], "val": ["y"]}
    with pytest.raises(DatasetError, match="<< merges no keys"):
        read_yaml(write("names: [a]\n<<: train"))


def test_validation_parts_have_several_names(write):
    found = read_yaml(
        write("names: [a]\ntrain: [x, y]\nvalid: z\ntest:\npath: ds\nkpt_shape: [17, 3]\nnc: 1")
    )

    assert found.splits == {"train": ["x", "y"], "val": ["z"]}
    assert (found.base, found.num_keypoint_values) == ("ds", 51)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "Train: a\nVALIDATION: b\nTest: c\nNames: [x]\n"),
        ("obj.data", "Train = a\nValidation = b\nTest = c\nNames = obj.names\neval = coco\nbackup = d\n"),
    ],
)
def test_the_case_of_keys_is_free(write, name, text):
    write("x\n", "obj.names")
    file = write(text, name)

    found = read_description(file)

    assert found.splits == {"train": ["a"], "val": ["b"], "test": ["c"]}
    assert (found.class_names, found.notes) == (["x"], ())
    assert split_source(file.with_name(f"{name}:Validation")) == (file, "val")


def test_keys_that_are_said_like_splits_but_not_understood_are_told_of(write):
    note = "'Train_Images' in data.yaml is ignored: splits must be called train, val and test"
    assert read_yaml(write("train: a\nTrain_Images: b\nnames: [x]\ndownload: c\n")).notes == (note,)
    note = "'dev' in obj.data is ignored: splits must be called train, val and test"
    assert read_description(write("train = a\ndev = b\n", "obj.data")).notes == (note,)
    with pytest.raises(DatasetError, match=r"'train' appears twice\n.*\n  fix: remove 'Train' or the other"):
        read_yaml(write("train: a\nTrain: b\nnames: [x]\n"))


@pytest.mark.parametrize("place", ["valid/images", "Images/Val"])
def test_a_folder_of_validation_images_beside_a_yaml_without_one_is_taken(write, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    file = write("train: train/images\nnames: [x]\n")

    found = read_description(file)

    assert found.splits == {"train": ["train/images"], "val": [place]}
    assert found.notes == (f"data.yaml has no 'val', so '{place}' next to 'train' is used",)
    write("train: .\nnames: [x]\n")
    assert read_description(file).splits == {"train": ["."]}  # they are trained on


def test_the_only_yaml_with_names_describes_the_folder_whatever_it_is_called(write, tmp_path):
    mine = write("names: [a]", "mine.yaml")
    write("lr: 0.1\nmodel: {names: x}", "hyp.yaml")

    assert find_description(tmp_path) == mine
    data = write("names: [a, b]", "Data.YAML")
    assert find_description(tmp_path) == data
    data.unlink()
    write("names: [a, b]", "yours.yml")
    with pytest.raises(
        DatasetError, match=r"several files could describe the data set: mine.yaml, yours.yml"
    ):
        find_description(tmp_path)


def test_name_files_that_differ_are_refused_in_the_folder_and_ignored_above_it(write, tmp_path):
    write("a\n", "above/classes.txt")
    write("a\n", "above/obj.names")
    (tmp_path / "above/set").mkdir()
    found = names_near(tmp_path / "above/set")

    assert found is not None
    assert found.class_names == ["a"]
    write("b\n", "above/obj.names")
    assert names_near(tmp_path / "above/set") is None
    with pytest.raises(
        DatasetError, match=r"several files could hold the class names: classes.txt, obj.names"
    ):
        names_near(tmp_path / "above")


@pytest.mark.parametrize("name", ["_darknet.labels", "obj.names", "classes.txt", "CLASSES.TXT"])
def test_a_line_number_is_a_class_id_even_after_background(write, tmp_path, name):
    write("background\ncat\n", name)
    found = names_near(tmp_path)

    assert found is not None
    assert found.class_names == ["background", "cat"]


def test_darknets_obj_data_names_both_parts(write, tmp_path):
    write("background\ncat\n", "obj.names")
    write("0.jpg\n", "train.txt")
    file = write(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n", "obj.data"
    )

    found = read_description(file)

    assert found.class_names == ["background", "cat"]
    assert found.splits == {"train": ["data/train.txt"], "val": ["data/valid.txt"]}
    write("classes = 3\nnames = obj.names\n", "obj.data")
    with pytest.raises(DatasetError, match=r"'classes' is 3, but there are 2"):
        read_description(file)
    write("names = lost.names\n", "obj.data")
    with pytest.raises(DatasetError, match=r"the file of class names 'lost.names' does not exist"):
        read_description(file)


def test_a_path_of_another_machine_is_found_by_its_last_folders_but_never_by_any_folder(tmp_path):
    for name in ("images/train", "train/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train.txt").touch()

    assert existing(tmp_path, "/home/me/images/train") == tmp_path / "images/train"
    assert existing(tmp_path, "../train/images") == tmp_path / "train/images"
    assert existing(tmp_path, "/content/train", words=("train",)) == tmp_path / "train"
    assert existing(tmp_path, "data/train.txt") == tmp_path / "train.txt"
    assert existing(tmp_path, "../valid/images") is None  # `images` holds another part
    assert existing(tmp_path, "x" * 300) is None
    started_at = time.process_time()
    assert existing(tmp_path, "a/" * 25_000 + "images") is None
    assert time.process_time() - started_at < 1
