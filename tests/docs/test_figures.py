"""What "FCOS in images" says about its figures."""

from __future__ import annotations

from pathlib import Path

import figures
import numpy as np
import pytest
import torch
from PIL import Image

from fcos.model.postprocess import PostProcess


def learned_on(level: str, short_side: int = 800) -> set[str]:
    matched = figures.view(short_side).matched(figures.LEVELS.index(level))
    return {figures.NAMES[place] for place in np.unique(matched[matched >= 0])}


def test_levels_learn_what_the_page_says() -> None:
    assert "emblem" in learned_on("P3") & learned_on("P4")  # at the limit of both
    assert learned_on("P5") >= {"hat", "face", "glasses"}
    assert learned_on("P6") == {"person"}


def test_glasses_take_points_from_the_face() -> None:
    seen = figures.view()
    level, points = figures.LEVELS.index("P5"), figures.view().points(2)
    x1, y1, x2, y2 = seen.boxes[figures.NAMES.index("face")].tolist()
    own = points[seen.matched(level) == figures.NAMES.index("glasses")]
    inside = (own[:, 0] > x1) & (own[:, 0] < x2) & (own[:, 1] > y1) & (own[:, 1] < y2)
    assert inside.all()
    assert len(own) > 3


def test_a_small_image_loses_objects_and_a_large_one_none() -> None:
    everything = set(range(len(figures.NAMES)))
    assert set(figures.view(400).targets.matched[0].tolist()) >= everything
    assert not set(figures.view(50).targets.matched[0].tolist()) >= everything


def test_perfect_predictions_give_every_object_once() -> None:
    seen = figures.view()
    size = torch.tensor([seen.size_hw])
    (found,) = PostProcess()(figures.perfect_output(seen), seen.grid, size, size)
    assert sorted(found.labels.tolist()) == list(range(len(figures.NAMES)))


def test_every_figure_is_drawn_and_shown(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (docs / "in_pictures.md").read_text(encoding="utf-8")
    for draw in figures.FIGURES:
        assert f"](figures/{draw.__name__}.webp)" in page
    monkeypatch.setattr(figures, "FIGURES", (figures.distances, figures.focal_loss))  # two, for time
    drawn = figures.draw_all(tmp_path)
    for file in drawn:
        with Image.open(file) as image:
            extremes = image.convert("L").getextrema()
        assert extremes[0] < 60 < 240 < extremes[1]
