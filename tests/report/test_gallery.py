"""Which images a report shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.data.splits import spread
from fcos.metrics.analysis import Analysis, analyze
from fcos.report.examples import place_box, with_labels
from fcos.report.gallery import choose_images, confusions, disagreement_crops, gallery, tally

BOX = [10.0, 20.0, 50.0, 60.0]


def cats(folder: Path, num_images: int) -> Annotations:
    """A cat in each image."""
    records = []
    for number in range(1, num_images + 1):
        path = folder / f"{number}.png"
        Image.new("RGB", (100, 80)).save(path)
        records.append(Record.make(path, [BOX], [0], number, size_hw=(80, 100)))
    return Annotations.from_records(records, ("cat", "dog"), source=folder, format="list")


def found(image_id: int, score: float, label: int = 0, x: float = 10.0) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": label + 1, "bbox": [x, 20.0, 40.0, 40.0], "score": score}


@pytest.fixture
def analyzed(tmp_path: Path) -> tuple[Annotations, Analysis]:
    """Of twelve cats the 5th is missed, the 7th taken for a dog, the 9th found beside something else."""
    annotations = cats(tmp_path, 12)
    right = [found(image_id, 0.8) for image_id in range(1, 13) if image_id not in (5, 7)]
    return annotations, analyze(annotations, [*right, found(7, 0.9, label=1), found(9, 0.85, x=55)])


def test_the_worst_come_first_then_the_best_and_no_image_twice(
    analyzed: tuple[Annotations, Analysis],
) -> None:
    chosen = choose_images(*analyzed, most=9)
    assert list(chosen.items())[:3] == [(6, "worst"), (4, "worst"), (8, "worst")]
    assert list(chosen.values())[3] == "best"
    assert len(chosen) == 9


def test_of_few_images_all_are_shown(analyzed: tuple[Annotations, Analysis]) -> None:
    assert sorted(choose_images(*analyzed, most=50)) == list(range(12))
    assert choose_images(*analyzed, most=0) == {}


def test_confusions_are_told_largest_first(analyzed: tuple[Annotations, Analysis]) -> None:
    cat, dog, background = 0, 1, 2
    assert set(confusions(analyzed[1])) == {(cat, dog), (cat, background), (background, cat)}


def test_an_image_is_tagged_with_its_errors(analyzed: tuple[Annotations, Analysis]) -> None:
    annotations, analysis = analyzed
    examples = {example.name: example for example in gallery(annotations, analysis, {6: "worst", 0: ""}, [])}
    assert examples["7.png"].tags == ("worst", "cell-0-1")
    assert examples["7.png"].caption == "worst: F1 0.00, 0 correct, 1 wrong, 1 missed"
    assert examples["1.png"].tags == ("cell-0-0",)
    assert examples["1.png"].caption == tally(analysis, 0)


def test_boxes_know_what_they_were_found_with(analyzed: tuple[Annotations, Analysis]) -> None:
    annotations, analysis = analyzed
    [example] = gallery(annotations, analysis, {8: ""}, [])
    truth, detections = example.panes
    assert [box.found_with for box in truth.boxes] == [0.8]
    assert [(box.score, box.is_wrong) for box in detections.boxes] == [(0.8, False), (0.85, True)]


def test_crops_show_the_surroundings_of_a_box(analyzed: tuple[Annotations, Analysis]) -> None:
    annotations, analysis = analyzed
    dog, thing = disagreement_crops(annotations, analysis, shown=[6])
    assert (dog.caption, dog.example, dog.name) == (
        "dog 0.90, annotated as cat; elsewhere 0 of 0 correct",
        "image-7",
        "7.png",
    )
    assert (thing.caption, thing.example) == ("cat 0.85, not annotated; elsewhere 0 of 0 correct", None)
    # 40 pixels and 24 on each side, cut to the image: x from 0 to 74, y from 0 to 80; then 170 pixels high
    assert (dog.width, dog.height) == (157, 170)
    scale = 170 / 80
    assert (dog.box.x, dog.box.y) == (round(10 * scale, 1), round(20 * scale, 1))
    assert [(box.x, box.title) for box in dog.annotated] == [(dog.box.x, "annotated: cat")]
    # around the other thing, from x = 31, the cat is cut off
    [cat] = thing.annotated
    assert cat.x == 0


@pytest.mark.parametrize(("count", "wanted"), [(0, 3), (1, 3), (3, 3), (100, 12)])
def test_examples_are_spread_over_all_images(count: int, wanted: int) -> None:
    chosen = spread(count, wanted)
    assert len(set(chosen)) == len(chosen) == min(count, wanted)
    assert chosen == sorted(chosen)
    if count > wanted:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        gaps = [after - before for before, after in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


def test_labels_of_overlapping_boxes_hide_nothing_of_each_other_and_stay_inside() -> None:
    # Five boxes at one place near the right edge, and one at the top left corner.
    boxes = [place_box([60, 30, 99, 79], f"cat 0.{n}0", "", (0, 0, 0), (100, 80)) for n in range(1, 6)]
    boxes.append(place_box([0, 0, 30, 20], "a dog", "", (0, 0, 0), (100, 80)))

    placed = with_labels(boxes, (100, 80), font_size=8.0)

    assert [box.text for box in placed] == [box.text for box in boxes]
    places = [(box.text_x, box.text_y) for box in placed]
    for number, (x, y) in enumerate(places):
        assert 0 <= x < 100
        assert 8 * 0.8 <= y <= 80  # a line of 8 pixels above the baseline
        for other_x, other_y in places[:number]:
            assert abs(y - other_y) >= 8 or abs(x - other_x) >= 25
    # The one on top (the last of the five, the best score) is above its box, as one alone would be.
    [alone] = with_labels([boxes[4]], (100, 80), font_size=8.0)
    assert places[4] == (alone.text_x, alone.text_y)
    assert alone.text_y < 30


def test_in_a_crowd_a_label_without_room_is_left_to_the_title() -> None:
    boxes = [place_box((10, 10, 14, 14), "digit", f"{number}", (0, 0, 0), (60, 40)) for number in range(65)]
    placed = with_labels(boxes, (60, 40), font_size=8.0)
    assert len(placed) == 65
    labeled = [box for box in placed if box.text]
    assert placed[-1].text == "digit"  # drawn on top, chooses first
    assert 0 < len(labeled) < 10
    assert len({(box.text_x, box.text_y) for box in labeled}) == len(labeled)
    assert {box.title for box in placed} == {str(number) for number in range(65)}
