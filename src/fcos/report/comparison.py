"""One page that compares two runs on the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.errors import DatasetError
from fcos.files import write_text
from fcos.metrics.analysis import Analysis, analyze
from fcos.metrics.coco import STATS, result_array
from fcos.metrics.comparison import Comparison, Delta, compare_results
from fcos.metrics.rows import Results, Rows, rows_by_image
from fcos.report.chart import Chart, line_chart
from fcos.report.curves import curve, read_metrics, run_names
from fcos.report.examples import Example, ReportImage
from fcos.report.finished_run import FinishedRun
from fcos.report.gallery import image_key, tally
from fcos.report.page import template
from fcos.report.tables import boxes_of_numbers, error_rows

MAX_IMAGES = 24
# Settings that do not affect the result.
NOT_COMPARED = frozenset(
    ("run_folder", "load", "save", "save_steps", "device", "num_workers", "tensorboard", "loggers")
)


def write_comparison(
    first: FinishedRun, second: FinishedRun, out: Path, *, max_images: int = MAX_IMAGES
) -> None:
    """Write the page.

    Raises:
        DatasetError: the runs were evaluated on different images or boxes, or not at all.
    """
    first_results, second_results = _results_of(first), _results_of(second)
    check_same_images(first, second)
    annotations = first.annotations
    before = analyze(annotations, first_results)
    after = analyze(annotations, _in_ids_of(annotations, second.annotations, second_results))
    compared = compare_results(annotations, before, after)
    names = run_names([first.folder, second.folder])
    page = template("comparison.html").render(
        name=f"{names[0]} and {names[1]}",
        names=names,
        num_images=len(annotations),
        verdict=_verdict(compared),
        deltas=[
            (stat.title, delta, boxes)
            for stat, delta, boxes in zip(STATS, compared.deltas, boxes_of_numbers(before), strict=True)
        ],
        num_resamples=compared.num_resamples,
        classes=compared.classes,
        errors=error_rows(before, after),
        charts=_charts([first.folder, second.folder]),
        settings=_different_settings(first.config, second.config),
        thresholds=(before.threshold, after.threshold),
        examples=_examples(annotations, before, after, compared, max_images),
    )
    write_text(out, page)


def _results_of(run: FinishedRun) -> Results:
    if run.results is None:
        raise DatasetError(
            "the run was not evaluated, so it cannot be compared",
            where=f'file {run.folder / "config.json"}, "list_eval"',
            fix="train with list_eval",
        )
    return run.results


def check_same_images(first: FinishedRun, second: FinishedRun) -> None:
    """Reject runs whose metrics cannot be compared."""
    one, other = first.annotations, second.annotations
    fix = "compare runs with the same list_eval; or evaluate on another list: `fcos eval RUN --list ...`"
    where = f"{first.folder}: {one.source}; {second.folder}: {other.source}"
    if set(one.class_names) != set(other.class_names):
        raise DatasetError("the two runs have different classes", where=where, fix=fix)
    paths = [[record.path.name for record in annotations] for annotations in (one, other)]
    if paths[0] != paths[1]:
        raise DatasetError("the two runs were evaluated on different images", where=where, fix=fix)
    same_places = np.array_equal(one.first_box, other.first_box) and np.array_equal(
        one.boxes_xyxy, other.boxes_xyxy
    )
    if not same_places or _class_of_boxes(one) != _class_of_boxes(other):
        raise DatasetError("the images of the two runs are annotated differently", where=where, fix=fix)


def _class_of_boxes(annotations: Annotations) -> list[str]:
    return [annotations.class_names[label] for label in annotations.labels.tolist()]


def _in_ids_of(annotations: Annotations, theirs: Annotations, results: Results) -> Rows:
    """A run's results with the image and category ids of other annotations of the same images."""
    rows = result_array(theirs, results).copy()
    category_of = dict(zip(annotations.class_names, annotations.category_ids, strict=True))
    category_ids = {
        category_id: category_of[name]
        for name, category_id in zip(theirs.class_names, theirs.category_ids, strict=True)
    }
    image_ids = dict(zip(theirs.image_ids.tolist(), annotations.image_ids.tolist(), strict=True))
    rows["image_id"] = [image_ids[image_id] for image_id in rows["image_id"].tolist()]
    rows["category_id"] = [category_ids[category_id] for category_id in rows["category_id"].tolist()]
    return rows


def _verdict(compared: Comparison) -> str:
    """The main result in a sentence."""
    ap: Delta = compared.deltas[0]
    if ap.change is None:
        return "These images contain no objects."
    if ap.margin is None:
        return (
            f"AP changed by {ap.change:+.3f}; there are too few images to tell whether this is significant."
        )
    interval = f"{ap.change:+.3f} ± {ap.margin:.3f}"
    if not ap.is_significant:
        return f"No significant difference: AP changed by {interval}."
    return f"B is {'better' if ap.change > 0 else 'worse'}: AP changed by {interval}."


def _charts(runs: Sequence[Path]) -> list[Chart | None]:
    metrics = {letter: read_metrics(run) for letter, run in zip("AB", runs, strict=True)}
    return [
        line_chart(title, x, {letter: curve(lines, name, x) for letter, lines in metrics.items()})
        for title, name, x in (
            ("AP after each epoch", "map_mean", "epoch"),
            ("AP50 after each epoch", "map_50", "epoch"),
            ("Loss", "loss", "step"),
            ("Learning rate", "lr", "step"),
        )
    ]


def _different_settings(first: TrainConfig, second: TrainConfig) -> list[tuple[str, str, str, str]]:
    """Key, both values, meaning."""
    one, other = (config.model_dump(mode="json") for config in (first, second))
    return [
        (key, json.dumps(one[key]), json.dumps(other[key]), field.description or "")
        for key, field in TrainConfig.model_fields.items()
        if key not in NOT_COMPARED and one[key] != other[key]
    ]


def _examples(
    annotations: Annotations, before: Analysis, after: Analysis, compared: Comparison, most: int
) -> list[Example]:
    """Images whose F1 changed, largest change first."""
    change = compared.f1_change
    images = [int(image) for image in np.argsort(-np.abs(change), kind="stable")[:most] if change[image]]
    rows_of = [rows_by_image(annotations, analysis.rows) for analysis in (before, after)]
    examples = []
    for image in images:
        view = ReportImage(annotations[image], annotations)
        panes = [view.ground_truth(int(annotations.first_box[image]), {})]
        for letter, analysis, rows in zip("AB", (before, after), rows_of, strict=True):
            shown = rows[image][analysis.rows["score"][rows[image]] >= analysis.threshold]
            panes.append(view.detections(f"{letter}: {tally(analysis, image)}", shown, analysis))
        caption = f"B is {'better' if change[image] > 0 else 'worse'}: F1 {change[image]:+.2f}"
        examples.append(view.example(image_key(image), panes, threshold=0.0, caption=caption))
    return examples
