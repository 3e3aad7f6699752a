"""Predict `Detections` with any backend: a network, or an exported file."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.cpu.fold import folded
from fcos.cpu.predicting import for_predicting
from fcos.data.annotations import Annotations
from fcos.data.arrays import Color
from fcos.data.batch import Batch
from fcos.data.image import pixels_of
from fcos.data.loader import PADDING_MULTIPLE, build_eval_loader, build_eval_transform
from fcos.data.strips import LargeImage, open_image
from fcos.data.transforms import EvalTransform, pad, same_padded_size
from fcos.data.workers import loading
from fcos.errors import DatasetError, WeightsError
from fcos.metrics.rows import ROW, Rows, result_rows
from fcos.model.build import build_postprocess
from fcos.model.fcos import FCOS, HeadOutput
from fcos.model.points import PointGrid
from fcos.model.postprocess import ImageDetections, PostProcess
from fcos.predict.detections import Detections, labels_of
from fcos.predict.device import gather
from fcos.predict.stream import in_order, predict_each
from fcos.predict.tiles import Views, detect_in_views
from fcos.terminal import counted
from fcos.weights.load import LoadedModel
from fcos.weights.model_file import ModelCard

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCH_SIZE_OF_GPU = 8
GROUP_SIZE_OF_CPU = 4
MOST_PIXELS_OF_SMALL = 480 * 640  # of the network's input: up to there a batch is faster on a CPU
MOST_CALLS_OF_CPU = 4  # at once: each needs memory, and threads of Python share one interpreter lock
CALLS_OF_GPU = 2  # one prepares its batch while the other computes

P = TypeVar("P", bound="Predictor")  # not Self: beartype cannot check it function by function

ToDetections = Callable[[HeadOutput, PointGrid, Tensor, Tensor], list[ImageDetections]]
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor | LargeImage


class Prepared(NamedTuple):
    """An image as the network takes it, before padding.

    Attributes:
        pixels: `(3, height, width)` RGB in 0..255, resized.
        original_size_hw: height and width before resizing.
    """

    pixels: Tensor
    original_size_hw: tuple[int, int]


class Predictor:
    """A backend with its preprocessing and class names.

    Attributes:
        config: the settings that the model file carries.
        class_names: of each label, without background.
        category_ids: of each label, as in the data that the model was trained on.
        threshold: default minimum score (best F1 on the evaluation data).
        path: the model file.
    """

    def __init__(self, backend: Backend, config: TrainConfig, card: ModelCard, path: Path) -> None:
        self._backend = backend
        self.config = config
        self.class_names, self.category_ids = card.class_names, card.category_ids
        self.threshold, self.path = card.threshold, path
        self._transform = build_eval_transform(config)
        self._labels: list[int] | None = None  # that `predict` gives; None: all
        self._views = Views(config.tile or 0)

    @classmethod
    def of(cls: type[P], loaded: LoadedModel, device: torch.device) -> P:
        """With a network, on a device."""
        backend = TorchBackend(loaded.model.to(device), build_postprocess(loaded.config))
        return cls(backend, loaded.config, loaded.card, loaded.path)

    def __repr__(self) -> str:
        classes = counted(len(self.class_names), "class", "classes")
        return f"{type(self).__name__}({self.config.model}, {classes}, {self.device}, '{self.path}')"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._backend.device

    @property
    def model(self) -> FCOS:
        """The network, in evaluation mode, on the device."""
        if not isinstance(self._backend, TorchBackend):
            raise WeightsError(
                "an exported file holds a graph and no network",
                where=str(self.path),
                fix="load the model file that it was made from",
            )
        return self._backend.model

    @property
    def group_size(self) -> int:
        """Default number of images that `predict` takes together; 4 on a CPU."""
        return self._backend.group_size

    @property
    def calls_at_once(self) -> int:
        """How many threads that call `predict` of `side_by_side` are fastest."""
        return self._backend.calls_at_once

    def side_by_side(self: P) -> P:
        """A copy for `calls_at_once` simultaneous calls of `predict`, which share the cores."""
        detector = copy.copy(self)
        detector._backend = self._backend.side_by_side
        return detector

    def only(self: P, class_names: Sequence[str]) -> P:
        """A copy whose `predict` and `stream` give detections of these classes only."""
        detector = copy.copy(self)
        detector._labels = labels_of(class_names, self.class_names)
        return detector

    @overload  # a str is a Sequence of str too; it matches here first, as it does below
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        score_threshold: float | None = ...,
        *,
        batch_size: int | None = ...,
        agnostic_nms: bool | None = ...,
        color: Color = ...,
        tile: int | None = ...,
        overlap: float | None = ...,
        tta: bool | None = ...,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        score_threshold: float | None = ...,
        *,
        batch_size: int | None = ...,
        agnostic_nms: bool | None = ...,
        color: Color = ...,
        tile: int | None = ...,
        overlap: float | None = ...,
        tta: bool | None = ...,
    ) -> list[Detections]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        score_threshold: float | None = None,
        *,
        batch_size: int | None = None,
        agnostic_nms: bool | None = None,
        color: Color = "rgb",
        tile: int | None = None,
        overlap: float | None = None,
        tta: bool | None = None,
    ) -> Detections | list[Detections]:
        """Predict an image, or each image of a list.

        Args:
            images: a path, a PIL image, an array `(height, width, 3)` or a tensor `(3, height, width)`, uint8
                or floats in [0, 1], or a list of them, of any sizes. Arrays and tensors may also be grey,
                with one channel or none, or have a fourth channel, which is dropped; with four dimensions
                they are a batch. Paths and PIL images are turned upright as their EXIF says.
            score_threshold: minimum score of a detection; None: the model's own `threshold`; 0: everything
                that the evaluation counts.
            batch_size: images per forward pass; None: 8 on a GPU; on a CPU, where large images gain
                nothing, up to 4 small ones. Only images of one padded size share a pass, so that each gets
                the detections that it gets alone.
            agnostic_nms: NMS over all classes together, so that an object does not get boxes of two; None:
                the model's setting `agnostic_nms`.
            color: order of the channels of arrays and tensors; "bgr" for images that OpenCV read.
            tile: for small objects in large images: also predict square tiles with this side, original
                pixels, and merge their detections with those of the whole image; 0: the whole image only;
                None: the model's setting `tile`. `batch_size` then counts tiles. PNG and TIFF files of 50
                megapixels and more are read strip by strip, and their detections hold no image.
            overlap: of neighboring tiles, share of their side; None: 0.2.
            tta: test-time augmentation: also predict each image, or tile, mirrored (if the model was trained
                with `horizontal_flip`) and at other sizes; None: no.

        Returns:
            `Detections` that hold the image, or a list of them, one per image of a list or batch. (A list of
            thousands fills the memory: use `stream`.)
        """
        detector = self._with(agnostic_nms, tile, overlap, tta)
        if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
            images = list(images)
        if isinstance(images, str) or not isinstance(images, Sequence):
            return detector.predict_group([detector.read(images, color)], score_threshold, batch_size)[0]
        size = batch_size or self.group_size
        found: list[Detections] = []
        for first in range(0, len(images), size):
            group = [detector.read(image, color) for image in images[first : first + size]]
            found += detector.predict_group(group, score_threshold, batch_size)
        return found

    def read(self, image: ImageLike, color: Color = "rgb") -> Tensor | LargeImage:
        """What `predict` makes of an image before the network sees it: its pixels, or a large file.

        Raises:
            DatasetError: it cannot be read.
        """
        if isinstance(image, LargeImage):
            return image
        if self._views.tile and isinstance(image, str | os.PathLike):
            return open_image(Path(image))
        return pixels_of(image, color)

    def stream(
        self,
        images: Iterable[ImageLike],
        score_threshold: float | None = None,
        *,
        batch_size: int | None = None,
        agnostic_nms: bool | None = None,
        color: Color = "rgb",
        tile: int | None = None,
        overlap: float | None = None,
        tta: bool | None = None,
    ) -> Iterator[Detections]:
        """Predict any number of images, in order, and faster than one by one.

            for detections in detector.stream(Path("photos").glob("*.jpg")):
                detections.draw().save(...)

        A few images are read and predicted in threads while the caller uses the last result; no others are
        in memory.

        Args:
            images: each as `predict` takes it; an endless generator too.
            score_threshold: as in `predict`.
            batch_size: images to wait for and pass through the network together; None: 1 on a CPU, else 8.
            agnostic_nms, color, tile, overlap, tta: as in `predict`.

        Raises:
            DatasetError: where an image cannot be read; the stream ends there.
        """
        detector = self._with(agnostic_nms, tile, overlap, tta)
        for found in predict_each(
            detector,
            images,
            partial(detector.read, color=color),
            lambda image, detections: detections,
            score_threshold=score_threshold,
            batch_size=batch_size or self._backend.batch_size,
        ):
            if isinstance(found, DatasetError):
                raise found
            yield found

    def find(
        self,
        annotations: Annotations,
        *,
        batch_size: int | None = None,
        on_batch: Callable[[int], None] = lambda num_images: None,
        fabric: Fabric | None = None,
    ) -> Rows:
        """Predict every image of `annotations`, for `evaluate_detections`.

        Args:
            annotations: with the labels of this model.
            batch_size: images of one forward pass.
            on_batch: called with the number of images done, for a progress bar.
            fabric: launched: its processes, each with this model, share the images.

        Returns:
            Rows with `image_id`, `bbox` (xywh, original pixels), `score`, `category_id`; with `fabric` on its
            first process only, elsewhere none.
        """
        rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
        size = batch_size or self._backend.batch_size
        if self._views.tile or self._views.tta:
            found = self._find_in_views(annotations, range(rank, len(annotations), world), size, on_batch)
        else:
            loader = build_eval_loader(self.config, annotations, size, rank=rank, world=world)
            with loading(loader) as batches:
                found = self._backend.detect(batches, on_batch)
        found = gather(found, fabric)
        if rank != 0:
            return np.zeros(0, ROW)
        return result_rows(found, annotations, inclusive_boxes=CONVENTIONS[self.config.rules].inclusive_boxes)

    def _find_in_views(
        self, annotations: Annotations, mine: range, batch_size: int, on_batch: Callable[[int], None]
    ) -> list[tuple[int, ImageDetections]]:
        """Detections of some images with their ids; a thread reads the next image meanwhile."""
        found = []
        images = in_order(ThreadPoolExecutor(1), lambda place: self.read(annotations[place].path), mine, 1)
        for place, image in zip(mine, images, strict=True):
            found.append((int(annotations.image_ids[place]), self._detect_in_views(image, batch_size)))
            on_batch(1)
        return found

    def _with(
        self: P, agnostic_nms: bool | None, tile: int | None, overlap: float | None, tta: bool | None
    ) -> P:
        """The same with other options of `predict`."""
        if (agnostic_nms, tile, overlap, tta) == (None, None, None, None):
            return self
        views = self._views.changed(tile, overlap, tta)
        other_nms = agnostic_nms not in (None, self.config.agnostic_nms)
        if views == self._views and not other_nms:
            return self
        detector = copy.copy(self)
        detector._views = views
        if other_nms:
            detector._backend = self._backend.with_agnostic_nms(bool(agnostic_nms))
            detector.config = self.config.model_copy(update={"agnostic_nms": agnostic_nms})
        return detector

    def prepare(self, image: Tensor, transform: EvalTransform | None = None) -> Prepared:
        """Resize an image, `(3, height, width)` uint8 RGB, as the model does or with another transform."""
        return Prepared((transform or self._transform)(image), (image.shape[1], image.shape[2]))

    def passes(self, images: Sequence[Prepared], batch_size: int | None = None) -> list[list[int]]:
        """Indices of the images that share a forward pass: of one padded size; on a CPU only small ones.

        With a `batch_size` large ones too; the limit itself is up to the caller.
        """
        max_pixels = MOST_PIXELS_OF_SMALL if batch_size is None and self.device.type == "cpu" else None
        sizes_hw = [(image.pixels.shape[1], image.pixels.shape[2]) for image in images]
        return same_padded_size(sizes_hw, PADDING_MULTIPLE, max_pixels)

    def detect(self, images: Sequence[Prepared]) -> list[ImageDetections]:
        """Everything that one forward pass predicts in images of one padded size."""
        padded, sizes_hw = pad([image.pixels for image in images], PADDING_MULTIPLE)
        original_sizes_hw = torch.tensor([image.original_size_hw for image in images])
        return self._backend.detect_batch(padded, sizes_hw, original_sizes_hw)

    def predict_group(
        self,
        images: list[Tensor | LargeImage],
        score_threshold: float | None,
        batch_size: int | None,
    ) -> list[Detections]:
        """Predict images that `read` has read, all at once; arguments as in `predict`."""
        threshold = self.threshold if score_threshold is None else score_threshold
        if self._views.tile or self._views.tta:
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
            batch_size=batch_size or self.group_size,
            score_threshold=score_threshold,
        )

    def _detect(
        self, images: list[Tensor], transform: EvalTransform, batch_size: int | None
    ) -> list[ImageDetections]:
        prepared = [self.prepare(image, transform) for image in images]
        found: dict[int, ImageDetections] = {}
        for group in self.passes(prepared, batch_size):
            found |= zip(group, self.detect([prepared[i] for i in group]), strict=True)
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
    """Batches to detections.

    Attributes:
        device: where it computes.
        batch_size: default number of images of one forward pass.
        group_size: default number of images that are taken together.
    """

    device: torch.device
    batch_size: int
    group_size: int

    @property
    def calls_at_once(self) -> int:
        """How many concurrent calls of `detect` are fastest, of what `side_by_side` gives."""
        return min(torch.get_num_threads(), MOST_CALLS_OF_CPU)

    @property
    @abstractmethod
    def side_by_side(self) -> Backend:
        """The same for so many concurrent calls in threads, which share the cores."""

    @abstractmethod
    def with_agnostic_nms(self, agnostic_nms: bool) -> Backend:
        """The same with NMS over all classes together, or within each."""

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
        model: later changes of it may not reach this.
        postprocess: output to detections, such as a `PostProcess`, or its `candidates`.
    """

    def __init__(self, model: FCOS, postprocess: ToDetections) -> None:
        self.model, self._postprocess = model, postprocess
        self.device = model.pixel_mean.device
        on_cpu = self.device.type == "cpu"
        self.batch_size = 1 if on_cpu else BATCH_SIZE_OF_GPU  # large images gain nothing on a CPU
        self.group_size = GROUP_SIZE_OF_CPU if on_cpu else BATCH_SIZE_OF_GPU

    @cached_property
    def fastest(self) -> FCOS:
        """A copy that predicts faster, the same to rounding; made when it is first needed.

        On a GPU that is batch norm in the weights, and channels-last memory; everything else is for CPUs.
        """
        with torch.inference_mode(False):  # folding relies on version counters
            if self.device.type == "cpu":
                return for_predicting(self.model)
            return folded(self.model).to(memory_format=torch.channels_last)

    @property
    def calls_at_once(self) -> int:
        """1 where PyTorch does not allow several."""
        return {"cpu": super().calls_at_once, "cuda": CALLS_OF_GPU}.get(self.device.type, 1)

    @property
    def side_by_side(self) -> TorchBackend:
        """Itself, with its network made: several threads would make it several times."""
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
