"""Runs that are compared: the same images, whatever order and ids their classes have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fcos.config import load_config
from fcos.data.annotations import Annotations, Record
from fcos.errors import DatasetError
from fcos.report.comparison import check_same_images, write_comparison
from fcos.report.finished_run import FinishedRun

BOX = [10.0, 20.0, 50.0, 60.0]


def finished(
    folder: Path, names: tuple[str, str], category_ids: tuple[int, int], first_id: int
) -> FinishedRun:
    """Three images of a cat, two of which were found."""
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    records, results = [], []
    for number in range(3):
        path = folder.parent / f"{number}.png"
        Image.new("RGB", (100, 80)).save(path)
        image_id, cat = first_id + number, names.index("cat")
        records.append(Record.make(path, [BOX], [cat], image_id, size_hw=(80, 100)))
        if number:
            results.append(entry(image_id, category_ids[cat]))
    annotations = Annotations.from_records(
        records, names, category_ids=category_ids, source=folder, format="coco"
    )
    config = load_config({"model": "fcos_lite0", "list_train": "none"})
    return FinishedRun(folder, config, annotations, results, {})


def entry(image_id: int, category_id: int) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": [10, 20, 40, 40], "score": 0.9}


def test_classes_and_images_may_have_other_ids(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", ("cat", "dog"), (1, 2), first_id=1)
    second = finished(tmp_path / "b", ("dog", "cat"), (40, 7), first_id=100)
    write_comparison(first, second, tmp_path / "new" / "c.html")
    page = (tmp_path / "new" / "c.html").read_text(encoding="utf-8")
    assert "AP changed by +0.000; there are too few images to tell" in page
    assert "0.663 → 0.663" in page  # 67 of 101 recall points
    assert "<p>None.</p>" in page  # no setting differs


def test_other_classes_are_refused(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", ("cat", "dog"), (1, 2), first_id=1)
    second = finished(tmp_path / "b", ("cat", "cow"), (1, 2), first_id=1)
    with pytest.raises(DatasetError, match="the two runs have different classes"):
        check_same_images(first, second)


@pytest.mark.parametrize("change", ["place", "class"])
def test_other_boxes_are_refused(tmp_path: Path, change: str) -> None:
    first = finished(tmp_path / "a", ("cat", "dog"), (1, 2), first_id=1)
    second = finished(tmp_path / "b", ("cat", "dog"), (1, 2), first_id=1)
    theirs = second.annotations
    if change == "place":
        theirs = replace(theirs, boxes_xyxy=theirs.boxes_xyxy + 1)
    else:
        theirs = replace(theirs, labels=1 - theirs.labels)
    with pytest.raises(DatasetError, match="annotated differently"):
        check_same_images(first, replace(second, annotations=theirs))
