from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from fcos.model.assign import BACKGROUND, StaticAssigner, Targets, centerness_of
from fcos.model.fcos import HeadOutput
from fcos.model.losses import (
    BoxLoss,
    ClassLoss,
    FcosLoss,
    box_loss,
    class_loss_sum,
    pairwise_box_terms,
)
from fcos.model.points import PointGrid, distances_to_boxes, make_grid

from .conftest import NETWORK_HW, RANGES, STRIDES, Peer

KINDS: tuple[BoxLoss, ...] = get_args(BoxLoss)


def random_distances(number: int, seed: int = 0) -> Tensor:
    return torch.rand(number, 4, generator=torch.Generator().manual_seed(seed)) * 10 + 0.1


def random_batch(
    dtype: torch.dtype = torch.float32, *, weight_boxes: bool = True
) -> tuple[HeadOutput, PointGrid, Targets]:
    """Predictions for two images of 64 x 64 pixels, one with two boxes and one with none."""
    generator = torch.Generator().manual_seed(0)
    grid = make_grid((64, 64), STRIDES)
    num_points = len(grid.points)
    output = HeadOutput(
        torch.randn(2, num_points, 3, generator=generator).to(dtype).requires_grad_(),
        (torch.rand(2, num_points, 4, generator=generator) * 30).to(dtype).requires_grad_(),
        torch.randn(2, num_points, generator=generator).to(dtype).requires_grad_(),
    )
    boxes = [torch.tensor([[2.0, 3.0, 40.0, 44.0], [30.0, 30.0, 60.0, 50.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)]
    return output, grid, StaticAssigner(RANGES, 1.5, weight_boxes=weight_boxes)(grid, boxes, labels)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def gradients(total: Tensor, output: HeadOutput) -> list[Tensor]:
    return list(torch.autograd.grad(total, [part for part in output if part is not None]))


# Focal loss -----------------------------------------------------------------------------------------------


def test_focal_loss_by_hand() -> None:
    # p = 1/2: alpha (1 - p)^2 ln 2 where the class is there, (1 - alpha) p^2 ln 2 where it is not.
    loss = class_loss_sum(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), "focal", 0.25, 2.0)
    assert loss.item() == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.4, 1.5)])
