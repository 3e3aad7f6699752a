from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from fcos.model.fcos import HeadOutput
from fcos.model.points import PointGrid, make_grid
from fcos.model.postprocess import PostProcess

from .conftest import STRIDES

SIZE = torch.tensor([[64, 64]])


def silent(
    size_hw: tuple[int, int] = (64, 64), num_classes: int = 2, batch: int = 1
) -> tuple[HeadOutput, PointGrid]:
    """Predictions of nothing, with boxes of 20 x 20 and a sure quality branch."""
    grid = make_grid(size_hw, STRIDES)
    shape = batch, len(grid.points)
    return HeadOutput(
        torch.full((*shape, num_classes), -20.0), torch.full((*shape, 4), 10.0), torch.full(shape, 20.0)
    ), grid


def logit(p: float) -> float:
    return float(torch.tensor(p).double().logit())


def put(
    output: HeadOutput, point: int, label: int, score: float, distances: list[float] | None = None
) -> None:
    """One prediction at a point of the first image."""
    output.logits[0, point, label] = logit(score)
    if distances is not None:
        output.distances[0, point] = torch.tensor(distances)


def random_output(size_hw: tuple[int, int], num_classes: int, seed: int = 0) -> tuple[HeadOutput, PointGrid]:
    generator = torch.Generator().manual_seed(seed)
    grid = make_grid(size_hw, STRIDES)
    shape = 2, len(grid.points)
    distances = torch.rand(*shape, 4, generator=generator) * 4 * grid.strides[:, None]
    logits = torch.randn(*shape, num_classes, generator=generator) * 2 - 1
    return HeadOutput(logits, distances, torch.randn(shape, generator=generator)), grid


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return overlap / (sum(areas) - overlap)


def slow_detections(
    rules: PostProcess,
    output: HeadOutput,
    grid: PointGrid,
    image: int,
    size_hw: list[int],
    original_hw: list[int],
) -> list[tuple[list[float], float, int]]:
    """The rules one candidate at a time: box in original pixels, score, label; best first."""
    assert output.quality is not None
    candidates: list[tuple[float, int, list[float]]] = []
    first = 0
    for count in grid.points_per_level:
        level = []
        for point in range(first, first + count):
            x, y = grid.points[point].tolist()
            left, top, right, bottom = output.distances[image, point].tolist()
            box = [max(x - left, 0), max(y - top, 0), min(x + right, size_hw[1]), min(y + bottom, size_hw[0])]
            quality = output.quality[image, point].sigmoid().item()
            for label, score in enumerate(output.logits[image, point].sigmoid().tolist()):
                if score > rules.score_threshold:
                    level.append(((score * quality) ** 0.5, label, box))
        candidates += sorted(level, key=lambda entry: -entry[0])[: rules.candidates_per_level]
        first += count
    kept: list[tuple[float, int, list[float]]] = []
    for score, label, box in sorted(candidates, key=lambda entry: -entry[0]):
        solid = box[2] > box[0] and box[3] > box[1]
        if solid and not any(
            (k[1] == label or rules.agnostic_nms) and iou(k[2], box) > rules.nms_iou for k in kept
        ):
            kept.append((score, label, box))
    sx, sy = original_hw[1] / size_hw[1], original_hw[0] / size_hw[0]
    return [
        ([box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy], score, label)
        for score, label, box in kept[: rules.detections_per_image]
    ]


@pytest.mark.parametrize(
    "rules",
    [
        *(
            PostProcess(),
            PostProcess(0.3, 0.4, 20, 15),
            PostProcess(0.0, 0.9, 5, 1000),
            PostProcess(0.7, 0.1),
        ),
        *(PostProcess(agnostic_nms=True), PostProcess(0.3, 0.4, 20, 15, agnostic_nms=True)),
    ],
)
def test_detections_are_those_of_the_rules_one_by_one(rules: PostProcess) -> None:
    output, grid = random_output((64, 96), 3)
    sizes, originals = torch.tensor([[64, 96], [50, 70]]), torch.tensor([[128, 192], [75, 210]])
    found = rules(output, grid, sizes, originals)
    for i in range(2):
        expected = slow_detections(rules, output, grid, i, sizes[i].tolist(), originals[i].tolist())
        assert len(found[i].scores) == len(expected) > 0
        assert found[i].labels.tolist() == [label for _, _, label in expected]
        torch.testing.assert_close(found[i].scores, torch.tensor([score for _, score, _ in expected]))
        boxes = torch.tensor([box for box, _, _ in expected])
        torch.testing.assert_close(found[i].boxes_xyxy, boxes, rtol=1e-4, atol=1e-3)


