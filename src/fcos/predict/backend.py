"""What predicts batches of images: a PyTorch network, or a file exported from one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch

from fcos.cpu.fold import folded
from fcos.cpu.predicting import for_predicting
from fcos.data.batch import Batch
from fcos.model.fcos import FCOS
from fcos.model.postprocess import ImageDetections, PostProcess
from fcos.predict.detect import detect

BATCH_SIZE_OF_GPU = 8
GROUP_SIZE_OF_CPU = 4
MOST_PIXELS_OF_SMALL = 480 * 640  # of the network's input: up to there a batch is faster on a CPU
MOST_CALLS = 4  # at once on a CPU: each needs memory, and threads of Python share one interpreter lock
CALLS_OF_GPU = 2  # one prepares its batch while the other computes


def calls_of_cpu() -> int:
    """How many calls at once share the cores."""
    return min(torch.get_num_threads(), MOST_CALLS)


def fastest_copy(model: FCOS) -> FCOS:
    """A copy for predicting only, the same to rounding; later changes of `model` do not reach it.

    On a GPU that is batch norm in the weights, and channels-last memory; everything else is for CPUs.
    """
    if model.pixel_mean.device.type == "cpu":
        return for_predicting(model)
    return folded(model).to(memory_format=torch.channels_last)


@runtime_checkable
class Backend(Protocol):
    """Batches to detections.

    Attributes:
        device: where it computes.
        usual_batch_size: images of one forward pass, where nobody says.
        group_size: images that are taken together, where nobody says.
        calls_at_once: of `detect` in threads that are the fastest, of what `side_by_side` gives.
        side_by_side: the same for so many calls at once, which share the cores.
    """

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def usual_batch_size(self) -> int: ...  # noqa: D102

    @property
    def group_size(self) -> int: ...  # noqa: D102

    @property
    def calls_at_once(self) -> int: ...  # noqa: D102

    @property
    def side_by_side(self) -> Backend: ...  # noqa: D102

    def with_agnostic_nms(self, agnostic_nms: bool) -> Backend:
        """The same with NMS over all classes together, or within each."""
        ...

    def detect(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None] = ...
    ) -> list[tuple[int, ImageDetections]]:
        """Detections of every image of the batches, on the CPU, with its image id.

        `on_batch` is called with the number of images done, for a progress bar.
        """
        ...


class TorchBackend:
    """Detects with the network itself."""

    def __init__(self, model: FCOS, postprocess: PostProcess) -> None:
        self.model, self._postprocess = model, postprocess

    @cached_property
    def _network(self) -> FCOS:
        """The network in the form that predicts fastest, made when it is first needed."""
        return fastest_copy(self.model)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.pixel_mean.device

    @property
    def usual_batch_size(self) -> int:
        """1 on a CPU, where a batch of large images gains nothing."""
        return 1 if self.device.type == "cpu" else self.group_size

    @property
    def group_size(self) -> int:
        """See `Backend`."""
        return GROUP_SIZE_OF_CPU if self.device.type == "cpu" else BATCH_SIZE_OF_GPU

    @property
    def calls_at_once(self) -> int:
        """1 where PyTorch does not allow several."""
        return {"cpu": calls_of_cpu(), "cuda": CALLS_OF_GPU}.get(self.device.type, 1)

    @property
    def side_by_side(self) -> TorchBackend:
        """Itself, with its network made: several threads would make it several times."""
        self._network  # noqa: B018
        return self

    def with_agnostic_nms(self, agnostic_nms: bool) -> TorchBackend:
        """See `Backend`."""
        backend = copy.copy(self.side_by_side)
        backend._postprocess = replace(self._postprocess, agnostic_nms=agnostic_nms)
        return backend

    def detect(
        self, batches: Iterable[Batch], on_batch: Callable[[int], None] = lambda num_images: None
    ) -> list[tuple[int, ImageDetections]]:
        """See `Backend`."""
        return detect(self._network, self._postprocess, batches, on_batch=on_batch)
