from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torchvision.ops import box_iou

from fcos import Detections, Detector
from fcos.data import strips
from fcos.data.annotations import Annotations
from fcos.data.formats import read_annotations
from fcos.data.loader import build_eval_loader
from fcos.errors import ConfigError, FcosError
from fcos.metrics.rows import result_rows, results_json
from fcos.model.build import build_model, build_postprocess
from fcos.model.fcos import FCOS
from fcos.model.postprocess import ImageDetections
from fcos.predict.device import gather
from fcos.predict.pipeline import TorchBackend

from .conftest import flowers_at, window

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


# Tiles and test-time augmentation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wall(photograph: Image.Image) -> tuple[Image.Image, torch.Tensor]:
    """Twelve views of the flowers in cells of 160 x 160, and the boxes of those that are well visible."""
    canvas, boxes = Image.new("RGB", (640, 480)), []
    for place in range(12):
        x, y = 40.0 * (place % 4), 20.0 * (place // 4)
        corner = (place % 4 * 160, place // 4 * 160)
        canvas.paste(window(photograph, x, y), corner)
        boxes.append(torch.from_numpy(flowers_at(x, y)) + torch.tensor(corner).repeat(2))
    return canvas, torch.cat(boxes).float()


def share_found(found: Detections, boxes: torch.Tensor) -> float:
    if len(found) == 0:
        return 0.0
    return float((box_iou(boxes, found.boxes_xyxy).amax(dim=1) > 0.5).float().mean())


def test_tiles_find_what_is_too_small_in_the_whole_image(
    flower_detector: Path, wall: tuple[Image.Image, torch.Tensor]
) -> None:
    canvas, boxes = wall
    detector = Detector.load(flower_detector, "cpu")
    whole, tiles = detector.predict(canvas, 0.3), detector.predict(canvas, 0.3, tile=160, overlap=0.0)
    assert share_found(whole, boxes) < 0.3
    assert share_found(tiles, boxes) > 0.6
    assert tiles.image is not None
    assert tiles.image.size == (640, 480)
    assert tiles.scores.diff().le(0).all()
    assert (tiles.scores >= 0.3).all()


def test_load_list_stream_and_any_batch_size_give_the_same_tiles(
    flower_detector: Path, wall: tuple[Image.Image, torch.Tensor]
) -> None:
    canvas, _ = wall
    detector, loaded = Detector.load(flower_detector, "cpu"), Detector.load(flower_detector, "cpu", tile=160)
    expected = detector.predict(canvas, 0.3, tile=160)
    assert len(expected) > 10
    for found in (
        loaded.predict(canvas, 0.3),
        detector.predict([canvas, canvas], 0.3, tile=160, batch_size=7)[1],
        next(detector.stream([canvas], 0.3, tile=160)),
    ):
        torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=1e-2)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    alone = detector.predict(canvas, 0.3)
    torch.testing.assert_close(loaded.predict(canvas, 0.3, tile=0).boxes_xyxy, alone.boxes_xyxy)
    with pytest.raises(FcosError, match="an overlap has no effect without tiles"):
        detector.predict(canvas, overlap=0.5)


@pytest.mark.parametrize("options", [{"tile": 160}, {"tta": True}])
def test_evaluation_counts_what_predict_finds(
    options: dict[str, Any], flower_detector: Path, wall: tuple[Image.Image, torch.Tensor], tmp_path: Path
) -> None:
    canvas, _ = wall
    canvas.save(tmp_path / "a.png")
    canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    (tmp_path / "eval.txt").write_text("a.png 0 0 9 9 1\nb.png 0 0 9 9 1\n")
    annotations = read_annotations(tmp_path / "eval.txt", root=tmp_path, names=["flower"])
    detector, counts = Detector.load(flower_detector, "cpu", **options), []
    rows = detector.predict_dataset(annotations, on_batch=counts.append)
    assert counts == [1, 1]
    for image_id, name in ((1, "a.png"), (2, "b.png")):
        found = detector.predict(tmp_path / name, 0.0)
        mine = rows[rows["image_id"] == image_id]
        assert len(mine) == len(found) > 10
        np.testing.assert_allclose(np.sort(mine["score"]), np.sort(found.scores.numpy()), atol=1e-5)


def test_a_mirrored_image_has_mirrored_detections_with_augmentation(
    flower_detector: Path, photograph: Image.Image
) -> None:
    image = window(photograph, 40, 20)
    detector = Detector.load(flower_detector, "cpu")
    found = detector.predict(image, 0.3, tta=True)
    other = detector.predict(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.3, tta=True)
    assert len(found) == len(other) > 0
    left, top, right, bottom = other.boxes_xyxy.unbind(dim=1)
    mirrored = torch.stack([160 - right, top, 160 - left, bottom], dim=1)
    assert box_iou(found.boxes_xyxy, mirrored).amax(dim=1).min() > 0.98
    torch.testing.assert_close(found.scores, other.scores, rtol=0, atol=0.01)


def test_a_large_file_is_predicted_in_strips_as_it_is_from_memory(
    flower_detector: Path,
    wall: tuple[Image.Image, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canvas, boxes = wall
    canvas.save(tmp_path / "a.png")
    detector = Detector.load(flower_detector, "cpu")
    from_memory = detector.predict(tmp_path / "a.png", 0.3, tile=160, overlap=0.0)
    monkeypatch.setattr(strips, "LARGE", 0)
    found = detector.predict(tmp_path / "a.png", 0.3, tile=160, overlap=0.0)
    assert found.image is None
    assert from_memory.image is not None
    assert share_found(found, boxes) > 0.6
    # The whole image is reduced in another way; what comes from tiles is the same.
    assert box_iou(from_memory.boxes_xyxy, found.boxes_xyxy).amax(dim=1).ge(0.9).float().mean() > 0.85


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_images_is_refused(small_model: Path, batch_size: int) -> None:
    detector = Detector.load(small_model, device="cpu")
    image = torch.zeros((3, 32, 32), dtype=torch.uint8)
    for predict in (detector.predict, lambda *args, **options: list(detector.stream(*args, **options))):
        with pytest.raises(ConfigError, match=f"batch_size is {batch_size}"):
            predict([image, image], batch_size=batch_size)
