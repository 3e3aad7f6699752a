"""`fcos export` as a user types it, and what the other commands do with its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from fcos import Detector
from fcos.cli import main
from fcos.export.exported import ExportedModel
from fcos.export.formats import FORMATS, beside, default_path
from fcos.weights.load import EVERYDAY_FILE


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with four images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        coarse = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(10, axis=0).repeat(10, axis=1)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def annotated(photos: Path, small_model: Path) -> Path:
    """Annotations on which the small model is perfect: what it finds itself."""
    detector, entries, images = Detector.load(small_model, "cpu"), list[dict[str, Any]](), []
    for number, path in enumerate(sorted(photos.iterdir())):
        found = detector.predict(path, 0.0)[:10]
        images.append({"id": number, "file_name": path.name, "width": 90, "height": 60})
        entries += [{**entry, "iscrowd": 0} for entry in found.to_coco(number)]
    for number, entry in enumerate(entries):
        entry["id"], entry["area"] = number + 1, entry["bbox"][2] * entry["bbox"][3]
    names = [{"id": number + 1, "name": name} for number, name in enumerate(detector.class_names)]
    path = photos.parent / "found.json"
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": names}))
    return path


@pytest.fixture
def converted(exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion to ONNX, which takes seconds, is taken from the file that is there."""
    import onnx

    path = exported["onnx"]  # before the conversion that makes it is replaced
    monkeypatch.setattr(FORMATS["onnx"], "convert", lambda graph, dtype: onnx.load(path))


def test_a_model_is_written_checked_and_measured(small_model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.pt2"
    result = run("export", small_model, "--format", "torch", "-o", out, "--check", photos)
    assert result.exit_code == 0, result.output
    assert out.is_file()
    assert "detections in 4 images are the same; boxes differ by at most 0.0" in result.output
    assert "one image" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "small.pt2"]

    again = run("export", small_model, "--format", "torch", "-o", out)
    assert again.exit_code == 2
    assert "small.pt2 already exists" in again.output


