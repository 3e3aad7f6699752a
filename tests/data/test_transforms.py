from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fcos.config import TrainConfig, load_config
from fcos.config.conventions import SizeRule
from fcos.data.augmentation import POLICIES, Augmentation, RandomCropOfBoxes, build_policy
from fcos.data.transforms import (
    EvalTransform,
    TrainTransform,
    padded_size,
    quarter_turn,
    resize,
    resized_size,
    same_padded_size,
)
from fcos.errors import ConfigError

SEEDS = range(15)


RED, BLUE = 0, 2  # channels of the image, and labels of its boxes


BOXES = torch.tensor([[60.0, 40.0, 85.0, 60.0], [110.0, 55.0, 130.0, 90.0]])


LABELS = torch.tensor([RED, BLUE])


@pytest.fixture(autouse=True)
def _random_state_is_kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def draw(
    boxes_xyxy: Tensor = BOXES, labels: Tensor = LABELS, size_hw: tuple[int, int] = (130, 200)
) -> Tensor:
    """A gray image with a rectangle in the place of every box; a label is the channel that shines."""
    image = torch.full((3, *size_hw), 90, dtype=torch.uint8)
    for (x1, y1, x2, y2), label in zip(boxes_xyxy.int().tolist(), labels.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = 20
        image[label, y1:y2, x1:x2] = 230
    return image


def find(image: Tensor, channel: int) -> list[float]:
    """The box xyxy of the pixels where one channel shines: at least half as much as anywhere."""
    others = [other for other in range(3) if other != channel]
    strength = image[channel].float() - image[others].amax(dim=0)
    assert strength.max() > 30, "the rectangle is not in the image"
    y, x = (strength > strength.max() / 2).nonzero().T
    return [float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1]


def augmented(transform: TrainTransform, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return transform(draw(), BOXES, LABELS)


def assert_boxes_are_where_the_pixels_are(image: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> None:
    for box, label in zip(boxes_xyxy.tolist(), labels.tolist(), strict=True):
        assert box == pytest.approx(find(image, label), abs=2)


# -- size


@pytest.mark.parametrize(
    ("size_hw", "short_side", "longest_side", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # x 5/3: 640 -> 1066.7
        ((640, 480), 800, 1333, (1067, 800)),
        ((600, 1000), 800, 1333, (800, 1333)),  # x 1.333: 600 -> 799.8
        ((400, 1600), 800, 1333, (333, 1333)),  # the longer side decides, x 0.833: 400 -> 333.25
        ((1600, 2400), 800, 1333, (800, 1200)),
        ((203, 317), 160, 1333, (160, 250)),  # x 0.788: 317 -> 249.9
        ((375, 500), None, 1025, (769, 1025)),  # x 2.05: 375 -> 768.75
        ((203, 317), None, 634, (406, 634)),
        ((1, 1000), None, 100, (1, 100)),  # 0.1 would be no image
        ((3000, 2), 800, 1333, (1333, 1)),
    ],
)
def test_sizes_worked_out_by_hand(
    size_hw: tuple[int, int], short_side: int | None, longest_side: int, expected: tuple[int, int]
) -> None:
    assert resized_size(size_hw, short_side, longest_side) == expected


@given(
    size_hw=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    short_side=st.none() | st.integers(1, 1500),
    longest_side=st.integers(1, 2000),
)
def test_size_is_the_largest_within_both_limits(
    size_hw: tuple[int, int], short_side: int | None, longest_side: int
) -> None:
    new_hw = resized_size(size_hw, short_side, longest_side)

    assert min(new_hw) >= 1
    assert max(new_hw) <= longest_side
    assert short_side is None or min(new_hw) <= short_side
    assert max(new_hw) == longest_side or min(new_hw) == short_side


@pytest.mark.parametrize("size_hw", [(17, 23), (90, 131)])
def test_resizing_gives_the_pixels_of_pillow(size_hw: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pillow = Image.fromarray(pixels).resize(size_hw[::-1], Image.Resampling.BILINEAR)

    resized = resize(torch.from_numpy(pixels).permute(2, 0, 1), size_hw)

    assert resized.dtype == torch.uint8
    difference = resized.permute(1, 2, 0).int() - torch.from_numpy(np.array(pillow)).int()
    assert difference.abs().max() <= 1


def test_image_of_the_right_size_is_not_touched() -> None:
    image = draw()

    assert resize(image, (130, 200)) is image


@pytest.mark.parametrize(
    ("short_side", "longest_side", "expected"),
    [(65, 500, (65, 100)), (65, 50, (33, 50)), (None, 400, (260, 400))],
)
def test_evaluation_resizes_and_nothing_else(
    short_side: int | None, longest_side: int, expected: tuple[int, int]
) -> None:
    image = EvalTransform(short_side, longest_side)(draw())

    assert (image.dtype, tuple(image.shape[1:])) == (torch.uint8, expected)
    scaled = BOXES[0] * (expected[1] / 200)
    assert find(image, RED) == pytest.approx(scaled.tolist(), abs=1)


# -- boxes follow pixels


@pytest.mark.parametrize("longest_side", [100, 200, 331])
def test_boxes_follow_resizing_without_augmentation(longest_side: int) -> None:
    image, boxes, labels = augmented(
        TrainTransform(EvalTransform(None, longest_side), horizontal_flip=False), 0
    )

    assert image.shape[2] == longest_side
    assert labels.tolist() == [RED, BLUE]
    assert torch.allclose(boxes, BOXES * (longest_side / 200), atol=0.2)  # the height is rounded
    assert_boxes_are_where_the_pixels_are(image, boxes, labels)


def test_half_of_the_images_are_mirrored_with_their_boxes() -> None:
    mirrored = torch.tensor([[115.0, 40.0, 140.0, 60.0], [70.0, 55.0, 90.0, 90.0]])  # 200 - x
    results = [augmented(TrainTransform(EvalTransform(None, 200)), seed) for seed in range(40)]

    for image, boxes, labels in results:
        assert torch.equal(boxes, BOXES) or torch.equal(boxes, mirrored)
        assert_boxes_are_where_the_pixels_are(image, boxes, labels)
    assert 10 <= sum(torch.equal(boxes, mirrored) for _, boxes, _ in results) <= 30


@pytest.mark.parametrize("short_side", [None, 104])
def test_images_are_scaled_at_random_with_their_boxes(short_side: int | None) -> None:
    results = [
        augmented(TrainTransform(EvalTransform(short_side, 160), scale_min=0.5), seed) for seed in range(40)
    ]

    for image, boxes, labels in results:
        assert_boxes_are_where_the_pixels_are(image, boxes, labels)
    widths = [image.shape[2] for image, _, _ in results]
    assert 80 <= min(widths) < 90
    assert 150 < max(widths) <= 160


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "strong"])
def test_boxes_follow_pixels_in_every_policy(policy: str) -> None:
    transform = TrainTransform(EvalTransform(None, 240), scale_min=0.7, augment=build_policy(policy))
    results = [augmented(transform, seed) for seed in SEEDS]

    for image, boxes, labels in results:
        assert (image.dtype, boxes.dtype, labels.dtype) == (torch.uint8, torch.float32, torch.int64)
        assert_boxes_are_where_the_pixels_are(image, boxes, labels)
    assert sum(len(labels) for _, _, labels in results) > len(SEEDS)


def test_boxes_follow_pixels_through_rotations_where_they_are_whole() -> None:
    # A turned rectangle that the border cuts is smaller than its box cut there.
    transform, num_compared = TrainTransform(EvalTransform(None, 240), augment=build_policy("strong")), 0
    for seed in range(30):
        image, boxes, labels = augmented(transform, seed)
        right_bottom = torch.tensor([image.shape[2], image.shape[1]])
        whole = (boxes[:, :2] > 0).all(dim=1) & (boxes[:, 2:] < right_bottom).all(dim=1)
        assert_boxes_are_where_the_pixels_are(image, boxes[whole], labels[whole])
        num_compared += int(whole.sum())
    assert num_compared >= 30


def test_strong_policy_rotates_zooms_out_and_crops() -> None:
    plain = TrainTransform(EvalTransform(None, 200), horizontal_flip=False, augment=build_policy("strong"))
    sides = torch.cat(
        [(boxes[:, 2:] - boxes[:, :2]) for _, boxes, _ in (augmented(plain, s) for s in range(40))]
    )

    assert sides[:, 0].min() < 20 * 0.8  # smaller than drawn: zoomed out
    assert sides[:, 0].max() > 25 * 1.4  # larger: cropped, then scaled to the same size


def test_strong_policy_zooms_a_quarter_of_the_images_out_to_at_most_twice_the_sides() -> None:
    geometry = build_policy("strong").geometry
    assert isinstance(geometry, v2.Compose)
    torch.manual_seed(0)
    widths = torch.tensor([geometry.transforms[0](draw()).shape[2] for _ in range(200)])
    zoomed = widths[widths > 200]
    assert 30 <= len(zoomed) <= 70  # 50 +- 6
    assert 200 < zoomed.min() < 240
    assert 360 < zoomed.max() <= 400


def test_a_quarter_turn_worked_out_by_hand() -> None:
    image, boxes = quarter_turn(draw(), BOXES)

    assert tuple(image.shape[1:]) == (200, 130)
    assert boxes[0].tolist() == [40, 115, 60, 140]  # against the clock: x, y -> y, 200 - x
    assert find(image, RED) == [40, 115, 60, 140]


def test_overhead_shows_an_image_in_all_eight_poses() -> None:
    # Red to blue is (47.5, 22.5): more across than down, so that every turn and mirror differs.
    transform = TrainTransform(EvalTransform(None, 200), augment=build_policy("overhead"))
    poses, sizes_hw = set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, boxes, labels = transform(draw(), BOXES, LABELS, turned=seed % 2 == 1)
        sizes_hw.add(tuple(image.shape[1:]))
        if labels.tolist() == [RED, BLUE]:
            x, y = (boxes[1].reshape(2, 2).mean(dim=0) - boxes[0].reshape(2, 2).mean(dim=0)).tolist()
            poses.add((x > 0, y > 0, abs(x) > abs(y)))

    assert len(poses) == 8
    assert {(130, 200), (200, 130)} <= sizes_hw  # whole images, lying and upright


def test_crops_keep_the_shape_of_the_image() -> None:
    transform = TrainTransform(EvalTransform(None, 200), augment=build_policy("standard"))

    assert {tuple(augmented(transform, seed)[0].shape[1:]) for seed in range(40)} <= {
        (129, 200),
        (130, 200),
        (131, 200),
    }


def test_crops_lie_anywhere() -> None:
    crop = RandomCropOfBoxes(0.5)
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    places = []
    for seed in range(40):
        torch.manual_seed(seed)
        chosen = crop.make_params([image])
        assert 50 <= chosen["height"] <= 100
        free = max(1, 100 - chosen["height"]), max(1, 200 - chosen["width"])
        places.append((chosen["top"] / free[0], chosen["left"] / free[1]))
    for of_axis in zip(*places, strict=True):
        assert min(of_axis) < 0.15
        assert max(of_axis) > 0.85
        assert 0.35 < sum(of_axis) / 40 < 0.65


@pytest.mark.parametrize(("left", "kept"), [(69, True), (71, True), (74, True), (76, False), (90, False)])
def test_a_box_is_kept_with_more_than_a_quarter_of_its_area(left: int, kept: bool) -> None:
    """A crop that begins at `left` shows 100 - left of the 100 columns of the box."""

    class CropAt(v2.Transform):  # type: ignore[misc]
        def make_params(self, flat_inputs: object) -> dict[str, int]:
            return {"top": 0, "left": left, "height": 100, "width": 100}

        def transform(self, inpt: object, params: dict[str, int]) -> object:
            return RandomCropOfBoxes(1.0).transform(inpt, params)

    policy = TrainTransform(EvalTransform(None, 100), horizontal_flip=False, augment=Augmentation(CropAt()))
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    _, boxes, labels = policy(image, torch.tensor([[0.0, 0.0, 100.0, 50.0]]), torch.tensor([1]))
    assert boxes.tolist() == ([[0, 0, 100 - left, 50]] if kept else [])
    assert labels.tolist() == [1] * kept


def test_color_policy_leaves_boxes_alone_and_changes_pixels() -> None:
    transform = TrainTransform(EvalTransform(None, 200), horizontal_flip=False, augment=build_policy("color"))
    results = [augmented(transform, seed) for seed in SEEDS]

    assert all(torch.equal(boxes, BOXES) for _, boxes, _ in results)
    assert len({tuple(image[:, 50, 70].tolist()) for image, _, _ in results}) > 5


# -- which boxes stay


def test_boxes_that_leave_the_image_are_left_out() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 15.0, 15.0],  # outside of the crop, which is 20 to 80
            [10.0, 30.0, 40.0, 50.0],  # two thirds inside
            [10.0, 30.0, 22.0, 40.0],  # a sixth inside
            [5.0, 30.0, 25.0, 50.0],  # a quarter inside
            [30.0, 30.0, 70.0, 50.0],
        ]
    )
    crop = Augmentation(geometry=v2.CenterCrop(60))
    transform = TrainTransform(EvalTransform(None, 60), horizontal_flip=False, augment=crop)

    _, kept, labels = transform(draw(boxes[:0], LABELS[:0], (100, 100)), boxes, torch.arange(5))

    assert labels.tolist() == [1, 4]
    assert kept.tolist() == [[0, 10, 20, 30], [10, 10, 50, 30]]


