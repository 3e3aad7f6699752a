"""One page that shows a whole training: `report.html` in the run folder, self-contained.

`write_report` gathers the facts from the run folder; how they look is in `report.html` (Jinja) alone.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fcos.config import TrainConfig
from fcos.data.annotations import Annotations, Record
from fcos.data.check import Card, describe
from fcos.data.image import read_image
from fcos.metrics.coco import CocoMetrics, best_f1_threshold, evaluate_detections
from fcos.plots.boxes import class_colour, readable_on
from fcos.plots.chart import Chart, line_chart
from fcos.plots.curves import EVAL_CURVES, curve, read_metrics

LONGEST_SIDE = 640  # of an example picture, pixels
JPEG_QUALITY = 80
LEAST_SCORE = 0.05  # of a detection that the threshold slider can bring up
MAX_DETECTIONS = 60  # of an example picture

PACKAGES = ("fcos-torch", "torch", "torchvision", "timm", "hotcoco", "numpy", "pillow")


@dataclass(frozen=True)
class Box:
    """A box of an example picture, in its pixels, with its label.

    Attributes:
        text_x, text_y, text_anchor: where the label goes so that it is inside of the picture.
        score: None for ground truth.
    """

    x: float
    y: float
    width: float
    height: float
    text: str
    text_x: float
    text_y: float
    text_anchor: str
    colour: str
    text_colour: str
    score: float | None


@dataclass(frozen=True)
class Example:
    """A picture with what is there and what was found.

    Attributes:
        jpeg: base64.
        width, height: of the JPEG, in which the boxes are given.
    """

    name: str
    jpeg: str
    width: int
    height: int
    font_size: float
    line_width: float
    ground_truth: tuple[Box, ...]
    detections: tuple[Box, ...]


@dataclass(frozen=True)
class ClassRow:
    """AP and number of evaluation boxes of a class; AP is None where there is nothing to find."""

    name: str
    ap: float | None
    num_boxes: int


def write_report(
    run: Path,
    *,
    annotations: Annotations,
    results: Sequence[Mapping[str, Any]],
    train_annotations: Annotations | None = None,
    max_pictures: int = 12,
) -> Path:
    """Write `report.html` into the run folder.

    Args:
        run: folder with metrics.jsonl and config.json.
        annotations: of the evaluation.
        results: what the best model found in them, as in a COCO results file.
        train_annotations: if given, described beside those of the evaluation.
        max_pictures: examples to show, evenly spread over the evaluation pictures.
    """
    metrics = read_metrics(run)
    measured = evaluate_detections(annotations, results)
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    cards = {"evaluation": describe(annotations)}
    if train_annotations is not None:
        cards = {"training": describe(train_annotations)} | cards
    page = _template().render(
        name=" / ".join(run.absolute().parts[-2:]),
        facts=_facts(metrics, settings, cards),
        numbers=_numbers(measured),
        coco_lines=measured.summary(),
        charts=_charts(metrics),
        classes=_class_rows(measured, annotations),
        cards=cards,
        examples=_examples(annotations, results, max_pictures),
        threshold=best_f1_threshold(annotations, results),
        settings=_setting_rows(settings),
        versions=_versions(),
    )
    out = run / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("fcos", "plots"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _facts(
    metrics: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], cards: Mapping[str, Card]
) -> str:
    """What was trained on what, in a sentence."""
    model = f"{settings.get('model', 'FCOS')} on {settings.get('backbone', 'its backbone')}"
    pictures = ", ".join(f"{card.num_images:,} {what} pictures" for what, card in cards.items())
    steps = [entry for entry in metrics if entry["kind"] == "train"]
    length = ""
    if steps:
        length = f"{steps[-1]['step']:,} steps in {steps[-1]['elapsed_s'] / 60:.1f} minutes"
    measured = [entry for entry in metrics if entry["kind"] == "eval" and entry["map_mean"] is not None]
    best = max(measured, key=lambda entry: float(entry["map_mean"]), default=None)
    epoch = f"best epoch {best['epoch']} of {measured[-1]['epoch']}" if best else ""
    return " · ".join(part for part in (model, pictures, length, epoch) if part)


def _numbers(measured: CocoMetrics) -> list[tuple[str, str, str]]:
    """The headline: title, value, meaning."""
    stats = measured.stats
    named = [
        ("AP", stats[0], "averaged over IoU 0.50 to 0.95"),
        ("AP50", stats[1], "at IoU 0.50: found roughly"),
        ("AP75", stats[2], "at IoU 0.75: found exactly"),
        ("AP small", stats[3], "below 32² square pixels"),
        ("AP medium", stats[4], "up to 96² square pixels"),
        ("AP large", stats[5], "from 96² square pixels"),
        ("AR100", stats[8], "recall with 100 detections a picture"),
    ]
    return [(name, _percent(value), meaning) for name, value, meaning in named]


def _percent(value: float) -> str:
    return "–" if value < 0 else f"{100 * value:.1f}"  # COCO's -1: there is nothing to find


def _charts(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    losses = ("loss", "loss_classification", "loss_box", "loss_quality")
    charts = [
        line_chart(
            "AP after each epoch",
            "epoch",
            {name: curve(metrics, name, "epoch") for name in EVAL_CURVES},
            mark_best=True,
        ),
        line_chart("Losses", "step", {name.replace("loss_", ""): curve(metrics, name) for name in losses}),
        line_chart("Learning rate", "step", {"lr": curve(metrics, "lr")}),
        line_chart("Speed", "step", {"pictures per second": curve(metrics, "images_per_s")}),
    ]
    return [chart for chart in charts if chart is not None]


def _class_rows(measured: CocoMetrics, annotations: Annotations) -> list[ClassRow]:
    """Best AP first, classes without boxes last."""
    counted = annotations.labels[~annotations.is_crowd & ~annotations.is_difficult]
    counts = np.bincount(counted, minlength=annotations.num_classes).tolist()
    rows = [
        ClassRow(name, ap if ap >= 0 else None, count)
        for (name, ap), count in zip(measured.per_class_ap.items(), counts, strict=True)
    ]
    return sorted(rows, key=lambda row: -1.0 if row.ap is None else row.ap, reverse=True)


def _examples(
    annotations: Annotations, results: Iterable[Mapping[str, Any]], max_pictures: int
) -> list[Example]:
    chosen = [annotations[index] for index in spread(len(annotations), max_pictures)]
    found: dict[int, list[Mapping[str, Any]]] = {record.image_id: [] for record in chosen}
    for result in results:
        if result["image_id"] in found and result["score"] >= LEAST_SCORE:
            found[result["image_id"]].append(result)
    return [_example(record, found[record.image_id], annotations) for record in chosen]


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly over `range(count)`."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()]


def _example(record: Record, found: Sequence[Mapping[str, Any]], annotations: Annotations) -> Example:
    image = Image.fromarray(read_image(record.path).permute(1, 2, 0).numpy())
    width, height = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    scale = np.array([image.width / width, image.height / height] * 2)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=JPEG_QUALITY)
    names, label_of = annotations.class_names, {c: i for i, c in enumerate(annotations.category_ids)}
    font_size = max(image.size) / 26

    def box(xyxy: Any, label: int, score: float | None) -> Box:
        return _box(np.asarray(xyxy) * scale, names[label], label, score, image.size, font_size)

    best = sorted(found, key=lambda result: float(result["score"]), reverse=True)[:MAX_DETECTIONS]
    truth = zip(record.boxes_xyxy, record.labels.tolist(), strict=True)
    return Example(
        name=record.path.name,
        jpeg=base64.b64encode(jpeg.getvalue()).decode(),
        width=image.width,
        height=image.height,
        font_size=round(font_size, 1),
        line_width=round(max(image.size) / 200, 1),
        ground_truth=tuple(box(xyxy, label, None) for xyxy, label in truth),
        # the best is drawn last, on top of the others
        detections=tuple(
            box(_xyxy(result["bbox"]), label_of[result["category_id"]], float(result["score"]))
            for result in reversed(best)
        ),
    )


def _xyxy(box_xywh: ArrayLike) -> NDArray[np.float64]:
    x, y, width, height = np.asarray(box_xywh, np.float64)
    return np.array([x, y, x + width, y + height])


def _box(
    box_xyxy: Any, name: str, label: int, score: float | None, size: tuple[int, int], font_size: float
) -> Box:
    x1, y1, x2, y2 = (round(float(side), 1) for side in np.clip(box_xyxy, 0, (*size, *size)))
    is_right = x1 > 0.7 * size[0]  # its label would run out of the picture: it ends at the box's right side
    colour = class_colour(label)
    return Box(
        x=x1,
        y=y1,
        width=round(x2 - x1, 1),
        height=round(y2 - y1, 1),
        text=name if score is None else f"{name} {score:.2f}",
        text_x=x2 if is_right else x1,
        text_y=round(y1 - font_size / 4 if y1 > 1.2 * font_size else y1 + font_size, 1),
        text_anchor="end" if is_right else "start",
        colour="#{:02x}{:02x}{:02x}".format(*colour),
        text_colour=readable_on(colour),
        score=score,
    )


def _setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, value, meaning."""
    meanings = {key: field.description or "" for key, field in TrainConfig.model_fields.items()}
    return [
        (key, value if isinstance(value, str) else json.dumps(value), meanings.get(key, ""))
        for key, value in settings.items()
    ]


def _versions() -> dict[str, str]:
    """Of what made this report."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout without installing it
            versions[package] = "not installed"
    return versions
