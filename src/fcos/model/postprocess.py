"""From predictions to detections (sections 3.1 and 3.3 of the paper; rules of the official code).

The defaults are our conventions. Where another code base differs, `PostProcess` has a parameter;
`fcos.config.conventions` lists those of each code base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from fcos.config.conventions import ClipBoxes, RankBy, Score, ThresholdOn
from fcos.model.fcos import HeadOutput
from fcos.model.points import PointGrid, distances_to_boxes

INVALID = -1.0  # score of what is not a candidate


class ImageDetections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes_xyxy: original image pixels, 0 <= x1 < x2 <= width, 0 <= y1 < y2 <= height.
        scores: in [0, 1].
        labels: 0-based.
        found_at: x, y of the point that each comes from, original image pixels, and the stride of its level,
            network input pixels; None where that is not known.
    """

    boxes_xyxy: Float[Tensor, "detections 4"]
    scores: Float[Tensor, " detections"]
    labels: Int64[Tensor, " detections"]
    found_at: Float[Tensor, "detections 3"] | None = None

    def of(self, chosen: Tensor) -> ImageDetections:
        """The detections selected by an index or a mask."""
        found_at = None if self.found_at is None else self.found_at[chosen]
        return ImageDetections(self.boxes_xyxy[chosen], self.scores[chosen], self.labels[chosen], found_at)

    def cpu(self) -> ImageDetections:
        """The detections on the CPU."""
        found_at = None if self.found_at is None else self.found_at.cpu()
        return ImageDetections(self.boxes_xyxy.cpu(), self.scores.cpu(), self.labels.cpu(), found_at)


