"""What is exported: pictures in, detections out, as one graph of any batch and any size.

It does what `FCOS` and `PostProcess` do, in operations that ONNX, OpenVINO and `torch.export` have, and with
little work after the network: of each level the best points are found by their best class first, so that only
1,000 points and not 22,400 are looked at class by class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcos.export.bake import baked
from fcos.export.suppress import INVALID, moved_apart, suppress, suppress_with_torchvision
from fcos.model.fcos import FCOS
from fcos.model.postprocess import PostProcess

INPUTS = ("images", "sizes_hw", "original_sizes_hw")
OUTPUTS = ("boxes_xyxy", "scores", "labels", "image_index")


Size = int | torch.SymInt  # a number, or while the graph is traced a formula


class Candidates(NamedTuple):
    """What enters NMS, of each image the same number; `(N, K)` and for boxes `(N, K, 4)`.

    Attributes:
        boxes_xyxy: network input pixels.
        scores: final; `INVALID` where a place is not taken.
        labels: 0-based.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor


class Level(NamedTuple):
    """Predictions of one level, P points.

    Attributes:
        logits: `(N, C, P)`.
        distances: `(N, 4, P)` ltrb, network input pixels.
        quality: `(N, P)` before sigmoid, or None.
        points: `(P, 2)` x, y, network input pixels.
    """

    logits: Tensor
    distances: Tensor
    quality: Tensor | None
    points: Tensor


