"""`fcos info`: describe a model file and how it is used."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcos.cli.options import model_argument
from fcos.cli.output import json_option, print_json
from fcos.terminal import printable_line

if TYPE_CHECKING:
    from fcos.config import TrainConfig
    from fcos.export.card import ExportCard
    from fcos.weights.load import ExportFormat, LoadedModel

EPILOG = """\b
Examples:
  fcos info fcos_R_50_1x.pth           a published file of another code base
  fcos info runs/train                 the best model of a run
  fcos info best.safetensors --json    everything, as JSON
"""

SIZES = {"round": "rounded", "floor": "rounded down", "truncate": "longer side truncated"}
RESIZES = {
    "antialiased": "antialiased",
    "pillow": "as Pillow",
    "opencv": "as OpenCV, not antialiased",
    "float": "not antialiased, not rounded",
}
CLIPS = {
    "resized": "clipped to the resized image before NMS",
    "original": "clipped and scaled to the original image before NMS",
    "after_nms": "clipped to the original image after NMS",
}
TESTED = {"class": "class score", "product": "class score * quality", "score": "final score"}
SHOWN_CLASSES = 8


@click.command(epilog=EPILOG)
@model_argument
@json_option
def command(model: Path, as_json: bool) -> None:
    """Describe a model file: its origin, classes, preprocessing, conventions and assumptions.

    Accepts what `fcos predict` accepts: a run folder, a model file, an exported file, or published weights of
    AdelaiDet, detectron2, MMDetection, the official code or torchvision. Opening a file never runs code from
    it.
    """
    from fcos.export.exported import ExportedModel, open_exported
    from fcos.export.formats import export_card
    from fcos.weights.load import format_of, load_model

    format = format_of(model)
    opened: LoadedModel | ExportedModel = open_exported(model) if format else load_model(model)
    about = opened.export if isinstance(opened, ExportedModel) else export_card(opened)
    if as_json:
        print_json(as_dict(opened.config, opened.path, about))
        return
    click.echo(f"{printable_line(str(opened.path))}: a detector from {about.model.origin or 'fcos'}\n")
    for title, text in describe(opened.config, about, format).items():
        click.echo(f"{title:<11} {printable_line(text)}")
    for note in about.notes:
        click.echo(f"note: {note}")
    if about.model.origin and not format:
        click.echo(
            '\nYou can use it as it is with predict, eval and "pretrain"; '
            f"`fcos import {opened.path.name} -o model.safetensors` converts it to our format"
        )


def as_dict(config: TrainConfig, path: Path, about: ExportCard) -> dict[str, Any]:
    """Everything known about a model."""
    from fcos.config.conventions import CONVENTIONS

    return {
        "file": str(path),
        "parameters": about.num_parameters,
        **asdict(about.model),
        "origin": about.model.origin or "fcos",
        "rules": CONVENTIONS[config.rules]._asdict(),
        "notes": about.notes,
    }


def describe(config: TrainConfig, about: ExportCard, format: ExportFormat | None) -> dict[str, str]:
    """Titles and texts that describe a model."""
    from fcos.config.conventions import CONVENTIONS
    from fcos.export.formats import FORMATS
    from fcos.model.points import level_name

    card, rules = about.model, CONVENTIONS[config.rules]
    mean, std = ([round(value, 4) for value in values] for values in (about.pixel_mean, about.pixel_std))
    rank = "class" if rules.rank_by == "class" else "final"
    stem = ", stride in the 1x1 convolutions" if config.stride_in_1x1 else ""
    widths = f" of widths {config.backbone_channels}" if config.backbone_channels else ""
    names = ", ".join(card.class_names[:SHOWN_CLASSES])
    unit = "times stride" if config.normalize_targets else "pixels"
    nms = "over all classes" if config.agnostic_nms else "per class"
    size = f"longest side {config.view_size}"
    if config.short_side is not None:
        size = f"shorter side {config.short_side}, longest at most {config.view_size}"
    score = {"sqrt": f"sqrt(class * {config.quality})", "product": f"class * {config.quality}"}[rules.score]
    levels = f"{level_name(config.strides[0])} to {level_name(config.strides[-1])}"
    lines = {
        "network": f"{config.backbone}{widths}{stem}; levels {levels} with {config.fpn_channels} channels, "
        f"head of {config.head_convs} convolutions, {config.head_channels} channels ({config.head_norm}); "
        f"{about.num_parameters / 1e6:.1f} M parameters",
        "classes": f"{len(card.class_names)}: {names}{', ...' * (len(card.class_names) > SHOWN_CLASSES)}; "
        f"category ids {min(card.category_ids)} to {max(card.category_ids)}",
        "images": f"{size}, {SIZES[rules.size]}; resized {RESIZES[rules.resize]}",
        "pixels": f"RGB, (x - {mean}) / {std}; then zero-padded to a multiple of 32",
        "points": "top-left corner of each cell" if rules.points == "corner" else "center of each cell",
        "boxes": f"{config.box_activation}(scale * x), {unit}; {CLIPS[rules.clip]}"
        + (", including their last pixels" if rules.inclusive_boxes else ""),
        "candidates": f"{TESTED[config.threshold_on]} above {config.score_threshold:g}; top "
        f"{config.candidates_per_level} of each level by {rank} score",
        "score": score if config.quality != "none" else "class",
        "detections": f"NMS {nms} at IoU {config.nms_iou:g}, at most {config.detections_per_image} per image",
        "threshold": f"score {card.threshold:.2f} in `fcos predict`; --score-threshold changes it",
    }
    if format:
        lines = {"format": f"{FORMATS[format].ABOUT}, {about.precision}", **lines}
    if card.metrics:
        lines["measured"] = ", ".join(f"{key} {round(value, 3):g}" for key, value in card.metrics.items())
    return lines
