"""The report on a run: a self-contained page, `report.html` in the run folder.

`write_report` collects the data; the layout is in `templates/` (Jinja, with `page.css` and `page.js`
inlined).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.summary import DataSummary, summarize
from fcos.files import write_text
from fcos.machine import package_versions
from fcos.metrics.analysis import MIN_IMAGES, Analysis, analyze, margins_of, resamples_for
from fcos.metrics.coco import STATS
from fcos.metrics.coverage import Coverage, cover
from fcos.metrics.misses import Miss, why_missed
from fcos.metrics.rows import Results
from fcos.report.analysis_charts import precision_charts, score_charts
from fcos.report.assignment import Level, assigned_image, choose_assigned
from fcos.report.coverage import coverage_facts, read_coverage
from fcos.report.curves import best_evaluation, read_metrics, training_charts
from fcos.report.examples import Example
from fcos.report.finished_run import FinishedRun
from fcos.report.gallery import choose_images, disagreement_crops, gallery
from fcos.report.second_look import SecondLook, second_look
from fcos.report.tables import boxes_of_numbers, confusion_table, error_rows, fraction, miss_rows
from fcos.terminal import counted

MAX_IMAGES = 48
MAX_ASSIGNED = 3
MIN_AP50 = 0.5  # below, most detections that disagree with the annotations are errors of the model
QUALITY_NAMES = {"centerness": "centerness", "iou": "expected IoU", "none": ""}
PACKAGES = ("fcos-torch", "torch", "torchvision", "timm", "hotcoco", "numpy", "pillow")


def write_report(
    run: FinishedRun, out: Path, *, max_images: int = MAX_IMAGES, device: torch.device | str = "cpu"
) -> None:
    """Write the report of a run; only about training if it was not evaluated.

    Args:
        run: its model file is used if there is one.
        device: on which the model predicts images again, to find boxes that NMS removed.
    """
    annotations, config = run.annotations, run.config
    # The second look predicts whole images, on which a model with tiles is not trained.
    look = None if config.tile else second_look(run.folder, torch.device(device))
    coverage = cover(annotations, config)
    what, measured = "training", {}
    if run.results is not None:
        what = "evaluation"
        measured = _measured(annotations, run.results, coverage, look, config, max_images)
    coverages = {"training": read_coverage(run.folder), what: coverage_facts(coverage, config)}
    page = template("report.html").render(
        _facts_of(run.folder, config, {what: summarize(annotations), **run.cards}),
        **measured,
        is_measured=run.results is not None,
        coverages=[entry for entry in coverages.items() if entry[1]],
        assigned=_assigned(coverage, config, look) if max_images and not config.tile else [],
        quality_name=QUALITY_NAMES[config.quality],
        has_model=look is not None,
    )
    write_text(out, page)


def template(name: str) -> Template:
    """A template of `templates/`; undefined variables are errors."""
    environment = Environment(
        loader=PackageLoader("fcos", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"fraction": fraction, "counted": counted}
    return environment.get_template(name)


# Facts ------------------------------------------------------------------------------------------------------


def _facts_of(run: Path, config: TrainConfig, cards: Mapping[str, DataSummary]) -> dict[str, Any]:
    """Facts about the run: model, data, and best epoch."""
    metrics = read_metrics(run)
    cards = dict(sorted(cards.items(), reverse=True))  # training first
    return {
        "name": " / ".join(run.absolute().parts[-2:]),
        "facts": _sentence(metrics, config, cards),
        "charts": training_charts(metrics),
        "cards": cards,
        "histograms": _histograms(cards),
        "settings": _setting_rows(config),
        "versions": {"python": platform.python_version(), **package_versions(*PACKAGES)},
    }


def _sentence(
    metrics: Sequence[dict[str, Any]], config: TrainConfig, cards: Mapping[str, DataSummary]
) -> str:
    model = f"{config.model} on {config.backbone}"
    images = ", ".join(counted(card.counts.num_images, f"{what} image") for what, card in cards.items())
    steps = [entry for entry in metrics if entry["kind"] == "train"]
    length = ""
    if steps:
        length = f"{counted(steps[-1]['step'], 'step')} in {duration(steps[-1]['elapsed_s'])}"
    epoch = ""
    if best := best_evaluation(metrics):
        epoch = f"best epoch {best['epoch']} of {max(e['epoch'] for e in metrics if e['kind'] == 'eval')}"
    return " · ".join(part for part in (model, images, length, epoch) if part)


def duration(seconds: float) -> str:
    """A time in words: ``12 seconds``, ``3.5 minutes``, ``2.0 hours``."""
    if seconds < 60:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def _histograms(cards: Mapping[str, DataSummary]) -> list[tuple[str, Mapping[str, int]]]:
    """Histograms of the training set if known: title, number of boxes in each bin."""
    what, card = next(iter(cards.items()))
    return [
        (f"Boxes by size: square root of the area, pixels ({what})", card.box_sides),
        (f"Boxes by aspect ratio: width / height ({what})", card.box_ratios),
    ]


def _setting_rows(config: TrainConfig) -> list[tuple[str, str, str]]:
    """Key, value, meaning."""
    meanings = {key: field.description or "" for key, field in TrainConfig.model_fields.items()}
    return [
        (key, value if isinstance(value, str) else json.dumps(value), meanings[key])
        for key, value in config.model_dump(mode="json").items()
    ]


# Measurements -----------------------------------------------------------------------------------------------


def _measured(
    annotations: Annotations,
    results: Results,
    coverage: Coverage,
    look: SecondLook | None,
    config: TrainConfig,
    max_images: int,
) -> dict[str, Any]:
    """Template variables about the evaluation."""
    # Resampling takes about as long as everything else.
    with ThreadPoolExecutor(1) as resampling:
        margins = resampling.submit(margins_of, annotations, results)
        analysis = analyze(annotations, results)
        chosen = choose_images(annotations, analysis, max_images)
        with_misses = [image for image in chosen if analysis.shown.num_missed[image]]
        candidates = look.candidates(annotations, with_misses) if look else {}
        misses = why_missed(
            annotations,
            analysis,
            coverage.without,
            candidates,
            config.nms_iou,
            agnostic_nms=config.agnostic_nms,
        )
        examples = gallery(annotations, analysis, chosen, misses)
    # Disagreements of a weak detector say nothing about the annotations.
    is_weak = analysis.metrics.map_50 < MIN_AP50
    return {
        "analysis": analysis,
        **_numbers(annotations, analysis, margins.result()),
        **_images(examples, misses, len(annotations)),
        "is_weak": is_weak,
        "min_ap_50": MIN_AP50,
        "disagreements": [] if is_weak else disagreement_crops(annotations, analysis, chosen),
        "misses": miss_rows(misses),
        "num_missed": len(misses),
        "num_seen_again": len(candidates),
    }


def _numbers(annotations: Annotations, analysis: Analysis, margins: Sequence[float | None]) -> dict[str, Any]:
    """Template variables about metrics, classes, errors and scores."""
    ranked = sorted(analysis.classes, key=lambda row: -1.0 if row.ap is None else row.ap, reverse=True)
    return {
        "numbers": list(zip(STATS, analysis.metrics.stats, margins, boxes_of_numbers(analysis), strict=True)),
        "num_resamples": resamples_for(len(analysis.rows)),
        "min_images": MIN_IMAGES,
        "classes": ranked,
        "precision_charts": precision_charts(analysis, ranked),
        "errors": error_rows(analysis),
        "confusion": confusion_table(analysis, annotations.class_names),
        "score_charts": score_charts(analysis),
        "num_objects": int(annotations.is_counted.sum()),
    }


# Images -----------------------------------------------------------------------------------------------------


def _images(examples: Sequence[Example], misses: Sequence[Miss], num_images: int) -> dict[str, Any]:
    """The examples, and the tags by which the page filters them."""
    by_tag: dict[str, list[str]] = {"all": [example.key for example in examples]}
    for example in examples:
        for tag in example.tags:
            by_tag.setdefault(tag, []).append(example.key)
    words = {"all": "all", "worst": "worst", "best": "best"}
    words |= {row.tag: f"missed: {row.short}" for row in miss_rows(misses)}
    return {
        "examples": examples,
        "images": by_tag,
        "choices": [(tag, word) for tag, word in words.items() if tag in by_tag],
        "num_images": num_images,
    }


def _assigned(
    coverage: Coverage, config: TrainConfig, look: SecondLook | None
) -> list[tuple[Example, tuple[Level, ...]]]:
    images = choose_assigned(coverage.annotations, coverage.without, MAX_ASSIGNED)
    return [
        assigned_image(
            coverage.annotations,
            image,
            config,
            look.at_points(coverage.annotations, image) if look else None,
        )
        for image in images
    ]
