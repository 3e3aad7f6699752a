"""What a finished training gets in its run folder to look at: curves and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fcos.files import read_text
from fcos.report.coverage import keep_coverage
from fcos.report.curves import plot_curves
from fcos.report.page import write_report

if TYPE_CHECKING:
    from fcos.train.run import Trained


def draw_run(folder: Path, trained: Trained) -> None:
    """Write curves.png and report.html to a run folder."""
    plot_curves([folder], folder / "curves.png")
    if trained.eval_set is None:
        annotations, results = trained.train_set, None
    else:
        keep_coverage(folder, trained.train_set, trained.config)
        annotations, results = trained.eval_set, json.loads(read_text(folder / "results.json"))
    write_report(folder, annotations=annotations, results=results, device=trained.device)
