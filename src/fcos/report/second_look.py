"""Predict a few images again with a run's model: candidates before NMS, and the scores at every point."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fcos.data.annotations import Annotations, select
from fcos.data.batch import Batch
from fcos.data.loader import build_eval_loader
from fcos.errors import WeightsError
from fcos.model.build import build_postprocess
from fcos.model.postprocess import ImageDetections
from fcos.predict.pipeline import TorchBackend
from fcos.weights.load import LoadedModel, load_model, model_file_of

MAX_SECONDS = 3.0  # a large network on a CPU predicts fewer images


def second_look(run: Path, device: torch.device) -> SecondLook | None:
    """The model of a run folder; None if it has no model file."""
    try:
        model_file_of(run)
    except WeightsError:
        return None
    return SecondLook(load_model(run), device)


# At each point of `model.points.make_grid` for an image: score of the best class (-1 if it is below the
# threshold), its label, and centerness or expected IoU (None without that branch).
PointAnswers = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32] | None]


class SecondLook:
    """A run's model, which predicts one image at a time."""

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self.config = loaded.config.model_copy(update={"num_workers": 0, "nbatch_eval": 1})
        self.postprocess = build_postprocess(self.config)
        self.backend = TorchBackend(loaded.model.to(device), partial(self.postprocess, nms=False))

    def candidates(self, annotations: Annotations, images: Sequence[int]) -> dict[int, ImageDetections]:
        """Candidates before NMS, by image id, for as many of the images as time allows."""
        if not images:
            return {}
        batches = _while_there_is_time(self._loader(annotations, images))
        return dict(self.backend.detect(batches))

    @torch.inference_mode()
    def at_points(self, annotations: Annotations, image: int) -> PointAnswers:
        """The predictions at each point of an image."""
        [batch] = self._loader(annotations, [image])
        batch = batch.to(self.backend.device)
        output = self.backend.fastest(batch.images, batch.sizes_hw)
        scores, labels = self.postprocess.scores(output)[0].max(dim=1)
        quality = None if output.quality is None else output.quality[0].float().sigmoid().cpu().numpy()
        return scores.cpu().numpy(), labels.cpu().numpy(), quality

    def _loader(self, annotations: Annotations, images: Sequence[int]) -> DataLoader[Batch]:
        return build_eval_loader(self.config, select(annotations, images), self.config.nbatch_eval)


def _while_there_is_time(batches: Iterable[Batch]) -> Iterator[Batch]:
    end = time.monotonic() + MAX_SECONDS
    for batch in batches:
        yield batch
        if time.monotonic() > end:
            return