def test_a_prediction_becomes_a_box_around_its_point() -> None:
    output, grid = silent()
    put(output, 27, 1, 0.64, [5.0, 6.0, 7.0, 8.0])  # row 3, column 3 of P3: the point 28, 28
    detections = PostProcess()(output, grid, SIZE, SIZE)[0]
    assert detections.boxes_xyxy.tolist() == [[23, 22, 35, 36]]
    assert detections.labels.tolist() == [1]
    assert detections.scores.item() == pytest.approx(0.8)  # sqrt(0.64 * 1)


def test_score_is_the_root_of_class_score_times_quality() -> None:
    output, grid = silent()
    assert output.quality is not None
    put(output, 27, 0, 0.9)
    output.quality[0, 27] = logit(0.4)
    assert PostProcess()(output, grid, SIZE, SIZE)[0].scores.item() == pytest.approx(0.6)
    without = PostProcess()(output._replace(quality=None), grid, SIZE, SIZE)[0]
    assert without.scores.item() == pytest.approx(0.9)


def test_the_threshold_is_on_the_class_score_alone() -> None:
    output, grid = silent()
    assert output.quality is not None
    put(output, 27, 0, 0.06)
    output.quality[0, 27] = logit(0.001)  # the root is 0.0077
    put(output, 45, 1, 0.04)
    assert PostProcess(score_threshold=0.05)(output, grid, SIZE, SIZE)[0].labels.tolist() == [0]


def test_a_score_on_the_threshold_is_not_above_it() -> None:
    output, grid = silent()
    output.logits[0, 27, 0] = 0.0
    assert len(PostProcess(score_threshold=0.5)(output, grid, SIZE, SIZE)[0].scores) == 0
    assert len(PostProcess(score_threshold=0.499)(output, grid, SIZE, SIZE)[0].scores) == 1


def test_no_candidates_give_no_detections() -> None:
    output, grid = silent(batch=2)
    sizes = SIZE.expand(2, 2)
    for detections in PostProcess()(output, grid, sizes, sizes):
        assert [tuple(part.shape) for part in detections] == [(0, 4), (0,), (0,), (0, 3)]
        assert detections.labels.dtype == torch.int64


def test_each_detection_knows_the_point_and_level_that_found_it() -> None:
    output, grid = silent()
    put(output, 8 + 2, 0, 0.6)  # level of stride 8: row 1, column 2
    put(output, 64 + 4 + 3, 1, 0.8)  # of stride 16: row 1, column 3
    originals = torch.tensor([[128, 192]])  # twice as high, three times as wide
    [found] = PostProcess()(output, grid, SIZE, originals)
    assert found.found_at is not None
    assert found.found_at.tolist() == [[3 * 56.0, 2 * 24.0, 16.0], [3 * 20.0, 2 * 12.0, 8.0]]
    [entered] = PostProcess()(output, grid, SIZE, originals, nms=False)
    assert entered.found_at is not None
    assert entered.found_at.tolist() == found.found_at.tolist()


def test_overlapping_boxes_of_one_class_keep_the_better_and_other_classes_stay() -> None:
    output, grid = silent()
    put(output, 27, 0, 0.7, [10.0, 10.0, 10.0, 10.0])  # 18..38
    put(output, 28, 0, 0.8, [18.0, 10.0, 2.0, 10.0])  # the same box from the next point
    put(output, 29, 1, 0.6, [26.0, 10.0, -6.0, 10.0])  # and of another class
    detections = PostProcess()(output, grid, SIZE, SIZE)[0]
    assert detections.labels.tolist() == [0, 1]
    assert detections.scores.square().tolist() == pytest.approx([0.8, 0.6])


