"""Tiles and test-time augmentation, with a made-up detector that sees colored rectangles and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fcos.data import strips
from fcos.data.strips import LargeImage, open_image
from fcos.data.transforms import EvalTransform
from fcos.errors import FcosError
from fcos.model.postprocess import ImageDetections, PostProcess
from fcos.predict.tiles import (
    Detect,
    Views,
    detect_in_views,
    fragments,
    mirror,
    parts_of,
    starts,
    variants,
)

AS_IT_IS = EvalTransform(None, 4096)
POSTPROCESS = PostProcess()


def rectangles(*boxes_xyxy: tuple[int, int, int, int], size_hw: tuple[int, int]) -> Tensor:
    """A black image with rectangles; the red value of the first is 10, of the second 20, ..."""
    image = torch.zeros(3, *size_hw, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes_xyxy, start=1):
        image[0, y1:y2, x1:x2] = 10 * number
    return image


def sees(
    image: Tensor, score: Callable[[Tensor, tuple[int, int, int, int]], float], smallest: int
) -> ImageDetections:
    """The visible part of each rectangle; its middle is where it was found."""
    boxes, scores, points = [], [], []
    for value in image[0].unique().tolist():
        rows, columns = (image[0] == value).nonzero(as_tuple=True)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        if value and min(box[2] - box[0], box[3] - box[1]) >= smallest:
            boxes.append(box)
            scores.append(score(image, box))
            points.append(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 8.0))
    return ImageDetections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.zeros(len(boxes), dtype=torch.int64),
        torch.tensor(points).reshape(-1, 3),
    )


def detector(
    score: Callable[[Tensor, tuple[int, int, int, int]], float] = lambda image, box: 0.9, smallest: int = 1
) -> Detect:
    return lambda images, transform: [sees(image, score, smallest) for image in images]


def found_in(image: Tensor | LargeImage, views: Views, detect: Detect, **options: float) -> ImageDetections:
    return detect_in_views(image, views, detect, AS_IT_IS, POSTPROCESS, batch_size=3, **options)  # type: ignore[arg-type]


# Where the tiles are ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "expected"),
    [
        (100, 100, 0.2, [0]),
        (60, 100, 0.2, [0]),
        (101, 100, 0.2, [0, 1]),
        (100, 40, 0.25, [0, 30, 60]),  # steps of 30 fit
        (105, 40, 0.25, [0, 21, 43, 65]),  # three steps of 30 are needed for 65, and made equal
        (100, 50, 0.0, [0, 50]),
        (1000, 640, 0.2, [0, 360]),
    ],
)
def test_tiles_are_spread_evenly_from_one_end_to_the_other(
    side: int, tile: int, overlap: float, expected: list[int]
) -> None:
    assert starts(side, tile, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("side", [33, 64, 65, 1000, 20_000])
def test_neighboring_tiles_overlap_by_at_least_the_share(side: int, overlap: float) -> None:
    places = starts(side, 32, overlap)
    assert places[0] == 0
    assert places[-1] + 32 == side
    assert all(1 <= b - a <= max(1, 32 * (1 - overlap)) for a, b in pairwise(places))


def test_the_tiles_of_an_image_and_then_the_whole() -> None:
    image = torch.arange(3 * 50 * 70).reshape(3, 50, 70).to(torch.uint8)
    *tiles, whole = parts_of(image, Views(40, 0.25), 100)
    assert [(tile.left, tile.top) for tile in tiles] == [(0, 0), (30, 0), (0, 10), (30, 10)]
    for tile in tiles:
        assert torch.equal(tile.pixels, image[:, tile.top : tile.top + 40, tile.left : tile.left + 40])
    assert [tile.inner for tile in tiles] == [  # left, top, right, bottom
        (False, False, True, True),
        (True, False, False, True),
        (False, True, True, False),
        (True, True, False, False),
    ]
    assert torch.equal(whole.pixels, image)
    assert whole.inner == (False, False, False, False)


@pytest.mark.parametrize("views", [Views(70), Views(0), Views(200), Views(0, tta=True)])
def test_an_image_no_larger_than_a_tile_is_predicted_once(views: Views) -> None:
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    [part] = parts_of(image, views, 100)
    assert torch.equal(part.pixels, image)


def test_an_image_that_is_high_and_narrow_has_tiles_of_its_width() -> None:
    image = torch.zeros(3, 100, 30, dtype=torch.uint8)
    *tiles, _ = parts_of(image, Views(40, 0.0), 100)
    assert [(tile.top, tuple(tile.pixels.shape)) for tile in tiles] == [
        (0, (3, 40, 30)),
        (30, (3, 40, 30)),
        (60, (3, 40, 30)),
    ]
    assert [tile.inner for tile in tiles][1] == (False, True, False, True)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(31, 0.2, "at least 32"), (-1, 0.2, "at least 32"), (64, 1.0, "0 to 0.9"), (64, -0.1, "0 to 0.9")],
)
def test_tiles_that_cannot_be_are_an_error(tile: int, overlap: float, message: str) -> None:
    with pytest.raises(FcosError, match=message):
        Views(tile, overlap)


# Objects at borders -----------------------------------------------------------------------------------------

# Tiles of 100 with an overlap of 20 in an image of 180 x 180 begin at 0 and 80. The boxes: whole in the first
# tile; in the overlap, so whole in two tiles; across it, whole in none; larger than a tile; at the corner
# where all four meet; in the fourth tile, at the border of the image.
OBJECTS = [
    (10, 10, 40, 30),
    (82, 20, 98, 35),
    (60, 40, 110, 60),
    (5, 65, 175, 78),
    (70, 85, 120, 110),
    (150, 140, 180, 180),
]
FOUR_TILES = Views(100, 0.2)


@pytest.mark.parametrize("best", ["whole", "fragments", "equal"])
def test_each_object_at_a_border_is_found_once_and_whole(best: str) -> None:
    def score(image: Tensor, box: tuple[int, int, int, int]) -> float:
        is_whole = image.shape[1] == 180
        return 0.7 if best == "equal" else 0.9 if is_whole == (best == "whole") else 0.6

    image = rectangles(*OBJECTS, size_hw=(180, 180))
    found = found_in(image, FOUR_TILES, detector(score))
    assert sorted(map(tuple, found.boxes_xyxy.tolist())) == sorted(OBJECTS)
    assert found.scores.diff().le(0).all()


def test_nms_alone_would_leave_the_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fcos.predict.tiles.fragments", lambda boxes, *_: torch.zeros(len(boxes), dtype=torch.bool)
    )
    found = found_in(rectangles(*OBJECTS, size_hw=(180, 180)), FOUR_TILES, detector())
    assert len(found.scores) > len(OBJECTS)


def test_what_the_whole_image_misses_is_found_on_tiles() -> None:
    """The whole image is seen too small for the objects of less than 40 pixels."""

    def detect(images: list[Tensor], transform: EvalTransform) -> list[ImageDetections]:
        smallest = {100: 1, 180: 40}
        return [sees(image, lambda *_: 0.9, smallest[image.shape[1]]) for image in images]

    small = [(10, 10, 40, 30), (82, 20, 98, 35), (150, 140, 180, 180)]
    large = [(50, 60, 175, 120)]
    found = found_in(rectangles(*small, *large, size_hw=(180, 180)), FOUR_TILES, detect)
    assert sorted(map(tuple, found.boxes_xyxy.tolist())) == sorted(small + large)


def test_points_are_where_they_are_on_the_image() -> None:
    image = rectangles(*OBJECTS, size_hw=(180, 180))
    found = found_in(image, FOUR_TILES, detector())
    assert found.found_at is not None
    middles = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    torch.testing.assert_close(found.found_at, torch.cat([middles, torch.full((6, 1), 8.0)], dim=1))


def test_without_points_there_are_none() -> None:
    def detect(images: list[Tensor], transform: EvalTransform) -> list[ImageDetections]:
        return [found._replace(found_at=None) for found in detector()(images, transform)]

    found = found_in(rectangles(*OBJECTS, size_hw=(180, 180)), FOUR_TILES, detect)
    assert found.found_at is None
    assert len(found.scores) == len(OBJECTS)


# One box of 60 x 20 that is cut off, and another one; which shares of it are inside, scores, classes.
@pytest.mark.parametrize(
    ("other", "score", "label", "other_is_cut", "goes"),
    [
        ((0, 0, 100, 20), 0.9, 0, False, True),
        ((0, 0, 100, 20), 0.45, 0, False, True),  # half of its score is enough
        ((0, 0, 100, 20), 0.44, 0, False, False),
        ((0, 0, 100, 20), 0.9, 1, False, False),  # another class
        ((23, 0, 100, 20), 0.9, 0, False, True),  # 37 of 60 columns are inside, more than 0.6
        ((24, 0, 100, 20), 0.9, 0, False, False),
        ((0, 0, 100, 20), 0.9, 0, True, True),  # cut off too, but larger
        ((0, 0, 50, 20), 0.9, 0, True, False),  # smaller
        ((0, 0, 50, 20), 0.9, 0, False, True),  # smaller but whole
        ((0, 0, 60, 20), 0.9, 0, True, False),  # of two that are the same, NMS takes one
    ],
)
def test_a_fragment_goes_where_it_is_mostly_inside_another_box(
    other: tuple[int, int, int, int], score: float, label: int, other_is_cut: bool, goes: bool
) -> None:
    gone = fragments(
        torch.tensor([(0, 0, 60, 20), other]).float(),
        torch.tensor([0.9, score]),
        torch.tensor([0, label]),
        [torch.tensor([True]), torch.tensor([other_is_cut])],
    )
    assert gone.tolist()[0] is goes


def test_a_box_that_is_not_cut_off_stays_inside_another() -> None:
    gone = fragments(
        torch.tensor([[10.0, 10, 20, 20], [0, 0, 100, 100]]),
        torch.tensor([0.5, 0.9]),
        torch.tensor([0, 0]),
        [torch.tensor([False]), torch.tensor([False])],
    )
    assert gone.tolist() == [False, False]


def test_a_box_at_the_border_of_the_image_is_not_cut_off() -> None:
    """It lies inside a larger one of its class, like a child in front of an adult, and stays."""
    boxes = torch.tensor([[0.0, 0, 15, 15], [0, 0, 40, 40]])

    def detect(images: list[Tensor], transform: EvalTransform) -> list[ImageDetections]:
        found = ImageDetections(boxes, torch.tensor([0.8, 0.9]), torch.zeros(2, dtype=torch.int64))
        nothing = found.of(torch.zeros(2, dtype=torch.bool))
        return [found if image[0, 0, 0] else nothing for image in images]

    image = torch.zeros(3, 180, 180, dtype=torch.uint8)
    image[0, 0, 0] = 1  # only the first tile and the whole image begin with it
    assert found_in(image, FOUR_TILES, detect).boxes_xyxy.tolist() == boxes.flip(0).tolist()


def test_the_threshold_is_applied_before_fragments_go() -> None:
    """A box of the whole image below the threshold does not remove the fragments above it."""

    def score(image: Tensor, box: tuple[int, int, int, int]) -> float:
        return 0.4 if image.shape[1] == 180 else 0.6

    image = rectangles((60, 40, 110, 60), size_hw=(180, 180))
    everything = found_in(image, FOUR_TILES, detector(score))
    assert everything.boxes_xyxy.tolist() == [[60, 40, 110, 60]]
    above = found_in(image, FOUR_TILES, detector(score), score_threshold=0.5)
    assert above.boxes_xyxy.tolist() == [[60, 40, 100, 60]]  # two thirds of the other fragment are in it


def test_an_image_of_tiles_may_have_more_detections_than_the_limit_of_a_view() -> None:
    boxes = [(20 * place, 4, 20 * place + 10, 14) for place in range(9)]
    image = rectangles(*boxes, size_hw=(180, 180))
    few = PostProcess(detections_per_image=5)
    tiles = detect_in_views(image, FOUR_TILES, detector(), AS_IT_IS, few)
    assert len(tiles.scores) == 9
    augmented = detect_in_views(image, Views(tta=True), detector(), AS_IT_IS, few)
    assert len(augmented.scores) == 5


# Test-time augmentation -------------------------------------------------------------------------------------


def test_views_are_mirrored_and_at_three_sizes() -> None:
    transform = EvalTransform(320, 533, "floor", "float")
    sizes = [
        (one.short_side, one.longest_side, mirrored) for one, mirrored in variants(transform, True, True)
    ]
    assert sizes == [
        (240, 400, False),
        (240, 400, True),
        (320, 533, False),
        (320, 533, True),
        (400, 666, False),
        (400, 666, True),
    ]
    assert {(one.size, one.method) for one, _ in variants(transform, True, True)} == {("floor", "float")}
    assert [mirrored for _, mirrored in variants(transform, True, False)] == [False] * 3
    assert variants(transform, False, True) == [(transform, False)]
    assert [one.short_side for one, _ in variants(EvalTransform(None, 64), True, False)] == [None] * 3


def test_a_mirrored_detection_is_mirrored_back() -> None:
    found = ImageDetections(
        torch.tensor([[10.0, 5, 30, 15]]),
        torch.tensor([0.5]),
        torch.tensor([2]),
        torch.tensor([[12.0, 8, 16]]),
    )
    back = mirror(found, 100)
    assert back.boxes_xyxy.tolist() == [[70, 5, 90, 15]]
    assert back.found_at is not None
    assert back.found_at.tolist() == [[88, 8, 16]]
    assert mirror(found, 100, inclusive_boxes=True).boxes_xyxy.tolist() == [[69, 5, 89, 15]]  # last pixels
    assert mirror(found._replace(found_at=None), 100).found_at is None


def test_augmented_views_agree_on_where_an_object_is() -> None:
    """The detector sees what is in the left half only: the other object is found in the mirrored views."""

    def detect(images: list[Tensor], transform: EvalTransform) -> list[ImageDetections]:
        return [
            found.of(found.boxes_xyxy[:, 2] <= 90)
            for found in (sees(image, lambda *_: 0.9, 1) for image in images)
        ]

    boxes = [(10, 10, 40, 30), (120, 50, 170, 80)]
    image = rectangles(*boxes, size_hw=(100, 180))
    assert found_in(image, Views(), detect).boxes_xyxy.tolist() == [[10, 10, 40, 30]]
    assert sorted(map(tuple, found_in(image, Views(tta=True), detect).boxes_xyxy.tolist())) == boxes


def test_tiles_are_augmented_too() -> None:
    passes = []

    def detect(images: list[Tensor], transform: EvalTransform) -> list[ImageDetections]:
        passes.append((len(images), images[0].shape[1], transform.longest_side))
        return detector()(images, transform)

    found = found_in(rectangles(*OBJECTS, size_hw=(180, 180)), Views(100, 0.2, tta=True), detect)
    assert sorted(map(tuple, found.boxes_xyxy.tolist())) == sorted(OBJECTS)
    # Four tiles and the whole image, three at a time, each at three sizes and mirrored.
    assert [size for size, _, _ in passes] == [3] * 6 + [2] * 6
    assert [side for _, _, side in passes] == 2 * [3072, 3072, 4096, 4096, 5120, 5120]


# Files in strips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_a_file_that_is_read_in_strips_has_the_same_tiles(
    overlap: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "LARGE", 0)
    image = torch.randint(256, (3, 303, 203), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    file = open_image(tmp_path / "a.png")
    assert isinstance(file, LargeImage)

    *tiles, whole = parts_of(file, Views(64, overlap), 30)
    *expected, _ = parts_of(image, Views(64, overlap), 30)
    for tile, other in zip(tiles, expected, strict=True):
        assert tile[1:] == other[1:]
        assert torch.equal(tile.pixels, other.pixels)
    # 303 // (2 * 30) is 5: the whole image is 60 x 40, three rows and columns are left over.
    assert whole.reduction == 5
    means = image[:, :300, :200].reshape(3, 60, 5, 40, 5).double().mean(dim=(2, 4))
    assert whole.pixels.shape == (3, 60, 40)
    assert (whole.pixels.double() - means).abs().max() <= 0.5 + 1e-4


def test_objects_in_a_file_that_is_read_in_strips_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "LARGE", 0)
    boxes = [(12, 8, 60, 40), (120, 60, 180, 280)]  # the second is higher than a tile; both divide by 4
    image = rectangles(*boxes, size_hw=(304, 204))
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    found = detect_in_views(
        open_image(tmp_path / "a.png"), Views(100), detector(), EvalTransform(None, 38), POSTPROCESS
    )
    assert sorted(map(tuple, found.boxes_xyxy.tolist())) == boxes
    assert found.found_at is not None
    middles = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    torch.testing.assert_close(found.found_at[:, :2], middles)


@pytest.mark.parametrize("size", [(3000, 3), (3, 3000)])
def test_of_a_thin_file_the_whole_keeps_a_pixel_across(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "LARGE", 0)
    Image.new("RGB", size, (9, 0, 0)).save(tmp_path / "a.png")
    *_, whole = parts_of(open_image(tmp_path / "a.png"), Views(640), 30)
    assert whole.reduction == 3
    assert whole.pixels.shape == (3, size[1] // 3, size[0] // 3)
    assert whole.pixels[0].unique().tolist() == [9]
