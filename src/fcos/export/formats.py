"""The formats: how each is written, recognised and opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fcos.export import onnx_file, onnx_int8, openvino_folder, openvino_int8, torch_program
from fcos.export.calibration import Calibration
from fcos.export.graph import DetectionGraph
from fcos.export.trace import traced
from fcos.weights.load import ExportFormat


class Format(NamedTuple):
    """One way to write a detector.

    Attributes:
        ending: of the name of the file or folder.
        torchvision_nms: what its graph is made with.
        convert: a graph and the type of its pixels to a model of the format.
        save: such a model and metadata to a path.
        open: a path to metadata and runner.
        quantise: such a model, pictures, and the parts of the network that stay in float32 to another one;
            None: the format has no 8-bit integers.
        about: in words.
    """

    ending: str
    torchvision_nms: bool
    convert: Callable[[DetectionGraph, torch.dtype], Any]
    save: Callable[[Any, Mapping[str, str], Path], None]
    open: Callable[[Path], tuple[dict[str, str], Any]]
    quantise: Callable[[Any, Calibration, frozenset[str]], Any] | None
    about: str


FORMATS: dict[ExportFormat, Format] = {
    "onnx": Format(
        ending=".onnx",
        torchvision_nms=False,
        convert=onnx_file.convert,
        save=onnx_file.save,
        open=onnx_file.open_file,
        quantise=onnx_int8.quantise,
        about="ONNX, run by onnxruntime",
    ),
    "openvino": Format(
        ending="_openvino",
        torchvision_nms=False,
        convert=openvino_folder.convert,
        save=openvino_folder.save,
        open=openvino_folder.open_file,
        quantise=openvino_int8.quantise,
        about="OpenVINO, run on the CPU",
    ),
    "torch": Format(
        ending=".pt2",
        torchvision_nms=True,
        convert=traced,
        save=torch_program.save,
        open=torch_program.open_file,
        quantise=None,
        about="a program of torch.export, run by torch",
    ),
}
