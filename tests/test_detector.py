"""`Detector`: every kind of image, lists, evaluation, training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from fcos import Detector
from fcos.config import load_config
from fcos.data.annotations import Annotations
from fcos.data.image import pixels_of
from fcos.errors import ConfigError, DatasetError, DeviceError, WeightsError
from fcos.metrics.rows import results_json
from fcos.predict import pipeline
from fcos.predict.pipeline import TorchBackend

EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="session")
def detector(model_file: Path) -> Detector:
    return Detector.load(model_file, device="cpu")


@pytest.fixture(scope="session")
def pixels() -> np.ndarray[Any, Any]:
    """A coarse random pattern, 60 high and 90 wide."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=0).repeat(10, axis=1)


def assert_same(first: Any, second: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(first.boxes_xyxy, second.boxes_xyxy, rtol=0, atol=tolerance)
    torch.testing.assert_close(first.scores, second.scores, rtol=0, atol=tolerance)
    assert first.labels.tolist() == second.labels.tolist()


def test_a_detector_knows_its_classes_and_threshold_without_any_config(detector: Detector) -> None:
    assert detector.class_names == ("cat", "dog", "bird")
    assert detector.threshold == 0.5
    assert detector.config.short_side == 96
    assert detector.config.score_threshold == 0.05
    assert repr(detector).startswith("Detector(fcos_lite0, 3 classes, cpu, ")


def test_a_list_with_fewer_class_names_is_not_read_with_those_of_the_model(
    detector: Detector, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("a.png 1 2 7 6 1\n")
    (tmp_path / "names.txt").write_text("background\ndog\n")

    with pytest.raises(DatasetError, match="only in the model: 'cat', 'bird'"):
        detector.read_annotations(tmp_path / "list.txt")


def test_boxes_are_in_pixels_of_the_original_image(detector: Detector, pixels: Any) -> None:
    found = detector.predict(pixels, score_threshold=0.0)

    assert 0 < len(found) <= 100
    assert found.class_names == detector.class_names
    assert found.image is not None
    assert found.image.size == (90, 60)
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= torch.tensor([90.0, 60.0, 90.0, 60.0])).all()
    assert found.boxes_xyxy[:, 2].max() > 60  # beyond what a square of the shorter side would hold
    assert found.scores.diff().le(0).all()


def test_path_image_array_and_tensor_of_the_same_pixels_give_the_same(
    detector: Detector, pixels: Any, tmp_path: Path
) -> None:
    path = tmp_path / "ünï 图.png"
    Image.fromarray(pixels).save(path)
    reference = detector.predict(pixels)
    assert len(reference) > 0

    assert_same(detector.predict(path), reference)
    assert_same(detector.predict(str(path)), reference)
    assert_same(detector.predict(Image.fromarray(pixels)), reference)
    assert_same(detector.predict(torch.from_numpy(pixels).permute(2, 0, 1)), reference)
    assert_same(detector.predict(pixels[:, :, ::-1][:, :, ::-1]), reference)  # strides that torch has not


def test_an_array_that_may_not_be_written_is_read(detector: Detector, pixels: Any) -> None:
    locked = pixels.copy()
    locked.flags.writeable = False

    assert_same(detector.predict(locked), detector.predict(pixels))


def test_a_list_gives_as_many_detections_in_its_order_whatever_the_sizes(
    detector: Detector, pixels: Any
) -> None:
    images = [pixels, pixels[:40, :60], pixels[:, :30], pixels[:50]]
    alone = [detector.predict(image, score_threshold=0.0) for image in images]

    for batch_size in (None, 1, 3, 8):
        together = detector.predict(tuple(images), score_threshold=0.0, batch_size=batch_size)
        assert [found.image.size for found in together if found.image] == [
            (90, 60),
            (60, 40),
            (30, 60),
            (90, 50),
        ]
        for first, second in zip(together, alone, strict=True):
            assert len(first) > 0
            assert_same(first, second, tolerance=1e-4)


def test_measuring_gives_each_image_what_it_gets_alone_whatever_the_batch(
    detector: Detector, pixels: Any, tmp_path: Path
) -> None:
    sizes_hw = [(60, 90), (40, 60), (60, 30), (50, 90), (90, 60), (60, 90), (20, 90), (60, 61), (60, 90)]
    images = []
    for number, (height, width) in enumerate(sizes_hw, start=1):
        Image.fromarray(np.resize(pixels[:, ::-1], (height, width, 3))).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": place, "name": name} for place, name in enumerate(detector.class_names, start=1)]
    source = tmp_path / "instances.json"
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    annotations = detector.read_annotations(source, root=tmp_path)

    alone, together = (results_of(detector, annotations, batch_size) for batch_size in (1, 8))

    assert len({entry["image_id"] for entry in alone}) == len(sizes_hw)
    assert len(together) == len(alone)
    for first, second in zip(alone, together, strict=True):
        assert (first["image_id"], first["category_id"]) == (second["image_id"], second["category_id"])
        # Rounding in the network depends on the batch's size: at most the last of the printed digits.
        assert first["bbox"] == pytest.approx(second["bbox"], abs=2e-3)
        assert first["score"] == pytest.approx(second["score"], abs=2e-6)


def results_of(detector: Detector, annotations: Annotations, batch_size: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(
        results_json(detector.predict_dataset(annotations, batch_size=batch_size))
    )
    return entries


def test_small_images_of_one_size_go_through_the_network_together(
    detector: Detector, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []

    def detect_batch(backend: TorchBackend, images: Any, *args: Any) -> Any:
        sizes.append(tuple(images.shape))
        return plain(backend, images, *args)

    plain = TorchBackend.detect_batch
    monkeypatch.setattr(TorchBackend, "detect_batch", detect_batch)
    upright = pixels.transpose(1, 0, 2)
    images = [pixels, upright, pixels[::-1], pixels[:, ::-1], upright[::-1], pixels]
    together = detector.predict(images, score_threshold=0.0)
    assert [size[0] for size in sizes] == [3, 1, 1, 1]  # of the first four, and of the other two
    assert sizes[0][2:] == sizes[1][:1:-1]

    sizes.clear()
    monkeypatch.setattr(pipeline, "MOST_PIXELS_OF_SMALL", 100)
    alone = detector.predict(images, score_threshold=0.0)
    assert [size[0] for size in sizes] == [1] * 6
    for first, second in zip(together, alone, strict=True):
        assert_same(first, second, tolerance=1e-4)


def test_an_empty_list_gives_an_empty_list(detector: Detector) -> None:
    assert detector.predict([]) == []


def test_the_models_own_threshold_is_used_unless_another_is_given(detector: Detector, pixels: Any) -> None:
    everything = detector.predict(pixels, score_threshold=0.0)

    assert 0 < len(detector.predict(pixels)) < len(everything)
    assert_same(detector.predict(pixels), everything.above(0.5))
    assert_same(detector.predict(pixels, 0.6), everything.above(0.6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_gives_what_the_upright_one_gives(
    detector: Detector, pixels: Any, tmp_path: Path, orientation: int
) -> None:
    back = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    back[orientation](Image.fromarray(pixels)).save(path, exif=exif)
    upright = detector.predict(pixels)

    from_path = detector.predict(path)
    with Image.open(path) as image:
        from_image = detector.predict(image)

    assert_same(from_path, upright)
    assert_same(from_image, upright)
    assert from_path.image is not None
    assert np.array_equal(np.asarray(from_path.image), pixels)


def test_gray_arrays_and_those_with_a_fourth_channel_are_images(detector: Detector, pixels: Any) -> None:
    gray = np.ascontiguousarray(pixels[..., 0])
    wanted = detector.predict(np.stack([gray] * 3, axis=2))
    assert len(wanted) > 0
    for image in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None]):
        assert_same(detector.predict(image), wanted)
    rgba = np.dstack([pixels, gray])
    for image in (rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        assert_same(detector.predict(image), detector.predict(pixels))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.bfloat16, torch.float32])
def test_floats_are_fractions_of_white(dtype: Any) -> None:
    fractions = [[0.0, 1 / 255, 0.25], [0.5, 254 / 255, 1.0]]  # 0.25 is 63.75, 0.5 is 127.5: to even
    make: Any = torch.tensor if isinstance(dtype, torch.dtype) else np.array
    image = make(fractions, dtype=dtype)

    assert pixels_of(image)[0].tolist() == [[0, 1, 64], [128, 254, 255]]


def test_bgr_is_said_and_then_the_same(detector: Detector, pixels: Any) -> None:
    wanted = detector.predict(pixels)
    bgr = pixels[..., ::-1]
    assert_same(detector.predict(bgr, color="bgr"), wanted)
    alpha = np.full((*pixels.shape[:2], 1), 7, np.uint8)
    assert_same(detector.predict(np.concatenate([bgr, alpha], axis=2), color="bgr"), wanted)
    [streamed] = detector.stream([torch.from_numpy(bgr.copy()).permute(2, 0, 1)], color="bgr")
    assert_same(streamed, wanted)
    assert np.array_equal(np.asarray(streamed.image), pixels)


def test_a_batch_gives_a_list(detector: Detector, pixels: Any) -> None:
    flipped = np.ascontiguousarray(pixels[:, ::-1])
    wanted = detector.predict([pixels, flipped])
    batch = np.stack([pixels, flipped])
    for images in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), batch / 255):
        found: Any = detector.predict(images)
        assert len(found) == 2
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    assert len(detector.predict(batch[..., :1])) == 2
    with pytest.raises(DatasetError, match=r"this one has shape \(1, 2, 60, 90, 3\)"):
        detector.predict(np.zeros((1, 2, 60, 90, 3), np.uint8))


