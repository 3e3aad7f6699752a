from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from fcos.model.assign import Match, build_targets
from fcos.model.dynamic_assign import (
    RULES,
    AtssAssigner,
    DynamicAssigner,
    Pairs,
    match_aligned,
    match_simota,
    match_soft,
)
from fcos.model.fcos import HeadOutput
from fcos.model.points import PointGrid, distances_to_boxes, make_grid

STRIDES = (8, 16, 32)
HW = (96, 128)
RULE_NAMES = sorted(RULES)


def predictions(seed: int, num_classes: int = 3, images: int = 1) -> tuple[PointGrid, HeadOutput]:
    grid = make_grid(HW, STRIDES)
    generator = torch.Generator().manual_seed(seed)
    shape = images, len(grid.points)
    logits = torch.randn(*shape, num_classes, generator=generator) - 2
    distances = torch.rand(*shape, 4, generator=generator) * 6 * grid.strides[:, None]
    return grid, HeadOutput(logits, distances, None)


def truth(seed: int, number: int, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    low = torch.rand(number, 2, generator=generator) * torch.tensor([HW[1] - 40.0, HW[0] - 40.0])
    sides = 4 + 70 * torch.rand(number, 2, generator=generator)
    return torch.cat([low, low + sides], dim=1), torch.randint(num_classes, (number,), generator=generator)


def pairs_by_hand(ious: list[list[float]], scores: list[float], points: list[list[float]]) -> Pairs:
    """Points of stride 8 inside of boxes of one class: 0..80 wide and high, and 8 to the right."""
    boxes = torch.tensor([[0.0, 0, 80, 80], [8.0, 0, 88, 80]])[: len(ious[0])]
    values = torch.tensor(ious)
    logits = torch.tensor(scores).logit()[:, None]
    inside = torch.ones_like(values, dtype=torch.bool)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Pairs(torch.tensor(points), torch.full((len(points),), 8.0), logits, boxes, labels, inside, values)


# By hand --------------------------------------------------------------------------------------------------


def test_alignment_is_the_score_times_the_sixth_power_of_the_iou() -> None:
    # 0.5 * 0.8 ** 6 = 0.131, 0.9 * 0.7 ** 6 = 0.106, 0.9 * 0.5 ** 6 = 0.014: the first two
    pairs = pairs_by_hand([[0.8], [0.7], [0.5]], [0.5, 0.9, 0.9], [[40.0, 40.0]] * 3)
    match = match_aligned(pairs, top=2)
    assert match.matched.tolist() == [0, 0, -1]
    # the best aligned point gets the largest IoU of the box, the others in proportion
    second = 0.8 * (0.9 * 0.7**6) / (0.5 * 0.8**6)
    assert match.class_scores.tolist() == pytest.approx([0.8, second, 0], abs=1e-6)
    assert match.box_weights.tolist() == match.class_scores.tolist()


def test_alignment_gives_a_point_of_two_boxes_to_the_one_that_it_fits_better() -> None:
    pairs = pairs_by_hand([[0.6, 0.7], [0.9, 0.1]], [0.5, 0.5], [[40.0, 40.0], [44.0, 40.0]])
    assert match_aligned(pairs, top=2).matched.tolist() == [1, 0]


def test_simota_takes_as_many_points_as_the_ious_add_up_to() -> None:
    # 0.9 + 0.8 + 0.7 = 2.4: two points, those of the lowest cost
    pairs = pairs_by_hand([[0.7], [0.9], [0.8]], [0.5] * 3, [[40.0, 40.0]] * 3)
    match = match_simota(pairs)
    assert match.matched.tolist() == [-1, 0, 0]
    assert match.class_scores.tolist() == pytest.approx([0, 0.9, 0.8])
    assert match.box_weights.tolist() == [0, 1, 1]


def test_simota_takes_one_point_at_least_and_prefers_the_center() -> None:
    # 30 pixels from the center are more than 2.5 strides: the better box there does not help
    pairs = pairs_by_hand([[0.4], [0.1]], [0.5, 0.5], [[70.0, 40.0], [45.0, 40.0]])
    assert match_simota(pairs).matched.tolist() == [-1, 0]


def test_simota_prefers_the_better_class_score_among_equal_boxes() -> None:
    pairs = pairs_by_hand([[0.5], [0.5]], [0.1, 0.6], [[40.0, 40.0]] * 2)
    assert match_simota(pairs).matched.tolist() == [-1, 0]


def test_soft_assignment_costs_ten_times_more_for_each_stride_from_the_center() -> None:
    # equal boxes and scores; 10 ** (0 - 3) against 10 ** (4 - 3)
    pairs = pairs_by_hand([[0.5], [0.5]], [0.3, 0.3], [[40.0, 72.0], [40.0, 40.0]])
    match = match_soft(pairs)
    assert match.matched.tolist() == [-1, 0]
    assert match.class_scores.tolist() == [0, 0.5]
    # 3 strides cost 1: an IoU of 0.9 against 0.4 is worth more, 3 * (log 0.9 - log 0.4) = 2.4
    pairs = pairs_by_hand([[0.9], [0.4]], [0.3, 0.3], [[40.0, 64.0], [40.0, 40.0]])
    assert match_soft(pairs).matched.tolist() == [0, -1]


def test_atss_takes_what_overlaps_more_than_mean_plus_deviation() -> None:
    """One level of stride 8, squares of 64: the 9 nearest points of a box of 64 pixels around (64, 48)."""
    grid = make_grid(HW, (8,))
    box = torch.tensor([[32.0, 16.0, 96.0, 80.0]])
    matched = AtssAssigner().match(grid, box)
    # Points at multiples of 8 plus 4: four at (+-4, +-4), eight at (+-4, +-12); the first five of the eight
    # are candidates. Shifted by 4 and 4: 60 * 60 / (2 * 4096 - 3600); by 4 and 12: 60 * 52 / ...
    near, far = 3600 / (8192 - 3600), 3120 / (8192 - 3120)
    values = [near] * 4 + [far] * 5
    mean = sum(values) / 9
    threshold = mean + math.sqrt(sum((value - mean) ** 2 for value in values) / 8)
    assert far < threshold < near
    chosen = {tuple(point) for point in grid.points[matched == 0].tolist()}
    assert chosen == {(60.0, 44.0), (68.0, 44.0), (60.0, 52.0), (68.0, 52.0)}


# Against slow versions ------------------------------------------------------------------------------------


def slow_match(rule: str, grid: PointGrid, output: HeadOutput, boxes: Tensor, labels: Tensor) -> list[int]:
    """The rules one pair at a time."""
    predicted = distances_to_boxes(grid.points, output.distances[0])
    ious = box_iou(predicted, boxes).tolist()
    scores = output.logits[0].sigmoid().tolist()
    chosen: dict[int, list[tuple[float, int]]] = {}
    for j, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        inside = [i for i, (x, y) in enumerate(grid.points.tolist()) if x1 < x < x2 and y1 < y < y2]
        costs: dict[int, float] = {}
        for i in inside:
            iou, (x, y), stride = ious[i][j], grid.points[i].tolist(), grid.strides[i].item()
            away = (x - (x1 + x2) / 2), (y - (y1 + y2) / 2)
            if rule == "tal":
                costs[i] = -scores[i][labels[j]] * iou**6
                continue
            classes = 0.0
            for c, p in enumerate(scores[i]):
                wanted = (1.0 if rule == "simota" else iou) if c == labels[j] else 0.0
                entropy = -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)
                classes += entropy if rule == "simota" else entropy * (p - wanted) ** 2
            if rule == "simota":
                far = max(abs(away[0]), abs(away[1])) >= 2.5 * stride
                costs[i] = classes - 3 * math.log(max(iou, 1e-8)) + 1e5 * far
            else:
                costs[i] = classes - 3 * math.log(max(iou, 1e-7)) + 10 ** (math.hypot(*away) / stride - 3)
        if rule == "tal":
            number = 13
        else:
            best = sorted((ious[i][j] for i in inside), reverse=True)[: 10 if rule == "simota" else 13]
            number = max(1, int(sum(best)))
        for i in sorted(inside, key=lambda i: costs[i])[:number]:
            chosen.setdefault(i, []).append((-ious[i][j] if rule == "tal" else costs[i], j))
    return [min(chosen[i])[1] if i in chosen else -1 for i in range(len(grid.points))]


