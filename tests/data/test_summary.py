"""The card of a data set, and its way through the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fcos.data.annotations import Annotations, Record
from fcos.data.check import check
from fcos.data.summary import FILE_NAME, MAX_LINES, read_summaries, summarize, write_summaries
from fcos.errors import DatasetError


def annotations_of(path: Path, *boxes_xyxy: list[float], times: int = 1) -> Annotations:
    records = [
        Record.make(path, list(boxes_xyxy), [0] * len(boxes_xyxy), number, size_hw=(400, 600), where="line 1")
        for number in range(1, times + 1)
    ]
    return Annotations.from_records(records, ("cat", "Hündin"), source=Path("x"), format="list")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"training": {}}', '{"training": 1}', '{"training": null}']
)
def test_a_damaged_file_says_how_to_go_without(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(DatasetError, match=r"damaged: .+\n  in: .*data.json\n  fix: remove it"):
        read_summaries(tmp_path)


def test_boxes_are_counted_by_size_and_shape() -> None:
    boxes = [[0, 0, 4, 4], [0, 0, 8, 8], [0, 0, 100, 25], [0, 0, 25, 100], [0, 0, 600, 500]]
    card = summarize(annotations_of(Path("a.jpg"), *boxes))
    assert {name: count for name, count in card.box_sides.items() if count} == {
        "<8": 1,
        "8–16": 1,
        "32–64": 2,  # the root of 100 x 25 is 50
        "≥512": 1,
    }
    assert {name: count for name, count in card.box_ratios.items() if count} == {
        "0.25–0.5": 1,
        "0.8–1.25": 3,
        "≥4": 1,
    }
    assert card.num_warnings is None  # nobody looked


def test_it_comes_back_from_the_run_folder(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    image = make_image("a.jpg", width=600, height=400)
    annotations = annotations_of(image, [0, 0, 50, 50], times=3)
    report = check(annotations)
    card = summarize(annotations, report)
    assert card.num_problems == 0
    assert card.num_warnings == 2  # the image is listed three times
    assert "listed twice" in card.warnings[0]
    cards = {"training": card, "evaluation": summarize(annotations)}
    write_summaries(cards, tmp_path)
    assert read_summaries(tmp_path) == cards


def test_of_many_warnings_the_first_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    annotations = annotations_of(tmp_path / "missing.jpg", times=50)
    card = summarize(annotations, check(annotations))
    assert (card.num_problems, len(card.problems)) == (51, MAX_LINES)  # and that there is no box
    assert "no boxes" in card.problems[0]
    assert "missing.jpg" in card.problems[1]


def test_a_run_without_cards_has_none(tmp_path: Path) -> None:
    assert read_summaries(tmp_path) == {}
