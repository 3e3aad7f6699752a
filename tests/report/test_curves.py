import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcos.errors import DatasetError
from fcos.report.chart import line_chart
from fcos.report.curves import curve, plot_curves, read_metrics, run_names
from fcos.train.writers import JsonLines


def write_run(folder: Path, num_epochs: int = 3) -> Path:
    entries: list[dict[str, Any]] = []
    for epoch in range(1, num_epochs + 1):
        loss = {"loss": 1 / epoch, "loss_classification": 0.5, "loss_box": 0.3, "loss_quality": None}
        entries.append({"kind": "train", "step": 10 * epoch, "epoch": float(epoch), **loss, "lr": 0.01})
        entries.append(
            {"kind": "eval", "step": 10 * epoch, "epoch": epoch, "map_mean": 0.1 * epoch}
            | {"map_50": 0.2 * epoch, "map_75": 0.05 * epoch}
        )
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def test_curves_are_read_by_name_with_nan_where_a_value_was_not_finite(tmp_path: Path) -> None:
    metrics = read_metrics(write_run(tmp_path / "run"))
    np.testing.assert_allclose(curve(metrics, "map_mean", "epoch"), [[1, 0.1], [2, 0.2], [3, 0.3]])
    np.testing.assert_array_equal(curve(metrics, "loss_quality"), [[10, np.nan], [20, np.nan], [30, np.nan]])
    assert curve(metrics, "no_such_curve").shape == (0, 2)


def test_steps_that_a_resumed_run_repeats_count_once_with_their_later_value(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 20, "epoch": 2.0, "loss": 7.0}) + "\n")
        file.write(json.dumps({"kind": "train", "step": 15, "epoch": 1.5, "loss": 6.0}) + "\n")
    assert curve(read_metrics(run), "loss").tolist() == [[10, 1], [15, 6], [20, 7]]


def test_class_names_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    ap = {"Caf\x85": 0.5, "a\u2028b": 0.25}
    entry = {"step": 1, "epoch": 1, "map_mean": 0.5, "per_class": ap}
    writer = JsonLines(tmp_path)
    writer.write("eval", entry)
    writer.close()
    assert read_metrics(tmp_path) == [{"kind": "eval", **entry}]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert len(read_metrics(run)) == 2


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 1}\nbroken\n{}\n')
    with pytest.raises(DatasetError, match=r"not JSON\n  in: .*metrics.jsonl, line 2\n  fix: remove"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *('{"a": 1}', "[1]", '"text"', "null", '{"kind": "train", "step": "1", "epoch": 1}'),
        *('{"kind": "train", "step": 1, "epoch": null}', '{"kind": "eval", "step": 1, "epoch": 1}'),
    ],
)
def test_a_line_that_no_training_writes_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(
        DatasetError, match=r"not a line that training wrote\n  in: .*metrics.jsonl, line 1\n  fix"
    ):
        read_metrics(tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the run has no metrics") as error:
        read_metrics(tmp_path)
    assert str(tmp_path / "metrics.jsonl") in str(error.value)
    assert "runs/train" in error.value.fix


def test_runs_are_named_by_as_much_of_their_path_as_it_takes() -> None:
    assert run_names([Path("/a/b/x"), Path("/a/b/y")]) == ["x", "y"]
    assert run_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert run_names([Path("/a/run"), Path("/a/run")]) == ["run", "run"]


@pytest.mark.parametrize("num_epochs", [0, 1, 3])
def test_an_image_is_drawn_of_any_number_of_points(tmp_path: Path, num_epochs: int) -> None:
    out = tmp_path / "new" / "curves.png"
    plot_curves([write_run(tmp_path / "run", num_epochs)], out)
    with Image.open(out) as image:
        assert image.width > 1000


def test_several_runs_are_told_apart_by_color_and_legend(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", 2), write_run(tmp_path / "b", 3)
    plot_curves([a, b], tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert "#2563eb" in svg
    assert "#ea580c" in svg
    assert "<!-- a -->" in svg
    assert "<!-- b -->" in svg


def test_drawing_leaves_no_global_state_behind(tmp_path: Path) -> None:
    from matplotlib._pylab_helpers import Gcf

    plot_curves([write_run(tmp_path / "run")], tmp_path / "curves.png")
    assert Gcf.get_all_fig_managers() == []


def test_a_chart_of_nothing_is_none() -> None:
    assert line_chart("t", "x", {}) is None
    assert line_chart("t", "x", {"a": np.zeros((0, 2)), "b": np.array([[1.0, np.nan]])}) is None


def test_a_chart_marks_the_best_value_of_its_first_curve_only() -> None:
    a, b = np.array([[1, 0.1], [2, 0.4], [3, 0.3]]), np.array([[1.0, 0.9]])
    chart = line_chart("AP", "epoch", {"a": a, "b": b}, mark_best=True)
    assert chart is not None
    assert [[dot.is_best for dot in line.dots] for line in chart.lines] == [[False, True, False], [False]]
    assert chart.lines[0].dots[1].text == "a, epoch 2: 0.4, the best"
    places = [dot.y for dot in chart.lines[0].dots]
    assert places[1] < places[2] < places[0]  # up is more
    assert all(chart.left <= dot.x <= chart.right for line in chart.lines for dot in line.dots)


def test_a_chart_has_a_gap_where_a_value_was_not_finite() -> None:
    chart = line_chart("t", "x", {"a": np.array([[1, 1], [2, 2], [3, np.nan], [4, 4], [5, 5]])})
    assert chart is not None
    assert [command for command in chart.lines[0].path if command.isalpha()] == ["M", "L", "M", "L"]
    assert len(chart.lines[0].dots) == 4


def test_a_long_curve_keeps_its_ends_and_few_points() -> None:
    steps = np.arange(1, 5001.0)
    chart = line_chart("t", "step", {"a": np.stack([steps, steps], axis=1)})
    assert chart is not None
    dots = chart.lines[0].dots
    assert len(dots) == 200
    assert (dots[0].text, dots[-1].text) == ("a, step 1: 1", "a, step 5000: 5000")


def test_a_single_point_and_a_constant_curve_have_a_place() -> None:
    for points in (np.array([[1, 0.0]]), np.array([[1, 5.0], [2, 5.0]]), np.array([[7, -2.0]])):
        chart = line_chart("t", "x", {"a": points})
        assert chart is not None
        assert all(np.isfinite([dot.x, dot.y]).all() for dot in chart.lines[0].dots)
        assert all(chart.top <= dot.y <= chart.bottom for dot in chart.lines[0].dots)
