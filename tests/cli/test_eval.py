"""`fcos eval` as a user types it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcos import Detector, load_config
from fcos.cli import main
from fcos.cli.eval import run_config
from fcos.config import dump_config

NAMES = ("bird", "dog", "cat")  # another order than the model's
IDS = {"bird": 40, "dog": 7, "cat": 12}


@pytest.fixture(scope="module")
def annotated(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and annotations of the model's detections, most of them moved a little."""
    folder = tmp_path_factory.mktemp("annotated")
    rng = np.random.default_rng(0)
    detector = Detector.load(model_file, "cpu")
    content: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": IDS[name], "name": name} for name in NAMES],
    }
    (folder / "images").mkdir()
    for image_id in (900, 30, 5, 77, 2):
        coarse = rng.integers(0, 255, (rng.integers(5, 9), rng.integers(5, 9), 3), dtype=np.uint8)
        pixels = coarse.repeat(10, axis=0).repeat(10, axis=1)
        height, width = pixels.shape[:2]
        name = f"{image_id}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        found = detector.predict(pixels, 0.0)
        sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
        found = found[(sides >= 3).all(dim=1)][:6]
        for index, entry in enumerate(found.to_coco(image_id)):
            x, y, w, h = entry["bbox"]
            w, h = w * rng.uniform(0.7, 1), h * rng.uniform(0.7, 1)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": IDS[found.class_name(index)],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(index == 5),
                }
            )
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def coco(annotated: Path, tmp_path: Path) -> Path:
    """COCO annotations of five images, in images/, which the test may change."""
    shutil.copytree(annotated, tmp_path, dirs_exist_ok=True)
    return tmp_path / "annotations.json"


def evaluate(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, words), "--device", "cpu"])


def test_the_twelve_lines_are_those_of_pycocotools_on_the_written_results(
    model_file: Path, coco: Path, tmp_path: Path
) -> None:
    result = evaluate(model_file, "--list", coco, "--root", tmp_path / "images", "--out", tmp_path / "out")

    assert result.exit_code == 0, result.output
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.summarize()
    assert evaluation.stats[0] > 0.02  # else equal lines show little
    assert result.stdout.startswith(printed.getvalue())
    assert len(printed.getvalue().splitlines()) == 12


def test_results_have_the_ids_of_the_file(model_file: Path, coco: Path, tmp_path: Path) -> None:
    evaluate(model_file, "--list", coco, "--root", tmp_path / "images", "--out", tmp_path / "out")

    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["image_id"] for entry in entries} == {900, 30, 5, 77, 2}
    assert {entry["category_id"] for entry in entries} <= set(IDS.values())
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    with Image.open(tmp_path / "images" / "900.png") as image:
        found = Detector.load(model_file, "cpu").predict(image, 0.0)
    best = max((entry for entry in entries if entry["image_id"] == 900), key=lambda entry: entry["score"])
    assert best["category_id"] == IDS[found.class_name(0)]
    assert best["score"] == pytest.approx(float(found.scores[0]), abs=1e-4)


def test_the_classes_are_listed_best_first(model_file: Path, coco: Path, tmp_path: Path) -> None:
    result = evaluate(model_file, "--list", coco, "--root", tmp_path / "images", "--out", tmp_path / "out")

    rows = [
        line.split()
        for line in result.stdout.splitlines()
        if line.split()[:1] in (["cat"], ["dog"], ["bird"])
    ]
    aps = [-1.0 if row[2] == "-" else float(row[2]) for row in rows]
    assert len(rows) == 3
    assert aps == sorted(aps, reverse=True)
    annotations = json.loads(coco.read_text())["annotations"]
    for name, boxes, _ in rows:
        expected = sum(a["category_id"] == IDS[name] and not a["iscrowd"] for a in annotations)
        assert int(boxes) == expected
    assert "5 images, " in result.stdout


