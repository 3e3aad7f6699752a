from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcos.model.assign import (
    BACKGROUND,
    StaticAssigner,
    Targets,
    centerness_of,
    eligible_pairs,
    near_center,
    smallest_box,
)
from fcos.model.points import PointGrid, make_grid

from .conftest import NETWORK_HW, RANGES, STRIDES, Peer

SIZE = 256  # of the square images in the tests of properties
STATIC = StaticAssigner(RANGES, 1.5)
WHOLE_BOX = StaticAssigner(RANGES, None)


def assign(
    boxes: list[list[float]] | Tensor, labels: list[int], radius: float | None = None, size: int = SIZE
) -> tuple[PointGrid, Targets]:
    grid = make_grid((size, size), STRIDES)
    boxes_xyxy = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    targets = StaticAssigner(RANGES, radius)(grid, [boxes_xyxy], [torch.tensor(labels, dtype=torch.int64)])
    return grid, targets


def positives(grid: PointGrid, targets: Targets) -> dict[tuple[float, float, float], int]:
    """Label of each positive point, by (x, y, stride)."""
    places = torch.cat([grid.points, grid.strides[:, None]], dim=1)[targets.labels[0] != BACKGROUND]
    labels = targets.labels[0][targets.labels[0] != BACKGROUND].tolist()
    return {(x, y, stride): label for (x, y, stride), label in zip(places.tolist(), labels, strict=True)}


