"""Formats whose file stops before decoding and NMS: ncnn and LiteRT, and the decoder that comes with them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fcos import Detector
from fcos.cli import main
from fcos.errors import FcosError, WeightsError
from fcos.export import litert_folder, ncnn_folder
from fcos.export.calibration import Calibration
from fcos.export.card import to_metadata
from fcos.export.decode import decode
from fcos.export.exported import open_exported
from fcos.export.formats import FORMATS, export_card, export_model, reference_of
from fcos.export.graph import DetectionGraph
from fcos.export.undecoded import Undecoded, on_mean
from fcos.export.verify import compare
from fcos.model.build import build_postprocess
from fcos.weights.load import ExportFormat, format_of, load_model

from .test_exported import image_of

CARD = {
    **{"class_names": ["cat", "dog"], "strides": [8, 16], "threshold_on": "class", "score_threshold": 0.05},
    **{"nms_iou": 0.6, "agnostic_nms": False, "candidates_per_level": 3, "detections_per_image": 3},
}
INPUT_HW, SIZE_HW, ORIGINAL_HW = (
    (32, 32),
    (32, 24),
    (64, 48),
)  # the image was halved, and is padded by 8 columns
OFF = -20.0  # a logit of no score


def output_with(*cells: tuple[int, int, float, tuple[float, ...], float]) -> Any:
    """The network's output where only some points have a class: (point, class, logit, distances, quality)."""
    output = np.full((2 + 4 + 1, 16 + 4), OFF, np.float32)
    for point, label, logit, distances, quality in cells:
        output[label, point], output[2:6, point], output[6, point] = logit, distances, quality
    return output


def decoded(output: Any, **changes: Any) -> Any:
    return decode(output, CARD | changes, INPUT_HW, SIZE_HW, ORIGINAL_HW)


def test_a_point_becomes_a_box_in_pixels_of_the_original() -> None:
    # Point 5 is at row 1, column 1 of the first level: (12, 12) in the input.
    boxes, scores, labels = decoded(output_with((5, 1, 0.0, (4, 2, 4, 8), 0.0)))
    np.testing.assert_allclose(boxes, [[16, 20, 32, 40]])
    np.testing.assert_allclose(scores, [0.5])  # the square root of 0.5 * 0.5
    assert labels.tolist() == [1]
    # Point 19 is the last of the second level: (24, 24), right at the edge of the image.
    boxes, _, _ = decoded(output_with((19, 0, 0.0, (10, 10, 10, 10), 0.0)))
    np.testing.assert_allclose(boxes, [[28, 28, 48, 64]])


def test_without_quality_the_class_score_is_the_score() -> None:
    boxes, scores, _ = decoded(output_with((5, 0, 0.0, (4, 2, 4, 8), 0.0))[:6])
    assert len(boxes) == 1
    np.testing.assert_allclose(scores, [0.5])


def test_boxes_in_the_padding_are_dropped() -> None:
    assert len(decoded(output_with((3, 0, 0.0, (2, 2, 2, 2), 0.0)))[0]) == 0  # at x 28, outside 24


@pytest.mark.parametrize(("threshold_on", "kept"), [("class", 1), ("product", 0), ("score", 1)])
def test_the_threshold_is_compared_with_what_the_card_says(threshold_on: str, kept: int) -> None:
    output = output_with((5, 0, 0.0, (4, 2, 4, 8), 0.0))  # class 0.5, product 0.25, score 0.5
    found = decoded(output, threshold_on=threshold_on, score_threshold=0.4)
    assert len(found[0]) == kept


def test_the_best_of_each_class_suppresses_what_overlaps_it() -> None:
    same = (4.0, 4.0, 4.0, 4.0)
    output = output_with((5, 0, 2.0, same, 0.0), (6, 0, 1.0, (12.0, 4.0, -4.0, 4.0), 0.0))
    output[1, 5] = 0.0  # the same box as a dog
    boxes, _, labels = decoded(output)
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(boxes, [[16, 16, 32, 32]] * 2)
    assert decoded(output, agnostic_nms=True)[2].tolist() == [0]
    assert decoded(output, nms_iou=1.0)[2].tolist() == [0, 0, 1]


def test_a_level_gives_its_best_candidates_and_an_image_its_best_detections() -> None:
    small = (1.0, 1.0, 1.0, 1.0)
    cells = [(point, 0, float(point), small, 0.0) for point in (0, 1, 4, 5, 8)]
    best = 1 / (1 + np.exp(-np.array([8.0, 5.0, 4.0])))
    output = output_with(*cells)
    np.testing.assert_allclose(decoded(output)[1], np.sqrt(best * 0.5), rtol=1e-6)
    np.testing.assert_allclose(decoded(output, detections_per_image=2)[1], np.sqrt(best[:2] * 0.5), rtol=1e-6)


