"""From images to `Detections`: resizing, forward passes, and the backends that compute them."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fcos.config import TrainConfig
from fcos.cpu.fold import folded
from fcos.cpu.predicting import for_predicting
from fcos.data.arrays import Color
from fcos.data.batch import Batch
from fcos.data.image import pixels_of
from fcos.data.loader import PADDING_MULTIPLE, build_eval_transform
from fcos.data.strips import LargeImage, open_image
from fcos.data.transforms import EvalTransform, pad, same_padded_size
from fcos.model.build import build_postprocess
from fcos.model.fcos import FCOS, HeadOutput
from fcos.model.points import PointGrid
from fcos.model.postprocess import ImageDetections, PostProcess
from fcos.predict.detections import Detections
from fcos.predict.tiles import Views, detect_in_views
from fcos.weights.model_file import ModelCard

BATCH_SIZE_OF_GPU = 8
GROUP_SIZE_OF_CPU = 4
MOST_PIXELS_OF_SMALL = 480 * 640  # of the network's input: up to this size a batch is faster on a CPU
MOST_CALLS_OF_CPU = 4  # at once: each needs memory, and threads of Python share one interpreter lock
CALLS_OF_GPU = 2  # one prepares its batch while the other computes

P = TypeVar("P", bound="Pipeline")  # not Self: beartype cannot check it function by function

ToDetections = Callable[[HeadOutput, PointGrid, Tensor, Tensor], list[ImageDetections]]
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor | LargeImage


class Prepared(NamedTuple):
    """An image at network size, before padding.

    Attributes:
        pixels: `(3, height, width)` RGB in 0..255, resized, unless it is predicted in several views.
        original_size_hw: height and width before resizing.
    """

    pixels: Tensor
    original_size_hw: tuple[int, int]


def _resized(image: Tensor, transform: EvalTransform) -> Prepared:
    return Prepared(transform(image), (image.shape[1], image.shape[2]))


class Pipeline:
    """A backend with its preprocessing and class names: predicts groups of images.

    Attributes:
        backend: computes the detections.
        config: the settings in the model file.
        class_names: the name of each label, without background.
        category_ids: the id of each label in the training data.
        threshold: default minimum score (best F1 on the evaluation data).
        path: the model file.
    """

    def __init__(self, backend: Backend, config: TrainConfig, card: ModelCard, path: Path) -> None:
        self.backend, self.config = backend, config
        self.class_names, self.category_ids = card.class_names, card.category_ids
        self.threshold, self.path = card.threshold, path
        self._transform = build_eval_transform(config)
        self._labels: list[int] | None = None  # the labels that `predict` returns; None: all
        self._views = Views(config.tile or 0)

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self.backend.device

    def side_by_side(self: P) -> P:
        """A copy for `backend.calls_at_once` simultaneous calls of `predict`, which share the cores."""
        detector = copy.copy(self)
        detector.backend = self.backend.side_by_side
        return detector

    def read(self, image: ImageLike, color: Color = "rgb") -> Tensor | LargeImage:
        """The input of `predict` for an image: its pixels, or a large file.

        Raises:
            DatasetError: it cannot be read.
        """
        if isinstance(image, LargeImage):
            return image
        if self._views.tile and isinstance(image, str | os.PathLike):
            return open_image(Path(image))
        return pixels_of(image, color)

    @property
    def has_views(self) -> bool:
        """Whether an image is predicted in several views."""
        return bool(self._views.tile) or self._views.tta

    def prepare(self, image: Tensor) -> Prepared:
        """Resize an image, `(3, height, width)` uint8 RGB; with several views, `detect` does that."""
        if self.has_views:
            return Prepared(image, (image.shape[1], image.shape[2]))
        return _resized(image, self._transform)

    def passes(self, images: Sequence[Prepared], batch_size: int | None = None) -> list[list[int]]:
        """Groups of indices of images that `detect` takes together; callers limit them to `batch_size`."""
        if self.has_views:
            return [[index] for index in range(len(images))]
        return self._passes(images, batch_size)

    def detect(self, images: Sequence[Prepared]) -> list[ImageDetections]:
        """All detections of prepared images, which share a forward pass."""
        if self.has_views:
            return [self._detect_in_views(image.pixels, None) for image in images]
        return self._detect_pass(images)

    def _passes(self, images: Sequence[Prepared], batch_size: int | None) -> list[list[int]]:
        """Groups of indices of images that share a forward pass: images of one padded size.

        On a CPU, large images are alone unless a `batch_size` is given.
        """
        max_pixels = MOST_PIXELS_OF_SMALL if batch_size is None and self.device.type == "cpu" else None
        sizes_hw = [(image.pixels.shape[1], image.pixels.shape[2]) for image in images]
        return same_padded_size(sizes_hw, PADDING_MULTIPLE, max_pixels)

    def _detect_pass(self, images: Sequence[Prepared]) -> list[ImageDetections]:
        """All detections of images of one padded size, from one forward pass."""
        padded, sizes_hw = pad([image.pixels for image in images], PADDING_MULTIPLE)
        original_sizes_hw = torch.tensor([image.original_size_hw for image in images])
        return self.backend.detect_batch(padded, sizes_hw, original_sizes_hw)

    def predict_group(
        self,
        images: list[Tensor | LargeImage],
        score_threshold: float | None,
        batch_size: int | None,
    ) -> list[Detections]:
        """Predict images from `read` together; arguments as in `predict`."""
        threshold = self.threshold if score_threshold is None else score_threshold
        if self.has_views:
            found = [self._detect_in_views(image, batch_size, threshold) for image in images]
        else:
            whole = [image for image in images if isinstance(image, Tensor)]
            assert len(whole) == len(images), "only tiles are read in strips"
            found = self._detect(whole, self._transform, batch_size)
        return [self._detections(image, of).above(threshold) for image, of in zip(images, found, strict=True)]

    def _detect_in_views(
        self, image: Tensor | LargeImage, batch_size: int | None, score_threshold: float = 0.0
    ) -> ImageDetections:
        return detect_in_views(
            image,
            self._views,
            lambda pixels, transform: self._detect(pixels, transform, batch_size),
            self._transform,
            build_postprocess(self.config),
            mirrors=self.config.horizontal_flip,
            batch_size=batch_size or self.backend.group_size,
            score_threshold=score_threshold,
        )

    def _detect(
        self, images: list[Tensor], transform: EvalTransform, batch_size: int | None
    ) -> list[ImageDetections]:
        prepared = [_resized(image, transform) for image in images]
        found: dict[int, ImageDetections] = {}
        for group in self._passes(prepared, batch_size):
            found |= zip(group, self._detect_pass([prepared[i] for i in group]), strict=True)
        return [found[i] for i in range(len(images))]

    def _detections(self, image: Tensor | LargeImage, found: ImageDetections) -> Detections:
        pil_image = None
        if isinstance(image, Tensor):
            pil_image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        detections = Detections(
            found.boxes_xyxy, found.scores, found.labels, self.class_names, pil_image, found_at=found.found_at
        )
        return detections if self._labels is None else detections.filter(classes=self._labels)


# What computes the detections: the network, or a file exported from one (`export/exported.py`) --------------


class Backend(ABC):
    """Computes the detections of batches.

    Attributes:
        device: the device that it runs on.
        batch_size: default number of images per forward pass.
        group_size: default number of images that `Detector.predict` processes together.
    """

    device: torch.device
    batch_size: int
    group_size: int

    @property
    def calls_at_once(self) -> int:
        """The fastest number of threads calling `detect_batch` of `side_by_side`."""
        return min(torch.get_num_threads(), MOST_CALLS_OF_CPU)

    @property
    @abstractmethod
    def side_by_side(self) -> Backend:
        """A backend for this many concurrent calls in threads, which share the cores."""

    @abstractmethod
    def with_agnostic_nms(self, agnostic_nms: bool) -> Backend:
        """A backend with class-agnostic NMS, or NMS per class."""

    @abstractmethod
    def detect_batch(
        self, images: Tensor, sizes_hw: Tensor, original_sizes_hw: Tensor
    ) -> list[ImageDetections]:
        """Detections of every image of a batch, on the CPU; arguments as in `Batch`."""

    def detect(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None] = lambda num_images: None
    ) -> list[tuple[int, ImageDetections]]:
        """Detections of every image of the batches, with its image id.

        `on_batch` is called with the number of images done, for a progress bar.
        """
        found: list[tuple[int, ImageDetections]] = []
        for batch in batches:
            detections = self.detect_batch(batch.images, batch.sizes_hw, batch.original_sizes_hw)
            found.extend(zip(batch.image_ids, detections, strict=True))
            on_batch(len(batch))
        return found


class TorchBackend(Backend):
    """Runs the network itself.

    Args:
        model: later changes to it may have no effect here.
        postprocess: output to detections, such as a `PostProcess`.
    """

    def __init__(self, model: FCOS, postprocess: ToDetections) -> None:
        self.model, self._postprocess = model, postprocess
        self.device = model.pixel_mean.device
        on_cpu = self.device.type == "cpu"
        self.batch_size = 1 if on_cpu else BATCH_SIZE_OF_GPU  # large images gain nothing on a CPU
        self.group_size = GROUP_SIZE_OF_CPU if on_cpu else BATCH_SIZE_OF_GPU

    @cached_property
    def fastest(self) -> FCOS:
        """A faster copy with the same predictions up to rounding; made on first use.

        On a GPU, batch norm is folded and memory is channels last; all other optimizations are for CPUs.
        """
        with torch.inference_mode(False):  # folding relies on version counters
            if self.device.type == "cpu":
                return for_predicting(self.model)
            return folded(self.model).to(memory_format=torch.channels_last)

    @property
    def calls_at_once(self) -> int:
        """1 if PyTorch does not allow several."""
        return {"cpu": super().calls_at_once, "cuda": CALLS_OF_GPU}.get(self.device.type, 1)

    @property
    def side_by_side(self) -> TorchBackend:
        """Itself, after creating `fastest`: several threads would create it several times."""
        self.fastest  # noqa: B018
        return self

    def with_agnostic_nms(self, agnostic_nms: bool) -> TorchBackend:
        """See `Backend`."""
        assert isinstance(self._postprocess, PostProcess)
        backend = copy.copy(self.side_by_side)
        backend._postprocess = replace(self._postprocess, agnostic_nms=agnostic_nms)
        return backend

    @torch.inference_mode()
    def detect_batch(
        self, images: Tensor, sizes_hw: Tensor, original_sizes_hw: Tensor
    ) -> list[ImageDetections]:
        """See `Backend`."""
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        sizes_hw, original_sizes_hw = (
            sizes.to(self.device, non_blocking=True) for sizes in (sizes_hw, original_sizes_hw)
        )
        output = self.fastest(images, sizes_hw)
        grid = self.fastest.grid((images.shape[2], images.shape[3]))
        return [image.cpu() for image in self._postprocess(output, grid, sizes_hw, original_sizes_hw)]
