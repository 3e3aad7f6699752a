"""The graph as a program of `torch.export`: the first step of every format."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fcos.data.loader import PADDING_MULTIPLE
from fcos.export.graph import DetectionGraph

MOST_IMAGES = 1024  # of a batch; and cells of 32 pixels along a side: torch.export wants a limit
MOST_CELLS = 1024


def traced(graph: DetectionGraph, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The program, for any number of images and any size that divides by 32."""
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    height, width = (torch.export.Dim(name, min=1, max=MOST_CELLS) for name in ("rows", "columns"))
    # No side equals another or is 1 at any level: what is so once would be taken to be so always.
    stride = graph.network.strides[-1]
    images = torch.zeros(2, 3, 5 * stride, 7 * stride, dtype=dtype)
    sizes = torch.tensor([images.shape[2:], images.shape[2:]])
    shapes: Any = {
        "images": {0: batch, 2: PADDING_MULTIPLE * height, 3: PADDING_MULTIPLE * width},
        "sizes_hw": {0: batch},
        "original_sizes_hw": {0: batch},
    }
    with torch.no_grad(), quiet():
        return torch.export.export(
            graph.eval(), (images, sizes, 2 * sizes), dynamic_shapes=shapes, strict=False
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the exporters about themselves, of which none asks for an action."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
