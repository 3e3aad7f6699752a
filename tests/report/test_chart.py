import numpy as np

from fcos.report.chart import line_chart


def test_a_curve_goes_from_left_to_right_and_has_gaps_where_there_is_no_value() -> None:
    points = np.array([[0, 1.0], [1, np.nan], [2, 0.5], [3, 0.0]])
    chart = line_chart("t", "epoch", {"ap": points}, mark_best=True)
    assert chart is not None
    [line] = chart.lines
    assert line.path.count("M") == 2
    assert [dot.is_best for dot in line.dots] == [True, False, False]
    assert line.dots[0].x == chart.left
    assert line.dots[0].y < line.dots[1].y < line.dots[2].y == chart.bottom
    assert line.dots[1].text == "ap, epoch 2: 0.5"


def test_many_points_are_thinned_and_drawn_without_dots() -> None:
    chart = line_chart("t", "step", {"loss": np.stack([np.arange(5000), np.ones(5000)], axis=1)})
    assert chart is not None
    assert len(chart.lines[0].dots) == 200
    assert not chart.show_dots


def test_shares_have_ticks_between_whole_numbers() -> None:
    chart = line_chart("t", "recall", {"a": np.array([[0.0, 1.0], [1.0, 0.0]])}, whole_x=False)
    assert chart is not None
    assert "0.4" in chart.x_ticks.values()


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("t", "x", {}) is None
    assert line_chart("t", "x", {"a": np.array([[0, np.nan]])}) is None


def test_a_single_value_stands_in_the_middle_of_an_axis_with_its_tick_alone() -> None:
    chart = line_chart("t", "epoch", {"AP": np.array([[1.0, 0.4]])})
    assert chart is not None
    middle = (chart.left + chart.right) / 2
    assert chart.x_ticks == {middle: "1"}
    assert [dot.x for dot in chart.lines[0].dots] == [middle]


def test_small_ticks_are_written_out_where_there_is_room() -> None:
    chart = line_chart("t", "step", {"lr": np.array([[0, 0.0], [1, 0.006]])})
    assert chart is not None
    assert list(chart.y_ticks.values())[-1] == "0.006"
    chart = line_chart("t", "step", {"lr": np.array([[0, 0.0], [1, 0.00006]])})
    assert chart is not None
    assert list(chart.y_ticks.values())[-1] == "6e-5"
