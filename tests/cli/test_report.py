"""`fcos report` as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fcos import Detector
from fcos.cli import main
from fcos.config import dump_config, load_config

NAMES = ("cat", "dog", "bird")
NUM_IMAGES = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A list with twelve images of two cats each, and its class names."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (8, 10, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png 10 10 50 50 1 10 60 50 95 1")  # y before x
    (tmp_path / "eval.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "names.txt").write_text("\n".join(["background", *NAMES]) + "\n")
    return tmp_path


def make_run(data: Path, name: str, share: float, **settings: Any) -> Path:
    """The folder of a run that finds this share of the cats, and something else in each image."""
    run = data / name
    run.mkdir()
    given = {"list_train": data / "eval.txt", "list_eval": data / "eval.txt", "name_file": data / "names.txt"}
    given |= {"root_train": data / "images", "root_eval": data / "images"}
    config = load_config(
        {**{key: str(path) for key, path in given.items()}, "model": "fcos_lite0", **settings}
    )
    dump_config(config, run / "config.json")
    evaluated = {"kind": "eval", "step": 2, "epoch": 1, "map_mean": share, "map_50": share, "map_75": share}
    (run / "metrics.jsonl").write_text(json.dumps(evaluated) + "\n")
    results = []
    for number in range(NUM_IMAGES):
        results.append({"image_id": number + 1, "category_id": 2, "bbox": [0, 60, 20, 20], "score": 0.5})
        if number < share * NUM_IMAGES:
            for box in ([10, 10, 40, 40], [60, 10, 35, 40]):
                results.append({"image_id": number + 1, "category_id": 1, "bbox": box, "score": 0.9})
    (run / "results.json").write_text(json.dumps(results))
    return run


def report(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words), "--device", "cpu"])


def test_a_run_becomes_a_page(data: Path) -> None:
    run = make_run(data, "run", 0.5)
    result = report(run)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{run / 'report.html'} (0.")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "12 training images, 12 evaluation images" in page
    assert page.count('<article class="example" ') == NUM_IMAGES
    # found are 12 of 24 cats, so AP is 51 of 101 recall points
    assert "<span>AP50</span><b>0.505</b> <i>± " in page


def test_with_a_model_file_it_knows_what_nms_took_away(data: Path, model_file: Path) -> None:
    run = make_run(data, "run", 0.5, short_side=96, view_size=128)  # as the model file
    (run / "best.safetensors").write_bytes(model_file.read_bytes())
    assert Detector.load(run, "cpu").class_names == NAMES
    result = report(run)
    assert result.exit_code == 0, result.output
    assert re.search(r"are known only for \d+ images", (run / "report.html").read_text(encoding="utf-8"))


def test_file_and_number_of_images_can_be_chosen(data: Path) -> None:
    run = make_run(data, "run", 0.5)
    assert report(run, "-o", data / "page.html", "--images", "3").exit_code == 0
    page = (data / "page.html").read_text(encoding="utf-8")
    assert page.count('<article class="example" ') == 3
    assert not (run / "report.html").exists()


def test_two_runs_are_compared(data: Path) -> None:
    before, after = make_run(data, "before", 0.5), make_run(data, "after", 1.0, epochs=7)
    result = report(before, after)
    assert result.exit_code == 0, result.output
    page = (after / "comparison.html").read_text(encoding="utf-8")
    assert "A is before, B is after" in page
    assert re.search(r"B is better: AP changed by \+0\.495 ± \d", page)
    assert re.search(r">epochs</th><td>\d+</td><td>7</td>", page)
    assert "run_folder" not in page
    # the images in which A found nothing
    assert page.count("B is better: F1 +") == NUM_IMAGES // 2
    assert page.count('<article class="example" ') == NUM_IMAGES // 2
    assert not re.search(r"https?://|url\(|@import", page)


def test_equal_runs_do_not_differ(data: Path) -> None:
    result = report(make_run(data, "before", 0.5), make_run(data, "after", 0.5), "-o", data / "c.html")
    assert result.exit_code == 0, result.output
    page = (data / "c.html").read_text(encoding="utf-8")
    assert "No significant difference: AP changed by +0.000 ± 0.000." in page
    assert "Images with the largest differences" not in page


def test_runs_on_other_images_are_not_compared(data: Path) -> None:
    before, after = make_run(data, "before", 0.5), make_run(data, "after", 0.5)
    lines = (data / "eval.txt").read_text().splitlines()
    (data / "fewer.txt").write_text("\n".join(lines[:6]) + "\n")
    settings = json.loads((after / "config.json").read_text())
    (after / "config.json").write_text(json.dumps({**settings, "list_eval": str(data / "fewer.txt")}))
    result = report(before, after)
    assert result.exit_code == 2
    assert "the two runs were evaluated on different images" in result.output
    assert "fix: compare runs with the same list_eval" in result.output


def test_a_folder_that_is_no_run_is_answered(tmp_path: Path) -> None:
    result = report(tmp_path)
    assert result.exit_code == 2
    assert "is not the folder of a run: it has no config.json" in result.output


@pytest.mark.parametrize("page", ["eval.txt/page.html", "images"])
def test_a_page_that_cannot_be_written_is_told_before_the_work(data: Path, page: str) -> None:
    run = make_run(data, "run", 0.5)
    (run / "results.json").unlink()  # what would be said of it comes later
    result = report(run, "-o", data / page)
    assert result.exit_code == 2
    assert "no results" not in result.output
    assert str(data / page) in result.output
    assert "Traceback" not in result.output


def test_a_run_without_results_is_told_how_to_get_them(data: Path) -> None:
    run = make_run(data, "run", 0.5)
    (run / "results.json").unlink()
    result = report(run)
    assert result.exit_code == 2
    assert f"fix: write them: `fcos eval {run}`" in result.output


def without_evaluation(run: Path) -> Path:
    """As a training without list_eval leaves it."""
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "list_eval": "", "root_eval": ""}))
    (run / "results.json").unlink()
    train = {"kind": "train", "epoch": 1.0, "loss": 1.5, "lr": 0.01, "images_per_s": 10.0, "elapsed_s": 60.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(train | {"step": step}) + "\n" for step in (1, 2)))
    return run


def test_a_run_that_measured_nothing_shows_its_training(data: Path) -> None:
    run = without_evaluation(make_run(data, "run", 0.5))
    result = report(run)
    assert result.exit_code == 0, result.output
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "This run was not evaluated, because <code>list_eval</code> was not set" in page
    assert "12 training images · 2 steps in 1.0 minutes" in page
    assert "Which point is assigned to which object" in page
    for number in ("<span>AP", "AP50", 'href="#classes"', 'id="missed"', "12 evaluation images"):
        assert number not in page
    links = re.findall(r'href="#([^"]+)"', page)
    assert "points" in links
    assert all(f'id="{link}"' in page for link in links)


def test_a_run_that_measured_nothing_is_not_compared(data: Path) -> None:
    result = report(without_evaluation(make_run(data, "before", 0.5)), make_run(data, "after", 0.5))
    assert result.exit_code == 2
    assert "the run was not evaluated, so it cannot be compared" in result.output