@st.composite
def boxes_without_ties(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """One to five boxes of different areas inside the image, with labels."""
    number = st.integers(0, SIZE)
    boxes: dict[float, list[float]] = {}
    for _ in range(draw(st.integers(1, 5))):
        xs, ys = sorted(draw(st.tuples(number, number))), sorted(draw(st.tuples(number, number)))
        boxes.setdefault((xs[1] - xs[0]) * (ys[1] - ys[0]), [xs[0], ys[0], xs[1], ys[1]])
    labels = draw(st.lists(st.integers(0, 4), min_size=len(boxes), max_size=len(boxes)))
    return list(boxes.values()), labels


def slow_match(points: Tensor, strides: Tensor, boxes: Tensor, radius: float | None) -> list[int]:
    """Sections 3.1 to 3.3 of the paper with loops, one number at a time."""
    ends = dict(zip(STRIDES, zip((0.0, *RANGES), (*RANGES, float("inf")), strict=True), strict=True))
    matched = []
    for (x, y), stride in zip(points.tolist(), strides.tolist(), strict=True):
        best, best_area = -1, float("inf")
        for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            inside = x1 < x < x2 and y1 < y < y2
            if radius is not None:
                dx, dy = x - (x1 + x2) / 2, y - (y1 + y2) / 2
                inside = inside and max(abs(dx), abs(dy)) < radius * stride
            lower, upper = ends[int(stride)]
            fits = lower <= max(x - x1, y - y1, x2 - x, y2 - y) <= upper
            area = (x2 - x1) * (y2 - y1)
            if inside and fits and area < best_area:
                best, best_area = index, area
        matched.append(best)
    return matched


# By hand -------------------------------------------------------------------------------------------------


def test_a_point_learns_the_distances_to_the_sides_of_its_box() -> None:
    grid, targets = assign([[0, 0, 16, 24]], [3])
    # All points of P3 inside the box; its largest distances stay below 64, so no other level learns it.
    expected = {(x, y, 8.0): 3 for x in (4.0, 12.0) for y in (4.0, 12.0, 20.0)}
    assert positives(grid, targets) == expected
    first = (grid.points == torch.tensor([4.0, 12.0])).all(dim=1).nonzero()[0, 0]
    assert targets.distances[0, first].tolist() == [4, 12, 12, 12]
    assert targets.matched[0, first] == 0
    assert targets.centerness[0, first] == pytest.approx((4 / 12 * 12 / 12) ** 0.5)


def test_centerness_is_one_in_the_middle_and_zero_on_a_side() -> None:
    distances = torch.tensor(
        [[5.0, 5.0, 5.0, 5.0], [0.0, 5.0, 10.0, 5.0], [1.0, 4.0, 4.0, 1.0], [-1.0, 2.0, 3.0, 2.0]]
    )
    assert centerness_of(distances).tolist() == pytest.approx([1, 0, 0.25, 0])


def test_centerness_of_a_box_without_size_is_a_number() -> None:
    assert centerness_of(torch.zeros(1, 4)).tolist() == [0]


def test_point_in_two_boxes_takes_the_smaller_one() -> None:
    grid, targets = assign([[0, 0, 40, 40], [8, 8, 32, 32]], [0, 1])
    found = positives(grid, targets)
    assert found[(12.0, 12.0, 8.0)] == 1
    assert found[(4.0, 4.0, 8.0)] == 0


def test_areas_are_compared_exactly() -> None:
    # detectron2 and torchvision compare 1e8 - area in float32, which has steps of 8: there the first wins.
    grid, targets = assign([[0, 0, 40, 40.05], [0, 0, 40, 40]], [0, 1])
    assert positives(grid, targets)[(20.0, 20.0, 8.0)] == 1


def test_both_ends_of_a_range_belong_to_the_level() -> None:
    # 64 to the right side from x = 4, a point of P3, and from x = 8, a point of P4.
    grid, targets = assign([[0, 0, 68, 16]], [0])
    assert (4.0, 4.0, 8.0) in positives(grid, targets)
    grid, targets = assign([[0, 0, 72, 16]], [0])
    assert (8.0, 8.0, 16.0) in positives(grid, targets)


def test_large_boxes_are_learnt_by_coarse_levels() -> None:
    for side, stride in ((60, 8), (150, 16), (300, 32), (600, 64), (2000, 128)):
        grid, targets = assign([[0, 0, side, side]], [0], radius=1.5, size=2048)
        assert {key[2] for key in positives(grid, targets)} == {stride}


def test_center_sampling_keeps_points_within_the_radius_of_the_center() -> None:
    grid, targets = assign([[0, 0, 56, 56]], [0], radius=1.5)
    # Center 28, radius 12: strictly between 16 and 40.
    assert positives(grid, targets).keys() == {
        (x, y, 8.0) for x in (20.0, 28.0, 36.0) for y in (20.0, 28.0, 36.0)
    }


def test_the_radius_grows_with_the_stride_of_the_level() -> None:
    points, boxes = torch.tensor([[20.0, 50.0], [20.0, 50.0]]), torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    assert near_center(points, boxes, torch.tensor([29.0, 31.0])).flatten().tolist() == [False, True]


def test_an_image_without_boxes_has_no_positives() -> None:
    for assigner in (STATIC, WHOLE_BOX):
        targets = assigner(
            make_grid((64, 64), STRIDES), [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
        )
        assert (targets.labels == BACKGROUND).all()
        assert (targets.matched == -1).all()
        assert targets.normalizers().tolist() == [0, 0, 0]


def test_a_box_without_area_has_no_positives() -> None:
    _, targets = assign([[20, 0, 20, 50], [4, 4, 4, 4]], [0, 0])
    assert (targets.labels == BACKGROUND).all()


def test_a_batch_is_its_images_one_by_one() -> None:
    grid = make_grid((SIZE, SIZE), STRIDES)
    boxes = [
        torch.tensor([[0.0, 0.0, 50.0, 50.0]]),
        torch.zeros(0, 4),
        torch.tensor([[9.0, 9.0, 200.0, 90.0]]),
    ]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.int64), torch.tensor([0])]
    together = STATIC(grid, boxes, labels)
    for i in range(3):
        alone = STATIC(grid, [boxes[i]], [labels[i]])
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


def test_normalizers_count_positives_and_sum_their_centerness() -> None:
    _, targets = assign([[0, 0, 56, 56]], [0], radius=1.5)
    scores, centerness, count = targets.normalizers().tolist()
    # 9 points at offsets -8, 0, 8 from the center of a box of half side 28: 20 / 36 for each axis off center.
    off = (20 / 36) ** 0.5
    assert scores == count == 9
    assert centerness == pytest.approx(1 + 4 * off + 4 * off**2)


def test_a_point_in_two_boxes_takes_the_smallest_as_the_assigner_counts_areas() -> None:
    boxes = torch.tensor([[2.0, 0.0, 6.0, 25.0], [0.0, 0.0, 10.0, 10.2]])  # the areas of the test below
    grid = make_grid((32, 32), STRIDES)
    for areas, label in (("exact", 0), ("inclusive", 1)):
        assigner = StaticAssigner(RANGES, None, areas=areas)  # type: ignore[arg-type]
        targets = assigner(grid, [boxes], [torch.tensor([0, 1])])
        assert targets.labels[0, 0] == label  # of the point (4, 4)


