"""The losses of FCOS (eq. 2 of the paper), divided by normalizers of the whole optimizer step.

All are computed in float32 whatever the precision of the network: focal loss in half precision loses its
small terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fcos.model.assign import BACKGROUND, Targets
from fcos.model.fcos import HeadOutput
from fcos.model.points import PointGrid

ClassLoss = Literal["focal", "qfl", "vfl"]
BoxLoss = Literal["iou", "linear_iou", "giou", "diou", "ciou"]


def class_loss_sum(
    logits: Float[Tensor, "points classes"],
    targets: Float[Tensor, "points classes"],
    kind: ClassLoss,
    alpha: float,
    gamma: float,
) -> Float[Tensor, ""]:
    """Weighted cross-entropy, summed.

    The focal loss (arXiv 1708.02002, eq. 5), the quality focal loss (GFL, arXiv 2006.04388, eq. 5), which
    needs no alpha, or the varifocal loss (arXiv 2008.13367, eq. 2), where positives count as much as their
    wanted score.

    Args:
        logits: before sigmoid.
        targets: wanted scores; all zero on background.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    scores = torch.sigmoid(logits)
    if kind == "focal":
        wrong = scores * (1 - 2 * targets) + targets  # 1 - p where the target is 1, else p
        weight = (alpha * targets + (1 - alpha) * (1 - targets)) * wrong**gamma
    elif kind == "qfl":
        weight = (scores - targets).abs() ** gamma
    else:
        weight = torch.where(targets > 0, targets, alpha * scores**gamma)
    return (weight * entropy).sum()


