"""Detections: filtering, drawing, COCO's format, and what they refuse to hold."""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fcos.errors import FcosError
from fcos.predict.detections import Detections

CLASSES = ("cat", "dog")


@pytest.fixture
def three() -> Detections:
    """Two dogs and a cat on a gray image."""
    return Detections(
        torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.5, 6.25, 20.0, 30.0], [50.0, 50.0, 60.0, 90.0]]),
        torch.tensor([0.75, 0.5, 0.25]),
        torch.tensor([1, 0, 1]),
        CLASSES,
        Image.new("RGB", (100, 100), (128, 128, 128)),
        found_at=torch.tensor([[4.0, 4.0, 8.0], [12.0, 20.0, 8.0], [56.0, 72.0, 16.0]]),
    )


@pytest.fixture
def nothing() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), CLASSES)


@pytest.mark.parametrize(
    ("index", "scores"),
    [
        (torch.tensor([True, False, True]), [0.75, 0.25]),
        (np.array([True, False, True]), [0.75, 0.25]),
        ([True, False, True], [0.75, 0.25]),
        (torch.tensor([2, 0]), [0.25, 0.75]),
        ([2, 0], [0.25, 0.75]),
        (slice(0, 2), [0.75, 0.5]),
        (slice(None, None, 2), [0.75, 0.25]),
        (1, [0.5]),
        (-1, [0.25]),
        ([], []),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_every_kind_of_index_gives_detections_with_all_parts_in_step(
    three: Detections, index: object, scores: list[float]
) -> None:
    chosen = three[index]  # type: ignore[index]

    assert chosen.scores.tolist() == scores
    label_of = {0.75: 1, 0.5: 0, 0.25: 1}
    left_of = {0.75: 0.0, 0.5: 5.5, 0.25: 50.0}
    point_of = {0.75: 4.0, 0.5: 12.0, 0.25: 56.0}
    assert chosen.found_at is not None
    assert chosen.found_at[:, 0].tolist() == [point_of[score] for score in scores]
    assert chosen.labels.tolist() == [label_of[score] for score in scores]
    assert chosen.boxes_xyxy[:, 0].tolist() == [left_of[score] for score in scores]
    assert chosen.boxes_xyxy.shape == (len(scores), 4)
    assert len(chosen) == len(scores)
    assert chosen.image is three.image
    assert chosen.class_names == CLASSES


def test_an_index_beyond_the_end_is_an_error(three: Detections) -> None:
    with pytest.raises(IndexError, match="detection 3 of 3"):
        three[3]
    with pytest.raises(IndexError):
        three[torch.tensor([True, False])]


def test_going_through_them_gives_one_after_the_other(three: Detections) -> None:
    assert [one.class_name(0) for one in three] == ["dog", "cat", "dog"]
    assert [float(one.scores) for one in three] == [0.75, 0.5, 0.25]


def test_above_keeps_the_threshold_itself(three: Detections) -> None:
    assert three.above(0.5).scores.tolist() == [0.75, 0.5]
    assert len(three.above(0.95)) == 0
    assert len(three.above(0.0)) == 3


def test_drawing_changes_a_copy_where_the_boxes_are(three: Detections) -> None:
    drawn = three.draw()

    assert three.image is not None
    assert drawn.size == three.image.size
    assert three.image.getcolors() == [(100 * 100, (128, 128, 128))]
    assert np.asarray(drawn)[50:90, 50].std() > 0  # the left side of the third box
    assert np.asarray(drawn)[95:, :40].tolist() == np.full((5, 40, 3), 128).tolist()


def test_drawing_leaves_out_what_is_below_the_threshold(three: Detections) -> None:
    drawn = np.asarray(three.draw(score_threshold=0.3))

    assert drawn[55:, 55:].tolist() == np.full((45, 45, 3), 128).tolist()
    assert np.asarray(three.draw())[55:, 55:].std() > 0


def test_drawing_nothing_gives_the_image_itself(three: Detections) -> None:
    assert three.above(1.0).draw().getcolors() == [(100 * 100, (128, 128, 128))]


def test_drawing_without_an_image_says_how_to_give_one(nothing: Detections) -> None:
    with pytest.raises(
        ValueError, match=r"do not contain their image\n  fix: dataclasses.replace\(detections"
    ):
        nothing.draw()
    assert replace(nothing, image=Image.new("RGB", (8, 8))).draw().size == (8, 8)


def test_coco_entries_have_xywh_boxes_and_the_ids_of_the_file(three: Detections) -> None:
    entries = three.to_coco(image_id=42, category_ids=[17, 18])

    assert entries[1] == {"image_id": 42, "category_id": 17, "bbox": [5.5, 6.25, 14.5, 23.75], "score": 0.5}
    assert [entry["category_id"] for entry in entries] == [18, 17, 18]
    assert [entry["category_id"] for entry in three.to_coco(1)] == [2, 1, 2]


def test_coco_entries_are_exact(nothing: Detections) -> None:
    # 0.1 and 100.3 are no float32: their difference must not be rounded a second time
    box = torch.tensor([[0.1, 0.1, 100.3, 100.3]])
    detections = replace(
        nothing, boxes_xyxy=box, scores=torch.ones(1), labels=torch.zeros(1, dtype=torch.int64)
    )

    assert detections.to_coco(1)[0]["bbox"][2] == float(box[0, 2]) - float(box[0, 0])
    assert nothing.to_coco(1) == []


def test_coco_entries_need_an_id_of_every_class(three: Detections) -> None:
    with pytest.raises(ValueError, match="1 category_ids for 2 classes"):
        three.to_coco(1, [17])


def test_they_say_what_they_are(three: Detections, nothing: Detections) -> None:
    assert repr(three) == "Detections(2 dog, 1 cat, best score 0.75, image 100 x 100)"
    assert repr(nothing) == "Detections(nothing)"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scores": torch.zeros(2)}, r"scores is \(2,\) torch.float32, expected \(3,\) torch.float32"),
        ({"labels": torch.zeros(3)}, "labels is .* torch.float32, expected .* torch.int64"),
        ({"boxes_xyxy": torch.zeros(3, 5)}, r"boxes_xyxy is \(3, 5\)"),
        ({"boxes_xyxy": torch.zeros(3, 4).double()}, "torch.float64, expected"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels are in \[0, 2\], but there are 2 class_names"),
        ({"labels": torch.tensor([0, 1, -1])}, r"labels are in \[-1, 1\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    three: Detections, wrong: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(three, **wrong)  # type: ignore[arg-type]


def assert_same(first: Detections, second: Detections) -> None:
    torch.testing.assert_close(first.boxes_xyxy, second.boxes_xyxy)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.labels, second.labels)
    assert first.class_names == second.class_names


@pytest.mark.parametrize("name", ["three", "nothing"])
def test_coco_entries_and_back(name: str, request: pytest.FixtureRequest) -> None:
    detections = request.getfixturevalue(name)

    assert_same(Detections.from_coco(detections.to_coco(42, [17, 18]), CLASSES, [17, 18]), detections)
    assert_same(Detections.from_coco(detections.to_coco(42)[::-1], CLASSES), detections)


def with_tracks(detections: Detections) -> Detections:
    return replace(detections, track_ids=torch.arange(len(detections)) * 5 - 1)


def test_tracks_follow_their_boxes(three: Detections) -> None:
    tracked = with_tracks(three)

    assert tracked[[2, 0]].track_ids.tolist() == [9, -1]
    assert tracked.above(0.5).track_ids.tolist() == [-1, 4]
    assert three[0].track_ids is None
    with pytest.raises(ValueError, match=r"track_ids is \(2,\) torch.int64, expected \(3,\)"):
        replace(three, track_ids=torch.zeros(2, dtype=torch.int64))


def test_tracks_are_drawn_before_the_names(three: Detections) -> None:
    plain, tracked, none_yet = (
        np.asarray(detections.draw())
        for detections in (
            three,
            with_tracks(three),
            replace(three, track_ids=torch.full((3,), -1)),
        )
    )

    assert not np.array_equal(plain, tracked)
    assert np.array_equal(plain, none_yet)


@pytest.mark.parametrize("name", ["three", "nothing"])
def test_pandas_and_back(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("pandas")
    detections = request.getfixturevalue(name)

    assert_same(Detections.from_pandas(detections.to_pandas(), CLASSES), detections)
    tracked = Detections.from_pandas(with_tracks(detections).to_pandas(), CLASSES)
    assert_same(tracked, detections)
    assert tracked.track_ids.tolist() == with_tracks(detections).track_ids.tolist()


@pytest.mark.parametrize("name", ["three", "nothing"])
def test_tracks_go_to_supervision_and_back(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("supervision")
    tracked = with_tracks(request.getfixturevalue(name))

    there = tracked.to_supervision()
    assert there.tracker_id.tolist() == tracked.track_ids.tolist()
    back = Detections.from_supervision(there, CLASSES)
    assert_same(back, tracked)
    assert back.track_ids.tolist() == tracked.track_ids.tolist()


def test_pandas_table_has_a_row_for_each_box(three: Detections, nothing: Detections) -> None:
    pytest.importorskip("pandas")
    table = three.to_pandas()

    assert table.columns.tolist() == ["x1", "y1", "x2", "y2", "score", "label", "class_name"]
    assert table.iloc[1].tolist() == [5.5, 6.25, 20.0, 30.0, 0.5, 0, "cat"]
    assert len(nothing.to_pandas()) == 0


@pytest.mark.parametrize("name", ["three", "nothing"])
def test_supervision_and_back(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("supervision")
    detections = request.getfixturevalue(name)
    there = detections.to_supervision()

    assert len(there) == len(detections)
    assert there.data["class_name"].tolist() == [detections.class_name(i) for i in range(len(detections))]
    assert_same(Detections.from_supervision(there, CLASSES), detections)


def test_a_package_that_is_not_there_is_named(three: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(FcosError, match="this needs pandas\n  fix: pip install pandas"):
        three.to_pandas()


def test_filter_by_class_score_and_area(three: Detections) -> None:
    # areas: 10 x 20, 14.5 x 23.75, 10 x 40
    assert three.filter(classes="dog").scores.tolist() == [0.75, 0.25]
    assert three.filter(classes=0).scores.tolist() == [0.5]
    assert three.filter(classes=["cat", 1]).scores.tolist() == [0.75, 0.5, 0.25]
    assert three.filter(classes=[]).scores.tolist() == []
    assert three.filter(min_score=0.5).scores.tolist() == [0.75, 0.5]
    assert three.filter(min_area=344.375).scores.tolist() == [0.5, 0.25]
    assert three.filter(min_area=200).scores.tolist() == [0.75, 0.5, 0.25]
    assert three.filter(classes="dog", min_score=0.3, min_area=200).scores.tolist() == [0.75]
    assert three.filter() == three


@pytest.mark.parametrize("unknown", ["cow", 2, -1])
def test_filter_names_a_class_that_is_not_there(three: Detections, unknown: str | int) -> None:
    with pytest.raises(
        FcosError, match=rf"the model has no class {unknown!r}\n  fix: choose from its classes: cat, dog"
    ):
        three.filter(classes=["cat", unknown])


def test_equal_are_those_that_agree_in_everything_but_the_image(
    three: Detections, nothing: Detections
) -> None:
    copied = replace(three, boxes_xyxy=three.boxes_xyxy.clone(), image=None)

    assert copied == three
    assert three != three[[1, 0, 2]]
    assert three != three[:2]
    assert three != replace(three, scores=three.scores + 1e-6)
    assert three != replace(three, class_names=("cat", "cow"))
    assert three != replace(three, found_at=None)
    assert three != with_tracks(three)
    assert nothing != three
    assert three != "three"
    with pytest.raises(TypeError, match="unhashable"):
        hash(three)


def test_sum_holds_both_best_score_first(three: Detections, nothing: Detections) -> None:
    joined = three[[0, 2]] + three[1]

    assert joined == three
    assert joined.image is three.image
    first, second = replace(three[0], image=None), replace(three[1], scores=torch.tensor([0.75]))
    tied = first + second
    assert tied.boxes_xyxy[:, 0].tolist() == [0.0, 5.5]  # of equal scores the first one's come first
    assert tied.image is three.image
    assert with_tracks(three)[0] + with_tracks(three)[1] == with_tracks(three)[:2]
    partly = with_tracks(three)[0] + three[1:]
    assert partly.track_ids is None
    assert (three + nothing) == replace(three, found_at=None)  # `nothing` does not know its points


def test_sum_needs_the_same_classes(three: Detections) -> None:
    with pytest.raises(ValueError, match="detections with different class_names cannot be joined"):
        three + replace(three, class_names=("cat", "cow"))


def test_yolo_lines_by_hand(three: Detections) -> None:
    # box 2: x 5.5 to 20, y 6.25 to 30, in an image of 100 x 100
    assert three[1].to_yolo() == ["0 0.127500000 0.181250000 0.145000000 0.237500000 0.500000"]
    assert three[1].to_yolo((50, 200), with_scores=False) == [
        "0 0.063750000 0.362500000 0.072500000 0.475000000"
    ]


@pytest.mark.parametrize("name", ["three", "nothing"])
def test_yolo_lines_and_back(name: str, request: pytest.FixtureRequest) -> None:
    detections = request.getfixturevalue(name)
    lines = detections.to_yolo((100, 100))

    assert_same(Detections.from_yolo([*lines[::-1], ""], CLASSES, (100, 100)), detections)
    unscored = Detections.from_yolo(detections.to_yolo((100, 100), with_scores=False), CLASSES, (100, 100))
    assert unscored.scores.tolist() == [1.0] * len(detections)
    assert_same(replace(unscored, scores=detections.scores), detections)


def test_yolo_lines_need_the_size_and_boxes(three: Detections, nothing: Detections) -> None:
    with pytest.raises(
        ValueError, match=r"do not contain their image.*\n  fix: pass size_hw=\(height, width\)"
    ):
        nothing.to_yolo()
    for line in ("0 0.1 0.1 0.2", "0 0.1 0.1 0.2 0.2 0.3 0.3"):
        with pytest.raises(ValueError, match="has 5 numbers, or 6 with the score"):
            Detections.from_yolo([line], CLASSES, image=three.image)


def test_fiftyone_gets_fractions_names_and_tracks(three: Detections) -> None:
    pytest.importorskip("fiftyone")
    there = with_tracks(three).to_fiftyone().detections

    assert [one.label for one in there] == ["dog", "cat", "dog"]
    assert there[1].bounding_box == pytest.approx([0.055, 0.0625, 0.145, 0.2375])
    assert [one.confidence for one in there] == [0.75, 0.5, 0.25]
    assert [one.index for one in there] == [None, 4, 9]
    assert_same(
        Detections.from_fiftyone(with_tracks(three).to_fiftyone(), CLASSES, image=three.image),
        with_tracks(three),
    )


def test_unknown_labels_and_category_ids_are_errors_that_say_what_is_known() -> None:
    row = SimpleNamespace(label="cow", bounding_box=[0, 0, 1, 1], confidence=None, index=None)
    with pytest.raises(FcosError, match=r"class_names has no 'cow'\n  fix: .*; class_names: cat, dog"):
        Detections.from_fiftyone(SimpleNamespace(detections=[row]), CLASSES, size_hw=(100, 200))

    entry = {"bbox": [0, 0, 1, 1], "score": 1.0, "category_id": 90}
    with pytest.raises(FcosError, match=r"category_ids has no 90\n  fix: .*; category_ids: 1, 2"):
        Detections.from_coco([entry], CLASSES)


def test_fiftyone_boxes_without_confidence_or_index_are_read() -> None:
    row = SimpleNamespace(label="dog", bounding_box=[0.25, 0.5, 0.5, 0.25], confidence=None, index=None)
    found = Detections.from_fiftyone(SimpleNamespace(detections=[row]), CLASSES, size_hw=(100, 200))

    assert found.boxes_xyxy.tolist() == [[50.0, 50.0, 150.0, 75.0]]
    assert (found.scores.tolist(), found.labels.tolist(), found.track_ids) == ([1.0], [1], None)
    assert len(Detections.from_fiftyone(SimpleNamespace(detections=[]), CLASSES, size_hw=(1, 1))) == 0


def test_a_notebook_shows_the_drawn_image_and_a_table(three: Detections, nothing: Detections) -> None:
    named = replace(three, class_names=("<b>cat</b>", "dog"))
    html = named._repr_html_()

    content = base64.b64decode(html.partition("base64,")[2].partition('"')[0])
    with Image.open(io.BytesIO(content)) as shown:
        pixels = np.asarray(shown, int)
    drawn, plain = (np.asarray(image, int) for image in (named.draw(), named.image))
    assert np.abs(pixels - drawn).mean() < 0.5 * np.abs(plain - drawn).mean()  # JPEG changes pixels a little
    assert "<td>dog</td><td>0.750</td><td>0.0</td><td>0.0</td><td>10.0</td><td>20.0</td>" in html
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "<img" not in nothing._repr_html_()


def test_a_notebook_shows_the_best_of_many_and_a_large_image_smaller(three: Detections) -> None:
    many = replace(three[[0] * 15 + [1] * 10], image=Image.new("RGB", (3000, 1500)))
    html = many._repr_html_()

    assert html.count("<tr>") == 1 + 20
    assert "and 5 more" in html
    content = base64.b64decode(html.partition("base64,")[2].partition('"')[0])
    assert Image.open(io.BytesIO(content)).size == (1000, 500)