def test_which_box_is_the_smallest_depends_on_how_areas_are_counted() -> None:
    # Areas 100 and 102; with sides that are 1 longer 5 x 26 = 130 and 11 x 11.2 = 123.2.
    thin_and_square = torch.tensor([[0.0, 0.0, 4.0, 25.0], [0.0, 0.0, 10.0, 10.2]])
    both = torch.ones(1, 2, dtype=torch.bool)
    assert smallest_box(both, thin_and_square, "exact").item() == 0
    assert smallest_box(both, thin_and_square, "inclusive").item() == 1
    # Areas 20 and 35; with sides 1 longer 42 and 48, with sides 2 longer they would be 66 and 63.
    flat = torch.tensor([[0.0, 0.0, 20.0, 1.0], [0.0, 0.0, 7.0, 5.0]])
    assert smallest_box(both, flat, "inclusive").item() == 0
    # 1e8 - area has steps of 8 in float32: 1602 and 1600 are equal there, and the first wins.
    nearly_equal = torch.tensor([[0.0, 0.0, 40.0, 40.05], [0.0, 0.0, 40.0, 40.0]])
    assert smallest_box(both, nearly_equal, "exact").item() == 1
    assert smallest_box(both, nearly_equal, "float32").item() == 0


# Against loops and other code bases -----------------------------------------------------------------------