def test_with_agnostic_nms_one_place_has_one_class(
    detector: Detector, model_file: Path, pixels: Any, exported: dict[str, Path]
) -> None:
    each = detector.predict(pixels, 0.0)
    over_all = detector.predict(pixels, 0.0, agnostic_nms=True)

    assert 0 < len(over_all) < len(each)
    assert overlaps(each) > 0.6  # of different classes: within a class NMS allows no more
    assert overlaps(over_all) <= 0.6
    assert_same(Detector.load(model_file, "cpu", agnostic_nms=True).predict(pixels, 0.0), over_all)
    assert_same(next(detector.stream([pixels], 0.0, agnostic_nms=True)), over_all)
    assert_same(detector.predict(pixels, 0.0), each)
    with pytest.raises(WeightsError, match=r"(?s)per class.*--agnostic-nms"):
        Detector.load(exported["onnx"], agnostic_nms=True)


def overlaps(found: Any) -> float:
    return float(box_iou(found.boxes_xyxy, found.boxes_xyxy).fill_diagonal_(0).max())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_are_taken(detector: Detector, mode: str) -> None:
    image = Image.new("I;16", (40, 30), 30000) if mode == "I;16" else Image.new("RGB", (40, 30)).convert(mode)

    found = detector.predict(image)
    assert found.image is not None
    assert (found.image.mode, found.image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            np.zeros((3, 8, 8), np.uint8),
            r"or \(height, width\); this one has shape \(3, 8, 8\) and dtype uint8",
        ),
        (np.zeros((8, 8, 2), np.uint8), r"this one has shape \(8, 8, 2\) and dtype uint8"),
        (np.zeros(8, np.uint16), r"this one has shape \(8,\) and dtype uint16"),
        (
            np.zeros((8, 8), np.uint16),
            r"be uint8, or floats in \[0, 1\]; this one has shape \(8, 8\) and",
        ),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"must be uint8, .* \(3, 8, 8\) and dtype torch.int64"),
        (np.zeros((8, 8), bool), r"must be uint8, or floats in \[0, 1\]"),
        (
            np.full((8, 8, 3), 255, np.float32),
            r"values in \[0, 1\] if .* \(8, 8, 3\) and dtype float32, with values from 255 to 255",
        ),
        (torch.full((3, 8, 8), -0.5), r"a tensor must have values in \[0, 1\] .* from -0.5 to -0.5"),
        (np.full((8, 8), np.nan), "from nan to nan"),
        (np.zeros((0, 8), np.uint8), r"must have pixels; this one has shape \(0, 8\)"),
        (Image.new("L", (0, 4)), "image without pixels, 0 x 4"),
        (
            torch.zeros(8, 8, 3, dtype=torch.uint8),
            r"shape \(3, height, width\) or \(height, width\); this one has shape \(8, 8, 3\)",
        ),
        (np.zeros((0, 8, 3), np.uint8), r"must have pixels; this one has shape \(0, 8, 3\)"),
        (7, "int is not an image\n  fix: give a path, a PIL image"),
        (None, "NoneType is not an image"),
    ],
)
def test_what_is_no_rgb_image_of_bytes_is_refused_in_words(wrong: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        pixels_of(wrong)


def test_a_file_that_is_missing_or_broken_is_named(detector: Detector, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")

    with pytest.raises(DatasetError, match=r"cannot be decoded[\s\S]*broken\.jpg"):
        detector.predict(broken)
    with pytest.raises(DatasetError, match=r"image not found\n  in: .*missing\.jpg"):
        detector.predict([tmp_path / "missing.jpg"])


def test_a_run_folder_stands_for_its_best_model(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(model_file.read_bytes())

    assert Detector.load(tmp_path, "cpu").path == tmp_path / "best.safetensors"
    with pytest.raises(WeightsError, match="contains no model"):
        Detector.load(tmp_path.parent, "cpu")


def test_a_device_that_is_not_there_is_an_error_that_says_what_is(model_file: Path) -> None:
    with pytest.raises(DeviceError, match=r"there is no GPU 97 on this machine[\s\S]*available: .*cpu"):
        Detector.load(model_file, device=[97])
    with pytest.raises(DeviceError, match="there is no GPU 97 on this machine"):
        Detector.load(model_file, device=97)
    with pytest.raises(
        DeviceError, match=r"'gpu' is not a device(.|\n)*fix: use auto or one of these: .*cpu"
    ):
        Detector.load(model_file, device="gpu")


def write_coco(folder: Path, detector: Detector, images: dict[str, Any], names: tuple[str, ...]) -> Path:
    """What the detector is surest of as annotations, with classes in another order."""
    ids = {name: 10 * (number + 1) for number, name in enumerate(reversed(names))}
    content: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": category_id, "name": name} for name, category_id in ids.items()],
    }
    for image_id, (name, array) in enumerate(images.items(), start=100):
        Image.fromarray(array).save(folder / name)
        height, width = array.shape[:2]
        content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        found = detector.predict(array, 0.0)
        sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
        found = found[(sides >= 2).all(dim=1)]
        for index in range(min(3, len(found))):
            entry = found[index].to_coco(image_id)[0]
            _, _, width, height = entry["bbox"]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": ids[found.class_name(index)],
                    "bbox": entry["bbox"],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file


def test_evaluation_matches_the_classes_by_name_not_by_id(
    detector: Detector, pixels: Any, tmp_path: Path
) -> None:
    file = write_coco(tmp_path, detector, {"a.png": pixels, "b.png": pixels[:50]}, detector.class_names)

    metrics = detector.evaluate(file, root=tmp_path)

    assert list(metrics.per_class_ap) == ["cat", "dog", "bird"]
    # The objects are detections themselves: all are found, which they were not with classes mixed up.
    assert metrics.stats[8] == pytest.approx(1)
    assert metrics.map_75 == metrics.map_50 > 0.1


def test_evaluation_refuses_other_classes_and_lists_them(
    detector: Detector, pixels: Any, tmp_path: Path
) -> None:
    file = write_coco(tmp_path, detector, {"a.png": pixels}, detector.class_names)
    file.write_text(file.read_text().replace('"name": "dog"', '"name": "wolf"'))

    with pytest.raises(DatasetError, match="only in the annotations: 'wolf'; only in the model: 'dog'"):
        detector.evaluate(file, root=tmp_path)


def test_evaluation_names_every_broken_image_before_it_starts(
    detector: Detector, pixels: Any, tmp_path: Path
) -> None:
    file = write_coco(tmp_path, detector, {"a.png": pixels, "b.png": pixels}, detector.class_names)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "b.png").unlink()

    with pytest.raises(DatasetError) as error:
        detector.evaluate(file, root=tmp_path)
    assert "a.png" in str(error.value)
    assert "b.png" in str(error.value)


def test_training_gives_a_detector_of_the_best_model(pixels: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(4):
        image = np.full((64, 64, 3), 40, np.uint8)
        image[16:48, 8 : 40 + number] = 220
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png 16 8 48 {40 + number} 1")
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "names.txt").write_text("background\nbox\n")
    settings = {
        "list_train": tmp_path / "train.txt",
        "list_eval": tmp_path / "train.txt",
        "root_train": tmp_path / "images",
        "root_eval": tmp_path / "images",
        "name_file": tmp_path / "names.txt",
        "run_folder": tmp_path / "run",
        "model": "fcos_lite0",
        "pretrain": False,
        "epochs": 1,
        "nbatch_train": 2,
        "short_side": 64,
        "view_size": 64,
        "num_workers": 0,
        "device": "cpu",
        "tensorboard": False,
    }

    detector = Detector.train(settings)

    assert detector.class_names == ("box",)
    assert detector.path == tmp_path / "run" / "best.safetensors"
    assert detector.predict(tmp_path / "images" / "0.png").class_names == ("box",)


def test_training_without_saving_is_refused_before_it_begins(tmp_path: Path) -> None:
    config = load_config({"save": False, "list_train": "none.txt", "run_folder": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="with save=false there is no model to return"):
        Detector.train(config)