def test_focal_loss_and_its_gradient_are_torchvisions(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 4, generator=generator) * 5).requires_grad_()
    targets = (torch.rand(50, 4, generator=generator) < 0.2).float()
    ours = class_loss_sum(logits, targets, "focal", alpha, gamma)
    theirs = sigmoid_focal_loss(logits, targets, alpha, gamma, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_focal_loss_of_sure_predictions_is_finite() -> None:
    logits = torch.tensor([[-200.0, 200.0, -200.0, 200.0]], requires_grad=True)
    loss = class_loss_sum(logits, torch.tensor([[1.0, 1.0, 0.0, 0.0]]), "focal", 0.25, 2.0)
    assert loss.item() == pytest.approx(0.25 * 200 + 0.75 * 200)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


# Box losses -----------------------------------------------------------------------------------------------


def test_box_losses_by_hand() -> None:
    predicted = torch.tensor([[1.0, 1.0, 1.0, 1.0]])  # 2 x 2
    wanted = torch.tensor([[1.0, 1.0, 3.0, 1.0]])  # 4 x 2 around it, its center 1 to the right
    aspect = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    expected = {
        "iou": -math.log(0.5),
        "linear_iou": 0.5,
        "giou": 0.5,  # the wanted box is the enclosing box: nothing of it is empty
        "diou": 0.5 + 1 / 20,
        "ciou": 0.5 + 1 / 20 + aspect**2 / (0.5 + aspect),
    }
    assert {kind: box_loss(predicted, wanted, kind).item() for kind in KINDS} == pytest.approx(expected)


def test_giou_counts_the_empty_part_of_the_enclosing_box() -> None:
    predicted, wanted = torch.tensor([[2.0, 0.0, 0.0, 2.0]]), torch.tensor([[0.0, 2.0, 2.0, 0.0]])
    # Two squares of area 4 that touch in the point: IoU 0, enclosing box 16, half of it empty.
    assert box_loss(predicted, wanted, "giou").item() == pytest.approx(1.5)


@pytest.mark.parametrize("unit", [1.0, 100.0])
@pytest.mark.parametrize(
    ("kind", "reference"),
    [("giou", generalized_box_iou_loss), ("diou", distance_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_box_loss_and_its_gradient_are_torchvisions(
    kind: BoxLoss, reference: Callable[..., Tensor], unit: float
) -> None:
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(2)) * 100
    predicted, wanted = random_distances(40).requires_grad_(), random_distances(40, seed=1)
    ours = box_loss(predicted * unit, wanted * unit, kind)
    theirs = reference(distances_to_boxes(points, predicted), distances_to_boxes(points, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(loss.sum(), predicted)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_box_costs_nothing(kind: BoxLoss) -> None:
    distances = random_distances(20)
    assert box_loss(distances, distances, kind).abs().max().item() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "predicted",
    [
        [0.0, 0.0, 0.0, 0.0],
        [1e-30, 1e-30, 1e-30, 1e-30],
        [5.0, 5.0, 0.0, 0.0],
        [0.0, 5.0, 0.0, 5.0],
        [5.0, 0.0, 5.0, 0.0],
        [2.0, 3.0, 4.0, 5.0],
        [1e6, 1e6, 1e6, 1e6],
    ],
)
def test_losses_and_gradients_of_degenerate_boxes_are_finite(kind: BoxLoss, predicted: list[float]) -> None:
    distances = torch.tensor([predicted], requires_grad=True)
    loss = box_loss(distances, torch.tensor([[2.0, 3.0, 4.0, 5.0]]), kind)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), distances)[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes_cost_nothing(kind: BoxLoss) -> None:
    assert box_loss(torch.zeros(0, 4), torch.zeros(0, 4), kind).sum().item() == 0


def test_a_soft_label_asks_for_its_score_and_a_weight_scales_its_box() -> None:
    output, grid, targets = random_batch()
    positive = targets.labels != BACKGROUND
    soft = targets._replace(class_scores=targets.class_scores * 0.3, box_weights=positive.float() * 2.0)
    losses = FcosLoss(box="linear_iou")(output, grid, soft, torch.ones(3))
    wanted = torch.zeros_like(output.logits)
    wanted[positive, targets.labels[positive]] = 0.3
    torch.testing.assert_close(
        losses["classification"],
        class_loss_sum(output.logits.flatten(0, 1), wanted.flatten(0, 1), "focal", 0.25, 2.0),
    )
    boxes = box_loss(output.distances[positive], targets.distances[positive], "linear_iou")
    torch.testing.assert_close(losses["box"], 2 * boxes.sum())
    count = positive.sum().item()
    assert soft.normalizers().tolist() == pytest.approx([0.3 * count, 2 * count, count])


def test_quality_focal_loss_by_hand() -> None:
    # p = 1/2, wanted 0.8 and 0: |0.3|^2 and |0.5|^2 times ln 2
    loss = class_loss_sum(torch.zeros(1, 2), torch.tensor([[0.8, 0.0]]), "qfl", 0.5, 2.0)
    assert loss.item() == pytest.approx((0.09 + 0.25) * math.log(2))


def test_quality_focal_loss_is_focal_loss_without_alpha_where_labels_are_hard() -> None:
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    hard = (torch.rand(40, 3, generator=torch.Generator().manual_seed(3)) < 0.2).float()
    torch.testing.assert_close(
        class_loss_sum(logits, hard, "qfl", 0.5, 2.0), 2 * class_loss_sum(logits, hard, "focal", 0.5, 2.0)
    )


def test_varifocal_loss_by_hand() -> None:
    # p = 1/2: the positive weighs its score, 0.8; the background alpha p^2
    loss = class_loss_sum(torch.zeros(1, 2), torch.tensor([[0.8, 0.0]]), "vfl", 0.75, 2.0)
    assert loss.item() == pytest.approx((0.8 + 0.75 * 0.25) * math.log(2))


@pytest.mark.parametrize("name", ["qfl", "vfl"])
def test_the_class_loss_is_the_one_that_was_asked_for(name: ClassLoss) -> None:
    output, grid, targets = random_batch()
    soft = targets._replace(class_scores=targets.class_scores * 0.3)
    losses = FcosLoss(classes=name, alpha=0.6, gamma=1.5)(output, grid, soft, torch.ones(3))
    logits, wanted = output.logits.flatten(0, 1), soft.class_targets(3).flatten(0, 1)
    expected = {
        "qfl": class_loss_sum(logits, wanted, "qfl", 0.5, 1.5),
        "vfl": class_loss_sum(logits, wanted, "vfl", 0.6, 1.5),
    }
    torch.testing.assert_close(losses["classification"], expected[name])


def test_a_score_by_iou_asks_for_the_iou_of_the_predicted_box() -> None:
    output, grid, targets = random_batch()
    positive = targets.labels != BACKGROUND
    iou = pairwise_box_terms(output.distances[positive], targets.distances[positive])[0].detach()
    wanted = torch.zeros_like(output.logits)
    wanted[positive, targets.labels[positive]] = iou
    losses = FcosLoss(score_by_iou=True, classes="qfl")(output, grid, targets, torch.ones(3))
    torch.testing.assert_close(
        losses["classification"],
        class_loss_sum(output.logits.flatten(0, 1), wanted.flatten(0, 1), "qfl", 0.5, 2.0),
    )
    assert torch.autograd.grad(losses["classification"], output.distances, allow_unused=True)[0] is None


def test_box_weight_is_a_factor_of_the_box_loss_alone() -> None:
    output, grid, targets = random_batch()
    usual = FcosLoss()(output, grid, targets, targets.normalizers())
    losses = FcosLoss(box_weight=2.5)(output, grid, targets, targets.normalizers())
    torch.testing.assert_close(losses, usual | {"box": 2.5 * usual["box"]})


# All of eq. 2 ---------------------------------------------------------------------------------------------


def test_losses_are_sums_over_positives_divided_by_the_normalizers() -> None:
    output, grid, targets = random_batch()
    assert output.quality is not None
    positive = targets.labels != BACKGROUND
    losses = FcosLoss(box="linear_iou")(output, grid, targets, torch.tensor([10.0, 4.0, 5.0]))
    box, quality, classification = 0.0, 0.0, 0.0
    for image, point in positive.nonzero().tolist():
        centerness = targets.centerness[image, point].item()
        iou = pairwise_box_terms(output.distances[image, point][None], targets.distances[image, point][None])[
            0
        ]
        box += centerness * (1 - iou.item())
        p = torch.sigmoid(output.quality[image, point]).item()
        quality -= centerness * math.log(p) + (1 - centerness) * math.log(1 - p)
    for image in range(2):
        for point in range(len(grid.points)):
            for label in range(3):
                p = torch.sigmoid(output.logits[image, point, label]).item()
                if targets.labels[image, point] == label:
                    classification -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    classification -= 0.75 * p**2 * math.log(1 - p)
    assert losses["classification"].item() == pytest.approx(classification / 10, rel=1e-4)
    assert losses["box"].item() == pytest.approx(box / 4, rel=1e-4)
    assert losses["quality"].item() == pytest.approx(quality / 5, rel=1e-4)


def test_iou_quality_learns_the_iou_of_the_predicted_box() -> None:
    output, grid, targets = random_batch(weight_boxes=False)
    assert output.quality is not None
    positive = targets.labels != BACKGROUND
    normalizers = targets.normalizers()
    losses = FcosLoss(quality="iou", box="linear_iou")(output, grid, targets, normalizers)
    iou = pairwise_box_terms(output.distances[positive], targets.distances[positive])[0].detach()
    quality = torch.nn.functional.binary_cross_entropy_with_logits(output.quality[positive], iou)
    torch.testing.assert_close(losses["quality"], quality)
    torch.testing.assert_close(losses["box"], (1 - iou).mean())
    assert torch.autograd.grad(losses["quality"], output.distances, allow_unused=True)[0] is None


def test_without_quality_branch_and_weights_every_box_counts_the_same() -> None:
    output, grid, targets = random_batch(weight_boxes=False)
    positive = targets.labels != BACKGROUND
    losses = FcosLoss(quality="none")(output._replace(quality=None), grid, targets, targets.normalizers())
    boxes = box_loss(output.distances[positive], targets.distances[positive], "giou")
    torch.testing.assert_close(losses["box"], boxes.mean())
    assert list(losses) == ["classification", "box"]


def test_the_unit_of_the_distances_does_not_change_the_losses() -> None:
    output, grid, targets = random_batch()
    larger = targets._replace(distances=targets.distances * 4)
    losses = FcosLoss()(output, grid, targets, targets.normalizers())
    scaled = FcosLoss()(output._replace(distances=output.distances * 4), grid, larger, targets.normalizers())
    torch.testing.assert_close(scaled, losses)


@pytest.mark.parametrize("quality", ["centerness", "iou", "none"])
def test_losses_of_images_without_boxes_are_finite_with_gradients_everywhere(quality: str) -> None:
    output, grid, targets = random_batch()
    empty = Targets(*(part[1:] for part in targets))
    output = HeadOutput(*(part[1:].detach().requires_grad_() for part in output if part is not None))
    if quality == "none":
        output = output._replace(quality=None)
    losses = FcosLoss(quality=quality)(output, grid, empty, empty.normalizers())  # type: ignore[arg-type]
    assert {losses[name].item() for name in losses if name != "classification"} == {0.0}
    logits, *others = gradients(total(losses), output)
    assert logits.isfinite().all()
    assert logits.abs().sum() > 0
    assert all((gradient == 0).all() for gradient in others)


def test_micro_batches_with_the_normalizers_of_all_add_up_to_the_whole() -> None:
    output, grid, targets = random_batch()
    normalizers = targets.normalizers()
    for loss in (FcosLoss(), FcosLoss(quality="iou")):
        whole = total(loss(output, grid, targets, normalizers))
        parts = [
            total(
                loss(
                    HeadOutput(*(part[i : i + 1] for part in output if part is not None)),
                    grid,
                    Targets(*(part[i : i + 1] for part in targets)),
                    normalizers,
                )
            )
            for i in range(2)
        ]
        torch.testing.assert_close(parts[0] + parts[1], whole)
        for a, b in zip(gradients(parts[0] + parts[1], output), gradients(whole, output), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_give_float32_losses(dtype: torch.dtype) -> None:
    exact, grid, targets = random_batch()
    output, _, _ = random_batch(dtype)
    losses = FcosLoss()(output, grid, targets, targets.normalizers())
    assert {part.dtype for part in losses.values()} == {torch.float32}
    expected = FcosLoss()(exact, grid, targets, targets.normalizers())
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients(total(losses), output))


@pytest.mark.parametrize(("normalize_targets", "unit"), [(True, 8.0), (False, 1.0)])
def test_one_is_added_to_areas_in_the_unit_of_the_box_branch(normalize_targets: bool, unit: float) -> None:
    """One positive point on a level of stride 8 with a box of 16 x 16 where 16 x 32 pixels are wanted."""
    grid = make_grid((8, 8), [8])
    output = HeadOutput(torch.zeros(1, 1, 1), torch.full((1, 1, 4), 8.0), None)
    one = torch.ones(1, 1)
    wanted = torch.tensor([[[8.0, 8.0, 8.0, 24.0]]])
    targets = Targets(one.long() * 0, one, wanted, one, one, one.long() * 0)
    losses = FcosLoss("none", "linear_iou", iou_plus_one=True, normalize_targets=normalize_targets)(
        output, grid, targets, targets.normalizers()
    )
    iou = (256 / unit**2 + 1) / (512 / unit**2 + 1)
    assert losses["box"].item() == pytest.approx(1 - iou)


# Other code bases -----------------------------------------------------------------------------------------


def peer_output(peer: Peer, num_images: int, *, in_strides: bool) -> tuple[HeadOutput, PointGrid]:
    """A peer's predictions as our output; all images of a batch are the same image."""
    grid = make_grid(NETWORK_HW, STRIDES)
    unit = grid.strides[:, None] if in_strides else 1.0
    parts = peer.predicted("cls"), peer.predicted("reg").relu() * unit, peer.predicted("ctr")[:, 0]
    return HeadOutput(*(torch.stack([part] * num_images) for part in parts)), grid


def our_targets(peer: Peer, truth: str, radius: float | None, first_label: int = 0) -> Targets:
    names = truth.split("+")
    labels = [peer.labels[name] - first_label for name in names]
    assigner = StaticAssigner(RANGES, radius)
    return assigner(make_grid(NETWORK_HW, STRIDES), [peer.boxes[name] for name in names], labels)


def their_targets(peer: Peer, truth: str, background: int) -> Targets:
    labels = torch.from_numpy(peer.targets[f"{truth}_labels"])
    labels = torch.where(labels == background, BACKGROUND, labels)[None]
    strides = make_grid(NETWORK_HW, STRIDES).strides[:, None]
    distances = torch.from_numpy(peer.targets[f"{truth}_reg"])[None] * strides
    positive = (labels != BACKGROUND).float()
    centerness = positive * centerness_of(distances)
    return Targets(labels, positive, distances, centerness, positive, labels)


@pytest.mark.parametrize("truth", ["A", "B", "A+B", "empty"])
@pytest.mark.parametrize(
    ("name", "radius", "box"), [("mmdet_r50_caffe", None, "iou"), ("mmdet_r50_caffe_tricks", 1.5, "giou")]
)
def test_losses_are_those_of_mmdetection(
    peer: Callable[[str], Peer], name: str, radius: float | None, box: BoxLoss, truth: str
) -> None:
    theirs = peer(name)
    output, grid = peer_output(theirs, len(truth.split("+")), in_strides=False)
    targets = our_targets(theirs, truth, radius)
    losses = FcosLoss(box=box)(output, grid, targets, targets.normalizers())
    assert [loss.item() for loss in losses.values()] == pytest.approx(
        list(theirs.losses[truth]["losses"].values()), rel=1e-4
    )


@pytest.mark.parametrize("truth", ["A", "B"])
@pytest.mark.parametrize(("name", "background"), [("detectron2_r50", 5), ("torchvision_r50", -1)])
def test_losses_are_those_of_detectron2_and_torchvision_on_their_targets_and_without_weights(
    peer: Callable[[str], Peer], name: str, background: int, truth: str
) -> None:
    theirs = peer(name)
    output, grid = peer_output(theirs, 1, in_strides=True)
    targets = their_targets(theirs, truth, background)
    expected = theirs.losses[truth]
    # They divide all by the number of positives (detectron2 by its moving average) and weigh no box.
    divisor = expected.get("normalizer_after_ema", expected["num_pos"])
    normalizers = torch.full((3,), float(divisor))
    plain = FcosLoss(quality="none")(output._replace(quality=None), grid, targets, normalizers)
    quality = FcosLoss()(output, grid, targets, normalizers)["quality"]
    found = [plain["classification"].item(), plain["box"].item(), quality.item()]
    assert found == pytest.approx(list(expected["losses"].values()), rel=1e-4)


@pytest.mark.parametrize("truth", ["A", "B", "A+B"])
@pytest.mark.parametrize(("name", "first_label"), [("adelaidet_r50_1x", 0), ("official_r50_imprv", 1)])
def test_losses_are_those_of_the_authors_but_for_one_added_to_areas(
    peer: Callable[[str], Peer], name: str, first_label: int, truth: str
) -> None:
    theirs = peer(name)
    output, grid = peer_output(theirs, len(truth.split("+")), in_strides=first_label == 0)
    targets = our_targets(theirs, truth, 1.5, first_label)
    losses = FcosLoss()(output, grid, targets, targets.normalizers())
    classification, box, quality = theirs.losses[truth]["losses"].values()
    assert losses["classification"].item() == pytest.approx(classification, rel=1e-4)
    assert losses["quality"].item() == pytest.approx(quality, rel=1e-4)

    positive = targets.labels != BACKGROUND
    strides = grid.strides.expand_as(targets.labels)[positive][:, None]
    predicted, wanted = output.distances[positive] / strides, targets.distances[positive] / strides
    with_one = (giou_loss_plus_one(predicted, wanted) * targets.centerness[positive]).sum()
    assert (with_one / targets.normalizers()[1]).item() == pytest.approx(box, rel=1e-4)
    assert losses["box"].item() > box


def giou_loss_plus_one(predicted: Tensor, wanted: Tensor) -> Tensor:
    """GIoU loss as the authors have it: (intersection + 1) / (union + 1)."""
    overlap, hull = torch.minimum(predicted, wanted), torch.maximum(predicted, wanted)
    areas = [(d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (predicted, wanted, overlap, hull)]
    union = areas[0] + areas[1] - areas[2]
    return 1 - (areas[2] + 1) / (union + 1) + (areas[3] - union) / areas[3]


@pytest.mark.parametrize("classes", get_args(ClassLoss))
def test_weight_of_a_class_counts_its_points_so_often(classes: ClassLoss) -> None:
    """Against losses of which only the points of one label are left."""
    output, grid, targets = random_batch()
    ones = torch.ones(3)
    plain = FcosLoss(classes=classes)
    of_label = targets.labels == 2
    left = HeadOutput(
        output.logits[of_label][None], output.distances[of_label][None], output.quality[of_label][None]
    )
    strides = grid.strides.expand_as(targets.labels)[of_label]
    alone = plain(
        left,
        PointGrid(grid.points.expand(2, -1, 2)[of_label], strides, grid.level_sizes),
        Targets(*(tensor[of_label][None] for tensor in targets)),
        ones,
    )
    weighted = FcosLoss(classes=classes, class_weights=(1.0, 1.0, 2.5))(output, grid, targets, ones)
    for name, loss in plain(output, grid, targets, ones).items():
        torch.testing.assert_close(weighted[name], loss + 1.5 * alone[name])
    assert of_label.sum() > 0


def test_weights_of_classes_that_are_absent_change_nothing() -> None:
    output, grid, targets = random_batch()
    plain, weighted = FcosLoss(), FcosLoss(class_weights=(1.0, 7.0, 1.0))
    assert weighted(output, grid, targets, torch.ones(3)) == plain(output, grid, targets, torch.ones(3))
