"""Exported files against the network: any batch, any size, everything that the file says about itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from fcos import Detector
from fcos.errors import DeviceError, WeightsError
from fcos.export.exported import open_exported
from fcos.export.formats import FORMATS, export_model
from fcos.export.openvino_folder import core
from fcos.export.safe_program import read_program
from fcos.export.verify import compare
from fcos.weights.load import ExportFormat, LoadedModel, load_model

from .. import processes

NAMES: list[ExportFormat] = ["onnx", "openvino", "torch"]  # of the others: test_undecoded.py
SIZES_HW = [(60, 90), (200, 40), (60, 90), (3, 5), (128, 96)]


def image_of(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    height, width = size_hw
    coarse = np.random.default_rng(seed).integers(
        0, 255, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8
    )
    return np.ascontiguousarray(coarse.repeat(10, axis=0).repeat(10, axis=1)[:height, :width])


def assert_same(found: Any, wanted: Any) -> None:
    same = compare(wanted, found, nms_iou=0.6)
    assert same.only_first == same.only_second == ()
    assert same.num_ties < 5
    assert len(same.pairs) > 0.9 * len(wanted) > 0
    for i, j in same.pairs:
        torch.testing.assert_close(found.scores[j], wanted.scores[i], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes_xyxy[j], wanted.boxes_xyxy[i], rtol=0, atol=0.02)
    assert found.class_names == wanted.class_names


def shallow(loaded: LoadedModel) -> LoadedModel:
    """With the first block of each stage, the first convolution of each tower, and P3, P6 and P7: what is
    traced and compiled takes time by the number of operators, and the conventions are not in the rest."""
    model: Any = loaded.model
    body = model.backbone.body
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        del stage[1:]
    for tower in (model.head.classification_tower, model.head.box_tower):
        convolutions = [i for i, layer in enumerate(tower) if isinstance(layer, torch.nn.Conv2d)]
        del tower[next(iter(convolutions[1:]), len(tower)) :]
    levels = [0, 3, 4]
    model.pyramid.register_forward_hook(lambda _, __, found: [found[i] for i in levels])
    model.strides = tuple(model.strides[i] for i in levels)
    model.head.units = [model.head.units[i] for i in levels]
    model.head.scales = torch.nn.Parameter(model.head.scales[levels])
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_a_file_finds_what_the_network_finds_in_any_size_and_any_batch(
    name: ExportFormat, exported: dict[str, Path], small_model: Path
) -> None:
    before, after = Detector.load(small_model, "cpu"), Detector.load(exported[name])
    images = [image_of(size, seed) for seed, size in enumerate(SIZES_HW)]
    alone = [before.predict(one, 0.0) for one in images]
    for one, wanted in zip(images, alone, strict=True):
        assert len(wanted) > 0
        assert_same(after.predict(one, 0.0), wanted)
    for found, wanted in zip(after.predict(images, 0.0, batch_size=8), alone, strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize(
    ("code_base", "names"),
    [
        ("torchvision_r50", ["onnx"]),
        ("official_r50_imprv", ["onnx", "openvino"]),
        ("mmdet_r50_caffe_tricks", ["openvino"]),
        ("adelaidet_r50_1x_iou", ["torch"]),
        pytest.param("detectron2_r50", ["openvino", "torch"], marks=pytest.mark.slow),
        pytest.param("mmdet_r50_caffe", ["torch"], marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_weights_of_other_code_bases_are_exported_with_their_rules(
    code_base: str,
    names: list[ExportFormat],
    vectors: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = shallow(load_model(vectors(code_base) / "state_dict.pth"))
    before = Detector.of(loaded, torch.device("cpu"))
    for name in names:
        out = tmp_path / f"it{FORMATS[name].ENDING}"
        export_model(loaded, name, out)
        after = Detector.load(out)
        for seed, size in enumerate([(130, 190), (200, 140)]):
            assert_same(after.predict(image_of(size, seed), 0.0), before.predict(image_of(size, seed), 0.0))
        if name == "onnx":  # OpenVINO begins with the same conversion, which takes longest
            import onnx

            model = onnx.load(out)
            monkeypatch.setattr("fcos.export.onnx_file.convert", lambda *_, model=model: model)


def blind(name: ExportFormat, exported: dict[str, Path], folder: Path) -> Any:
    """The exported model with class scores near 0; the graph is the same, and tracing it takes seconds."""
    if name == "torch":
        program, _ = read_program(exported["torch"])
        [bias] = [value for name, value in program.state_dict.items() if name.endswith("head.logits.bias")]
        bias.data.fill_(-20)
        return program
    import onnx

    model = onnx.load(exported["onnx"])
    [bias] = [value for value in model.graph.initializer if value.name.endswith("head.logits.bias")]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, -20, np.float32), bias.name))
    if name == "onnx":
        return model
    onnx.save(model, folder / "blind.onnx")
    return core().read_model(folder / "blind.onnx").clone()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_in_which_nothing_is_found(
    name: ExportFormat, exported: dict[str, Path], tmp_path: Path
) -> None:
    metadata, _ = FORMATS[name].open_file(exported[name])
    path = tmp_path / f"model{FORMATS[name].ENDING}"
    FORMATS[name].save(blind(name, exported, tmp_path), metadata, path)
    detector = Detector.load(path)
    assert [len(found) for found in detector.predict([image_of((60, 90)), image_of((40, 40))], 0.0)] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks as Linux has them")
def test_a_process_goes_on_after_openvino(exported: dict[str, Path]) -> None:
    script = f"""
