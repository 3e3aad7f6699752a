"""Detections in many images as one array, a row each, with the fields of a COCO results file.

A structured array and not `(N, 7)` floats: those hold ids up to 2^53, and hashes of 64 bits are in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
