"""Detections of the model in training, in every evaluation image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.loader import build_eval_loader
from fcos.data.workers import loading
from fcos.metrics.rows import ROW, Rows, result_rows
from fcos.model.fcos import FCOS
from fcos.model.postprocess import PostProcess
from fcos.predict.device import gather
from fcos.predict.predictor import TorchBackend


def detect(
    fabric: Fabric,
    config: TrainConfig,
    model: FCOS,
    postprocess: PostProcess,
    annotations: Annotations,
    on_batch: Callable[[int], None],
) -> Rows:
    """Detections in every image, as rows of results; on the first device, and none on the others.

    Predicts like `fcos eval` and `Detector`, in float32 and with folded batch norm, so that the metrics are
    equal to the last digit. (Under autocast to bfloat16 the third digit differed.)

    Args:
        fabric: launched.
        config: of the run.
        model: to evaluate.
        postprocess: output to detections.
        annotations: of the evaluation images.
        on_batch: called with the number of images done.
    """
    rank, world = fabric.global_rank, fabric.world_size
    share = max(1, config.nbatch_eval // world)
    loader = build_eval_loader(config, annotations, share, rank=rank, world=world)
    with loading(loader) as batches:
        found = TorchBackend(model, postprocess).detect(batches, on_batch)
    found = gather(found, fabric)
    if not fabric.is_global_zero:
        return np.zeros(0, ROW)
    return result_rows(found, annotations, inclusive_boxes=postprocess.inclusive_boxes)
