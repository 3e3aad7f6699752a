"""With the rules of every code base: a real small training, then everything that is done with its result."""

from __future__ import annotations

import pytest

from fcos import Detector
from fcos.config.conventions import CONVENTIONS
from fcos.export.formats import export_model
from fcos.report.after_training import train_and_draw
from fcos.report.curves import read_metrics
from fcos.weights.load import load_model

from ..rectangles import Tiny


@pytest.mark.parametrize("rules", list(CONVENTIONS))
def test_train_report_eval_predict_and_export(tiny: Tiny, rules: str) -> None:
    run = train_and_draw(
        tiny.config(rules, rules=rules, epochs=8, eval_epochs=8, score_threshold=0.02)
    ).folder
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Which point is assigned to which object" in page
    assert "Objects without a positive point" in page

    detector = Detector.load(run, "cpu")
    measured = detector.evaluate(tiny.data / "eval.txt", root=tiny.data / "eval")
    [line] = [line for line in read_metrics(run) if line["kind"] == "eval"]
    assert measured.map_mean == pytest.approx(line["map_mean"], abs=2e-3)

    image = tiny.data / "eval" / "000.png"
    found = detector.predict(image, 0.0)
    assert len(found) > 0
    exported = tiny.runs / f"{rules}.pt2"
    export_model(load_model(run), "torch", exported)
    again = Detector.load(exported).predict(image, 0.0)
    assert len(again) == len(found)
    assert again.scores.tolist() == pytest.approx(found.scores.tolist(), abs=1e-4)
    assert again.boxes_xyxy.flatten().tolist() == pytest.approx(found.boxes_xyxy.flatten().tolist(), abs=0.05)
