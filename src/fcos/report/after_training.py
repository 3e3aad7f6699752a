"""Train, then write the curves and the report."""

from __future__ import annotations

from collections.abc import Sequence

from fcos.config import TrainConfig, load_config
from fcos.data.summary import read_summaries
from fcos.report.coverage import keep_coverage
from fcos.report.curves import plot_curves
from fcos.report.finished_run import FinishedRun, read_results
from fcos.report.page import write_report
from fcos.train.callbacks import Callback
from fcos.train.run import Run, train


def train_and_draw(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> Run:
    """Train; once finished, write curves.png and report.html to the run folder."""
    run = train(config, callbacks)
    if run.trained is None:
        return run
    trained, folder = run.trained, run.folder
    as_written = load_config(folder / "config.json")
    plot_curves([folder], folder / "curves.png")
    annotations, results = trained.train_set, None
    if trained.eval_set is not None:
        keep_coverage(folder, trained.train_set, as_written)
        annotations, results = trained.eval_set, read_results(folder)
    finished = FinishedRun(folder, as_written, annotations, results, read_summaries(folder))
    write_report(finished, folder / "report.html", device=trained.device)
    return run
