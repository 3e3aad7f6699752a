"""Class names: what no class can be called, and how many there may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcos.data.annotations import Annotations, Record
from fcos.data.names import (
    MAX_CLASSES,
    numbered_names,
    read_all_names,
    read_names,
    with_classes_of,
    with_names,
    write_names,
)
from fcos.errors import DatasetError


def test_in_yolo_background_is_a_class_like_others(tmp_path: Path) -> None:
    (tmp_path / "obj.names").write_text("background\ncat\n")

    assert read_all_names(tmp_path / "obj.names") == ["background", "cat"]
    assert read_names(tmp_path / "obj.names") == (("cat",), True)


def test_a_class_called_background_is_written_and_read_back(tmp_path: Path) -> None:
    write_names(("background", "cat"), tmp_path / "names.txt")

    assert read_names(tmp_path / "names.txt") == (("background", "cat"), True)


@pytest.mark.parametrize("content", ["cat\u2028dog\nemu\n", "cat\x0cdog\nemu\n"])
def test_only_line_breaks_end_a_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.txt").write_text(content)

    assert len(read_names(tmp_path / "names.txt")[0]) == 2


def test_names_in_another_code_page_are_refused_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("schräg\n".encode("latin-1"))

    with pytest.raises(
        DatasetError, match=r"not a UTF-8 text file\n  in: .*names.txt\n  fix: save it as UTF-8"
    ):
        read_names(tmp_path / "names.txt")


def test_a_name_of_a_megabyte_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("x" * 2**20)

    with pytest.raises(DatasetError, match="line 1: the name has 1,048,576 characters; the limit is 1,000"):
        read_names(tmp_path / "names.txt")


def labeled(label: int) -> Record:
    return Record.make(Path("0.jpg"), [[0, 0, 9, 9]], [label], 1)


def test_a_slip_in_one_id_does_not_make_names_by_the_billion() -> None:
    with pytest.raises(DatasetError, match="4,294,967,296 classes; the limit is 65,536"):
        numbered_names([labeled(2**32 - 1)], 1, "train.txt")
    assert len(numbered_names([labeled(MAX_CLASSES - 1)], 0, "train.txt")) == MAX_CLASSES


def annotations_of(names: tuple[str, ...], labels: list[int]) -> Annotations:
    boxes = [[0, 0, 10, 10]] * len(labels)
    record = Record.make(Path("1.jpg"), boxes, labels, image_id=1)  # type: ignore[arg-type]
    ids = tuple(range(10, 10 * len(names) + 1, 10))
    return Annotations.from_records(
        [record], names, category_ids=ids, source=Path("file.json"), format="coco"
    )


def test_labels_become_those_of_the_model_and_ids_stay_with_their_names() -> None:
    annotations = with_classes_of(
        annotations_of(("dog", "cat", "bird"), [0, 1, 2, 0]), ("bird", "cat", "dog")
    )

    assert annotations.class_names == ("bird", "cat", "dog")
    assert annotations.labels.tolist() == [2, 1, 0, 2]
    assert annotations.category_ids == (30, 20, 10)


def test_a_box_of_no_known_class_stays_one() -> None:
    annotations = with_classes_of(annotations_of(("dog", "cat"), [1, -1, 2]), ("cat", "dog"))

    assert annotations.labels.tolist() == [0, -1, 2]


def test_a_class_id_beyond_the_file_does_not_become_one_of_more_names() -> None:
    annotations = with_names(annotations_of(("dog", "cat"), [1, 2, 5]), ("bird", "cat", "dog"))

    assert annotations.labels.tolist() == [1, -1, 5]


def test_names_that_the_file_does_not_have_get_ids_that_are_free() -> None:
    of_file = annotations_of(("dog", "cat"), [0, 1])  # ids 10, 20

    assert with_names(of_file, ("bird", "cat", "cow", "dog")).category_ids == (21, 20, 22, 10)
    assert with_names(of_file, ("bird", "cat", "cow", "dog"), (7, 8, 20, 9)).category_ids == (7, 20, 21, 10)


def test_names_that_differ_are_listed_on_both_sides() -> None:
    with pytest.raises(DatasetError) as error:
        with_classes_of(annotations_of(("dog", "Cat"), [0]), ("cat", "dog", "bird"))

    assert "only in the annotations: 'Cat'; only in the model: 'cat', 'bird'" in str(error.value)
    assert "in: file.json" in str(error.value)


def test_of_many_names_the_first_ten_are_listed() -> None:
    names = tuple(f"class {number:02d}" for number in range(15))
    with pytest.raises(DatasetError, match="'class 09' and 5 more; only in the model: none"):
        with_classes_of(annotations_of(names, [0]), ())