@pytest.mark.parametrize("rule", RULE_NAMES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.integers(1, 6))
def test_a_rule_is_what_a_loop_over_all_pairs_finds(rule: str, seed: int, number: int) -> None:
    (grid, output), (boxes, labels) = predictions(seed), truth(seed, number)
    targets = DynamicAssigner(RULES[rule])(grid, [boxes], [labels], output)
    assert targets.matched[0].tolist() == slow_match(rule, grid, output, boxes, labels)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), number=st.integers(1, 6))
def test_atss_is_what_a_loop_over_all_pairs_finds(seed: int, number: int) -> None:
    grid, _ = predictions(seed)
    boxes, _ = truth(seed, number)
    half = 4 * grid.strides[:, None]
    overlaps = box_iou(torch.cat([grid.points - half, grid.points + half], dim=1), boxes)
    best: dict[int, tuple[float, int]] = {}
    for j, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        candidates: list[int] = []
        for stride in STRIDES:
            level = (grid.strides == stride).nonzero().flatten().tolist()
            level.sort(key=lambda i: torch.dist(grid.points[i], (boxes[j, :2] + boxes[j, 2:]) / 2).item())
            candidates += level[:9]
        threshold = overlaps[candidates, j].mean() + overlaps[candidates, j].std()
        for i in candidates:
            x, y = grid.points[i].tolist()
            if x1 < x < x2 and y1 < y < y2 and overlaps[i, j] >= threshold:
                best[i] = max(best.get(i, (-1.0, -1)), (overlaps[i, j].item(), j))
    wanted = [best[i][1] if i in best else -1 for i in range(len(grid.points))]
    assert AtssAssigner().match(grid, boxes).tolist() == wanted


# Batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*RULE_NAMES, "atss"])
def test_an_image_has_the_same_targets_alone_and_in_a_batch(rule: str) -> None:
    grid, output = predictions(3, images=2)
    (boxes, labels), (others, other_labels) = truth(3, 4), truth(4, 2)
    assigner = AtssAssigner() if rule == "atss" else DynamicAssigner(RULES[rule])
    both = assigner(grid, [boxes, others], [labels, other_labels], output)
    alone = assigner(grid, [others], [other_labels], HeadOutput(*(part[1:] for part in output[:2]), None))
    for part, one in zip(both, alone, strict=True):
        torch.testing.assert_close(part[1:], one, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_images_without_boxes_and_boxes_without_points_are_background(rule: str) -> None:
    grid, output = predictions(5, images=2)
    between = torch.tensor([[5.0, 5.0, 7.0, 7.0]])  # no point lies inside
    none = torch.zeros(0, 4)
    empty = torch.zeros(0, dtype=torch.int64)
    targets = DynamicAssigner(RULES[rule])(grid, [between, none], [torch.tensor([1]), empty], output)
    assert (targets.labels == -1).all()
    assert targets.normalizers().tolist() == [0, 0, 0]
    assert AtssAssigner().match(grid, none).tolist() == [-1] * len(grid.points)


def test_targets_of_a_match_read_the_box_and_the_class() -> None:
    points = torch.tensor([[10.0, 10.0], [30.0, 20.0]])
    match = Match(torch.tensor([-1, 1]), torch.tensor([0.0, 0.7]), torch.tensor([0.0, 0.4]))
    boxes = torch.tensor([[0.0, 0, 5, 5], [20.0, 10, 40, 50]])
    targets = build_targets(points, [match], [boxes], [torch.tensor([4, 2])])
    assert targets.labels.tolist() == [[-1, 2]]
    assert targets.distances[0, 1].tolist() == [10, 10, 10, 30]
    assert targets.box_weights.tolist() == [[0, pytest.approx(0.4)]]
    assert targets.class_targets(3)[0].tolist() == [[0, 0, 0], [0, 0, pytest.approx(0.7)]]
    assert targets.centerness[0].tolist() == pytest.approx([0, math.sqrt(10 / 30)])