def test_each_level_sends_its_best_candidates_only() -> None:
    output, grid = silent((128, 128), num_classes=1)
    for point, score in ((0, 0.5), (5, 0.9), (12, 0.7), (256, 0.3), (260, 0.4)):  # three of P3, two of P4
        put(output, point, 0, score, [3.0, 3.0, 3.0, 3.0])
    size = torch.tensor([[128, 128]])
    detections = PostProcess(candidates_per_level=1)(output, grid, size, size)[0]
    assert detections.scores.square().tolist() == pytest.approx([0.9, 0.4])


def test_no_more_detections_than_asked_for_and_the_best_first() -> None:
    output, grid = silent(num_classes=1)
    for i in range(10):
        put(output, 6 * i, 0, 0.5 + 0.04 * i, [2.0, 2.0, 2.0, 2.0])
    detections = PostProcess(detections_per_image=3)(output, grid, SIZE, SIZE)[0]
    assert detections.scores.square().tolist() == pytest.approx([0.86, 0.82, 0.78])


def test_boxes_are_clipped_to_the_image_not_to_the_padding_and_scaled_to_the_original() -> None:
    output, grid = silent()
    put(output, 27, 0, 0.9, [100.0, 8.0, 100.0, 100.0])
    sizes, originals = torch.tensor([[40, 50]]), torch.tensor([[400, 100]])
    detections = PostProcess()(output, grid, sizes, originals)[0]
    assert detections.boxes_xyxy.tolist() == [[0, 200, 100, 400]]


def test_boxes_that_lie_in_the_padding_or_have_no_area_are_no_detections() -> None:
    output, grid = silent(num_classes=1)
    put(output, 63, 0, 0.9, [2.0, 2.0, 2.0, 2.0])  # around 60, 60
    put(output, 27, 0, 0.9, [0.0, 0.0, 0.0, 0.0])
    put(output, 9, 0, 0.8, [2.0, 2.0, 2.0, 2.0])
    detections = PostProcess()(output, grid, torch.tensor([[40, 40]]), SIZE)[0]
    assert detections.scores.square().tolist() == pytest.approx([0.8])


def test_half_precision_predictions_give_float32_detections() -> None:
    output, grid = random_output((64, 64), 2)
    half = HeadOutput(output.logits.half(), output.distances.half(), None)
    detections = PostProcess()(half, grid, SIZE.expand(2, 2), SIZE.expand(2, 2))[0]
    assert detections.boxes_xyxy.dtype == detections.scores.dtype == torch.float32
    assert len(detections.scores) > 0


def test_many_equal_scores_give_the_same_detections_every_time() -> None:
    output, grid = silent((256, 256), num_classes=20)
    output.logits.zero_()
    output.distances.fill_(3.0)
    size = torch.tensor([[256, 256]])
    first, second = (PostProcess()(output, grid, size, size)[0] for _ in range(2))
    assert len(first.scores) == 100
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_full_image_of_80_classes_takes_less_than_seconds() -> None:
    output, grid = silent((512, 512), num_classes=80)
    generator = torch.Generator().manual_seed(0)
    output.logits.copy_(torch.randn(output.logits.shape, generator=generator) * 2)
    output.distances.copy_(torch.rand(output.distances.shape, generator=generator) * 100)
    size = torch.tensor([[512, 512]])
    started_at = time.process_time()
    detections = PostProcess()(output, grid, size, size)[0]
    assert time.process_time() - started_at < 3
    assert len(detections.scores) == 100


def test_more_padding_changes_no_detection() -> None:
    small, grid = random_output((64, 64), 2)
    large, wide = silent((64, 128), batch=2)
    for a, b in zip(small[:2], large[:2], strict=True):
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        for stride in STRIDES:
            inside = (wide.strides == stride) & (wide.points[:, 0] < max(64, stride))
            b[:, inside] = a[:, grid.strides == stride]
    sizes = SIZE.expand(2, 2)
    narrow = PostProcess()(small._replace(quality=None), grid, sizes, sizes)
    padded = PostProcess()(large._replace(quality=None), wide, sizes, sizes)
    torch.testing.assert_close(padded, narrow)


