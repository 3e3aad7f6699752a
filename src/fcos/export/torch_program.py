"""A `torch.export` program, the first step of all formats: one `.pt2` file, its card in its `extra_files`.

The file needs torchvision (for NMS), but not this package.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  # registers torchvision::nms, which the program calls

from fcos.config import TrainConfig
from fcos.data.loader import PADDING_MULTIPLE
from fcos.export.card import GIVE, cannot_open, input_dtype
from fcos.export.graph import DetectionGraph, OpenRun
from fcos.export.safe_program import EXTRA_FILE, read_program
from fcos.files import first_line_of
from fcos.weights.archive import UnsafeFileError

ENDING, ABOUT = ".pt2", "torch.export program, run by torch"
quantize = None  # not supported
# torch.export needs limits: for the batch, and for the cells of 32 pixels along a side.
MOST_IMAGES = MOST_CELLS = 1024


def convert(graph: DetectionGraph, config: TrainConfig) -> torch.export.ExportedProgram:
    """The program, for any number of images and any size that is a multiple of 32."""
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    height, width = (torch.export.Dim(name, min=1, max=MOST_CELLS) for name in ("rows", "columns"))
    # No two sides are equal and none is 1 at any level: tracing would specialize on that.
    stride = graph.network.strides[-1]
    images = torch.zeros(2, 3, 5 * stride, 7 * stride, dtype=getattr(torch, input_dtype(config)))
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


def save(program: Any, metadata: Mapping[str, str], path: Path) -> None:
    """Write a program of a graph with torchvision's NMS."""
    content = io.BytesIO()  # PyTorch's own writer aborts the process if the disk is full
    with quiet():
        torch.export.save(program, content, extra_files={EXTRA_FILE: json.dumps(dict(metadata))})
    path.write_bytes(content.getbuffer())


def open_file(path: Path) -> tuple[dict[str, str], OpenRun]:
    """Metadata of a file, and functions that run it; no code in the file is executed."""
    try:
        with quiet():
            program, metadata = read_program(path)
            # Its guards reject images of a single cell (32 pixels), for which its result is correct.
            module = program.module(check_guards=False)
    except UnsafeFileError as error:
        raise cannot_open(path, "as a torch.export program", str(error)) from error
    except Exception as error:  # zipfile, json and torch each raise their own errors
        fix = f"{GIVE}, and use the version of torch that wrote it or a newer one"
        raise cannot_open(path, "as a torch.export program", first_line_of(error), fix) from error
    # The same for any number of calls: each thread computes on the cores that it was given.
    return metadata, lambda num_calls: torch.no_grad()(module)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of the exporters, on which users need not act."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
