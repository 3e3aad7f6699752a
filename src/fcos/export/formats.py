"""The export formats: how each is written and opened; exporting a model to one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fcos.config import TrainConfig
from fcos.errors import WeightsError
from fcos.export import litert_folder, ncnn_folder, onnx_file, openvino_folder, torch_program
from fcos.export.calibration import Calibration
from fcos.export.card import ExportCard, to_metadata
from fcos.export.graph import DetectionGraph, OpenRun
from fcos.export.undecoded import FixedSize
from fcos.files import check_writable, written
from fcos.model.build import build_postprocess
from fcos.predict.pipeline import TorchBackend
from fcos.predict.predictor import Predictor
from fcos.weights.load import EVERYDAY_FILE, ExportFormat, LoadedModel


class Format(Protocol):
    """A module of this package that writes and opens one format."""

    ENDING: str  # of the name of the file or folder
    ABOUT: str  # description for users

    def convert(self, graph: DetectionGraph, config: TrainConfig) -> Any:
        """Convert the graph of a model with these settings to a model of the format."""

    def save(self, model: Any, metadata: Mapping[str, str], path: Path) -> None:
        """Write such a model and its metadata."""

    def open_file(self, path: Path) -> tuple[dict[str, str], OpenRun]:
        """Metadata of a file or folder, and functions that run it."""

    @property
    def quantize(self) -> Callable[[Any, Calibration, frozenset[str]], Any] | None:
        """Quantizes such a model to 8-bit integers except for some parts; None: not supported."""


FORMATS: dict[ExportFormat, Format] = {
    "onnx": onnx_file,
    "openvino": openvino_folder,
    "torch": torch_program,
    "ncnn": ncnn_folder,
    "litert": litert_folder,
}


def default_path(model_file: Path, name: ExportFormat, *, int8: bool = False) -> Path:
    """Next to the model file: best.safetensors -> best.onnx, best_openvino, best.pt2, best_int8.onnx."""
    return beside(model_file, "_int8" * int8 + FORMATS[name].ENDING)


def beside(model_file: Path, ending: str) -> Path:
    """Next to the model file; for the everyday detector, which is in this package: in the current folder."""
    name = model_file.stem + ending
    return Path(name) if model_file == EVERYDAY_FILE else model_file.with_name(name)


def check_path(path: Path, name: ExportFormat, *, overwrite: bool) -> None:
    """Reject a path with the wrong suffix for the format, and what `check_free` rejects."""
    ending = FORMATS[name].ENDING
    if name == "openvino" and path.suffix in (".xml", ".bin"):
        raise WeightsError(f"{path}: OpenVINO models are folders", fix=f"give -o {path.with_suffix('')}")
    if ending.startswith(".") and path.suffix != ending:
        raise WeightsError(f"{path} is not a *{ending} file", fix=f"give -o {path.with_suffix(ending)}")
    check_free(path, overwrite=overwrite)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Reject a path that already exists or cannot be written, before the work begins."""
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} already exists", fix="give another name with -o, or --force")
    check_writable(path)


def graph_of(loaded: LoadedModel, name: ExportFormat) -> tuple[DetectionGraph, TrainConfig]:
    """The input of a format's `convert`: the graph of a model, and its settings."""
    postprocess = build_postprocess(loaded.config)
    return DetectionGraph(loaded.model, postprocess, torchvision_nms=name == "torch"), loaded.config


def reference_of(loaded: LoadedModel, name: ExportFormat) -> Predictor:
    """The network on the CPU, as reference for a file; with a fixed input size if the file has one."""
    model, postprocess = loaded.model.cpu(), build_postprocess(loaded.config)
    backend = TorchBackend(model, postprocess)
    if name == "litert":
        backend = FixedSize(model, postprocess, litert_folder.input_hw(loaded.config.view_size))
    return Predictor(backend, loaded.config, loaded.card, loaded.path)


def export_card(loaded: LoadedModel) -> ExportCard:
    """The card of the exported file."""
    model = loaded.model
    mean, std = (tuple(statistic.flatten().tolist()) for statistic in (model.pixel_mean, model.pixel_std))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return ExportCard(loaded.card, mean, std, num_parameters=num_parameters, notes=loaded.notes)


def export_model(loaded: LoadedModel, name: ExportFormat, path: Path) -> None:
    """Export a model to a format; the file is written atomically."""
    metadata = to_metadata(export_card(loaded), loaded.config)
    model = FORMATS[name].convert(*graph_of(loaded, name))
    with written(path) as partial:
        FORMATS[name].save(model, metadata, partial)
