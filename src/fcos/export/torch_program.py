"""A program of `torch.export`: one `.pt2` file, for torch; its card is in its `extra_files`.

It needs torchvision (for NMS), but not this package.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  # registers torchvision::nms, which the program calls
from torch import Tensor

from fcos.export.card import GIVE, cannot_open
from fcos.export.safe_program import EXTRA_FILE, read_program
from fcos.export.trace import quiet
from fcos.files import first_line_of
from fcos.weights.archive import UnsafeFileError


def save(program: Any, metadata: Mapping[str, str], path: Path) -> None:
    """Write a program of a graph with torchvision's NMS."""
    content = io.BytesIO()  # PyTorch's own writer aborts the process where the disk is full
    with quiet():
        torch.export.save(program, content, extra_files={EXTRA_FILE: json.dumps(dict(metadata))})
    path.write_bytes(content.getbuffer())


def open_file(path: Path) -> tuple[dict[str, str], TorchRunner]:
    """Metadata and runner of a file, without running code from it."""
    try:
        with quiet():
            program, metadata = read_program(path)
            # Its guards refuse images of a single cell (32 pixels), which it computes correctly.
            module = program.module(check_guards=False)
    except UnsafeFileError as error:
        raise cannot_open(path, "as a program of torch.export", str(error)) from error
    except Exception as error:  # zipfile, json and torch each raise kinds of their own
        fix = f"{GIVE}, with the version of torch that wrote it or a newer one"
        raise cannot_open(path, "as a program of torch.export", first_line_of(error), fix) from error
    return metadata, TorchRunner(module)


class TorchRunner:
    """A program of torch; see `fcos.export.exported.Runner`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Detections of a batch, see `DetectionGraph.forward`."""
        found: tuple[Tensor, ...] = self._module(*inputs)
        return found

    def side_by_side(self, num_calls: int) -> TorchRunner:
        """Itself: each thread computes on the cores that it was given."""
        del num_calls
        return self
