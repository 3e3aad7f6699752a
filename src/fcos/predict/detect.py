"""Measuring: every image exactly once, on any number of devices, then COCO's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import torch

from fcos.data.annotations import Annotations
from fcos.data.batch import Batch
from fcos.metrics.rows import ROW, Rows
from fcos.model.fcos import FCOS, HeadOutput
from fcos.model.points import PointGrid
from fcos.model.postprocess import ImageDetections

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ToDetections = Callable[[HeadOutput, PointGrid, torch.Tensor, torch.Tensor], list[ImageDetections]]

T = TypeVar("T")

ROWS_AT_ONCE = 4096
BOX_DIGITS, SCORE_DIGITS = 3, 6  # after the point, in results.json


@torch.inference_mode()
def detect(
    model: FCOS,
    postprocess: ToDetections,
    batches: Iterable[Batch],
    *,
    channels_last: bool = True,
    on_batch: Callable[[int], None] = lambda num_images: None,
) -> list[tuple[int, ImageDetections]]:
    """Detections of every image of the batches, on the CPU, with its image id.

    Args:
        model: set to evaluation mode and back.
        postprocess: output to detections, such as a `PostProcess`, or its `candidates`.
        batches: from an evaluation loader.
        channels_last: memory order of the images.
        on_batch: called with the number of images done, for a progress bar.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    was_training = model.training
    if was_training:  # going through all modules takes a twentieth of a small network's time
        model.eval()
    found: list[tuple[int, ImageDetections]] = []
    for batch in batches:
        batch = batch.to(model.pixel_mean.device, memory_format)
        output = model(batch.images, batch.sizes_hw)
        grid = model.grid((batch.images.shape[2], batch.images.shape[3]))
        detections = postprocess(output, grid, batch.sizes_hw, batch.original_sizes_hw)
        found.extend(zip(batch.image_ids, (image.cpu() for image in detections), strict=True))
        on_batch(len(batch))
    if was_training:
        model.train()
    return found


def gather(found: list[T], fabric: Fabric) -> list[T]:
    """The lists of all devices, one behind the other, on the first one; nothing on the others."""
    if fabric.world_size == 1:
        return found
    everyone: list[Any] | None = [None] * fabric.world_size if fabric.is_global_zero else None
    torch.distributed.gather_object(found, everyone)
    return [entry for rank in everyone or () for entry in rank]


def result_rows(
    found: list[tuple[int, ImageDetections]], annotations: Annotations, *, inclusive_boxes: bool = False
) -> Rows:
    """Detections as rows; images in the order of the annotations.

    Rounded as results.json has them: what is measured here is what anybody measures on that file.

    With `inclusive_boxes` (official code) the sides of a box are its last pixels: 1 is added to its width and
    height.
    """
    by_id = dict(found)
    assert len(by_id) == len(found) == len(annotations), "every image exactly once"
    if not found:
        return np.zeros(0, ROW)
    in_order = [by_id[image_id] for image_id in annotations.image_ids.tolist()]
    corners = torch.cat([image.boxes_xyxy for image in in_order]).double().numpy()
    labels = torch.cat([image.labels for image in in_order]).numpy()
    rows = np.empty(len(labels), ROW)
    rows["image_id"] = np.repeat(annotations.image_ids, [len(image.scores) for image in in_order])
    sides = corners[:, 2:] - corners[:, :2] + inclusive_boxes
    rows["bbox"] = np.concatenate([corners[:, :2], sides], axis=1).round(BOX_DIGITS)
    rows["score"] = torch.cat([image.scores for image in in_order]).double().numpy().round(SCORE_DIGITS)
    rows["category_id"] = np.asarray(annotations.category_ids, np.int64)[labels]
    return rows


class _Box(msgspec.Struct, array_like=True, gc=False):
    x: float
    y: float
    width: float
    height: float


class _Entry(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: _Box
    score: float


def results_json(rows: Rows) -> bytes:
    """Rows as a COCO results file.

    Structs, since half a million dicts, and the garbage collector going through them, take ten times as long.
    Some at a time, so that they stay in the processor's cache.
    """
    pieces = [_entries_json(rows[i : i + ROWS_AT_ONCE]) for i in range(0, len(rows), ROWS_AT_ONCE)]
    return b"[%s]" % b",".join(pieces)


def _entries_json(rows: Rows) -> bytes:
    """The entries of a results file, without the brackets of the list."""
    image_ids, category_ids = rows["image_id"].tolist(), rows["category_id"].tolist()
    boxes = map(_Box, *rows["bbox"].round(BOX_DIGITS).T.tolist())
    scores = rows["score"].round(SCORE_DIGITS).tolist()
    return msgspec.json.encode(list(map(_Entry, image_ids, category_ids, boxes, scores)))[1:-1]
