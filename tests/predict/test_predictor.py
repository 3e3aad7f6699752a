from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from fcos.data.annotations import Annotations
from fcos.data.formats import read_annotations
from fcos.data.loader import build_eval_loader
from fcos.metrics.rows import result_rows, results_json
from fcos.model.build import build_model, build_postprocess
from fcos.model.fcos import FCOS
from fcos.model.postprocess import ImageDetections
from fcos.predict.device import gather
from fcos.predict.predictor import TorchBackend

if TYPE_CHECKING:
    from ..rectangles import Tiny


@pytest.fixture
def eval_set(tiny: Tiny) -> Annotations:
    return read_annotations(tiny.data / "eval.txt", root=tiny.data / "eval", names=["red", "blue"])


@pytest.fixture
def model(tiny: Tiny) -> FCOS:
    """A network with random weights that finds much everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(tiny.config("none"), 2)
        torch.nn.init.constant_(model.head.logits.bias, -1.0)
        torch.nn.init.normal_(model.head.logits.weight, std=0.5)
    return model


def found_by(tiny: Tiny, model: FCOS, eval_set: Annotations, world: int) -> list[tuple[int, ImageDetections]]:
    """What so many processes find, one after the other."""
    config = tiny.config("none")
    backend = TorchBackend(model, build_postprocess(config))
    loaders = [build_eval_loader(config, eval_set, 4, rank=rank, world=world) for rank in range(world)]
    return [entry for loader in loaders for entry in backend.detect(loader)]


def test_every_image_is_measured_once_on_any_number_of_processes(
    tiny: Tiny, model: FCOS, eval_set: Annotations
) -> None:
    # (That real processes come to the same metrics: test_train.py.)
    alone = result_rows(found_by(tiny, model, eval_set, 1), eval_set)
    assert set(alone["image_id"].tolist()) == {1, 2, 3, 4, 5, 6, 7}
    for world in (2, 3, 8):
        found = found_by(tiny, model, eval_set, world)
        assert sorted(image_id for image_id, _ in found) == [1, 2, 3, 4, 5, 6, 7]
        np.testing.assert_array_equal(result_rows(found, eval_set), alone)  # to the last digit


def test_image_measured_twice_or_never_is_a_defect(tiny: Tiny, model: FCOS, eval_set: Annotations) -> None:
    found = found_by(tiny, model, eval_set, 1)
    for wrong in ([*found, found[0]], found[1:], [*found[1:], found[1]]):
        with pytest.raises(AssertionError, match="every image exactly once"):
            result_rows(wrong, eval_set)


def test_boxes_are_in_pixels_of_the_original(tiny: Tiny, model: FCOS, eval_set: Annotations) -> None:
    sizes = {record.image_id: torch.tensor([64, 48]) for record in eval_set}
    for image_id, detections in found_by(tiny, model, eval_set, 1):
        assert len(detections.scores) > 0
        assert (detections.boxes_xyxy >= 0).all()
        assert (detections.boxes_xyxy[:, 2] <= sizes[image_id][0] + 1e-3).all()


def test_model_stays_in_the_mode_that_it_was_in(tiny: Tiny, model: FCOS, eval_set: Annotations) -> None:
    for training in (True, False):
        model.train(training)
        found_by(tiny, model, eval_set, 1)
        assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_images(tiny: Tiny, model: FCOS, eval_set: Annotations) -> None:
    config, counts = tiny.config("none"), []
    backend = TorchBackend(model, build_postprocess(config))
    backend.detect(build_eval_loader(config, eval_set, 4), on_batch=counts.append)
    assert counts == [4, 3]


def test_one_process_gathers_what_it_has() -> None:
    found = [(1, ImageDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)))]
    assert gather(found, Fabric(accelerator="cpu", devices=1)) is found


def test_rows_by_hand(eval_set: Annotations) -> None:
    nothing = ImageDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    one = ImageDetections(torch.tensor([[1.0, 2.0, 11.5, 22.0]]), torch.tensor([0.5]), torch.tensor([1]))
    found = [(image_id, one if image_id == 3 else nothing) for image_id in range(7, 0, -1)]
    rows = result_rows(found, eval_set)
    assert rows["bbox"].tolist() == [[1, 2, 10.5, 20]]
    assert json.loads(results_json(rows)) == [
        {"image_id": 3, "category_id": 2, "bbox": [1.0, 2.0, 10.5, 20.0], "score": 0.5}
    ]
