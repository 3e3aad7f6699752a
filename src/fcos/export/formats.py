"""The formats: how each is written, recognised and opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fcos.export import onnx_file, openvino_folder, torch_program
from fcos.export.graph import DetectionGraph

FormatName = Literal["onnx", "openvino", "torch"]


class Format(NamedTuple):
    """One way to write a detector.

    Attributes:
        ending: of the name of the file or folder.
        torchvision_nms: what its graph is made with.
        write: a graph, the type of its pixels, metadata, to a path.
        open: a path to metadata and runner.
        about: in words.
    """

    ending: str
    torchvision_nms: bool
    write: Callable[[DetectionGraph, torch.dtype, Mapping[str, str], Path], None]
    open: Callable[[Path], tuple[dict[str, str], Any]]
    about: str


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(".onnx", False, onnx_file.write, onnx_file.open_file, "ONNX, run by onnxruntime"),
    "openvino": Format(
        "_openvino", False, openvino_folder.write, openvino_folder.open_file, "OpenVINO, run on the CPU"
    ),
    "torch": Format(
        ".pt2", True, torch_program.write, torch_program.open_file, "a program of torch.export, run by torch"
    ),
}


def format_of(path: Path) -> FormatName | None:
    """The format of an exported file or folder; None if it is none."""
    if path.is_dir():
        return "openvino" if (path / openvino_folder.NAME).is_file() else None
    return {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}.get(path.suffix)  # type: ignore[return-value]
