"""Opening an exported file: what `Detector` uses instead of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fcos.backend import calls_of_cpu
from fcos.build import LoadedModel, load_model, settings_of_card
from fcos.config import TrainConfig
from fcos.data.batch import Batch
from fcos.errors import DeviceError, WeightsError
from fcos.export.card import GIVE, ExportCard, from_metadata, input_dtype
from fcos.export.formats import FORMATS, FormatName, format_of
from fcos.model.postprocess import ImageDetections
from fcos.model.weights import ModelCard

BATCH_SIZE = 1  # of prediction, where nobody says: on a CPU a batch gains nothing, and its padding costs


@runtime_checkable
class Runner(Protocol):
    """Runs a `DetectionGraph` of a file."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Images, sizes_hw, original_sizes_hw to boxes_xyxy, scores, labels, image_index."""
        ...

    def side_by_side(self, num_calls: int) -> Runner:
        """The same for `num_calls` calls in threads at once, which share the cores."""
        ...


@dataclass(frozen=True)
class ExportedModel:
    """An exported file, ready to use.

    Attributes:
        runner: of its graph.
        config: the settings of the model.
        export: what the file says about itself.
        path: of the file or folder.
        format: of the file.
    """

    runner: Runner
    config: TrainConfig
    export: ExportCard
    path: Path
    format: FormatName

    @property
    def card(self) -> ModelCard:
        """As of the model file that it was made from."""
        return self.export.model

    @property
    def notes(self) -> tuple[str, ...]:
        """How it was made."""
        return self.export.notes

    @property
    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of red, green and blue, in 0..255."""
        return list(self.export.pixel_mean), list(self.export.pixel_std)

    @property
    def num_parameters(self) -> int:
        """Of the network that it was made from."""
        return self.export.num_parameters

    def backend(self, device: torch.device) -> ExportedBackend:
        """What `Detector` detects with."""
        if device.type != "cpu":
            raise DeviceError(
                f"an exported file runs on the CPU, not on {device}",
                where=str(self.path),
                fix='give --device cpu (in Python device="cpu"), or the model file that it was made from',
            )
        return ExportedBackend(
            self.runner, getattr(torch, input_dtype(self.config)), agnostic_nms=self.config.agnostic_nms
        )


class ExportedBackend:
    """Detects with an exported file; see `fcos.backend.Backend`."""

    device = torch.device("cpu")
    usual_batch_size = group_size = BATCH_SIZE

    def __init__(self, runner: Runner, dtype: torch.dtype, *, agnostic_nms: bool = False) -> None:
        self._runner, self._dtype, self._agnostic_nms = runner, dtype, agnostic_nms

    @property
    def calls_at_once(self) -> int:
        """As many as have a core each."""
        return calls_of_cpu()

    @cached_property
    def side_by_side(self) -> ExportedBackend:
        """See `fcos.backend.Backend`."""
        if self.calls_at_once == 1:
            return self
        runner = self._runner.side_by_side(self.calls_at_once)
        return ExportedBackend(runner, self._dtype, agnostic_nms=self._agnostic_nms)

    def with_agnostic_nms(self, agnostic_nms: bool) -> ExportedBackend:
        """Itself: NMS is in the graph."""
        if agnostic_nms != self._agnostic_nms:
            is_, option = ("within each class", "with") if agnostic_nms else ("over all classes", "without")
            raise WeightsError(
                f"the NMS of an exported file cannot be changed; this one's is {is_}",
                fix=f"export the model again, {option} --agnostic-nms, or load the model file",
            )
        return self

    def detect(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None] = lambda num_images: None
    ) -> list[tuple[int, ImageDetections]]:
        """Detections of every image of the batches, with its image id."""
        found: list[tuple[int, ImageDetections]] = []
        for batch in batches:
            outputs = self._runner(batch.images.to(self._dtype), batch.sizes_hw, batch.original_sizes_hw)
            found += zip(batch.image_ids, _by_image(outputs, len(batch)), strict=True)
            on_batch(len(batch))
        return found


def _by_image(outputs: tuple[Tensor, ...], num_images: int) -> list[ImageDetections]:
    """The flat outputs of a graph, cut into images."""
    boxes, scores, labels, image = outputs
    if num_images == 1:
        return [ImageDetections(boxes, scores, labels)]
    return [
        ImageDetections(boxes[mine], scores[mine], labels[mine])
        for mine in (image == index for index in range(num_images))
    ]


def open_exported(path: Path) -> ExportedModel:
    """An exported file or folder.

    Raises:
        WeightsError: there is none, it is damaged, or does not say how to use it.
    """
    name = format_of(path)
    if name is None or not path.exists():
        raise WeightsError(f"there is no exported file {path}", fix=GIVE)
    metadata, runner = FORMATS[name].open(path)
    card = from_metadata(metadata, path)
    return ExportedModel(runner, settings_of_card(card.model, path), card, path, name)


def open_model(source: Path) -> LoadedModel | ExportedModel:
    """What `fcos predict` takes: a run folder, a model file, a published file, or an exported one."""
    return open_exported(source) if format_of(source) else load_model(source)
