import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.metrics.coco import evaluate_detections
from fcos.plots.report import spread, write_report

NAMES = ("cat", "<b>dog & 'co'</b>")


def write_run(folder: Path) -> Path:
    """A run of one evaluation and two steps."""
    folder.mkdir()
    train = {"kind": "train", "loss": 1.5, "loss_classification": 0.5, "loss_box": 0.5, "loss_quality": 0.5}
    train |= {"lr": 0.01, "images_per_s": 10.0, "elapsed_s": 60.0, "epoch": 1.0}
    evaluated = {"kind": "eval", "step": 2, "epoch": 1, "map_mean": 0.4321, "map_50": 0.5, "map_75": 0.45}
    lines = [train | {"step": 1}, train | {"step": 2, "loss": None}, evaluated]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model": "fcos_lite0", "backbone": "tf_efficientnet_lite0", "lr_base": 0.01}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def data_set(folder: Path, num_images: int = 3) -> Annotations:
    """Pictures of 100 x 80 with a cat at 10, 20, 50, 60; the last is empty; no dogs."""
    folder.mkdir(exist_ok=True)
    records = []
    for number in range(1, num_images + 1):
        path = folder / f"{number}.png"
        Image.new("RGB", (100, 80), (number, 100, 200)).save(path)
        boxes = [[10.0, 20.0, 50.0, 60.0]] if number < num_images else []
        records.append(Record.make(path, boxes, [0] * len(boxes), number, size_hw=(80, 100)))
    return Annotations.from_records(records, NAMES, source=folder, format="list")


def found(image_id: int, score: float, box_xywh: tuple[float, ...] = (10, 20, 40, 40)) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 1, "bbox": list(box_xywh), "score": score}


def report_of(tmp_path: Path, results: list[dict[str, Any]], **options: Any) -> str:
    out = write_report(
        write_run(tmp_path / "run"), annotations=data_set(tmp_path / "data"), results=results, **options
    )
    assert out == tmp_path / "run" / "report.html"
    return out.read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Fails on tags that are not closed in order; collects attributes."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = report_of(tmp_path, [found(1, 0.9)])
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    references = [value for name, value in parser.attributes if name in ("href", "src", "xlink:href")]
    assert references
    assert all(str(value).startswith(("data:", "#")) for value in references)
    assert not re.search(r"https?://|url\(|@import", page)


def test_the_numbers_are_those_of_the_evaluation(tmp_path: Path) -> None:
    results = [found(1, 0.9), found(2, 0.8, (14, 20, 40, 40))]
    page = report_of(tmp_path, results)
    measured = evaluate_detections(data_set(tmp_path / "data"), results)
    assert 0.5 < measured.map_mean < 1
    assert f"<b>{100 * measured.map_mean:.1f}</b>" in page
    assert measured.summary() in page.replace("&#39;", "'")
    assert "best epoch 1 of 1" in page
    assert "map_mean, epoch 1: 0.4321, the best" in page


def test_what_does_not_exist_has_no_number(tmp_path: Path) -> None:
    page = report_of(tmp_path, [found(1, 0.9)])
    assert re.search(r"AP large<b>–</b>", page)
    assert re.search(r'co&#39;&lt;/b&gt;</span>\s*<span class="bar"><i style="width:0.0%">', page)


def test_class_names_cannot_break_the_page(tmp_path: Path) -> None:
    page = report_of(tmp_path, [{**found(1, 0.9), "category_id": 2}])
    assert "<b>dog" not in page
    assert "&lt;b&gt;dog &amp; &#39;co&#39;&lt;/b&gt; 0.90" in page


def test_without_javascript_it_shows_what_the_suggested_threshold_shows(tmp_path: Path) -> None:
    page = report_of(
        tmp_path, [found(1, 0.9), found(2, 0.8), found(1, 0.3, (60, 60, 20, 20)), found(2, 0.01)]
    )
    hidden = {
        float(score): "display:none" in rest
        for score, rest in re.findall(r'data-score="([\d.]+)"([^>]*)>', page)
    }
    assert hidden == {0.9: False, 0.8: False, 0.3: True}  # 0.01 is below what the slider can reach


def test_ground_truth_and_detections_are_drawn_where_they_are(tmp_path: Path) -> None:
    page = report_of(tmp_path, [found(1, 0.9, (12, 22, 40, 40))])
    panes = re.findall(r"<svg [^>]*aria-label=\"1\.png, [^>]*>.*?</svg>", page, flags=re.DOTALL)
    assert len(panes) == 2
    assert 'viewBox="0 0 100 80"' in panes[0]
    assert '<rect x="10.0" y="20.0" width="40.0" height="40.0"' in panes[0]
    assert '<rect x="12.0" y="22.0" width="40.0" height="40.0"' in panes[1]


def test_large_pictures_are_made_smaller_with_their_boxes(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    Image.new("RGB", (1280, 960)).save(path)
    record = Record.make(path, [[100.0, 200.0, 500.0, 600.0]], [0], 1, size_hw=(960, 1280))
    annotations = Annotations.from_records([record], NAMES, source=tmp_path, format="list")
    out = write_report(write_run(tmp_path / "run"), annotations=annotations, results=[])
    page = out.read_text(encoding="utf-8")
    assert 'viewBox="0 0 640 480"' in page
    assert '<rect x="50.0" y="100.0" width="200.0" height="200.0"' in page


def test_no_more_pictures_than_wanted_and_each_is_stored_once(tmp_path: Path) -> None:
    page = report_of(tmp_path, [], max_pictures=2)
    assert page.count("data:image/jpeg;base64,") == 2
    assert "2.png" not in page


def test_a_run_without_detections_or_boxes_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("")
    annotations = data_set(tmp_path / "data", num_images=1)
    page = write_report(run, annotations=annotations, results=[]).read_text(encoding="utf-8")
    assert "AP<b>–</b>" in page
    assert "Training</h2>" not in page


def test_training_data_is_described_beside_the_evaluation(tmp_path: Path) -> None:
    page = report_of(tmp_path, [], train_annotations=data_set(tmp_path / "train", num_images=7))
    assert "7 training pictures, 3 evaluation pictures" in page
    assert re.search(r"<td>without boxes</td><td>1</td><td>1</td>", page)
    assert re.search(r"<td>boxes</td><td>6</td><td>2</td>", page)


def test_settings_are_listed_with_their_meaning(tmp_path: Path) -> None:
    page = report_of(tmp_path, [])
    assert re.search(r"<th>lr_base</th><td>0.01</td><td class=\"quiet\">learning rate", page)


@pytest.mark.parametrize(("count", "wanted"), [(0, 3), (1, 3), (3, 3), (100, 12)])
def test_examples_are_spread_over_all_pictures(count: int, wanted: int) -> None:
    chosen = spread(count, wanted)
    assert len(set(chosen)) == len(chosen) == min(count, wanted)
    assert chosen == sorted(chosen)
    if count > wanted:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert np.ptp(np.diff(chosen)) <= 1
