"""A model to an exported file."""

from __future__ import annotations

from pathlib import Path

import torch

from fcos.errors import WeightsError
from fcos.export.card import ExportCard, input_dtype, to_metadata
from fcos.export.formats import FORMATS
from fcos.export.graph import DetectionGraph
from fcos.files import check_writable, written
from fcos.model.build import build_postprocess
from fcos.weights.load import ExportFormat, LoadedModel


def default_path(model_file: Path, name: ExportFormat, *, int8: bool = False) -> Path:
    """Beside the model file: best.safetensors -> best.onnx, best_openvino, best.pt2, best_int8.onnx."""
    return model_file.with_name(model_file.stem + "_int8" * int8 + FORMATS[name].ending)


def check_path(path: Path, name: ExportFormat, *, overwrite: bool) -> None:
    """Refuse a path before the work begins.

    Raises:
        WeightsError: it is there already, or would not be recognised.
        OutputError: nothing can be written there.
    """
    ending = FORMATS[name].ending
    if name == "openvino" and path.suffix in (".xml", ".bin"):
        raise WeightsError(f"{path}: OpenVINO's format is a folder", fix=f"give -o {path.with_suffix('')}")
    if name != "openvino" and path.suffix != ending:
        raise WeightsError(f"{path} is no *{ending} file", fix=f"give -o {path.with_suffix(ending)}")
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} is there already", fix="give another name with -o, or --force")
    check_writable(path)


def graph_of(loaded: LoadedModel, name: ExportFormat) -> tuple[DetectionGraph, torch.dtype]:
    """The graph of a model for a format, and the type of its pixels."""
    postprocess = build_postprocess(loaded.config)
    graph = DetectionGraph(loaded.model, postprocess, torchvision_nms=FORMATS[name].torchvision_nms)
    return graph, getattr(torch, input_dtype(loaded.config))


def card_of(loaded: LoadedModel) -> ExportCard:
    """What the file will say about itself."""
    mean, std = loaded.pixel_statistics
    return ExportCard(
        loaded.card, tuple(mean), tuple(std), num_parameters=loaded.num_parameters, notes=loaded.notes
    )


def export_model(loaded: LoadedModel, name: ExportFormat, path: Path) -> None:
    """Write a model in a format, whole or not at all."""
    graph, dtype = graph_of(loaded, name)
    metadata = to_metadata(card_of(loaded), loaded.config)
    model = FORMATS[name].convert(graph, dtype)
    with written(path) as partial:
        FORMATS[name].save(model, metadata, partial)
