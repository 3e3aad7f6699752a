"""Open an exported file, which then predicts like a network."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fcos.config import TrainConfig
from fcos.errors import WeightsError
from fcos.export.card import GIVE, ExportCard, from_metadata, input_dtype
from fcos.export.formats import FORMATS
from fcos.export.graph import OpenRun, Run
from fcos.files import check_regular, first_line_of
from fcos.model.postprocess import ImageDetections
from fcos.predict.pipeline import Backend
from fcos.terminal import counted
from fcos.weights.load import ExportFormat, format_of, settings_of_card
from fcos.weights.model_file import ModelCard


@dataclass(frozen=True, eq=False)
class ExportedModel(Backend):
    """An exported file, which predicts like a network.

    Attributes:
        run: runs its graph.
        open_run: makes more of them, for concurrent calls.
        export: the metadata of the file.
    """

    run: Run
    open_run: OpenRun
    config: TrainConfig
    export: ExportCard
    path: Path
    format: ExportFormat

    device = torch.device("cpu")
    batch_size = group_size = 1  # batches are not faster on a CPU, and their padding costs time

    @property
    def card(self) -> ModelCard:
        """The card of the model file that it was exported from."""
        return self.export.model

    @cached_property
    def side_by_side(self) -> ExportedModel:
        """See `Backend`."""
        if self.calls_at_once == 1:
            return self
        return replace(self, run=self.open_run(self.calls_at_once))

    def with_agnostic_nms(self, agnostic_nms: bool) -> ExportedModel:
        """Itself: NMS is in the graph."""
        if agnostic_nms != self.config.agnostic_nms:
            is_, option = ("per class", "with") if agnostic_nms else ("class-agnostic", "without")
            raise WeightsError(
                f"the NMS of an exported file is fixed; this file has {is_} NMS",
                where=str(self.path),
                fix=f"export the model again {option} --agnostic-nms, or load the model file",
            )
        return self

    def detect_batch(
        self, images: Tensor, sizes_hw: Tensor, original_sizes_hw: Tensor
    ) -> list[ImageDetections]:
        """See `Backend`."""
        dtype = getattr(torch, input_dtype(self.config))
        return _by_image(self._run(images.to(dtype), sizes_hw, original_sizes_hw), len(images))

    def _run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores, labels (checked to be classes of the file) and image index."""
        num_classes = len(self.card.class_names)
        try:
            outputs = self.run(*inputs)
            boxes, scores, labels, image = outputs
            fits = len(boxes) == len(scores) == len(labels) == len(image) and boxes.shape[1:] == (4,)
            fits = fits and (len(labels) == 0 or 0 <= int(labels.min()) <= int(labels.max()) < num_classes)
        except Exception as error:  # onnxruntime, OpenVINO and torch each raise their own errors
            raise self._unusable(f"cannot be run: {first_line_of(error)}") from error
        if not fits:
            classes = counted(num_classes, "class", "classes")
            raise self._unusable(f"does not match a detector of {classes}")
        return outputs

    def _unusable(self, reason: str) -> WeightsError:
        return WeightsError(f"the graph of {self.path.name} {reason}", where=str(self.path), fix=GIVE)


def _by_image(outputs: tuple[Tensor, ...], num_images: int) -> list[ImageDetections]:
    """The flat outputs of a graph, split by image."""
    *parts, image = outputs
    if num_images == 1:
        return [ImageDetections(*parts)]
    masks = (image == index for index in range(num_images))
    return [ImageDetections(*(part[mask] for part in parts)) for mask in masks]


def open_exported(path: Path) -> ExportedModel:
    """An exported file or folder.

    Raises:
        WeightsError: it does not exist, is damaged, or does not say how to use it.
    """
    name = format_of(path)
    if name is None or not os.path.lexists(path):
        raise WeightsError(f"there is no exported file {path}", fix=GIVE)
    if not path.is_dir() and name != "openvino":
        check_regular(path, WeightsError)
    metadata, open_run = FORMATS[name].open_file(path)
    card = from_metadata(metadata, path)
    return ExportedModel(open_run(1), open_run, settings_of_card(card.model, path), card, path, name)
