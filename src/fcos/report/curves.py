"""The curves of runs: `metrics.jsonl` as arrays and as a plot."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fcos.errors import DatasetError, OutputError
from fcos.files import read_text, written
from fcos.report.chart import FEW_POINTS, Chart, line_chart
from fcos.terminal import printable_line

EVAL_CURVES = ("map_mean", "map_50", "map_75")
EVAL_TITLES = ("AP", "AP50", "AP75")
NUM_COLUMNS = 4
COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#64748b")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics.jsonl, in the order of the steps.

    A run that was killed and resumed repeats the steps since its last checkpoint: the later line counts.

    Raises:
        DatasetError: the file does not exist, or a line is not JSON or not written by training.
    """
    file = Path(run) / "metrics.jsonl"
    if not file.is_file():
        raise DatasetError(
            "the run has no metrics",
            where=str(file),
            fix="give the folder of a run, for example runs/train",
        )
    # Not splitlines(): it also splits at U+2028, which may be in a class name.
    lines = read_text(file).removesuffix("\n").split("\n")
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # cut off by a kill, or being written right now
                break
            raise DatasetError("not JSON", where=f"{file}, line {number}", fix="remove this line") from None
        if not _is_entry(entry):
            raise DatasetError(
                "not a line that training wrote", where=f"{file}, line {number}", fix="remove this line"
            )
        entries[entry["kind"], entry["step"]] = entry
    return sorted(entries.values(), key=lambda entry: entry["step"])


def _is_entry(entry: Any) -> bool:
    """Whether a line has the keys of every line, and the metrics if it is an evaluation."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return False
    numbers = ("step", "epoch", "map_mean") if entry["kind"] == "eval" else ("step", "epoch")
    return all(isinstance(entry.get(name), int | float) for name in numbers)


def best_evaluation(metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The line of the epoch with the best AP; None if nothing was evaluated."""
    lines = (line for line in metrics if line["kind"] == "eval")
    return max(lines, key=lambda line: float(line["map_mean"]), default=None)


def curve(metrics: Sequence[dict[str, Any]], name: str, x: str = "step") -> NDArray[np.float64]:
    """`(N, 2)` x and value of each line that contains `name`; non-finite values are NaN."""
    points = [(entry[x], entry[name]) for entry in metrics if name in entry]
    return np.array(points, np.float64).reshape(-1, 2)  # None becomes nan


def train_curves(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """Names of training metrics to plot: the loss, its parts, the learning rate."""
    names = {name: None for entry in metrics if entry["kind"] == "train" for name in entry}
    return [*(name for name in names if name.startswith("loss")), "lr"]


def training_charts(metrics: Sequence[dict[str, Any]]) -> list[Chart | None]:
    """Curves of a run, for its page."""
    losses = [name for name in train_curves(metrics) if name != "lr"]
    return [
        line_chart(
            "AP after each epoch",
            "epoch",
            {
                title: curve(metrics, name, "epoch")
                for title, name in zip(EVAL_TITLES, EVAL_CURVES, strict=True)
            },
            mark_best=True,
        ),
        line_chart("Losses", "step", {name.replace("loss_", ""): curve(metrics, name) for name in losses}),
        line_chart("Learning rate", "step", {"lr": curve(metrics, "lr")}),
        line_chart("Speed", "step", {"images per second": curve(metrics, "images_per_s")}),
    ]


def run_names(runs: Sequence[Path]) -> list[str]:
    """A short name for each run: the end of its path, long enough to be unique."""
    parts = [run.absolute().parts for run in runs]
    for length in range(1, max(map(len, parts), default=1)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(run) for run in runs]


def plot_curves(runs: Sequence[Path], out: Path) -> None:
    """Draw AP by epoch, and losses and learning rate by step; one color per run."""
    names = run_names(runs)
    check_format(out)
    metrics_of = [read_metrics(run) for run in runs]
    of_steps = dict.fromkeys(name for metrics in metrics_of for name in train_curves(metrics))
    panels = [(name, "epoch") for name in EVAL_CURVES] + [(name, "step") for name in of_steps]
    # Figure, not pyplot: no window system, no state between calls
    figure = Figure(figsize=(4.2 * NUM_COLUMNS, 7), layout="constrained")
    axes = figure.subplots(-(-len(panels) // NUM_COLUMNS), NUM_COLUMNS, squeeze=False)
    for unused in axes.flat[len(panels) :]:
        unused.set_visible(False)
    for index, (metrics, label) in enumerate(zip(metrics_of, names, strict=True)):
        for ax, (name, x) in zip(axes.flat, panels, strict=False):
            _plot(ax, curve(metrics, name, x), _as_label(label), COLORS[index % len(COLORS)])
    for ax, (name, x) in zip(axes.flat, panels, strict=False):
        _finish(ax, name, x)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(runs), 5), frameon=False)
    with written(out) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font lacks some scripts
        figure.savefig(partial, dpi=110)


def check_format(out: Path) -> None:
    """Reject a suffix that matplotlib does not support; the error lists those that it does."""
    formats = FigureCanvasBase.get_supported_filetypes()
    if out.suffix.lower().lstrip(".") not in formats:
        raise OutputError(
            f"cannot write curves as {out.suffix or 'a file without a suffix'}",
            where=str(out),
            fix=f"use one of these suffixes: {', '.join(sorted(formats))}",
        )


def _as_label(name: str) -> str:
    """Escape a name for a legend: not a formula ($), and not hidden (_)."""
    return printable_line(f"./{name}" if name.startswith("_") else name).replace("$", r"\$")


def _plot(ax: Axes, points: NDArray[np.float64], label: str, color: str) -> None:
    few = len(points) <= FEW_POINTS
    ax.plot(*points.T, label=label, color=color, linewidth=1.6, marker="o" if few else "", markersize=3.5)


def _finish(ax: Axes, name: str, x: str) -> None:
    ax.set_title(name, loc="left", fontsize=11)
    ax.set_xlabel(x)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if x == "epoch":
        ax.set_ylim(0, 1.04 * ax.get_ylim()[1])  # the margin was computed for a lower limit above 0
    if not any(np.isfinite(np.asarray(line.get_ydata(), float)).any() for line in ax.lines):
        ax.text(0.5, 0.5, "no values", ha="center", transform=ax.transAxes, color="0.5")
