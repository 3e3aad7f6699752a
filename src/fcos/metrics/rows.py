"""Detections in many images as one array, a row each, with the fields of a COCO results file.

A structured array and not `(N, 7)` floats: those hold ids up to 2^53, and hashes of 64 bits are in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.model.postprocess import ImageDetections

ROWS_AT_ONCE = 4096
BOX_DIGITS, SCORE_DIGITS = 3, 6  # after the point, in results.json

ROW = np.dtype(
    [("image_id", np.int64), ("bbox", np.float64, (4,)), ("score", np.float64), ("category_id", np.int64)]
)  # bbox: xywh, original image pixels
Rows = NDArray[Any]  # of dtype ROW, which type checkers cannot say
Results = Sequence[Mapping[str, Any]] | NDArray[Any]


def rows_of(results: Results) -> Rows:
    """Rows from rows, from entries of a COCO results file, or from floats.

    Args:
        results: floats are `(N, 7)`: image_id, x, y, w, h, score, category_id (ids up to 2^53).
    """
    if isinstance(results, np.ndarray) and results.dtype == ROW:
        return results
    rows = np.zeros(len(results), ROW)
    if isinstance(results, np.ndarray):
        rows["image_id"], rows["bbox"] = results[:, 0], results[:, 1:5]
        rows["score"], rows["category_id"] = results[:, 5], results[:, 6]
    elif len(results):
        for name in ROW.names or ():
            rows[name] = [entry[name] for entry in results]
    return rows


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


def rows_by_image(annotations: Annotations, results: Rows) -> list[NDArray[np.int64]]:
    """The rows of results of each image, best score first."""
    order = np.lexsort((-results["score"], results["image_id"]))
    image_ids = results["image_id"][order]
    first = np.searchsorted(image_ids, annotations.image_ids, "left")
    last = np.searchsorted(image_ids, annotations.image_ids, "right")
    return [order[start:end] for start, end in zip(first, last, strict=True)]


def labels_of(annotations: Annotations, results: Rows) -> NDArray[np.int64]:
    """The label of each row of results."""
    label_of = {category_id: label for label, category_id in enumerate(annotations.category_ids)}
    return np.array([label_of[category_id] for category_id in results["category_id"].tolist()], np.int64)


def xyxy_of(results: Rows) -> NDArray[np.float64]:
    """`(N, 4)` xyxy of rows of results."""
    boxes = results["bbox"]
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


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
