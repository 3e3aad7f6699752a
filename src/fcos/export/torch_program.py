"""A program of `torch.export`: one `.pt2` file, for torch; what it says about itself is in its `extra_files`.

It needs `import torchvision` (for NMS), and not this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  # registers torchvision::nms, which the program calls
from torch import Tensor

from fcos.errors import WeightsError
from fcos.export.card import GIVE
from fcos.export.graph import DetectionGraph
from fcos.export.trace import quiet, traced

EXTRA_FILE = "metadata.json"


def write(graph: DetectionGraph, dtype: torch.dtype, metadata: Mapping[str, str], path: Path) -> None:
    """Write a graph, made with torchvision's NMS, as a program."""
    with quiet():
        torch.export.save(traced(graph, dtype), path, extra_files={EXTRA_FILE: json.dumps(dict(metadata))})


def open_file(path: Path) -> tuple[dict[str, str], TorchRunner]:
    """Metadata and runner of a file."""
    extra = {EXTRA_FILE: ""}
    try:
        with quiet():
            program = torch.export.load(path, extra_files=extra)
            module = program.module()
    except Exception as error:  # zipfile's, json's and torch's kinds, and bare ones
        raise WeightsError(
            f"{path.name} cannot be opened as a program of torch.export: "
            f"{(str(error).strip().splitlines() or [type(error).__name__])[0]}",
            where=str(path),
            fix=f"{GIVE}, with the version of torch that wrote it or a newer one",
        ) from error
    return json.loads(extra[EXTRA_FILE] or "{}"), TorchRunner(module)


class TorchRunner:
    """A program of torch; see `fcos.export.exported.Runner`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Detections of a batch, see `DetectionGraph.forward`."""
        found: tuple[Tensor, ...] = self._module(*inputs)
        return found
