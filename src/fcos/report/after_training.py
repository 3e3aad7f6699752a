"""Train, then write the curves and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fcos.config import TrainConfig
from fcos.files import read_text
from fcos.report.coverage import keep_coverage
from fcos.report.curves import plot_curves
from fcos.report.page import write_report
from fcos.train.callbacks import Callback
from fcos.train.run import Run, train


def train_and_draw(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> Run:
    """Train; once finished, write curves.png and report.html to the run folder."""
    run = train(config, callbacks)
    if run.trained is None:
        return run
    trained, folder = run.trained, run.folder
    plot_curves([folder], folder / "curves.png")
    annotations, results = trained.train_set, None
    if trained.eval_set is not None:
        keep_coverage(folder, trained.train_set, trained.config)
        annotations, results = trained.eval_set, json.loads(read_text(folder / "results.json"))
    write_report(folder, annotations=annotations, results=results, device=trained.device)
    return run
