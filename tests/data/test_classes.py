"""The classes of a file against those of a model: by name, whatever order and ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcos.data.annotations import Annotations, Record
from fcos.data.classes import with_classes_of
from fcos.errors import DatasetError


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


def test_names_that_differ_are_listed_on_both_sides() -> None:
    with pytest.raises(DatasetError) as error:
        with_classes_of(annotations_of(("dog", "Cat"), [0]), ("cat", "dog", "bird"))

    assert "only in the annotations: 'Cat'; only in the model: 'cat', 'bird'" in str(error.value)
    assert "in: file.json" in str(error.value)


def test_of_many_names_the_first_ten_are_listed() -> None:
    names = tuple(f"class {number:02d}" for number in range(15))
    with pytest.raises(DatasetError, match="'class 09' and 5 more; only in the model: none"):
        with_classes_of(annotations_of(names, [0]), ())