def test_detections_of_the_decoder_are_those_of_the_network(small_model: Path) -> None:
    loaded = load_model(small_model)
    graph = DetectionGraph(loaded.model, build_postprocess(loaded.config)).eval()
    card = {key: json.loads(text) for key, text in to_metadata(export_card(loaded), loaded.config).items()}
    image = image_of((96, 128))
    pixels = on_mean(image.transpose(2, 0, 1), (90, 100), (96, 128), card["pixel_mean"])
    with torch.no_grad():
        output = Undecoded(graph)(torch.from_numpy(pixels)[None])[0].numpy()
        inputs = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        wanted = graph(inputs, torch.tensor([[90, 100]]), torch.tensor([[180, 200]]))
    boxes, scores, labels = decode(output, card, (96, 128), (90, 100), (180, 200))
    assert len(boxes) == len(wanted[0]) > 20
    np.testing.assert_allclose(scores, wanted[1], atol=1e-5)
    np.testing.assert_allclose(boxes, wanted[0], atol=1e-2)
    assert labels.tolist() == wanted[2].tolist()


def test_the_input_is_padded_with_the_mean() -> None:
    image = np.full((3, 2, 2), 7, np.uint8)
    pixels = on_mean(image, (1, 2), (2, 3), [1.0, 2.0, 3.0])
    assert pixels[:, 0].tolist() == [[7, 7, 1], [7, 7, 2], [7, 7, 3]]
    assert pixels[:, 1].tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_conventions_of_other_code_bases_are_refused(vectors: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(vectors("torchvision_r50") / "state_dict.pth")
    with pytest.raises(FcosError, match="does not support the conventions of other code bases"):
        Undecoded(DetectionGraph(loaded.model, build_postprocess(loaded.config)))


# In their runtimes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ncnn", "litert"])
def test_a_folder_predicts_what_the_network_predicts(
    name: ExportFormat, exported: dict[str, Path], small_model: Path
) -> None:
    before, after = reference_of(load_model(small_model), name), Detector.load(exported[name])
    images = [image_of(size, seed) for seed, size in enumerate([(60, 90), (200, 40), (3, 5), (128, 96)])]
    alone = [before.predict(image, 0.0) for image in images]
    for found, wanted in zip(after.predict(images, 0.0, batch_size=8), alone, strict=True):
        same = compare(wanted, found, nms_iou=0.6)
        assert (same.only_first, same.only_second) == ((), ())
        assert len(same.pairs) > 0.9 * len(wanted) > 0
        for i, j in same.pairs:
            torch.testing.assert_close(found.boxes_xyxy[j], wanted.boxes_xyxy[i], rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["ncnn", "litert"])
def test_a_folder_is_recognized_and_describes_itself(name: ExportFormat, exported: dict[str, Path]) -> None:
    assert format_of(exported[name]) == name
    metadata = json.loads((exported[name] / "metadata.json").read_text())
    assert metadata["class_names"] == ["cat", "dog", "bird"]
    assert (metadata["strides"], metadata["padding_multiple"]) == ([8, 16, 32], 32)
    done = CliRunner().invoke(main, ["info", str(exported[name])])
    assert f"{FORMATS[name].ABOUT}, fp32" in done.output
    imports = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            "import sys, decode; print('torch' in sys.modules, 'fcos' in sys.modules)",
        ],
        cwd=exported[name],
        capture_output=True,
        text=True,
    )
    assert imports.stdout == "False False\n", imports.stderr