@pytest.mark.parametrize(("min_area", "expected"), [(0.0, [0, 1, 2]), (25.0, [0, 1]), (25.5, [0])])
def test_boxes_that_are_too_small_after_resizing_are_left_out(min_area: float, expected: list[int]) -> None:
    boxes = torch.tensor([[0.0, 0.0, 12.0, 12.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 42.0, 10.0]])
    transform = TrainTransform(
        EvalTransform(None, 50), horizontal_flip=False, min_area=min_area
    )  # areas become 36, 25, 5

    _, kept, labels = transform(draw(boxes[:0], LABELS[:0], (100, 100)), boxes, torch.arange(3))

    assert labels.tolist() == expected
    assert torch.equal(kept, boxes[expected] / 2)


def test_boxes_without_area_are_left_out() -> None:
    # Without width; inverted in both sides (whose product is positive); inverted in one.
    boxes = torch.tensor([[50.0, 50.0, 50.0, 60.0], [60.0, 60.0, 50.0, 50.0], [60.0, 50.0, 40.0, 70.0]])

    _, kept, labels = TrainTransform(EvalTransform(None, 100))(draw(), boxes, torch.arange(3))

    assert (tuple(kept.shape), labels.tolist()) == ((0, 4), [])


@pytest.mark.parametrize("policy", [False, *POLICIES])
@pytest.mark.parametrize("size_hw", [(130, 200), (1, 1), (1, 60)])
def test_images_without_boxes_survive_every_policy(policy: bool | str, size_hw: tuple[int, int]) -> None:
    transform = TrainTransform(EvalTransform(None, 64), scale_min=0.5, augment=build_policy(policy))
    for seed in SEEDS:
        torch.manual_seed(seed)
        image, boxes, labels = transform(draw(BOXES[:0], LABELS[:0], size_hw), BOXES[:0], LABELS[:0])

        assert (image.dtype, len(image)) == (torch.uint8, 3)
        assert 32 <= max(image.shape[1:]) <= 64
        assert (tuple(boxes.shape), tuple(labels.shape)) == ((0, 4), (0,))