import gc, subprocess
import numpy as np
from torch.utils.data import DataLoader
from fcos import Detector

first, second = (Detector.load({str(exported["openvino"])!r}) for _ in range(2))
first.predict(np.zeros((60, 90, 3), np.uint8))
second.predict(np.zeros((60, 90, 3), np.uint8))
del first
gc.collect()
del second
gc.collect()
assert len(list(DataLoader(range(8), num_workers=2))) == 8
subprocess.run(["true"], check=True)
"""
    done = processes.run("-c", script)
    assert done.returncode == 0, done.stderr


def test_threads_may_be_the_first_to_use_openvino() -> None:
    """OpenVINO's table of number formats, made by two threads at once, stopped the whole process for good."""
    code = """
import sys, threading
from fcos.export.openvino_folder import core
core()
import openvino
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(4)
def use():
    barrier.wait()
    for _ in range(100):
        openvino.Type.f32.to_dtype()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("all came back")
"""
    done = processes.run("-c", code, timeout=60)
    assert done.stdout == "all came back\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_file_carries_classes_preprocessing_and_thresholds(
    name: ExportFormat, exported: dict[str, Path], small_model: Path
) -> None:
    metadata, _ = FORMATS[name].open_file(exported[name])
    card = {key: json.loads(text) for key, text in metadata.items()}
    assert card["class_names"] == ["cat", "dog", "bird"]
    assert card["category_ids"] == [1, 2, 3]
    assert (card["short_side"], card["longest_side"], card["padding_multiple"]) == (96, 128, 32)
    assert (card["size_rule"], card["resize"], card["input_dtype"]) == ("round", "antialiased", "uint8")
    assert (card["score_threshold"], card["nms_iou"], card["show_from_score"]) == (0.05, 0.6, 0.5)
    assert card["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])

    before, after = Detector.load(small_model, "cpu"), Detector.load(exported[name])
    assert after.class_names == before.class_names
    assert after.category_ids == before.category_ids
    assert after.threshold == before.threshold
    assert after.config == before.config
    assert repr(after).startswith("Detector(fcos_r18, 3 classes, cpu, ")


def test_the_lines_of_the_documentation_run_without_this_package(
    exported: dict[str, Path], small_model: Path, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- test: plain onnxruntime -->\n```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    lines = block.group(1)
    assert len(lines.strip().splitlines()) <= 21
    assert "fcos" not in lines
    Image.fromarray(image_of((60, 90))).save(tmp_path / "street.jpg", quality=95)
    (tmp_path / "best.onnx").write_bytes(exported["onnx"].read_bytes())
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    wanted = Detector.load(small_model, "cpu").predict(tmp_path / "street.jpg")
    assert len(printed) == len(wanted) > 0
    for line, box, score, label in zip(printed, wanted.boxes_xyxy, wanted.scores, wanted.labels, strict=True):
        name, found_score, found_box = line.split(" ", 2)
        assert name == wanted.class_names[label]
        assert float(found_score) == pytest.approx(float(score), abs=0.02)
        torch.testing.assert_close(torch.tensor(json.loads(found_box)), box, rtol=0, atol=2.0)


def test_an_exported_file_runs_on_the_cpu_and_says_so(exported: dict[str, Path]) -> None:
    with pytest.raises(DeviceError, match="an exported file runs on the CPU, not on cuda"):
        Detector.load(exported["onnx"], torch.device("cuda"))


def test_an_exported_file_has_no_network_to_look_into(exported: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match="contains a graph, not a PyTorch network"):
        _ = Detector.load(exported["onnx"]).model


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken.onnx", "cannot be opened by onnxruntime"),
        ("broken.xml", "cannot be opened by OpenVINO"),
        ("broken.pt2", "cannot be opened as a torch.export program"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no model")
    path.with_suffix(".bin").touch()  # the weights of OpenVINO's format
    with pytest.raises(WeightsError, match=f"{name} {words}"):
        Detector.load(path)


def test_metadata_that_are_no_text_are_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    content = exported["onnx"].read_bytes()
    assert content.count(b"class_names") > 0
    (tmp_path / "it.onnx").write_bytes(content.replace(b"class_names", b"class\xff\xfe\xffnam"))
    with pytest.raises(WeightsError, match=r"the metadata of it\.onnx is not UTF-8 text"):
        Detector.load(tmp_path / "it.onnx")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no exported file .*none\.onnx"):
        Detector.load(tmp_path / "none.onnx")


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path: Path, exported: dict[str, Path]) -> None:
    import onnx

    model = onnx.load(exported["onnx"])
    onnx.helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match=r'other\.onnx does not say how to use it: no entry "fcos"'):
        open_exported(tmp_path / "other.onnx")


def with_card(source: Path, out: Path, change: Any) -> Path:
    """An ONNX file whose description of itself was changed."""
    import onnx

    model = onnx.load(source)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    card = json.loads(entries["fcos"])
    entries["fcos"] = change(card) or json.dumps(card)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pixel_mean", [1, None, 2], "pixel_mean.1 None: Input should be a valid number"),
        ("pixel_mean", [1, 2], "pixel_mean [1, 2]: Tuple should have at least 3 items"),
        ("pixel_mean", float("nan"), "pixel_mean nan: Input should be a valid array"),
        ("pixel_std", [1, 0, 1], "pixel_std.1 0: Input should be greater than 0"),
        ("precision", "fp2", "precision 'fp2': Input should be 'fp32' or 'int8'"),
        ("num_parameters", "many", "num_parameters 'many': Input should be a valid integer"),
        ("notes", [1], "notes.0 1: Input should be a valid string"),
        ("weather", "fine", "weather 'fine': Unexpected keyword argument"),
        ("export_version", None, "it has no export_version"),
        ("model", None, "it has no format_version"),
    ],
)
def test_an_odd_card_of_an_exported_file_is_refused(
    key: str, value: object, words: str, exported: dict[str, Path], tmp_path: Path
) -> None:
    path = with_card(exported["onnx"], tmp_path / "odd.onnx", lambda card: card.update({key: value}))
    with pytest.raises(WeightsError, match=r"the card of odd\.onnx cannot be read") as caught:
        open_exported(path)
    assert words in caught.value.what


def test_a_deep_card_of_an_exported_file_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    path = with_card(exported["onnx"], tmp_path / "deep.onnx", lambda card: "[" * 10**6)
    with pytest.raises(WeightsError, match="nested too deeply"):
        open_exported(path)


def test_a_graph_of_more_classes_than_the_card_names_is_refused_when_it_runs(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    def fewer(card: Any) -> None:
        card["model"] |= {"class_names": ["cat"], "category_ids": [1]}

    detector = Detector.load(with_card(exported["onnx"], tmp_path / "few.onnx", fewer))
    with pytest.raises(WeightsError, match=r"few\.onnx does not match a detector of 1 class"):
        detector.predict(image_of((60, 90)), 0.0)


def test_tiles_of_a_file_are_those_of_the_network(exported: dict[str, Path], small_model: Path) -> None:
    before, after = Detector.load(small_model, "cpu", tile=96), Detector.load(exported["onnx"], tile=96)
    image = image_of((150, 200))
    wanted, found = before.predict(image, 0.2), after.predict(image, 0.2)
    assert found.found_at is None
    assert len(wanted) > len(before.predict(image, 0.2, tile=0)) > 0
    same_class = wanted.labels[:, None] == found.labels
    assert ((box_iou(wanted.boxes_xyxy, found.boxes_xyxy) > 0.99) & same_class).any(
        dim=1
    ).float().mean() > 0.95
    assert len(found) == pytest.approx(len(wanted), rel=0.05)
