"""Evaluation of the model during training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.metrics.coco import CocoMetrics, measure
from fcos.metrics.rows import Rows
from fcos.model.build import build_postprocess
from fcos.model.fcos import FCOS
from fcos.predict.pipeline import TorchBackend
from fcos.predict.predictor import Predictor
from fcos.weights.model_file import ModelCard


class Evaluated(NamedTuple):
    """The result of an evaluation, on the first device.

    Attributes:
        rows: all detections.
        threshold: the score threshold with the best F1.
        network_s, elapsed_s: seconds of prediction, and of the whole evaluation.
    """

    metrics: CocoMetrics
    rows: Rows
    threshold: float
    network_s: float
    elapsed_s: float

    @property
    def numbers(self) -> dict[str, float]:
        """The three metrics shown and logged; the best model is chosen by the first."""
        metrics = self.metrics
        return {"map_mean": metrics.map_mean, "map_50": metrics.map_50, "map_75": metrics.map_75}


def evaluate(
    fabric: Fabric,
    config: TrainConfig,
    model: FCOS,
    card: ModelCard,
    annotations: Annotations,
    on_batch: Callable[[int], None],
) -> Evaluated | None:
    """COCO metrics of a model, on the first device; None on the others.

    Predicts like `fcos eval` and `Detector`, in float32 and with folded batch norm, so that the metrics are
    identical. (Under autocast to bfloat16 the third digit differed.) `on_batch` is called with the number of
    images done.
    """
    started_at = time.monotonic()
    predictor = Predictor(TorchBackend(model, build_postprocess(config)), config, card, Path())
    batch_size = max(1, config.nbatch_eval // fabric.world_size)
    rows = predictor.predict_dataset(annotations, batch_size=batch_size, on_batch=on_batch, fabric=fabric)
    if not fabric.is_global_zero:
        return None
    network_s = time.monotonic() - started_at
    metrics, threshold = measure(annotations, rows)
    return Evaluated(metrics, rows, threshold, network_s, time.monotonic() - started_at)