@dataclass(frozen=True)
class PostProcess:
    """Threshold, best candidates of each level, NMS within each class, best of the image.

    Attributes:
        score_threshold: that a candidate must exceed.
        nms_iou: IoU above which the lower-scoring of two detections of a class is removed.
        candidates_per_level: (point, class) pairs of each level that enter NMS.
        detections_per_image: kept of each image.
        threshold_on: what must exceed the threshold: the classification score alone, its product with the
            quality, or the final score.
        score: final score: the square root of the product of class score and quality, or the product.
        rank_by: the best candidates of a level are those of the best final score, or class score.
        clip: boxes are clipped to the resized image, or to the original one, before NMS, which drops those in
            the padding; or to the original one after NMS.
        keep_empty: keep boxes that clipping leaves without area.
        inclusive_boxes: sides are last pixels (official code): they end at width - 1, NMS adds 1 to widths
            and heights.
        point_order: detections come in the order of their points, class after class (official code), and not
            best first.
        keep_ties: also keep those with the same score as the last of `detections_per_image`.
        agnostic_nms: class-agnostic NMS: one box per object.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.6
    candidates_per_level: int = 1000
    detections_per_image: int = 100
    threshold_on: ThresholdOn = "class"
    score: Score = "sqrt"
    rank_by: RankBy = "score"
    clip: ClipBoxes = "resized"
    keep_empty: bool = False
    inclusive_boxes: bool = False
    point_order: bool = False
    keep_ties: bool = False
    agnostic_nms: bool = False

    def __call__(
        self,
        output: HeadOutput,
        grid: PointGrid,
        sizes_hw: Int64[Tensor, "batch 2"],
        original_sizes_hw: Int64[Tensor, "batch 2"],
        *,
        nms: bool = True,
    ) -> list[ImageDetections]:
        """Detections of each image of a batch.

        Args:
            output: of the network.
            grid: its points.
            sizes_hw: height, width of each image inside the padding.
            original_sizes_hw: height, width of each image before resizing.
            nms: False: all that enters NMS, best first.
        """
        scores, ranks = self._scores_and_ranks(output)
        detections = []
        # Each image has as many candidates as it needs; in the exported graph all have the same number.
        for i, (resized, original) in enumerate(zip(whwh(sizes_hw), whwh(original_sizes_hw), strict=True)):
            point, label = self._best_of_levels(ranks[i], grid.points_per_level)
            boxes = distances_to_boxes(grid.points[point], output.distances[i].float()[point])
            boxes, scale = self.clip_before_nms(boxes, resized, original)
            in_original = grid.points[point] * (original / resized)[:2]
            found_at = torch.cat([in_original, grid.strides[point, None]], dim=1)
            found = ImageDetections(boxes, scores[i][point, label], label, found_at)
            if self.clip != "after_nms":
                found = found.of(self.stay(boxes))
            found = found.of(self.suppress(found) if nms else found.scores.argsort(descending=True))
            boxes = found.boxes_xyxy * scale
            found = found._replace(boxes_xyxy=boxes)
            if nms and self.clip == "after_nms":
                boxes = self.clip_boxes(boxes, original)
                found = found._replace(boxes_xyxy=boxes).of(self.stay(boxes))
            detections.append(found)
        return detections

    def scores(self, output: HeadOutput) -> Float[Tensor, "batch points classes"]:
        """Final score of every point and class; -1 where the threshold is not exceeded."""
        return self._scores_and_ranks(output)[0]

    # The steps, which an exported graph (`export/graph.py`) shares. While it is traced, sizes are formulas
    # that must not be compared: hence "...".

    def scores_and_ranks(
        self, logits: Float[Tensor, " ..."], quality: Float[Tensor, " ..."] | None
    ) -> tuple[Float[Tensor, " ..."], Float[Tensor, " ..."]]:
        """Final scores, and what the candidates of a level are ranked by; `INVALID` below the threshold.

        Args:
            logits: class scores before sigmoid.
            quality: before sigmoid; None without that branch.
        """
        class_scores = logits.float().sigmoid()
        product = scores = class_scores
        if quality is not None:
            product = class_scores * quality.float().sigmoid()
            # sqrt: the scale of a probability again (2006.09214, section 3.3), same order as the product.
            scores = product.sqrt() if self.score == "sqrt" else product
        tested = {"class": class_scores, "product": product, "score": scores}[self.threshold_on]
        passes = tested > self.score_threshold
        scores = torch.where(passes, scores, INVALID)
        ranks = torch.where(passes, class_scores, INVALID) if self.rank_by == "class" else scores
        return scores, ranks

    def clip_before_nms(
        self,
        boxes: Float[Tensor, "... 4"],
        resized: Float[Tensor, "... 4"],
        original: Float[Tensor, "... 4"],
    ) -> tuple[Float[Tensor, "... 4"], Float[Tensor, "... 4"]]:
        """Boxes as NMS compares them, and their scale to the original image.

        Args:
            boxes: xyxy, network input pixels.
            resized: `whwh` of the image in the network input, without padding.
            original: `whwh` of the image before resizing.
        """
        scale = original / resized
        if self.clip == "after_nms":
            return boxes, scale
        boxes = self.clip_boxes(boxes, resized)
        return (boxes * scale, torch.ones_like(scale)) if self.clip == "original" else (boxes, scale)

    def clip_boxes(
        self, boxes: Float[Tensor, "... 4"], size: Float[Tensor, "... 4"]
    ) -> Float[Tensor, "... 4"]:
        """Boxes clipped to an image of this size, `whwh`."""
        return torch.minimum(boxes.clamp(min=0), size - 1 if self.inclusive_boxes else size)

    def stay(self, boxes: Float[Tensor, "... 4"]) -> Bool[Tensor, " ..."]:
        """Which clipped boxes to keep: those with an area, unless empty ones are kept.

        Clipping leaves nothing of a box in the padding, and NMS would keep it: its IoU with others is 0.
        """
        if self.keep_empty:
            return torch.ones_like(boxes[..., 0], dtype=torch.bool)
        return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])

    def compared_by_nms(
        self, boxes: Float[Tensor, "... 4"], labels: Int64[Tensor, " ..."]
    ) -> tuple[Float[Tensor, "... 4"], Int64[Tensor, " ..."]]:
        """Boxes and labels as NMS compares them."""
        if self.inclusive_boxes:
            boxes = torch.cat([boxes[..., :2], boxes[..., 2:] + 1], dim=-1)
        return boxes, torch.zeros_like(labels) if self.agnostic_nms else labels

    def _scores_and_ranks(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        quality = None if output.quality is None else output.quality[..., None]
        return self.scores_and_ranks(output.logits, quality)

    def _best_of_levels(self, ranks: Tensor, points_per_level: list[int]) -> tuple[Tensor, Tensor]:
        """Point and class index of the best candidates of each level."""
        points, labels = [], []
        first = 0
        for level in torch.split(ranks, points_per_level):
            point, label = (level >= 0).nonzero(as_tuple=True)
            if not self.point_order or len(point) > self.candidates_per_level:
                count = min(self.candidates_per_level, len(point))
                best = level[point, label].topk(count, sorted=not self.point_order).indices
                point, label = point[best], label[best]
            points.append(point + first)
            labels.append(label)
            first += len(level)
        return torch.cat(points), torch.cat(labels)

    def suppress(self, found: ImageDetections) -> Tensor:
        """Indices of detections kept by NMS and `detections_per_image`."""
        scores = found.scores
        boxes, labels = self.compared_by_nms(found.boxes_xyxy, found.labels)
        kept: Tensor = batched_nms(boxes, scores, labels, self.nms_iou)
        most = self.detections_per_image
        if self.keep_ties and len(kept) > most:
            most = int((scores[kept] >= scores[kept[most - 1]]).sum())
        kept = kept[:most]
        return kept.sort().values if self.point_order else kept


def whwh(sizes_hw: Int64[Tensor, "batch 2"]) -> Float[Tensor, "batch 4"]:
    """Width, height, width, height of each image, for clipping and scaling its boxes."""
    return sizes_hw.flip(1).repeat(1, 2).float()