# Rules of other code bases --------------------------------------------------------------------------------


def one_point_each(
    scores: list[tuple[float, float]], boxes: list[list[float]]
) -> tuple[HeadOutput, PointGrid]:
    """Points of one class with these class scores, qualities and boxes, on a level of stride 8."""
    size = torch.tensor(boxes)
    grid = make_grid((8, 8 * len(boxes)), [8])
    distances = torch.cat([grid.points - size[:, :2], size[:, 2:] - grid.points], dim=1)
    pairs = torch.logit(torch.tensor(scores))
    return HeadOutput(pairs[None, :, :1], distances[None], pairs[None, :, 1]), grid


APART = [[0.0, 0.0, 4.0, 4.0], [20.0, 0.0, 24.0, 4.0], [40.0, 0.0, 44.0, 4.0]]
WIDE = torch.tensor([[64, 64]])


def test_the_threshold_is_on_class_score_product_or_final_score() -> None:
    output, grid = one_point_each([(0.5, 0.5), (0.3, 0.9), (0.9, 0.1)], APART)
    # class scores 0.5 0.3 0.9, products 0.25 0.27 0.09, final scores 0.5 0.52 0.3
    for threshold_on, threshold, kept in (
        ("class", 0.4, [0, 2]),
        ("product", 0.26, [1]),
        ("score", 0.4, [0, 1]),
    ):
        rules = PostProcess(threshold, threshold_on=threshold_on)  # type: ignore[arg-type]
        found = rules(output, grid, WIDE, WIDE)[0]
        assert sorted(found.boxes_xyxy[:, 0].round().tolist()) == [20.0 * i for i in kept]


def test_the_final_score_is_the_root_or_the_product_and_candidates_are_ranked_by_either() -> None:
    output, grid = one_point_each([(0.5, 0.5), (0.3, 0.9), (0.9, 0.1)], APART)
    product = PostProcess(score="product")(output, grid, WIDE, WIDE)[0]
    assert product.scores.tolist() == pytest.approx([0.27, 0.25, 0.09])
    by_class = PostProcess(score="product", rank_by="class", candidates_per_level=2)
    assert by_class(output, grid, WIDE, WIDE)[0].scores.tolist() == pytest.approx([0.25, 0.09])
    above = PostProcess(0.4, score="product", rank_by="class")  # the class scores 0.5 and 0.9 are
    assert above(output, grid, WIDE, WIDE)[0].scores.tolist() == pytest.approx([0.25, 0.09])


def test_boxes_are_cut_before_or_after_nms() -> None:
    # Cut to 64 pixels they are equal; whole, their IoU is 8 / 24.
    boxes = [[56.0, 0.0, 72.0, 8.0], [56.0, 0.0, 64.0, 8.0], [72.0, 0.0, 80.0, 8.0]]
    output, grid = one_point_each([(0.9, 0.9), (0.8, 0.8), (0.7, 0.7)], boxes)
    assert len(PostProcess()(output, grid, WIDE, WIDE)[0].scores) == 1
    after = PostProcess(clip="after_nms")(output, grid, WIDE, 2 * WIDE)[0]
    assert after.boxes_xyxy.tolist() == [[112.0, 0.0, 128.0, 16.0]] * 2, "the third has nothing left"
    assert len(PostProcess(keep_empty=True)(output, grid, WIDE, WIDE)[0].scores) == 2
    original = PostProcess(clip="original")(output, grid, WIDE, 2 * WIDE)[0]
    assert original.boxes_xyxy.tolist() == [[112.0, 0.0, 128.0, 16.0]]


