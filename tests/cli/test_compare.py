"""`fcos compare` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fcos import Detector
from fcos.cli import main


@pytest.fixture
def data(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Annotations of three images: what the model is surest of."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(3):
        coarse = random.integers(0, 255, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(10, axis=0).repeat(10, axis=1)).save(f"photos/{number}.png")
    words = ["predict", str(small_model), "photos", "--save-labels", "coco", "--score-threshold", "0.6"]
    assert CliRunner().invoke(main, [*words, "--device", "cpu"]).exit_code == 0
    return Path("predictions/labels_coco.json")


def compare(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, words), "--root", "photos", "--device", "cpu"])


def test_a_model_and_its_export_have_the_ap_of_eval(
    small_model: Path, exported: dict[str, Path], data: Path
) -> None:
    content = json.loads(data.read_text())
    for entry in content["annotations"]:  # IoU 0.8 with what the model detects
        entry["bbox"][2] *= 0.8
    data.write_text(json.dumps(content))
    result = compare(small_model, f"fast={exported['onnx']}", "--data", data, "--json")

    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    by_name = {row["name"]: row for row in content["models"]}
    ap = Detector.load(small_model, "cpu").evaluate(data, root="photos").map_mean
    assert 0.3 < ap < 1
    assert set(by_name) == {"best.safetensors", "fast"}
    for row in by_name.values():
        assert row["metrics"]["map_mean"] == pytest.approx(ap, abs=1e-6)
        assert row["latency_ms"] > 0
        assert row["device"] == "cpu"
    assert by_name["best.safetensors"]["num_bytes"] == small_model.stat().st_size
    assert by_name["fast"]["num_bytes"] == exported["onnx"].stat().st_size
    assert content["num_images"] == 3
    assert Path(content["plot"]).is_file()
    assert [row["is_best"] for row in content["models"]] == [True, False]  # equal AP: the faster one


def test_the_table_has_a_row_for_each_and_says_where_the_plot_is(small_model: Path, data: Path) -> None:
    result = compare(
        f"a={small_model}", f"b={small_model}", "--list", data, "-o", "x.svg", "--num-images", "1"
    )

    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.split()[:1] in (["a"], ["b"])]
    assert rows[0][1:3] == rows[1][1:3]
    assert [len(row) for row in rows] == [7, 6]  # the first, faster one is marked
    assert "* no other model is both faster and more accurate" in result.stdout
    assert "plot saved to x.svg" in result.stderr
    assert Path("x.svg").is_file()


def test_what_cannot_be_compared_is_said_before_the_work(small_model: Path, data: Path) -> None:
    assert "there is no model file no.safetensors" in compare("no.safetensors", "--data", data).output
    assert "cannot write curves as .txt" in compare(small_model, "--data", data, "-o", "a.txt").output
    missing = CliRunner().invoke(main, ["compare", str(small_model)])
    assert missing.exit_code == 2
    assert "Missing option '--data'" in missing.output


def test_classes_that_a_model_does_not_have_are_noted(small_model: Path, data: Path) -> None:
    content = json.loads(data.read_text())
    content["categories"].append({"id": 9, "name": "cow"})
    data.write_text(json.dumps(content))

    result = compare(small_model, "--data", data)

    assert result.exit_code == 0, result.output
    assert "does not have 1 of 4 classes, which count as AP 0: cow" in result.stderr
