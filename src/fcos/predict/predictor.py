"""`Predictor`: predict one image, a list, a stream, or all images of annotations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations
from fcos.data.arrays import Color
from fcos.data.loader import build_eval_loader
from fcos.data.workers import loading
from fcos.errors import ConfigError, DatasetError, WeightsError
from fcos.metrics.rows import ROW, Rows, result_rows
from fcos.model.build import build_postprocess
from fcos.model.fcos import FCOS
from fcos.model.postprocess import ImageDetections
from fcos.predict.detections import Detections, labels_of
from fcos.predict.device import gather
from fcos.predict.pipeline import ImageLike, Pipeline, TorchBackend
from fcos.predict.stream import in_order, predict_each
from fcos.terminal import counted
from fcos.weights.load import LoadedModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

P = TypeVar("P", bound="Predictor")  # not Self: beartype cannot check it function by function


def check_batch_size(batch_size: int | None) -> None:
    """Reject a batch size below 1."""
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", fix="use at least 1, or None")


class Predictor(Pipeline):
    """A pipeline with the public methods: images in any form, and options per call."""

    @classmethod
    def of(cls: type[P], loaded: LoadedModel, device: torch.device) -> P:
        """From a loaded network, on a device."""
        backend = TorchBackend(loaded.model.to(device), build_postprocess(loaded.config))
        return cls(backend, loaded.config, loaded.card, loaded.path)

    def __repr__(self) -> str:
        classes = counted(len(self.class_names), "class", "classes")
        return f"{type(self).__name__}({self.config.model}, {classes}, {self.device}, '{self.path}')"

    @property
    def model(self) -> FCOS:
        """The network, in evaluation mode, on the device."""
        if not isinstance(self.backend, TorchBackend):
            raise WeightsError(
                "an exported file contains a graph, not a PyTorch network",
                where=str(self.path),
                fix="load the model file that it was exported from",
            )
        return self.backend.model

    def only(self: P, class_names: Sequence[str]) -> P:
        """A copy whose `predict` and `stream` return only detections of these classes."""
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
                or floats in [0, 1], or a list of them, of any sizes. Arrays and tensors may also be gray,
                with or without a channel dimension, or have a fourth channel, which is dropped; with four
                dimensions they are a batch. Paths and PIL images are turned upright by their EXIF
                orientation.
            score_threshold: minimum score of a detection; None: the model's own `threshold`; 0: all
                detections that evaluation uses.
            batch_size: images per forward pass; None: 8 on a GPU; on a CPU, up to 4 small images (large ones
                do not get faster in batches). Only images of one padded size share a pass, so that each gets
                the same detections as alone.
            agnostic_nms: class-agnostic NMS: one box per object; None: the model's setting `agnostic_nms`.
            color: order of the channels of arrays and tensors; "bgr" for images read with OpenCV.
            tile: for small objects in large images: also predict square tiles with this side, original
                pixels, and merge their detections with those of the whole image; 0: only the whole image;
                None: the model's setting `tile`. `batch_size` then counts tiles. PNG and TIFF files of 50
                megapixels and more are read strip by strip, and their detections do not contain the image.
            overlap: of neighboring tiles, as a fraction of their side; None: 0.2.
            tta: test-time augmentation: also predict each image, or tile, mirrored (if the model was trained
                with `horizontal_flip`) and at other sizes; None: no.

        Returns:
            `Detections`, which contain the image, or a list of them, one per image of a list or batch. (For
            thousands of images use `stream`: a list would fill the memory.)
        """
        detector = self._with(agnostic_nms, tile, overlap, tta)
        check_batch_size(batch_size)
        if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
            images = list(images)
        if isinstance(images, str) or not isinstance(images, Sequence):
            return detector.predict_group([detector.read(images, color)], score_threshold, batch_size)[0]
        size = batch_size or self.backend.group_size
        found: list[Detections] = []
        for first in range(0, len(images), size):
            group = [detector.read(image, color) for image in images[first : first + size]]
            found += detector.predict_group(group, score_threshold, batch_size)
        return found

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

        A few images are read and predicted in threads while the caller uses the last result; only these are
        in memory.

        Args:
            images: each as in `predict`; may be an endless generator.
            score_threshold: as in `predict`.
            batch_size: images to wait for and predict in one forward pass; None: 1 on a CPU, else 8.
            agnostic_nms, color, tile, overlap, tta: as in `predict`.

        Raises:
            DatasetError: an image cannot be read; the stream ends there.
        """
        detector = self._with(agnostic_nms, tile, overlap, tta)
        check_batch_size(batch_size)
        for found in predict_each(
            detector,
            images,
            partial(detector.read, color=color),
            lambda image, detections: detections,
            score_threshold=score_threshold,
            batch_size=batch_size or self.backend.batch_size,
        ):
            if isinstance(found, DatasetError):
                raise found
            yield found

    def predict_dataset(
        self,
        annotations: Annotations,
        *,
        batch_size: int | None = None,
        on_batch: Callable[[int], None] = lambda num_images: None,
        fabric: Fabric | None = None,
    ) -> Rows:
        """Predict every image of `annotations`, for `evaluate_detections`.

        Args:
            annotations: checked, with the labels of this model.
            batch_size: images per forward pass.
            on_batch: called with the number of images done, for a progress bar.
            fabric: launched; its processes, each with this model, share the images.

        Returns:
            Rows with `image_id`, `bbox` (xywh, original pixels), `score`, `category_id`; with `fabric` only
            on the first process, empty on the others.
        """
        rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
        size = batch_size or self.backend.batch_size
        if self.has_views:
            found = self._predict_in_views(annotations, range(rank, len(annotations), world), size, on_batch)
        else:
            loader = build_eval_loader(self.config, annotations, size, rank=rank, world=world)
            with loading(loader) as batches:
                found = self.backend.detect(batches, on_batch)
        found = gather(found, fabric)
        if rank != 0:
            return np.zeros(0, ROW)
        return result_rows(found, annotations, inclusive_boxes=CONVENTIONS[self.config.rules].inclusive_boxes)

    def _predict_in_views(
        self, annotations: Annotations, mine: range, batch_size: int, on_batch: Callable[[int], None]
    ) -> list[tuple[int, ImageDetections]]:
        """Detections of some images with their ids; a thread reads the next image in the meantime."""
        found = []
        images = in_order(ThreadPoolExecutor(1), lambda place: self.read(annotations[place].path), mine, 1)
        for place, image in zip(mine, images, strict=True):
            found.append((int(annotations.image_ids[place]), self._detect_in_views(image, batch_size)))
            on_batch(1)
        return found

    def _with(
        self: P, agnostic_nms: bool | None, tile: int | None, overlap: float | None, tta: bool | None
    ) -> P:
        """A copy with other options of `predict`."""
        detector = copy.copy(self)
        detector._views = self._views.changed(tile, overlap, tta)
        if agnostic_nms not in (None, self.config.agnostic_nms):
            detector.backend = self.backend.with_agnostic_nms(bool(agnostic_nms))
            detector.config = self.config.model_copy(update={"agnostic_nms": agnostic_nms})
        return detector
