"""Detections of the model in training, in every evaluation image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.metrics.rows import Rows
from fcos.model.fcos import FCOS
from fcos.model.postprocess import PostProcess
from fcos.predict.pipeline import TorchBackend
from fcos.predict.predictor import Predictor
from fcos.weights.model_file import ModelCard


def detect(
    fabric: Fabric,
    config: TrainConfig,
    model: FCOS,
    postprocess: PostProcess,
    card: ModelCard,
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
        card: of the model.
        annotations: of the evaluation images.
        on_batch: called with the number of images done.
    """
    return Predictor(TorchBackend(model, postprocess), config, card, Path()).find(
        annotations,
        batch_size=max(1, config.nbatch_eval // fabric.world_size),
        on_batch=on_batch,
        fabric=fabric,
    )