class DetectionGraph(nn.Module):
    """A detector as one module without choices.

    Args:
        model: the network; a copy is made.
        postprocess: its rules of detection.
        torchvision_nms: use torchvision's operator, for programs of torch; otherwise one that becomes ONNX's.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: FCOS, postprocess: PostProcess, *, torchvision_nms: bool = False) -> None:
        super().__init__()
        network = baked(model)
        self.backbone, self.pyramid, self.head = network.backbone, network.pyramid, network.head
        self.register_buffer("pixel_mean", network.pixel_mean)
        self.register_buffer("pixel_std", network.pixel_std)
        self.strides, self.points = network.strides, network.points
        self.num_classes = network.num_classes
        self.rules = postprocess
        self.torchvision_nms = torchvision_nms

    def forward(
        self, images: Tensor, sizes_hw: Tensor, original_sizes_hw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detections of a batch.

        Args:
            images: `(N, 3, H, W)` RGB in 0..255, uint8 (float32 where resizing does not round), resized and
                padded at the bottom and right; sides divide by 32.
            sizes_hw: `(N, 2)` int64, height and width of each image inside the padding.
            original_sizes_hw: `(N, 2)` int64, height and width of each image before resizing.

        Returns:
            boxes_xyxy `(M, 4)` float32 in original pixels, scores `(M,)` float32, labels `(M,)` int64 and
            image_index `(M,)` int64, which says to which image each belongs; image after image, best first.
        """
        features = self.pyramid(self.backbone(self._normalized(images, sizes_hw)))
        parts = [self._best(self._level(i, feature, images)) for i, feature in enumerate(features)]
        found = Candidates(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))

        limit = sizes_hw.flip(1).repeat(1, 2).to(torch.float32)[:, None]
        original = original_sizes_hw.flip(1).repeat(1, 2).to(torch.float32)[:, None]
        scale = original / limit
        if self.rules.clip != "after_nms":
            boxes = self._clipped(found.boxes_xyxy, limit)
            if self.rules.clip == "original":
                boxes, scale = boxes * scale, torch.ones_like(scale)
            scores = torch.where(self._solid(boxes), found.scores, INVALID)
            found = Candidates(boxes, scores, found.labels)

        kept = self._kept(found)
        image, place = kept[:, 0], kept[:, 1]
        boxes, scores, labels = (part[image, place] for part in found)
        boxes = boxes * scale[image, 0]
        if self.rules.clip == "after_nms":
            boxes = self._clipped(boxes, original[image, 0])
            solid = self._solid(boxes)
            boxes, scores, labels, image = boxes[solid], scores[solid], labels[solid], image[solid]
        return boxes, scores, labels, image

    def _normalized(self, images: Tensor, sizes_hw: Tensor) -> Tensor:
        """As `FCOS.normalize`."""
        rows = torch.arange(images.shape[2], device=images.device) < sizes_hw[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes_hw[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        return (images.to(torch.float32) - self.pixel_mean) / self.pixel_std * inside.to(torch.float32)

    def _level(self, index: int, feature: Tensor, images: Tensor) -> Level:
        """As `Head.forward`, without changing the order of the axes, and the points of the level."""
        head = self.head
        classification, box = head.classification_tower(feature, index), head.box_tower(feature, index)
        raw = head.distances(box) * head.scales[index]
        distances = (raw.relu() if head.box_activation == "relu" else raw.exp()) * head.units[index]
        quality = None
        if head.quality is not None:
            quality = head.quality(box if head.quality_tower == "box" else classification).flatten(1)
        return Level(
            head.logits(classification).flatten(2),
            distances.flatten(2),
            quality,
            self._points(feature.shape[2], feature.shape[3], self.strides[index], images),
        )

    def _points(self, height: Size, width: Size, stride: int, images: Tensor) -> Tensor:
        """As `make_grid`, of one level."""
        offset: float = 0.5
        step_y: Size = stride
        step_x: Size = stride
        if self.points == "corner":
            offset, step_y, step_x = 0.0, images.shape[2] // height, images.shape[3] // width
        y: Tensor = (torch.arange(height, dtype=torch.float32) + offset) * step_y  # type: ignore[assignment]
        x: Tensor = (torch.arange(width, dtype=torch.float32) + offset) * step_x  # type: ignore[assignment]
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([columns.flatten(), rows.flatten()], dim=-1)

    def _best(self, level: Level) -> Candidates:
        """The best candidates of a level.

        A pair of point and class that is among the best K pairs has a point that is among the best K points
        by their best class: scores grow with the class score.
        """
        rules, most = self.rules, self.rules.candidates_per_level
        best_class = level.logits.amax(dim=1)
        ranks = self._ranked(best_class, level.quality)[1]
        point = ranks.topk(_at_most(most, ranks.shape[1]), dim=1).indices
        logits = level.logits.gather(2, point[:, None].expand(-1, self.num_classes, -1)).transpose(1, 2)
        quality = None if level.quality is None else level.quality.gather(1, point)[..., None]
        scores, ranks = (part.flatten(1) for part in self._ranked(logits, quality))
        pair = ranks.topk(_at_most(most, ranks.shape[1]), dim=1).indices
        place = torch.div(pair, self.num_classes, rounding_mode="floor")
        label = pair - place * self.num_classes
        if rules.inclusive_boxes:  # the order of the points, class after class
            key = point.gather(1, place) * self.num_classes + label
            order = key.argsort(dim=1)
            pair, place, label = (part.gather(1, order) for part in (pair, place, label))
        point = point.gather(1, place)
        distances = level.distances.gather(2, point[:, None].expand(-1, 4, -1)).transpose(1, 2)
        at = level.points[point]
        boxes = torch.cat([at - distances[..., :2], at + distances[..., 2:]], dim=-1)
        return Candidates(boxes, scores.gather(1, pair), label)

    def _ranked(self, logits: Tensor, quality: Tensor | None) -> tuple[Tensor, Tensor]:
        """Final scores, and what chooses the best; both `INVALID` below the threshold. As `PostProcess`."""
        rules = self.rules
        class_scores = logits.sigmoid()
        product = scores = class_scores
        if quality is not None:
            product = class_scores * quality.sigmoid()
            scores = product.sqrt() if rules.score == "sqrt" else product
        tested = {"class": class_scores, "product": product, "score": scores}[rules.threshold_on]
        passes = tested > rules.score_threshold
        ranks = class_scores if rules.rank_by == "class" else scores
        return torch.where(passes, scores, INVALID), torch.where(passes, ranks, INVALID)

    def _clipped(self, boxes: Tensor, limit: Tensor) -> Tensor:
        return torch.minimum(boxes.clamp(min=0), limit - 1 if self.rules.inclusive_boxes else limit)

    def _solid(self, boxes: Tensor) -> Tensor:
        """Which boxes stay."""
        if self.rules.keep_empty:
            return torch.ones_like(boxes[..., 0], dtype=torch.bool)
        return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])

    def _kept(self, found: Candidates) -> Tensor:
        """Image and place of what NMS and the limit of the image leave, `(M, 2)`."""
        rules, most = self.rules, self.rules.detections_per_image
        # A place that is not taken may hold anything, infinity too.
        boxes = torch.where((found.scores > INVALID)[..., None], found.boxes_xyxy, 0.0)
        if rules.inclusive_boxes:
            boxes = torch.cat([boxes[..., :2], boxes[..., 2:] + 1], dim=-1)
        labels, num_classes = found.labels, self.num_classes
        if rules.agnostic_nms:
            labels, num_classes = torch.zeros_like(labels), 1
        if self.torchvision_nms:
            apart = moved_apart(boxes, labels, num_classes, images_too=True)
            kept = suppress_with_torchvision(apart, found.scores, rules.nms_iou)
        else:
            # A number that is known now: all that there can be, where ties may exceed the limit.
            limit = rules.candidates_per_level * len(self.strides) if rules.keep_ties else most
            apart = moved_apart(boxes, labels, num_classes)
            kept = suppress(apart, found.scores, rules.nms_iou, limit)
        if self.torchvision_nms or rules.keep_ties:
            kept = kept[self._within_limit(kept, found.scores)]
        if rules.inclusive_boxes:  # in the order of the candidates
            kept = kept[(kept[:, 0] * boxes.shape[1] + kept[:, 1]).argsort()]
        return kept

    def _within_limit(self, kept: Tensor, scores: Tensor) -> Tensor:
        """Which of the kept are among the best of their image (image after image, best first)."""
        most, image = self.rules.detections_per_image, kept[:, 0]
        best = scores[image, kept[:, 1]]
        num_kept = torch.zeros_like(scores[:, 0]).scatter_add(0, image, torch.ones_like(best))
        first = (num_kept.cumsum(0) - num_kept).to(torch.int64)
        rank = torch.arange(kept.shape[0]) - first[image]
        if not self.rules.keep_ties:
            return rank < most
        last = torch.where(rank == most - 1, best, 0.0)
        return best >= torch.zeros_like(scores[:, 0]).scatter_add(0, image, last)[image]


def _at_most(most: int, count: Size) -> Size:
    """The smaller number, as a size of its own.

    While a graph is traced sizes are formulas, and one with a minimum in it makes all that has this size slow
    to trace and to load. A number that came out of a tensor is just a name.
    """
    smaller: Any = torch.scalar_tensor(torch.sym_min(most, count), dtype=torch.int64).item()
    torch._check(smaller >= 1)
    torch._check(smaller <= count)
    size: Size = smaller
    return size