# -- names


def test_policies_are_the_ones_that_the_settings_name() -> None:
    _, literal = get_args(TrainConfig.model_fields["augmentation"].annotation)

    assert tuple(POLICIES) == get_args(literal)


def test_true_is_the_standard_policy_and_false_none() -> None:
    assert build_policy(False) == Augmentation()
    assert repr(build_policy(True)) == repr(build_policy("standard"))
    assert build_policy("standard").geometry is not None
    assert build_policy("color").geometry is None


def test_unknown_policy_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"augmentation": "mosaic"})

    assert error.value.what == '"augmentation": "mosaic" is not a valid value'
    assert all(f'"{policy}"' in error.value.fix for policy in POLICIES)


# -- how small an image may be decoded


def test_enough_is_half_as_much_again_as_the_target() -> None:
    assert TrainTransform(EvalTransform(320, 532), reduced_decode=True).enough((3000, 4000)) == (480, 641)
    assert TrainTransform(EvalTransform(None, 1000), reduced_decode=True).enough((3000, 4000)) == (1125, 1500)


@pytest.mark.parametrize(("policy", "margin"), [("color", 1.5), ("standard", 1 / 0.6), ("strong", 2.5)])
def test_enough_leaves_room_for_crops(policy: str, margin: float) -> None:
    transform = TrainTransform(EvalTransform(None, 400), augment=build_policy(policy), reduced_decode=True)
    assert transform.enough((400, 400)) == (math.ceil(400 * margin), math.ceil(400 * margin))