def test_a_run_is_measured_on_its_own_evaluation_list(model_file: Path, coco: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(model_file.read_bytes())
    settings = {"list_train": coco, "list_eval": coco, "root_eval": tmp_path / "images", "nbatch_eval": 2}
    dump_config(load_config({**settings, "model": "fcos_lite0"}), run / "config.json")

    of_run = evaluate(run)
    of_file = evaluate(run / "best.safetensors")
    explicit = evaluate(
        *(model_file, "--list", coco, "--root", tmp_path / "images", "--batch-size", "2"),
        *("--out", tmp_path / "out"),
    )

    assert of_run.exit_code == 0, of_run.output
    assert of_run.stdout == of_file.stdout
    assert of_run.stdout.splitlines()[:12] == explicit.stdout.splitlines()[:12]
    assert (run / "eval" / "results.json").read_text() == (tmp_path / "out" / "results.json").read_text()


def test_another_list_leaves_the_results_of_the_run(model_file: Path, coco: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(model_file.read_bytes())
    settings = {"list_train": coco, "list_eval": coco, "root_eval": tmp_path / "images", "nbatch_eval": 2}
    dump_config(load_config({**settings, "model": "fcos_lite0"}), run / "config.json")
    content = json.loads(coco.read_text())
    content["images"] = content["images"][:1]
    first = content["images"][0]["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == first]
    (tmp_path / "test set.json").write_text(json.dumps(content))

    own = evaluate(run)
    before = (run / "eval" / "results.json").read_bytes()
    other = evaluate(run, "--list", tmp_path / "test set.json", "--root", tmp_path / "images")

    assert own.exit_code == other.exit_code == 0, other.output
    assert (run / "eval" / "results.json").read_bytes() == before
    [file] = (run / "eval").glob("*/results.json")
    assert file.parent.name.endswith("test-set")
    assert f"1 image, {len(json.loads(file.read_text()))} detections in {file}" in other.stdout
    assert evaluate(run, "--list", coco, "--root", tmp_path / "images").stdout == own.stdout


@pytest.mark.parametrize("other", ["onnx", "openvino", "last.safetensors"])
def test_another_model_leaves_the_results_of_the_run(
    other: str, small_model: Path, exported: dict[str, Path], coco: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    file = small_model.with_name(other) if "." in other else exported[other]
    settings = {"list_train": coco, "list_eval": coco, "root_eval": tmp_path / "images", "nbatch_eval": 2}
    dump_config(load_config({**settings, "model": "fcos_lite0"}), run / "config.json")
    (run / "eval").mkdir()
    (run / "eval" / "results.json").write_text("the run's")

    for name in ("best.safetensors", "last.safetensors"):
        shutil.copy(small_model, run / name)
    if file.exists():
        (shutil.copytree if file.is_dir() else shutil.copy)(file, run / file.name)
    result = evaluate(run / file.name)

    assert result.exit_code == 0, result.output
    assert (run / "eval" / "results.json").read_text() == "the run's"
    written = run / "eval" / file.name / "results.json"
    assert f"detections in {written}" in result.stdout
    assert len(json.loads(written.read_text())) > 0


def test_a_test_set_without_boxes_gets_its_results_and_a_warning(
    model_file: Path, coco: Path, tmp_path: Path
) -> None:
    """As for an evaluation server, which keeps the boxes to itself."""
    coco.write_text(json.dumps(json.loads(coco.read_text()) | {"annotations": []}))

    result = evaluate(model_file, "--list", coco, "--root", tmp_path / "images", "--out", tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert "warning: 5 images, but no boxes (read as format coco): there is nothing" in result.stderr
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) > 0


def test_without_a_run_or_a_list_it_says_what_to_give(model_file: Path) -> None:
    result = evaluate(model_file)

    assert result.exit_code == 2
    assert "no annotations to measure AP on: the model file is not in a run folder" in result.output
    assert "fix: give annotations with --list" in result.output


def test_classes_that_differ_are_listed(model_file: Path, coco: Path, tmp_path: Path) -> None:
    coco.write_text(coco.read_text().replace('"name": "bird"', '"name": "plane"'))

    result = evaluate(model_file, "--list", coco, "--root", tmp_path / "images")

    assert result.exit_code == 2
    assert "only in the annotations: 'plane'; only in the model: 'bird'" in result.output


def test_impossible_boxes_are_refused_unless_told_to_leave_them_out(
    model_file: Path, coco: Path, tmp_path: Path
) -> None:
    content = json.loads(coco.read_text())
    content["annotations"][0]["bbox"][2] = 0
    coco.write_text(json.dumps(content))
    words = (model_file, "--list", coco, "--root", tmp_path / "images", "--out", tmp_path / "out")

    refused, taken = evaluate(*words), evaluate(*words, "--skip-invalid")

    assert refused.exit_code == 2
    assert "1 box cannot be used" in refused.output
    assert taken.exit_code == 0, taken.output


def test_the_seeds_list_without_names_has_the_names_of_the_model(
    model_file: Path, coco: Path, tmp_path: Path
) -> None:
    # class ids from 1: 1 is the model's first class, cat
    lines = ["900.png 2 3 20 30 1", "30.png 5 5 30 25 2 1 1 9 9 3", "5.png"]
    (tmp_path / "eval.txt").write_text("\n".join(lines) + "\n")

    result = evaluate(
        *(
            model_file,
            "--list",
            tmp_path / "eval.txt",
            "--root",
            tmp_path / "images",
            "--out",
            tmp_path / "out",
        )
    )

    assert result.exit_code == 0, result.output
    assert "3 images, " in result.stdout
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines() if len(line.split()) == 3}
    assert {name: rows[name] for name in ("cat", "dog", "bird")} == {"cat": "1", "dog": "1", "bird": "1"}


def test_tiles_are_evaluated_as_the_detector_predicts_them(
    model_file: Path, coco: Path, tmp_path: Path
) -> None:
    words = [model_file, "--list", coco, "--root", tmp_path / "images", "--out", tmp_path / "out"]
    result = evaluate(*words, "--tile", "40", "--overlap", "0.1")
    assert result.exit_code == 0, result.output
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    found = Detector.load(model_file, "cpu").predict(
        tmp_path / "images" / "77.png", 0.0, tile=40, overlap=0.1
    )
    scores = sorted(entry["score"] for entry in entries if entry["image_id"] == 77)
    assert len(scores) == len(found) > 100  # more than the limit of a single view
    np.testing.assert_allclose(scores, np.sort(found.scores.numpy()), atol=1e-5)


def test_images_that_pillow_calls_bombs_are_evaluated_on_tiles(
    model_file: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [model_file, "--list", coco, "--root", tmp_path / "images"]
    as_usual = evaluate(*words, "--out", tmp_path / "usual", "--tile", "40")
    assert as_usual.exit_code == 0, as_usual.output
    monkeypatch.setattr("fcos.data.strips.LARGE", 1)
    monkeypatch.setattr("fcos.data.strips.ROWS_AT_ONCE", 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # an error from 2,000 on; the smallest has 2,500

    refused = evaluate(*words, "--out", tmp_path / "whole")
    assert refused.exit_code == 2
    assert "5 images cannot be used" in refused.output
    assert "too many pixels" in refused.output

    in_strips = evaluate(*words, "--out", tmp_path / "strips", "--tile", "40")
    assert in_strips.exit_code == 0, in_strips.output
    assert "5 images, " in in_strips.stdout
    usual, strips = (tmp_path / name / "results.json" for name in ("usual", "strips"))
    assert strips.read_bytes() == usual.read_bytes()


def test_a_config_of_another_program_beside_a_model_is_not_a_run(model_file: Path, tmp_path: Path) -> None:
    shutil.copy(model_file, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["Net"]}')
    assert run_config(tmp_path / "model.safetensors") is None


def test_of_a_folder_its_evaluation_part_is_measured(model_file: Path, coco: Path, tmp_path: Path) -> None:
    val, content = coco.with_name("val.json"), json.loads(coco.read_text())
    coco.rename(val)
    first = content["images"][0]["id"]
    content["images"] = content["images"][:1]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == first]
    coco.with_name("train.json").write_text(json.dumps(content))

    answer = evaluate(model_file, "--list", tmp_path, "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    assert f"evaluating {val}" in answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("5 images")

    detector = Detector.load(model_file, "cpu")
    assert np.array_equal(detector.evaluate(tmp_path).stats, detector.evaluate(val).stats)

    plot = tmp_path / "plot.png"
    words = ["compare", str(model_file), "--data", str(tmp_path), "--json", "-o", str(plot)]
    compared = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert compared.exit_code == 0, compared.output
    assert json.loads(compared.stdout)["num_images"] == 5
