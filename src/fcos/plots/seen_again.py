"""A run's model looks at a few pictures again, to know what entered NMS."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from fcos.build import build_eval_loader, build_postprocess, load_model, model_file_of
from fcos.data.annotations import Annotations
from fcos.data.batch import Batch
from fcos.data.splits import select
from fcos.engine.evaluate import detect
from fcos.errors import WeightsError
from fcos.model.postprocess import ImageDetections

MAX_SECONDS = 5.0  # a large network on a CPU sees fewer pictures


def seen_again(
    run: Path, annotations: Annotations, images: Sequence[int], device: torch.device
) -> dict[int, ImageDetections]:
    """What entered NMS, by image id, of as many of the pictures as there is time for.

    Nothing where the run kept no model file.
    """
    try:
        model_file_of(run)
    except WeightsError:
        return {}
    if not images:
        return {}
    loaded = load_model(run)
    config = loaded.config.model_copy(update={"num_workers": 0, "nbatch_eval": 1})
    loader = build_eval_loader(config, select(annotations, images))
    candidates = build_postprocess(config).candidates
    return dict(detect(loaded.model.to(device), candidates, _while_there_is_time(loader)))


def _while_there_is_time(batches: Iterable[Batch]) -> Iterator[Batch]:
    end = time.monotonic() + MAX_SECONDS
    for batch in batches:
        yield batch
        if time.monotonic() > end:
            return