def pairwise_box_terms(
    predicted: Float[Tensor, "boxes 4"], target: Float[Tensor, "boxes 4"], added: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """IoU of boxes that share a point, and what the other IoU kinds add.

    Args:
        predicted: distances ltrb from the shared point, any unit.
        target: the same, same unit.
        added: to intersection and union, that unit squared. The official code and AdelaiDet have 1, after
            dividing by the stride, which biases small boxes; torchvision and detectron2 have none.

    Returns:
        iou, the share of the enclosing box that the union leaves empty (GIoU, arXiv 1902.09630),
        the squared center distance over the squared enclosing diagonal (DIoU, arXiv 1911.08287), and
        the aspect term of CIoU (same paper).
    """
    eps = 1e-7
    overlap = torch.minimum(predicted, target)
    hull = torch.maximum(predicted, target)
    intersection = (overlap[:, :2] + overlap[:, 2:]).clamp(min=0).prod(dim=1)
    sides_predicted, sides_target = predicted[:, :2] + predicted[:, 2:], target[:, :2] + target[:, 2:]
    union = sides_predicted.prod(dim=1) + sides_target.prod(dim=1) - intersection
    iou = (intersection + added) / (union + added).clamp(min=eps)
    sides_hull = hull[:, :2] + hull[:, 2:]
    empty = 1 - union / sides_hull.prod(dim=1).clamp(min=eps)
    shift = ((predicted[:, 2:] - predicted[:, :2]) - (target[:, 2:] - target[:, :2])) / 2
    distance = shift.square().sum(dim=1) / sides_hull.square().sum(dim=1).clamp(min=eps)
    angles = [torch.atan(s[:, 0] / s[:, 1].clamp(min=eps)) for s in (sides_predicted, sides_target)]
    aspect = 4 / torch.pi**2 * (angles[0] - angles[1]).square()
    return iou, empty, distance, aspect


def box_loss(
    predicted: Float[Tensor, "boxes 4"],
    target: Float[Tensor, "boxes 4"],
    kind: BoxLoss,
    added: float = 0.0,
) -> Float[Tensor, " boxes"]:
    """Loss of each box, from distances ltrb in any unit; `added` as in `pairwise_box_terms`."""
    iou, empty, distance, aspect = pairwise_box_terms(predicted, target, added)
    if kind == "iou":
        return -iou.clamp(min=1e-6).log()  # UnitBox, arXiv 1608.01471
    if kind == "linear_iou":
        return 1 - iou
    if kind == "giou":
        return 1 - iou + empty
    if kind == "diou":
        return 1 - iou + distance
    weight = (aspect / (1 - iou + aspect).clamp(min=1e-7)).detach()
    return 1 - iou + distance + weight * aspect


@dataclass(frozen=True)
class FcosLoss:
    """Eq. 2 with the improvements of 2006.09214.

    Attributes:
        quality: what the quality branch learns: the point's centerness, the IoU of its predicted box
            (AdelaiDet's variant, 39.4 against 38.7 AP), or nothing.
        box: kind of the box loss.
        classes: loss of the classes: focal, or for soft scores quality focal or varifocal.
        alpha: weight of positives in the focal loss, of background in the varifocal loss.
        gamma: focusing of any of them.
        score_by_iou: the wanted class score of a positive is the IoU of its predicted box.
        box_weight: factor of the box loss.
        normalize_targets: the box branch regresses in strides; matters with `iou_plus_one` only.
        iou_plus_one: add 1 to intersection and union (official code, AdelaiDet).
        class_weights: factor of each label on all losses of its points; empty: 1. The normalizers do not
            count it, so an object with the factor 2 counts as two.
    """

    quality: Literal["centerness", "iou", "none"] = "centerness"
    box: BoxLoss = "giou"
    classes: ClassLoss = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    score_by_iou: bool = False
    box_weight: float = 1.0
    normalize_targets: bool = True
    iou_plus_one: bool = False
    class_weights: tuple[float, ...] = ()

    def __call__(
        self, output: HeadOutput, grid: PointGrid, targets: Targets, normalizers: Float[Tensor, " 3"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses of a batch by name, each divided by its normalizer; training minimizes their sum.

        Args:
            output: of the network, for the same batch.
            grid: its points.
            targets: of the same batch.
            normalizers: `Targets.normalizers` of the whole optimizer step (all devices, all accumulated
                batches), so the split does not change the gradient.
        """
        divisor = normalizers.clamp(min=1e-6)
        # No positives: index with an empty mask, never branch, or DDP waits for gradients forever.
        positive = targets.labels != BACKGROUND
        added = float(self.iou_plus_one)
        units = grid.strides.expand_as(targets.labels)[positive][:, None]
        if self.iou_plus_one and not self.normalize_targets:
            units = torch.ones_like(units)
        predicted = output.distances.float()[positive] / units
        wanted = targets.distances[positive] / units
        box_weights, weights = targets.box_weights[positive], None
        if self.class_weights:
            weights = box_weights.new_tensor(self.class_weights)[targets.labels[positive]]
            box_weights = box_weights * weights
        box = (box_loss(predicted, wanted, self.box, added) * box_weights).sum()
        if self.score_by_iou or self.quality == "iou":
            ious = pairwise_box_terms(predicted.detach(), wanted, added)[0]
        if self.score_by_iou:
            scores = targets.class_scores.masked_scatter(positive, ious.clamp(0, 1))
            targets = targets._replace(class_scores=scores)
        logits = output.logits.float().flatten(0, 1)
        class_targets = targets.class_targets(output.logits.shape[-1]).flatten(0, 1)
        rule = self.classes, self.alpha, self.gamma
        classification = class_loss_sum(logits, class_targets, *rule)
        for label, weight in enumerate(self.class_weights):
            if weight != 1:  # its points are in the sum once
                of_label = targets.labels.flatten() == label
                more = class_loss_sum(logits[of_label], class_targets[of_label], *rule)
                classification = classification + (weight - 1) * more
        losses = {
            "classification": classification / divisor[0].clamp(min=1),
            "box": self.box_weight * box / divisor[1],
        }
        if output.quality is None:
            return losses
        quality_target = ious if self.quality == "iou" else targets.centerness[positive]
        quality = F.binary_cross_entropy_with_logits(
            output.quality.float()[positive], quality_target, weights, reduction="sum"
        )
        return losses | {"quality": quality / divisor[2]}