def test_nms_is_on_boxes_of_the_original_size_where_the_rules_say_so() -> None:
    """IoU does not change with the size, but its rounding does: pairs whose IoU is the threshold tell."""
    generator, scale = torch.Generator().manual_seed(0), 1.7
    seen = set()
    for _ in range(300):
        x, y, width, height = (torch.rand(4, generator=generator) * 12 + 4).tolist()
        shift = width * 0.25  # of two boxes of one size: an IoU of 0.75 / 1.25, which is 0.6
        pair = [[x, y, x + width, y + height], [x + shift, y, x + shift + width, y + height]]
        output, grid = one_point_each([(0.9, 0.9), (0.8, 0.8)], pair)
        size = torch.tensor([[640, 640]])
        original = (size * scale).long()
        points, distances = grid.points, output.distances[0]
        boxes = torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)
        boxes = boxes.clamp(min=0)
        factor = original.flip(1).repeat(1, 2) / size.flip(1).repeat(1, 2)
        kept = [len(nms(b, torch.tensor([0.9, 0.8]), 0.6)) for b in (boxes, boxes * factor)]
        found = [
            len(PostProcess(clip=clip)(output, grid, size, original)[0].scores)
            for clip in ("resized", "original")
        ]
        assert found == kept
        seen.add(tuple(kept))
    assert {(1, 2), (2, 1)} <= seen  # rounding did decide, both ways


def test_inclusive_boxes_end_at_the_last_pixel_and_keep_the_order_of_the_candidates() -> None:
    boxes = [[0.0, 0.0, 4.0, 4.0], [50.0, 0.0, 70.0, 4.0], [0.0, 0.0, 4.0, 7.0]]
    output, grid = one_point_each([(0.5, 0.5), (0.9, 0.9), (0.4, 0.4)], boxes)
    # IoU of the first and the last: 16 / 28 = 0.57; with sides + 1 it is 25 / 40 = 0.63
    assert len(PostProcess()(output, grid, WIDE, WIDE)[0].scores) == 3
    found = PostProcess(inclusive_boxes=True, point_order=True)(output, grid, WIDE, WIDE)[0]
    assert found.boxes_xyxy.tolist() == [[0.0, 0.0, 4.0, 4.0], [50.0, 0.0, 63.0, 4.0]]


def test_equal_scores_at_the_limit_stay_only_where_ties_are_kept() -> None:
    output, grid = one_point_each([(0.9, 0.9), (0.5, 0.5), (0.5, 0.5)], APART)
    assert len(PostProcess(detections_per_image=2)(output, grid, WIDE, WIDE)[0].scores) == 2
    assert len(PostProcess(detections_per_image=2, keep_ties=True)(output, grid, WIDE, WIDE)[0].scores) == 3
    assert len(PostProcess(detections_per_image=1, keep_ties=True)(output, grid, WIDE, WIDE)[0].scores) == 1


def test_candidates_are_what_enters_nms_best_first() -> None:
    output, grid = silent()
    put(output, 27, 0, 0.49, [10.0, 10.0, 10.0, 10.0])
    put(output, 28, 0, 0.81, [10.0, 10.0, 10.0, 10.0])  # 8 pixels further: an IoU of 12 / 28 ...
    put(output, 0, 1, 0.64, [3.0, 3.0, 3.0, 3.0])
    rules = PostProcess(nms_iou=0.4)  # ... is too much
    originals = torch.tensor([[128, 64]])
    assert rules(output, grid, SIZE, originals)[0].scores.tolist() == pytest.approx([0.9, 0.8])
    candidates = rules(output, grid, SIZE, originals, nms=False)[0]
    assert candidates.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert candidates.labels.tolist() == [0, 1, 0]
    # the point 36, 28; the original is twice as high
    assert candidates.boxes_xyxy[0].tolist() == [26, 36, 46, 76]


def test_scores_of_points_below_the_threshold_are_no_scores() -> None:
    output, _ = silent()
    assert output.quality is not None
    put(output, 27, 0, 0.64)
    put(output, 28, 1, 0.04)
    scores = PostProcess(score_threshold=0.05).scores(output)
    assert float(scores[0, 27, 0]) == pytest.approx(0.8)
    assert (scores >= 0).sum() == 1