@pytest.mark.parametrize("name", ["ncnn", "litert"])
def test_several_images_are_predicted_concurrently(name: str, exported: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        detector = Detector.load(exported[name])
        assert detector.backend.calls_at_once == 2
        images = [image_of((60, 90), seed) for seed in range(8)]
        streamed = list(detector.stream(images, 0.0))
    finally:
        torch.set_num_threads(before)
    for found, image in zip(streamed, images, strict=True):
        torch.testing.assert_close(found.scores, detector.predict(image, 0.0).scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("ncnn", "model.ncnn.param", "cannot be opened by ncnn"),
        ("litert", "model.tflite", "cannot be opened by LiteRT"),
        ("ncnn", "metadata.json", "cannot be opened as JSON"),
        ("litert", "metadata.json", "cannot be opened as JSON"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_name_of_the_file(
    name: str, file: str, words: str, exported: dict[str, Path], tmp_path: Path
) -> None:
    for part in exported[name].iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes() if part.name != file else b"this is no model")
    with pytest.raises(WeightsError, match=f"{file} {words}"):
        open_exported(tmp_path)


@pytest.mark.parametrize("name", ["ncnn", "litert"])
def test_the_command_writes_a_folder_and_checks_it(
    name: ExportFormat, exported: dict[str, Path], small_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    ready = {path.name: path.read_bytes() for path in exported[name].iterdir()}
    model: Any = ready
    if name == "litert":
        model = litert_folder.Network(ready["model.tflite"], [0.0] * 3)
    # The conversion takes seconds: take its result from the folder that is there.
    monkeypatch.setattr(FORMATS[name], "convert", lambda graph, config: model)
    Image.fromarray(image_of((60, 90))).save(tmp_path / "a.png")
    out = tmp_path / "small"
    words = ["export", small_model, "--format", name, "-o", out, "--check", tmp_path / "a.png"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "detections in 1 images are the same; boxes differ by at most 0.0" in done.output
    assert {path.name for path in out.iterdir()} == set(ready)


@pytest.mark.parametrize("name", ["ncnn", "litert"])
def test_the_lines_of_the_documentation_run_without_this_package(
    name: ExportFormat, exported: dict[str, Path], small_model: Path, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = [
        re.search(rf"<!-- test: {marker} -->\n```python\n(.*?)```", text, re.DOTALL)
        for marker in ("prepare", name)
    ]
    lines = "\n".join(block.group(1) for block in blocks if block)
    assert "fcos" not in lines
    folder = shutil.copytree(exported[name], tmp_path / "folder")
    Image.fromarray(image_of((60, 90))).save(folder / "street.jpg", quality=95)
    lines += "\nprint(json.dumps([each.tolist() for each in (boxes, scores, labels)]))"
    done = subprocess.run([sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    boxes, scores, labels = json.loads(done.stdout)
    wanted = reference_of(load_model(small_model), name).predict(folder / "street.jpg", 0.0)
    assert len(boxes) == pytest.approx(len(wanted), rel=0.05)
    assert scores[:5] == pytest.approx(wanted.scores[:5].tolist(), abs=0.02)
    assert labels[0] == wanted.labels[0]
    torch.testing.assert_close(torch.tensor(boxes[0]), wanted.boxes_xyxy[0], rtol=0, atol=2.0)


def test_an_image_larger_than_the_input_of_litert_is_refused(exported: dict[str, Path]) -> None:
    _, open_run = FORMATS["litert"].open_file(exported["litert"])
    sizes = torch.tensor([[160, 64]])
    with pytest.raises(ValueError, match="could not broadcast"):
        open_run(1)(torch.zeros(1, 3, 160, 64, dtype=torch.uint8), sizes, sizes)


def test_calibrated_ranges_hold_those_of_every_image() -> None:
    first = {"a": {"min": np.array([-1.0]), "max": np.array([2.0])}}
    second = {
        "a": {"min": np.array([0.0]), "max": np.array([5.0])},
        "b": {"min": np.ones(1), "max": np.ones(1)},
    }
    found = litert_folder._widened(litert_folder._widened({}, first), second)
    assert (found["a"]["min"].item(), found["a"]["max"].item(), found["b"]["max"].item()) == (-1.0, 5.0, 1.0)


def test_litert_in_integers(exported: dict[str, Path], small_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    paths = []
    for seed in range(4):
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(image_of((60, 90), seed)).save(paths[-1])
    loaded = load_model(small_model)
    content = (exported["litert"] / "model.tflite").read_bytes()
    network = litert_folder.Network(content, loaded.model.pixel_mean.flatten().tolist())
    calibration = Calibration(loaded.config, paths)

    def num_integers(*parts: str) -> int:
        integers = litert_folder.quantize(network, calibration, frozenset(parts)).content
        tensors = litert_folder._interpreter(integers, 1).get_tensor_details()
        return sum(
            len(each["shape"]) == 4 and each["dtype"] == np.int8 and each["shape"][0] > 1 for each in tensors
        )

    everything = num_integers()
    assert everything > 20
    assert num_integers("stem") == everything - 1
    assert num_integers("outputs") < everything
    assert num_integers("head") < num_integers("outputs")
    assert num_integers("pyramid") < everything

    integers = litert_folder.quantize(network, calibration, frozenset({"outputs"}))
    out = tmp_path / "int8_litert"
    FORMATS["litert"].save(integers, to_metadata(export_card(loaded), loaded.config), out)
    assert (out / "model.tflite").stat().st_size < 0.6 * len(content)
    before, after = Detector.load(exported["litert"]), Detector.load(out)
    for path in paths:
        wanted, found = before.predict(path, 0.0), after.predict(path, 0.0)
        best = (found.boxes_xyxy[:, None] - wanted.boxes_xyxy[None]).abs().amax(dim=2).amin(dim=0)
        assert float(best.median()) < 3  # pixels
        assert float((found.scores[:20] - wanted.scores[:20]).abs().max()) < 0.1


def test_what_pnnx_cannot_convert_is_reported(small_model: Path, monkeypatch: Any) -> None:
    pnnx = pytest.importorskip("pnnx")
    monkeypatch.setattr(pnnx, "EXEC_PATH", "false")
    loaded = load_model(small_model)
    graph = DetectionGraph(loaded.model, build_postprocess(loaded.config))
    with pytest.raises(FcosError, match="pnnx failed"):
        ncnn_folder.convert(graph, loaded.config)


@pytest.mark.parametrize(("name", "package"), [("ncnn", "pnnx"), ("litert", "ai_edge_litert")])
def test_a_missing_package_names_the_extra(
    name: ExportFormat, package: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", sys)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FcosError, match=f"the format {name} needs {package}") as caught:
        export_model(load_model(small_model), name, tmp_path / "small")
    assert caught.value.fix == f"pip install 'fcos-torch[{name}]'"