@pytest.mark.parametrize("radius", [None, 1.5, 0.7])
def test_matching_is_the_papers_rule_written_with_loops(radius: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = make_grid((192, 320), STRIDES)
    lower = torch.tensor([0.0, *RANGES]).repeat_interleave(torch.tensor(grid.points_per_level))
    upper = torch.tensor([*RANGES, torch.inf]).repeat_interleave(torch.tensor(grid.points_per_level))
    for _ in range(5):
        corners = torch.rand(6, 2, 2, generator=generator) * torch.tensor([320.0, 192.0])
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        inside, in_range = eligible_pairs(grid.points, grid.strides, boxes, lower, upper, radius)
        matched = smallest_box(inside & in_range, boxes)
        assert matched.tolist() == slow_match(grid.points, grid.strides, boxes, radius)


def peer_targets(peer: Peer, truth: str, radius: float | None) -> Targets:
    assigner = StaticAssigner(RANGES, radius)
    return assigner(make_grid(NETWORK_HW, STRIDES), [peer.boxes[truth]], [peer.labels[truth]])


@pytest.mark.parametrize("truth", ["A", "B"])
@pytest.mark.parametrize(
    ("name", "radius", "background", "in_strides"),
    [
        ("adelaidet_r50_1x", 1.5, 5, True),
        ("mmdet_r50_caffe_tricks", 1.5, 5, True),
        ("mmdet_r50_caffe", None, 5, False),
        ("official_r50_imprv", 1.5, 0, True),
    ],
)
def test_targets_equal_those_of_other_code_bases(
    peer: Callable[[str], Peer],
    name: str,
    radius: float | None,
    background: int,
    in_strides: bool,
    truth: str,
) -> None:
    theirs = peer(name)
    ours = peer_targets(theirs, truth, radius)
    labels = torch.from_numpy(theirs.targets[f"{truth}_labels"])
    positive = labels != background
    assert torch.equal(ours.labels[0] != BACKGROUND, positive)
    assert torch.equal(ours.labels[0][positive], labels[positive])
    unit = make_grid(NETWORK_HW, STRIDES).strides[:, None] if in_strides else 1.0
    distances = torch.from_numpy(theirs.targets[f"{truth}_reg"]) * unit
    assert torch.equal(ours.distances[0][positive], distances[positive])
    centerness = torch.from_numpy(theirs.targets[f"{truth}_ctr_pos"])
    torch.testing.assert_close(ours.centerness[0][positive], centerness, rtol=0, atol=1e-6)


@pytest.mark.parametrize("truth", ["A", "B"])
def test_detectron2_differs_at_the_ends_of_ranges_and_in_nearly_equal_areas_only(
    peer: Callable[[str], Peer], truth: str
) -> None:
    theirs = peer("detectron2_r50")
    ours = peer_targets(theirs, truth, 1.5)
    labels = torch.from_numpy(theirs.targets[f"{truth}_labels"])
    labels = torch.where(labels == 5, BACKGROUND, labels)
    lost = (labels == BACKGROUND) & (ours.labels[0] != BACKGROUND)
    assert set(ours.distances[0][lost].amax(dim=1).tolist()) <= set(RANGES)
    assert not ((labels != BACKGROUND) & (ours.labels[0] == BACKGROUND)).any()
    other = (labels != ours.labels[0]) & ~lost
    boxes, matched = theirs.boxes[truth], ours.matched[0]
    sides = boxes[:, 2:] - boxes[:, :2]
    taken = torch.from_numpy(theirs.targets[f"{truth}_matched_boxes"])
    larger = (taken[:, 2:] - taken[:, :2]).prod(dim=1)[other] - sides.prod(dim=1)[matched[other]]
    assert int(lost.sum()) + int(other.sum()) == 4
    assert ((larger > 0) & (larger < 8)).all()


@pytest.mark.parametrize("truth", ["A", "B"])
def test_matching_is_torchvisions_on_its_points_and_with_its_strict_ranges(
    peer: Callable[[str], Peer], truth: str
) -> None:
    theirs = peer("torchvision_r50")
    grid = make_grid(NETWORK_HW, STRIDES)
    counts = torch.tensor(grid.points_per_level)
    lower = torch.tensor([0.0, *RANGES]).nextafter(torch.tensor(torch.inf)).repeat_interleave(counts)
    upper = torch.tensor([*RANGES, torch.inf]).nextafter(torch.tensor(0.0)).repeat_interleave(counts)
    boxes = theirs.boxes[truth]
    points = torch.from_numpy(theirs.targets["points"])
    inside, in_range = eligible_pairs(points, grid.strides, boxes, lower, upper, 1.5)
    ours = smallest_box(inside & in_range, boxes)
    expected = torch.from_numpy(theirs.targets[f"{truth}_matched_idx"])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    other = ours != expected
    assert torch.equal(ours >= 0, expected >= 0)
    # Where they differ they take the first of two areas that float32 cannot tell apart in 1e8 - area.
    assert ((areas[expected[other]] - areas[ours[other]]).abs() < 8).all()
    assert int((ours >= 0).sum()) == {"A": 27, "B": 29}[truth]


# Properties -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(boxes_without_ties())
def test_every_positive_point_lies_inside_its_box_and_in_the_range_of_its_level(
    truth: tuple[list[list[float]], list[int]],
) -> None:
    for radius in (None, 1.5):
        grid, targets = assign(*truth, radius=radius)
        positive = targets.labels[0] != BACKGROUND
        distances = targets.distances[0][positive]
        assert (distances > 0).all()
        level = torch.tensor(STRIDES).tolist()
        index = torch.tensor(
            [level.index(int(stride)) for stride in grid.strides[positive]], dtype=torch.int64
        )
        largest = distances.amax(dim=1) if len(distances) else distances.new_zeros(0)
        assert (largest >= torch.tensor([0.0, *RANGES])[index]).all()
        assert (largest <= torch.tensor([*RANGES, torch.inf])[index]).all()
        assert (targets.centerness[0][positive] > 0).all()


@settings(deadline=None, max_examples=30)
@given(boxes_without_ties())
def test_center_sampling_takes_positives_away_and_adds_none(
    truth: tuple[list[list[float]], list[int]],
) -> None:
    _, sampled = assign(*truth, radius=1.5)
    _, everything = assign(*truth, radius=None)
    assert ((everything.labels != BACKGROUND) | (sampled.labels == BACKGROUND)).all()


@settings(deadline=None, max_examples=30)
@given(boxes_without_ties(), st.randoms(use_true_random=False))
def test_the_order_of_the_boxes_does_not_matter(
    truth: tuple[list[list[float]], list[int]], random: object
) -> None:
    boxes, labels = truth
    order = list(range(len(boxes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    _, first = assign(boxes, labels, radius=1.5)
    _, second = assign([boxes[i] for i in order], [labels[i] for i in order], radius=1.5)
    positive = first.labels != BACKGROUND
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.distances[positive], second.distances[positive])


@settings(deadline=None, max_examples=30)
@given(boxes_without_ties())
def test_mirroring_image_and_boxes_mirrors_the_targets(truth: tuple[list[list[float]], list[int]]) -> None:
    boxes, labels = truth
    grid, targets = assign(boxes, labels, radius=1.5)
    _, mirrored = assign([[SIZE - x2, y1, SIZE - x1, y2] for x1, y1, x2, y2 in boxes], labels, radius=1.5)
    first = 0
    for height, width in grid.level_sizes:
        place = slice(first, first + height * width)
        first += height * width
        rows = targets.labels[0, place].reshape(height, width)
        assert torch.equal(mirrored.labels[0, place].reshape(height, width), rows.flip(1))
        distances = targets.distances[0, place].reshape(height, width, 4).flip(1)[..., [2, 1, 0, 3]]
        flipped = mirrored.distances[0, place].reshape(height, width, 4)
        positive = rows.flip(1) != BACKGROUND
        assert torch.equal(flipped[positive], distances[positive])