def test_exact_ways_of_resizing_want_the_whole_image() -> None:
    assert TrainTransform(EvalTransform(320, 532)).enough((3000, 4000)) == (3000, 4000)
    for method in ("pillow", "opencv", "float"):
        transform = TrainTransform(EvalTransform(320, 532, method=method), reduced_decode=True)
        assert transform.enough((3000, 4000)) == (3000, 4000)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("detectron2_r50", "round"),
        ("mmdet_r50_caffe", "round"),
        ("official_r50_imprv", "truncate"),
        ("torchvision_r50", "floor"),
    ],
)
def test_sizes_are_those_of_the_code_bases(vectors: Callable[[str], Path], name: str, rule: SizeRule) -> None:
    table = json.loads((vectors(name) / "meta.json").read_text())["resize_table"]
    assert len(table) == 18
    for words, (large, small) in table.items():
        height, width = map(int, words.split("x"))
        assert resized_size((height, width), 800, 1333, rule) == tuple(large), words
        assert resized_size((height, width), 160, 256, rule) == tuple(small), words


def test_the_three_rules_by_hand() -> None:
    # 427 x 640 to 160: 640 * 160 / 427 = 239.81
    assert resized_size((427, 640), 160, 256, "round") == (160, 240)
    assert resized_size((427, 640), 160, 256, "truncate") == (160, 239)
    assert resized_size((1, 5000), 800, 1333, "truncate")[0] == 1  # the official code makes it 0
    assert resized_size((427, 640), 160, 256, "floor") == (160, 239)
    # 1080 x 1920: the longer side decides; 1080 * 1333 / 1920 = 749.81
    assert resized_size((1080, 1920), 800, 1333, "round") == (750, 1333)
    assert resized_size((1080, 1920), 800, 1333, "truncate") == (750, 1333)
    assert resized_size((1080, 1920), 800, 1333, "floor") == (749, 1333)
    assert resized_size((1080, 1920), None, 960, "truncate") == (540, 960)


