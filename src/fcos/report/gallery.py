"""The images that a report shows, and their captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fcos.data.annotations import Annotations
from fcos.data.splits import spread
from fcos.metrics.analysis import Analysis
from fcos.metrics.misses import Miss
from fcos.metrics.rows import rows_by_image
from fcos.report.examples import Crop, Example, ReportImage

IMAGES_OF_A_CELL = 3  # of the confusion matrix
MAX_NOTES = 5  # reasons for misses, below an image
MAX_CROPS = 24  # of disagreements


def choose_images(annotations: Annotations, analysis: Analysis, most: int) -> dict[int, str]:
    """Index of each image to show, with its category, in the order shown.

    A third are the worst, a sixth the best, then some of every kind of confusion, the rest evenly spaced.
    """
    shown = analysis.shown
    f1, num_errors = shown.f1(), shown.num_wrong + shown.num_missed
    chosen: dict[int, str] = {}

    def add(images: Iterable[int], what: str, limit: int) -> None:
        for image in images:
            if len(chosen) < min(limit, most):
                chosen.setdefault(image, what)

    worst = np.lexsort((-num_errors, f1))
    best = np.lexsort((-shown.num_right, -f1))
    add(worst[num_errors[worst] > 0].tolist(), "worst", most // 3)
    add(best[shown.num_right[best] > 0].tolist(), "best", len(chosen) + most // 6)
    for there, found in confusions(analysis):
        if len(chosen) >= most * 5 // 6:
            break
        add(shown.pairs.images_of(there, found)[:IMAGES_OF_A_CELL], "", most * 5 // 6)
    add(spread(len(annotations), most), "", most)
    add(range(len(annotations)), "", most)
    return chosen


def confusions(analysis: Analysis) -> Iterator[tuple[int, int]]:
    """Cells of the confusion matrix that contain errors, largest first: true label, predicted label."""
    matrix = analysis.shown.pairs.matrix()
    np.fill_diagonal(matrix, 0)
    for cell in np.argsort(-matrix, axis=None, kind="stable").tolist():
        there, found = divmod(cell, len(matrix))
        if matrix[there, found] == 0:
            return
        yield there, found


def cell_tag(there: int, found: int) -> str:
    """The tag of images with an entry in this cell of the confusion matrix."""
    return f"cell-{there}-{found}"


def miss_tag(reason: str) -> str:
    """The tag of images with an object missed for this reason."""
    return f"miss-{reason.replace(' ', '-')}"


def image_key(image: int) -> str:
    """The id of an image in the page."""
    return f"image-{image + 1}"


def gallery(
    annotations: Annotations, analysis: Analysis, chosen: Mapping[int, str], misses: Sequence[Miss]
) -> list[Example]:
    """The chosen images with ground truth beside detections."""
    rows_of = rows_by_image(annotations, analysis.rows)
    misses_of: dict[int, list[Miss]] = {image: [] for image in chosen}
    for miss in misses:
        if miss.image in misses_of:
            misses_of[miss.image].append(miss)
    tags = {image: [what] if what else [] for image, what in chosen.items()}
    pairs = analysis.shown.pairs
    for image, there, found in zip(
        pairs.images.tolist(), pairs.there.tolist(), pairs.found.tolist(), strict=True
    ):
        if image in tags:
            tags[image].append(cell_tag(there, found))
    examples = []
    for image, what in chosen.items():
        view = ReportImage(annotations[image], annotations)
        told = {miss.box: miss.told for miss in misses_of[image]}
        panes = (
            view.ground_truth(int(annotations.first_box[image]), told, analysis),
            view.detections("detections", rows_of[image], analysis),
        )
        of_misses = (miss_tag(miss.reason) for miss in misses_of[image])
        examples.append(
            view.example(
                image_key(image),
                panes,
                analysis.threshold,
                caption=(f"{what}: " if what else "") + tally(analysis, image),
                notes=_notes(annotations, misses_of[image]),
                tags=tuple(dict.fromkeys([*tags[image], *of_misses])),
            )
        )
    return examples


def tally(analysis: Analysis, image: int) -> str:
    """The number of correct, wrong and missed detections of an image, as text."""
    shown = analysis.shown
    return (
        f"F1 {shown.f1()[image]:.2f}, {shown.num_right[image]} correct, {shown.num_wrong[image]} wrong, "
        f"{shown.num_missed[image]} missed"
    )


def _notes(annotations: Annotations, misses: Sequence[Miss]) -> tuple[str, ...]:
    """Why objects of an image were missed, one line each."""
    lines = [f"{annotations.class_names[annotations.labels[miss.box]]}: {miss.told}" for miss in misses]
    if len(lines) > MAX_NOTES:
        lines[MAX_NOTES - 1 :] = [f"and {len(lines) - MAX_NOTES + 1} more missed objects"]
    return tuple(lines)


def disagreement_crops(annotations: Annotations, analysis: Analysis, shown: Iterable[int]) -> list[Crop]:
    """The first disagreements; `shown` are the images that the page shows in full."""
    shown = set(shown)
    chosen = analysis.shown.disagreements[:MAX_CROPS]
    crops: dict[int, Crop] = {}
    for image in dict.fromkeys(one.image for one in chosen):
        view = ReportImage(annotations[image], annotations)  # large: only one is in memory at a time
        for place, one in enumerate(chosen):
            if one.image == image:
                there = f"annotated as {one.there}" if one.there else "not annotated"
                elsewhere = f"elsewhere {one.num_right} of {one.num_elsewhere} correct"
                crops[place] = view.crop(
                    one.box_xyxy,
                    annotations.class_names.index(one.found),
                    f"{one.found} {one.score:.2f}, {there}; {elsewhere}",
                    image_key(image) if image in shown else None,
                )
    return [crops[place] for place in range(len(chosen))]
