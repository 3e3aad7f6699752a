from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos.data.annotations import Record
from fcos.predict import draw as boxes_module
from fcos.predict.detections import Detections
from fcos.predict.draw import class_color, draw_boxes, draw_side_by_side, readable_on

GRAY = (128, 128, 128)


def gray(width: int = 200, height: int = 150) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_the_line_is_on_the_outermost_pixels_inside_of_the_box() -> None:
    drawn = pixels(draw_boxes(gray(), [[50, 60, 120, 100]], [0], ["x"]))
    for x, y in ((50, 80), (119, 80), (80, 99)):
        assert tuple(drawn[y, x]) == class_color(0)
    for x, y in ((49, 80), (120, 80), (80, 100)):
        assert tuple(drawn[y, x]) == GRAY


def test_the_image_that_was_given_stays_as_it_is() -> None:
    image = gray()
    draw_boxes(image, [[10, 10, 50, 50]], [0], ["x"])
    assert (pixels(image) == 128).all()


def test_no_boxes_is_a_copy() -> None:
    image = gray()
    drawn = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [], torch.zeros(0))
    assert drawn is not image
    np.testing.assert_array_equal(pixels(drawn), pixels(image))


@pytest.mark.parametrize(
    "box", [[0, 0, 20, 20], [190, 0, 200, 20], [0, 140, 20, 150], [190, 140, 200, 150], [-30, -30, 230, 180]]
)
def test_labels_stay_inside_of_the_image(box: list[int]) -> None:
    name = "a long name"
    color = class_color(0)
    label = pixels(draw_boxes(gray(), [box], [0], [name]))
    middle = pixels(draw_boxes(gray(), [[80, 80, 90, 90]], [0], [name]))
    filled, wanted = ((drawn == color).all(axis=2).sum() for drawn in (label, middle))
    assert filled >= 0.9 * wanted  # nothing of the label's background was cut off


def test_a_class_has_its_color_whatever_else_is_on_the_image() -> None:
    alone = pixels(draw_boxes(gray(), [[50, 60, 120, 100]], [3], list("abcdef")))
    crowd = pixels(draw_boxes(gray(), [[5, 30, 20, 40], [50, 60, 120, 100]], [1, 3], list("abcdefghi")))
    assert tuple(alone[99, 80]) == tuple(crowd[99, 80]) == class_color(3)
    assert len({class_color(label) for label in range(80)}) == 80


def test_line_and_label_grow_with_the_image() -> None:
    def share(side: int) -> float:
        box = [[side / 4, side / 4, side / 2, side / 2]]
        drawn = pixels(draw_boxes(gray(side, side), box, [0], ["name"]))
        return float((drawn != 128).any(axis=2).mean())

    assert share(2000) == pytest.approx(share(500), rel=0.35)


@pytest.mark.parametrize("name", ["épicerie", "собака", "猫", "طائر", "", "🐈", "two\nlines"])
def test_class_names_in_any_script_are_drawn(name: str) -> None:
    drawn = pixels(draw_boxes(gray(), [[50, 60, 120, 100]], [0], [name], [0.5]))
    assert (drawn != 128).any(axis=2).sum() > 300


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_mode_can_be_drawn_on(mode: str) -> None:
    drawn = draw_boxes(gray().convert(mode), [[50, 60, 120, 100]], [0], ["x"])
    assert drawn.mode == "RGB"
    assert drawn.getpixel((80, 99)) == class_color(0)


def test_the_best_score_is_on_top() -> None:
    boxes, scores = [[50, 60, 120, 100], [50, 60, 120, 100]], [0.9, 0.3]
    drawn = draw_boxes(gray(), boxes, [0, 1], ["a", "b"], scores)
    assert drawn.getpixel((80, 99)) == class_color(0)


def test_text_is_black_on_bright_and_white_on_dark() -> None:
    assert readable_on((255, 255, 0)) == "black"
    assert readable_on((0, 0, 255)) == "white"


def test_ground_truth_is_left_and_detections_are_right() -> None:
    detections = Detections(
        torch.tensor([[50.0, 60, 120, 100]]), torch.tensor([0.9]), torch.tensor([1]), ("a", "b"), gray()
    )
    both = draw_side_by_side(detections, Record.make(Path("x.jpg"), [[10, 60, 40, 100]], [0], 1))
    assert both.width > 2 * 200
    top, right = both.height - 150, both.width - 200
    assert both.getpixel((25, top + 99)) == class_color(0)
    assert both.getpixel((right + 80, top + 99)) == class_color(1)
    assert both.getpixel((80, top + 99)) == GRAY


@pytest.mark.parametrize(
    "boxes",
    [
        [[50, 60, 120, 100]] * 3,
        [[0, 0, 60, 60]] * 3,
        [[150, 100, 200, 150]] * 3,
        [[0, 140, 20, 150]] * 2,
        [[-30, -30, 230, 180]] * 4,
        [[20, 40, 90, 120], [60, 45, 150, 120], [62, 47, 150, 120]],
    ],
)
def test_labels_of_overlapping_boxes_do_not_hide_each_other(boxes: list[list[int]]) -> None:
    names = ["cat", "dog", "horse", "sheep"]
    scores = np.linspace(0.9, 0.6, len(boxes))

    drawn = pixels(draw_boxes(gray(), boxes, range(len(boxes)), names, scores))

    for label, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        text = pixels(boxes_module._label(f"{names[label]} {score:.2f}", class_color(label), 11))
        windows = np.lib.stride_tricks.sliding_window_view(drawn, text.shape)
        assert (windows == text).all(axis=(3, 4, 5)).any(), f"the label of {names[label]} at {box} is whole"


def test_a_label_wider_than_the_image_is_shortened_and_keeps_its_score() -> None:
    drawn = pixels(draw_boxes(gray(80, 60), [[10, 30, 70, 50]], [0], ["an endless name " * 500], [0.87]))

    text = boxes_module._fitting("an endless name", " 0.87", 11, 80)
    assert text.endswith("... 0.87")
    label = pixels(boxes_module._label(text, class_color(0), 11))
    assert label.shape[1] <= 80
    windows = np.lib.stride_tricks.sliding_window_view(drawn, label.shape)
    assert (windows == label).all(axis=(3, 4, 5)).any()
