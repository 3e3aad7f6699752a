"""`fcos info` and `fcos import` as a user types them, and what `predict` and `eval` do with such files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from fcos import Detector
from fcos.cli import main
from fcos.weights.model_file import read_model

FOLDERS = ["adelaidet_r50_1x", "detectron2_r50", "mmdet_r50_caffe", "official_r50_imprv", "torchvision_r50"]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def image(vectors: Callable[[str], Path], tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.fromarray(np.load(vectors("input.npy"))).save(path)
    return path


def test_info_says_whose_it_is_and_what_it_will_do(vectors: Callable[[str], Path]) -> None:
    result = run("info", vectors("mmdet_r50_caffe") / "state_dict.pth")
    assert result.exit_code == 0, result.output
    assert "a detector from MMDetection" in result.output
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines() if line)
    assert lines["classes"].startswith("5: class0, class1, class2, class3, class4")
    assert "as OpenCV, not antialiased" in lines["images"]
    assert "exp(scale * x), pixels" in lines["boxes"]
    assert lines["score"] == "class * centerness"
    assert lines["detections"] == "NMS per class at IoU 0.5, at most 100 per image"
    assert "read as the plain one" in result.output
    assert "fcos import state_dict.pth -o model.safetensors" in result.output


def test_info_of_our_own_file(model_file: Path) -> None:
    result = run("info", model_file)
    assert result.exit_code == 0, result.output
    assert f"{model_file}: a detector from fcos" in result.output
    assert "3: cat, dog, bird; category ids 1 to 3" in result.output
    assert "note:" not in result.output


@pytest.mark.parametrize("name", FOLDERS)
def test_info_as_json_has_everything(vectors: Callable[[str], Path], name: str) -> None:
    content = json.loads(run("info", vectors(name) / "state_dict.pth", "--json").output)
    assert len(content["class_names"]) == len(content["category_ids"]) == (91 if "torch" in name else 5)
    assert content["settings"]["backbone"] == "resnet50"
    assert content["settings"]["backbone_channels"][1:] == [4, 8, 16, 32]
    assert content["rules"]["score"] == ("product" if "mmdet" in name else "sqrt")
    assert content["parameters"] > 1e5


@pytest.mark.parametrize("name", FOLDERS)
def test_an_imported_file_detects_what_its_authors_code_does(
    vectors: Callable[[str], Path], tmp_path: Path, image: Path, name: str
) -> None:
    out = tmp_path / "model.safetensors"
    result = run("import", vectors(name) / "state_dict.pth", "-o", out, "short_side=160", "view_size=256")
    assert result.exit_code == 0, result.output
    theirs = json.loads((vectors(name) / "detections.json").read_text())
    found = Detector.load(out, "cpu").predict(image, 0.0)
    assert (found.labels + int("official" in name)).tolist() == theirs["labels"]
    torch.testing.assert_close(found.scores, torch.tensor(theirs["scores"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor(theirs["boxes"]), rtol=0, atol=0.01)
    card, _ = read_model(out)
    assert card.origin == json.loads(run("info", out, "--json").output)["origin"]


def test_import_refuses_what_it_cannot_do(vectors: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = vectors("detectron2_r50") / "state_dict.pth", tmp_path / "model.safetensors"
    names = tmp_path / "names.txt"
    names.write_text("background\na\nb\n")
    for words, message in (
        (["-o", tmp_path / "model.pth"], "is not a *.safetensors file"),
        (["-o", out, "epochs=3"], '"epochs" is not a setting of a model file'),
        (["-o", out, "--names", names], "2 names for 5 outputs"),
        (["-o", out, "fpn_channels=64"], "does not fit its model"),
    ):
        result = run("import", source, *words)
        assert result.exit_code == 2
        assert message in result.output
        assert not out.exists()


def test_import_names_classes_and_overwrites_only_when_told(
    vectors: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = vectors("detectron2_r50") / "state_dict.pth", tmp_path / "model.safetensors"
    names = tmp_path / "names.txt"
    names.write_text("background\n" + "\n".join("abcde"))
    assert run("import", source, "-o", out).exit_code == 0
    assert "already exists" in run("import", source, "-o", out, "--names", names).output
    assert run("import", source, "-o", out, "--names", names, "--force").exit_code == 0
    assert read_model(out)[0].class_names == tuple("abcde")


def test_predict_takes_a_published_file_without_any_flag(
    vectors: Callable[[str], Path], tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("predict", vectors("detectron2_r50") / "state_dict.pth", image, "--device", "cpu")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "predictions" / "detections.json").read_text())
    assert content["class_names"] == [f"class {i}" for i in range(1, 6)]


def test_eval_of_torchvisions_outputs_has_the_ids_of_coco(
    vectors: Callable[[str], Path], tmp_path: Path, image: Path
) -> None:
    model = tmp_path / "model.safetensors"
    run(
        "import",
        vectors("torchvision_r50") / "state_dict.pth",
        "-o",
        model,
        "short_side=160",
        "view_size=256",
    )
    detector = Detector.load(model, "cpu")
    found = detector.predict(image, 0.0)
    names = [name for name in reversed(detector.class_names) if not name.startswith("(")]
    ids = {name: detector.class_names.index(name) for name in names}
    real = [i for i in range(len(found)) if int(found.labels[i]) in ids.values()]
    best = found.boxes_xyxy[real[0]].tolist()
    annotation = {
        "id": 1,
        "image_id": 7,
        "category_id": int(found.labels[real[0]]),
        "bbox": [best[0], best[1], best[2] - best[0], best[3] - best[1]],
        "area": 1000,
        "iscrowd": 0,
    }
    coco = {
        "images": [{"id": 7, "file_name": image.name, "width": 317, "height": 203}],
        "annotations": [annotation],
        "categories": [{"id": ids[name], "name": name} for name in names],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    result = run(
        *("eval", model, "--list", tmp_path / "coco.json", "--root", tmp_path),
        *("--device", "cpu", "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    theirs = json.loads((vectors("torchvision_r50") / "detections.json").read_text())
    assert [row["category_id"] for row in rows] == theirs["labels"]
    assert 0 in theirs["labels"], "an output that stands for no class, counted as torchvision does"
    assert len(names) == 80


def test_results_of_the_official_code_end_after_the_last_pixel(
    vectors: Callable[[str], Path], tmp_path: Path, image: Path
) -> None:
    model, names = tmp_path / "model.safetensors", [f"class {i}" for i in range(1, 6)]
    run(
        "import",
        vectors("official_r50_imprv") / "state_dict.pth",
        "-o",
        model,
        "short_side=160",
        "view_size=256",
    )
    coco = {
        "images": [{"id": 7, "file_name": image.name, "width": 317, "height": 203}],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    out = tmp_path / "out"
    result = run(
        *(
            "eval",
            model,
            "--list",
            tmp_path / "coco.json",
            "--root",
            tmp_path,
            "--device",
            "cpu",
            "--out",
            out,
        )
    )
    assert result.exit_code == 0, result.output
    row = json.loads((out / "results.json").read_text())[0]
    x1, y1, x2, y2 = Detector.load(model, "cpu").predict(image, 0.0).boxes_xyxy[0].tolist()
    assert row["bbox"] == pytest.approx([x1, y1, x2 - x1 + 1, y2 - y1 + 1], abs=0.001)