def test_pillow_is_pillow_and_ours_is_within_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(pixels).resize((50, 37), Image.Resampling.BILINEAR))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert np.array_equal(resize(image, (37, 50), "pillow").permute(1, 2, 0).numpy(), theirs)
    ours = resize(image, (37, 50)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_opencv_and_float_do_not_smooth() -> None:
    stripes = torch.zeros(3, 8, 8, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    # every new pixel lies midway between two old ones: 0 and 200
    assert resize(stripes, (4, 4), "opencv").unique().tolist() == [100]
    # a third of the size: every new pixel lies on an old one, the others do not count
    wide = torch.zeros(3, 9, 9, dtype=torch.uint8)
    wide[:, :, 1::3] = 200
    assert resize(wide, (3, 3), "opencv").unique().tolist() == [200]
    floats = resize(wide, (3, 4), "float")
    assert floats.dtype == torch.float32
    # the second of four new pixels lies at 1.5 * 9 / 4 - 0.5 = 2.875: 7/8 of the way to a dark one
    assert floats[0, 0, 1].item() == pytest.approx(0.0)
    # the first at 0.5 * 9 / 4 - 0.5 = 0.625: 5/8 of the way to a bright one, not rounded
    assert floats[0, 0, 0].item() == pytest.approx(125.0)
    assert resize(wide, (9, 9), "float") is wide


# Padding --------------------------------------------------------------------------------------------------


def test_padded_size_holds_every_image() -> None:
    assert padded_size([(33, 64), (64, 10)], 32) == (64, 64)
    assert padded_size([(65, 1)], 32) == (96, 32)


def test_images_of_one_padded_size_go_together_and_large_ones_alone() -> None:
    sizes_hw = [(20, 40), (33, 16), (32, 64), (100, 100), (64, 32), (97, 128)]

    assert same_padded_size(sizes_hw, 32) == [[0, 2], [1, 4], [3, 5]]
    assert same_padded_size(sizes_hw, 32, max_pixels=64 * 64) == [[0, 2], [1, 4], [3], [5]]


# -- tiles


def test_a_tile_is_a_part_of_the_image_with_its_boxes_at_their_own_size() -> None:
    """Half of the tiles or more have the center of the box in them; the box is moved along."""
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    image[:, 200:220, 300:330] = 255
    transform = TrainTransform(EvalTransform(None, 100), horizontal_flip=False, tile=100)
    with_center, corners = 0, set()
    for seed in SEEDS:
        torch.manual_seed(seed)
        tile, boxes, labels = transform(
            image, torch.tensor([[300.0, 200.0, 330.0, 220.0]]), torch.tensor([2])
        )
        assert tuple(tile.shape) == (3, 100, 100)
        rows, columns = (tile[0] > 0).nonzero(as_tuple=True)
        shares = len(rows) / 600
        assert labels.tolist() == ([2] if shares > 0.25 else [])
        for box in boxes.tolist():  # what is visible of it
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            corners.add(tuple(box[:2]))
        with_center += shares >= 0.25
    assert 0.6 < with_center / len(SEEDS) <= 1
    assert len(corners) > 5


def test_a_tile_is_resized_as_an_image_of_its_size() -> None:
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    transform = TrainTransform(EvalTransform(None, 160), horizontal_flip=False, tile=100)
    tile, _, _ = transform(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert tuple(tile.shape) == (3, 160, 160)
    high = TrainTransform(EvalTransform(None, 160), tile=100)(
        image[:, :, :50], torch.zeros(0, 4), torch.zeros(0).long()
    )
    assert tuple(high[0].shape) == (3, 160, 80)  # of an image 50 wide, 100 x 50


def test_images_that_are_cut_into_tiles_are_decoded_at_full_size() -> None:
    assert TrainTransform(EvalTransform(320, 532), reduced_decode=True, tile=640).enough((3000, 4000)) == (
        3000,
        4000,
    )
