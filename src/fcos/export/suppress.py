"""NMS in a graph, for each image and class.

The NMS of every format takes one set of boxes without classes, so boxes of different classes are moved apart
until they cannot overlap. torchvision moves them along a line; here they are moved to a square grid of cells,
since after 80 steps of 1,400 pixels the precision of float32 is 0.008 pixels, and after 9 steps 0.001.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, library
from torch.nn import functional as F

from fcos.model.postprocess import INVALID


def moved_apart(boxes_xyxy: Tensor, labels: Tensor, num_classes: int, *, images_too: bool = False) -> Tensor:
    """Boxes `(N, K, 4)` with each class in its own cell; the IoU within a class does not change."""
    side = math.ceil(math.sqrt(num_classes))
    step = boxes_xyxy.max() - boxes_xyxy.min() + 1
    row = torch.div(labels, side, rounding_mode="floor")
    column = labels - row * side
    if images_too:  # one below the other
        row = row + torch.arange(boxes_xyxy.shape[0])[:, None] * side
    cell = torch.stack([column, row], dim=-1).to(boxes_xyxy.dtype) * step
    return boxes_xyxy + torch.cat([cell, cell], dim=-1)


@library.custom_op(
    "fcos::suppress",
    mutates_args=(),
    schema="(Tensor boxes_xyxy, Tensor scores, float iou, int most) -> Tensor",
)
def suppress(boxes_xyxy: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """NMS of each image; a single operator in ONNX and OpenVINO.

    Args:
        boxes_xyxy: `(N, K, 4)`, classes moved apart.
        scores: `(N, K)`; `INVALID` where there is none.
        iou: overlap above which the lower of two is dropped.
        most: limit of each image.

    Returns:
        `(M, 2)` int64: image and place among the K; image by image, best first.
    """
    from torchvision.ops import nms

    rows = []
    for image, (boxes, score) in enumerate(zip(boxes_xyxy, scores, strict=True)):
        valid = (score > INVALID / 2).nonzero()[:, 0]
        kept = valid[nms(boxes[valid], score[valid], iou)][:most]
        rows.append(torch.stack([torch.full_like(kept, image), kept], dim=1))
    return torch.cat(rows)


@suppress.register_fake
def _(boxes_xyxy: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    count = library.get_ctx().new_dynamic_size()
    return boxes_xyxy.new_empty((count, 2), dtype=torch.int64)


def suppress_with_torchvision(boxes_xyxy: Tensor, scores: Tensor, iou: float) -> Tensor:
    """NMS with torchvision's operator, without a limit, for all images at once: for torch programs.

    A torch program with our own operator could only be opened with this package.
    """
    valid = (scores > INVALID / 2).nonzero()
    image, place = valid[:, 0], valid[:, 1]
    # torchvision tells the tracer that at least two boxes are kept, and the program checks that. So add two
    # boxes without area, which overlap nothing, and drop them again.
    boxes, best = F.pad(boxes_xyxy[image, place], (0, 0, 0, 2)), F.pad(scores[image, place], (0, 2))
    kept = torch.ops.torchvision.nms(boxes, best, iou)
    kept = kept[kept < valid.shape[0]]
    order = image[kept].argsort(stable=True)
    return valid[kept[order]]