@pytest.mark.usefixtures("converted")
def test_the_photographs_of_pip_are_checked_where_none_are_given(small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    result = run("export", small_model, "--format", "onnx", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["num_images"] == 3
    assert content["num_detections"] == content["num_same"] + content["num_ties"] > 0
    assert content["most_pixels"] < 0.01
    assert content["after_bytes"] == out.stat().st_size
    assert min(content["before_ms"], content["after_ms"]) > 0


@pytest.mark.usefixtures("converted")
def test_a_file_whose_detections_differ_is_not_kept(
    small_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ExportedModel._run

    def shifted(self: Any, *inputs: Any) -> Any:
        boxes, *others = honest(self, *inputs)
        return (boxes + 1, *others)

    monkeypatch.setattr(ExportedModel, "_run", shifted)
    out = tmp_path / "small.onnx"
    result = run("export", small_model, "--format", "onnx", "-o", out, "--check", photos)
    assert result.exit_code == 2
    assert "the detections of small.onnx differ from PyTorch's; the file was deleted" in result.output
    assert "only in PyTorch: " in result.output
    assert not out.exists()


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_several_images_are_predicted_at_once(name: str, exported: dict[str, Path], photos: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        detector = Detector.load(exported[name])
        assert detector.backend.calls_at_once == 2
        images = sorted(photos.iterdir()) * 4
        streamed = list(detector.stream(images, 0.0))
    finally:
        torch.set_num_threads(before)
    assert len(streamed) == len(images)
    for found, image in zip(streamed, images, strict=True):
        alone = detector.predict(image, 0.0)
        assert len(found) == len(alone)
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_predict_eval_and_info_take_an_exported_file(
    name: str, exported: dict[str, Path], small_model: Path, photos: Path, annotated: Path, tmp_path: Path
) -> None:
    found = []
    for model in (small_model, exported[name]):
        out = tmp_path / "out" / model.name
        result = run("predict", model, photos, "--out", out)
        assert result.exit_code == 0, result.output
        found.append(json.loads((out / "detections.json").read_text())["images"])
        result = run("eval", model, "--list", annotated, "--root", photos, "--out", out)
        assert result.exit_code == 0, result.output
        found.append(json.loads((out / "results.json").read_text()))
    for before, after in zip(found[:2], found[2:], strict=True):
        assert len(before) == len(after) > 0
    for image, same in zip(found[0], found[2], strict=True):
        boxes = [[entry["box_xyxy"] for entry in one["detections"]] for one in (image, same)]
        np.testing.assert_allclose(boxes[0], boxes[1], atol=0.05)

    result = run("info", exported[name])
    assert result.exit_code == 0, result.output
    assert f"{FORMATS[name].ABOUT}, fp32" in result.output  # type: ignore[index]
    assert "3: cat, dog, bird" in result.output


@pytest.mark.usefixtures("converted")
def test_integers_are_measured_and_the_loss_is_said(
    small_model: Path, photos: Path, annotated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small_int8.onnx"
    words = ("--calibrate", photos, "--list", annotated, "--root", photos, "--check", photos)
    limit = ("--max-ap-loss", "60", "--json")
    result = run("export", small_model, "--format", "onnx", "--int8", "-o", out, *words, *limit)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["precision"] == "int8"
    assert content["ap_before"] == pytest.approx(1.0, abs=0.05)  # equal scores may fall in any order
    assert 0.4 < content["ap_after"] < content["ap_before"]
    assert "8-bit integers, calibrated on 4 images" in run("info", out).output


@pytest.mark.usefixtures("converted")
def test_integers_that_cost_too_much_are_refused_with_all_that_was_tried(
    small_model: Path, photos: Path, annotated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small_int8.onnx"
    words = ("--calibrate", photos, "--list", annotated, "--root", photos, "--max-ap-loss", "0")
    result = run("export", small_model, "--format", "onnx", "--int8", "-o", out, *words)
    assert result.exit_code == 2
    assert "more than 0; nothing was written. AP was 0.9" in result.output
    for parts in ("nothing", "sums", "outputs", "stem", "pyramid", "head"):
        assert f"  {parts} in float32: AP " in result.output
    assert not out.exists()


def test_the_default_output_is_beside_the_model_and_never_inside_the_package(tmp_path: Path) -> None:
    assert default_path(tmp_path / "best.safetensors", "onnx") == tmp_path / "best.onnx"
    assert default_path(tmp_path / "best.safetensors", "litert", int8=True) == tmp_path / "best_int8_litert"
    assert default_path(EVERYDAY_FILE, "ncnn") == Path("everyday_ncnn")
    assert beside(EVERYDAY_FILE, "_web") == Path("everyday_web")


def test_what_is_missing_is_asked_for(small_model: Path, photos: Path, tmp_path: Path) -> None:
    for words, wanted in (
        (("--format", "onnx", "--int8"), "--int8 needs calibration images"),
        (("--format", "onnx", "--int8", "--calibrate", photos), "no annotations to measure AP on"),
        (("--format", "torch", "--int8", "--calibrate", photos), "the format torch does not support --int8"),
        (("--format", "onnx", "--calibrate", photos), "--calibrate and --list need --int8"),
        (("--format", "onnx", "-o", tmp_path / "a.pt2"), "a.pt2 is not a *.onnx file"),
        (("--format", "openvino", "-o", tmp_path / "a.xml"), "OpenVINO models are folders"),
        (("--format", "onnx", "--check", tmp_path / "none"), "does not exist"),
    ):
        result = run("export", small_model, *words)
        assert result.exit_code == 2, result.output
        assert wanted in result.output, result.output


def test_a_missing_package_names_the_extra(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    result = run("export", small_model, "--format", "onnx", "-o", tmp_path / "a.onnx")
    assert result.exit_code == 2
    assert "the format onnx needs onnxscript" in result.output
    assert "pip install 'fcos-torch[onnx]'" in result.output
