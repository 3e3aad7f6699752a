"""What all formats begin with: the packages that they need, and the graph as a program of `torch.export`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fcos.data.loader import PADDING_MULTIPLE
from fcos.errors import FcosError
from fcos.export.graph import DetectionGraph

# torch.export wants limits: of a batch, and of the cells of 32 pixels along a side.
MOST_IMAGES = MOST_CELLS = 1024


def traced(graph: DetectionGraph, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The program, for any number of images and any size that is a multiple of 32."""
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    height, width = (torch.export.Dim(name, min=1, max=MOST_CELLS) for name in ("rows", "columns"))
    # No two sides are equal and none is 1 at any level: a trace would take that for a rule.
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
    """Suppress what the exporters warn of; none of it asks for an action."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Explain an import that fails within the block: which extra to install."""
    try:
        yield
    except ImportError as error:
        raise FcosError(
            f"the format {extra} needs {error.name}", fix=f"pip install 'fcos-torch[{extra}]'"
        ) from error
