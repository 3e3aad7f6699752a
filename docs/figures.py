"""The figures of "FCOS in pictures", from what `fcos.model` computes: `python docs/figures.py` draws them.

The photograph is Grace Hopper's (U.S. Navy, public domain), which matplotlib brings; the boxes are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from fcos.config import load_config
from fcos.data.loader import PADDING_MULTIPLE
from fcos.data.transforms import padded_size, resized_size
from fcos.model.assign import StaticAssigner, Targets, centerness_of, near_center
from fcos.model.fcos import HeadOutput
from fcos.model.losses import class_loss_sum
from fcos.model.points import PointGrid, box_distances, make_grid
from fcos.model.postprocess import ImageDetections, PostProcess

# xyxy in the pixels of the photograph
OBJECTS = {
    "person": (12, 22, 512, 600),
    "hat": (150, 22, 373, 180),
    "face": (157, 130, 374, 335),
    "glasses": (178, 168, 359, 232),
    "ribbons": (322, 489, 453, 527),
    "name tag": (78, 483, 169, 518),
    "emblem": (229, 27, 291, 84),
    "star": (3, 49, 39, 101),
    "button": (232, 576, 260, 600),
}
COLORS = {
    "person": "#f97316",
    "hat": "#a855f7",
    "face": "#facc15",
    "glasses": "#22d3ee",
    "ribbons": "#4ade80",
    "name tag": "#f472b6",
    "emblem": "#fb7185",
    "star": "#60a5fa",
    "button": "#fde68a",
}
NAMES = tuple(OBJECTS)
CONFIG = load_config()  # the papers' settings: 800 x 1333, five levels
LEVELS = ("P3", "P4", "P5", "P6", "P7")
RANGES = (0.0, *CONFIG.regress_ranges, float("inf"))
INK = "#1e293b"


class View:
    """The photograph at a size, with its points and what each learns.

    Attributes:
        pixels: `(height, width, 3)`, resized.
        boxes: `(objects, 4)` xyxy in its pixels.
    """

    def __init__(self, short_side: int, center_radius: float | None = CONFIG.center_radius) -> None:
        with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
            self.size_hw = resized_size((photo.height, photo.width), short_side, CONFIG.view_size)
            self.pixels = np.asarray(photo.convert("RGB").resize(self.size_hw[::-1]))
            scale = self.size_hw[1] / photo.width
        self.boxes = torch.tensor(list(OBJECTS.values()), dtype=torch.float32) * scale
        self.grid: PointGrid = make_grid(padded_size([self.size_hw], PADDING_MULTIPLE), CONFIG.strides)
        assigner = StaticAssigner(CONFIG.regress_ranges, center_radius)
        self.targets: Targets = assigner(self.grid, [self.boxes], [torch.arange(len(NAMES))])

    def level(self, index: int) -> slice:
        """The points of a level."""
        counts = self.grid.points_per_level
        first = sum(counts[:index])
        return slice(first, first + counts[index])

    def points(self, index: int) -> NDArray[np.float32]:
        """`(N, 2)` x, y of a level."""
        return np.asarray(self.grid.points[self.level(index)])

    def matched(self, index: int) -> NDArray[np.int64]:
        """`(N,)` object that each point of a level learns, or -1."""
        return np.asarray(self.targets.matched[0, self.level(index)])

    def show(self, ax: Axes, *, dim: float = 0.0, title: str = "") -> None:
        """The photograph, optionally whitened so that drawings on it stand out."""
        ax.imshow((self.pixels * (1 - dim) + 255 * dim).astype(np.uint8))
        ax.set(xlim=(0, self.size_hw[1]), ylim=(self.size_hw[0], 0), xticks=[], yticks=[])
        ax.set_title(title, loc="left", fontsize=10, color=INK)
        for side in ax.spines.values():
            side.set_visible(False)

    def outline(self, ax: Axes, name: str, *, label: bool = True, style: str = "-", width: float = 2) -> None:
        """An object's box with its name."""
        x1, y1, x2, y2 = self.boxes[NAMES.index(name)].tolist()
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=COLORS[name], lw=width, ls=style))
        if label:
            low = y2 - y1 < 0.12 * self.size_hw[0]  # a name inside would hide what is drawn on the object
            ax.text(
                *(x1 + 4, y1 - 4 if low else y1 + 4, name),
                va="bottom" if low else "top",
                fontsize=7.5,
                color="#0f172a",
                clip_on=True,
                bbox={"facecolor": COLORS[name], "edgecolor": "none", "pad": 1.5},
            )


@cache
def view(short_side: int = 800) -> View:
    """The papers' size by default."""
    return View(short_side)


def objects() -> Figure:
    """The photograph and its objects."""
    figure, (ax,) = _figure(1, width=4.2, height=4.9)
    seen = view()
    seen.show(ax)
    for name in NAMES:
        seen.outline(ax, name)
    return figure


def points() -> Figure:
    """The grid of each level."""
    figure, axes = _figure(3, 2, width=10, height=8.2)
    for index, (ax, name) in enumerate(zip(axes, LEVELS, strict=False)):
        seen, stride = view(), CONFIG.strides[index]
        height, width = seen.grid.level_sizes[index]
        seen.show(ax, dim=0.35, title=f"{name}: every {stride} pixels\n{width} x {height} points")
        ax.scatter(*seen.points(index).T, s=min(16, stride / 6), color="#dc2626", linewidths=0)
    return figure


def distances() -> Figure:
    """Equation 1 at one point, and its centerness."""
    figure, axes = _figure(2, width=10, height=5.9)
    seen = view()
    box = seen.boxes[NAMES.index("face")]
    for ax, wanted in zip(axes, ((470.0, 360.0), (330.0, 440.0)), strict=True):
        near = (seen.grid.points - torch.tensor(wanted)).square().sum(dim=1)
        near[seen.grid.strides != 32] = torch.inf
        point = seen.grid.points[near.argmin()]
        sides = box_distances(point[None], box[None])[0, 0]
        centerness = float(centerness_of(sides))
        seen.show(ax, title=f"point ({point[0]:g}, {point[1]:g}) of P5: centerness {centerness:.2f}")
        seen.outline(ax, "face", label=False, width=3)
        x, y = point.tolist()
        ends = ((box[0], y, "l"), (x, box[1], "t"), (box[2], y, "r"), (x, box[3], "b"))
        for (to_x, to_y, letter), length in zip(ends, sides.tolist(), strict=True):
            _arrow(ax, (x, y), (float(to_x), float(to_y)), f"{letter} = {length:.0f}")
        ax.plot(x, y, "o", color="#dc2626", ms=9, mec="white", mew=1.5)
        ax.set(xlim=(180, 640), ylim=(570, 120))
    return figure


def ranges() -> Figure:
    """Which level learns which object, at the papers' size."""
    figure, axes = _figure(3, 2, width=10, height=8.2)
    seen = view()
    for index, (ax, name) in enumerate(zip(axes, LEVELS, strict=False)):
        low, high = RANGES[index : index + 2]
        words = f"over {low:g} pixels" if high == float("inf") else f"{low:g} to {high:g} pixels"
        seen.show(ax, dim=0.35, title=f"{name}: largest distance\n{words}")
        matched = seen.matched(index)
        for place in np.unique(matched[matched >= 0]).tolist():
            seen.outline(ax, NAMES[place])
            own = seen.points(index)[matched == place]
            ax.scatter(*own.T, s=10, color=COLORS[NAMES[place]], edgecolors=INK, linewidths=0.4)
        if (matched < 0).all():
            middle = (seen.size_hw[1] / 2, seen.size_hw[0] / 2)
            ax.text(*middle, "no positive points", ha="center", color=INK, fontsize=10)
    return figure


def center_sampling() -> Figure:
    """All points inside, and those near the center."""
    figure, axes = _figure(2, width=10, height=5.9)
    seen, place, stride = view(), NAMES.index("face"), 32
    level = seen.points(CONFIG.strides.index(stride))
    points, box = torch.from_numpy(level), seen.boxes[place]
    inside = np.asarray((box_distances(points, box[None])[:, 0] > 0).all(dim=1))
    radius = torch.full((len(points),), CONFIG.center_radius * stride)
    near = np.asarray(near_center(points, box[None], radius)[:, 0])
    titles = (
        f"first paper: {inside.sum()} points inside the box",
        f"improved: {near.sum()} points within {CONFIG.center_radius:g} strides of its center",
    )
    for ax, chosen, title in zip(axes, (inside, near), titles, strict=True):
        seen.show(ax, dim=0.25, title=title)
        seen.outline(ax, "face", label=False, width=3)
        ax.scatter(*level[~chosen].T, s=22, facecolors="none", edgecolors=INK, linewidths=0.9)
        ax.scatter(*level[chosen].T, s=46, color="#dc2626", edgecolors="white", linewidths=0.8)
        ax.set(xlim=(180, 640), ylim=(570, 120))
    x, y = ((box[:2] + box[2:]) / 2).tolist()
    reach = CONFIG.center_radius * stride
    axes[1].add_patch(
        Rectangle((x - reach, y - reach), 2 * reach, 2 * reach, fill=False, ec="#dc2626", lw=2, ls="--")
    )
    return figure


def overlaps() -> Figure:
    """Points that lie in several boxes of one level."""
    figure, axes = _figure(2, width=10, height=5.9)
    for ax, short_side in zip(axes, (800, 1100), strict=True):
        seen = view(short_side)
        index, scale = 2, short_side / 800
        matched = seen.matched(index)
        seen.show(ax, dim=0.25, title=f"P5, image {short_side} pixels wide")
        for name in ("hat", "face", "glasses"):
            learned = NAMES.index(name) in matched
            seen.outline(ax, name, style="-" if learned else "--", width=2.5)
            own = seen.points(index)[matched == NAMES.index(name)]
            ax.scatter(*own.T, s=60, color=COLORS[name], edgecolors=INK, linewidths=1)
        ax.scatter(
            *seen.points(index)[matched < 0].T, s=12, facecolors="none", edgecolors=INK, linewidths=0.6
        )
        ax.set(xlim=(180 * scale, 640 * scale), ylim=(570 * scale, 10 * scale))
    return figure


def centerness() -> Figure:
    """Equation 3 over two boxes, at every pixel."""
    figure, axes = _figure(2, width=10, height=4.6)
    seen = view()
    for ax, name in zip(axes, ("face", "ribbons"), strict=True):
        x1, y1, x2, y2 = box = seen.boxes[NAMES.index(name)].tolist()
        y, x = torch.meshgrid(torch.arange(y1, y2), torch.arange(x1, x2), indexing="ij")
        pixels = torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5
        values = centerness_of(box_distances(pixels, torch.tensor([box]))[:, 0]).reshape(x.shape)
        seen.show(ax, title=name)
        heat = ax.imshow(values, extent=(x1, x2, y2, y1), cmap="inferno", alpha=0.72, vmin=0, vmax=1)
        seen.outline(ax, name, label=False, width=2.5)
        lines = ax.contour(
            np.linspace(x1, x2, x.shape[1]), np.linspace(y1, y2, x.shape[0]), values,
            levels=[0.25, 0.5, 0.75], colors="white", linewidths=1,
        )  # fmt: skip
        ax.clabel(lines, fontsize=8)
        margin = 0.25 * max(x2 - x1, y2 - y1)
        ax.set(xlim=(x1 - margin, x2 + margin), ylim=(y2 + margin, y1 - margin))
    figure.colorbar(heat, ax=axes, shrink=0.8, label="centerness")
    return figure


def too_small() -> Figure:
    """The same image at three sizes: objects that no point learns."""
    figure, axes = _figure(3, width=12, height=5)
    for ax, short_side in zip(axes, (400, 100, 50), strict=True):
        seen = view(short_side)
        learned = set(seen.targets.matched[0].tolist())
        lost = [name for place, name in enumerate(NAMES) if place not in learned]
        size = f"{seen.size_hw[1]} x {seen.size_hw[0]} pixels"
        seen.show(ax, title=f"{size}\nwithout a point: {', '.join(lost) or 'none'}")
        if not lost:
            ax.set_title(f"{size}\nevery object has points", loc="left", fontsize=10, color=INK)
        for place, name in enumerate(NAMES):
            seen.outline(ax, name, label=False, style="-" if place in learned else ":", width=2)
    return figure


def focal_loss() -> Figure:
    """How little the focal loss weights easy points."""
    figure, axes = _figure(2, width=10, height=3.4)
    scores = torch.linspace(0.01, 0.99, 99)
    logits = scores.logit()[:, None]
    for ax, target, title in zip(axes, (0.0, 1.0), ("background", "this class"), strict=True):
        for gamma, color in ((0.0, "#94a3b8"), (1.0, "#60a5fa"), (CONFIG.focal_gamma, "#dc2626")):
            rule = torch.full((1, 1), target), "focal", CONFIG.focal_alpha, gamma
            values = [float(class_loss_sum(row[None], *rule)) for row in logits]
            ax.plot(scores, values, color=color, lw=2, label=f"gamma {gamma:g}")
        ax.set_xlabel("score", color=INK)
        ax.set_title(f"focal loss at a point of {title}", loc="left", fontsize=10, color=INK)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_ylim(0, 2)
    axes[0].legend(frameon=False)
    return figure


def perfect_network() -> Figure:
    """Targets as predictions: what enters NMS, and what leaves it."""
    figure, axes = _figure(2, width=10, height=6)
    seen = view()
    output, size = perfect_output(seen), torch.tensor([seen.size_hw])
    process = PostProcess()
    (entering,) = process(output, seen.grid, size, size, nms=False)
    (found,) = process(output, seen.grid, size, size)
    titles = (f"{len(entering.scores)} candidates", f"{len(found.scores)} detections after NMS")
    for ax, what, title in zip(axes, (entering, found), titles, strict=True):
        seen.show(ax, dim=0.15, title=title)
        _draw_detections(ax, what)
    return figure


def perfect_output(seen: View) -> HeadOutput:
    """The output of a network that has learned its targets: confident, and off by a little."""
    random = torch.Generator().manual_seed(0)
    positive = seen.targets.labels >= 0
    classes = torch.arange(len(NAMES))
    logits = torch.where(seen.targets.labels[..., None] == classes, 3.0, -9.0)
    noise = 1 + 0.04 * torch.randn(seen.targets.distances.shape, generator=random)
    boxes = torch.where(positive[..., None], seen.targets.distances * noise, 0.0)
    return HeadOutput(logits, boxes.clamp(min=0), seen.targets.centerness.clamp(0.01, 0.99).logit())


def _draw_detections(ax: Axes, found: ImageDetections) -> None:
    rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for (x1, y1, x2, y2), score, label in rows:
        name = NAMES[label]
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=COLORS[name], lw=1.6, alpha=0.9))
        if len(found.scores) <= len(NAMES):
            ax.text(
                *(x1 + 4, y1 + 4, f"{name} {score:.2f}"), va="top", fontsize=7.5, color="#0f172a",
                bbox={"facecolor": COLORS[name], "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], words: str) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#dc2626", "lw": 2})
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    ax.text(
        *(*middle, words), ha="center", va="center", fontsize=10, color="white",
        bbox={"facecolor": "#dc2626", "edgecolor": "none", "boxstyle": "round,pad=0.25"},
    )  # fmt: skip


def _figure(columns: int, rows: int = 1, *, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure and its places, row by row; a place that is not drawn on stays white."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for ax in axes if rows > 1 else ():
        ax.set_axis_off()
    return figure, axes


FIGURES: tuple[Callable[[], Figure], ...] = (
    objects, points, distances, ranges, center_sampling, overlaps, centerness, too_small, focal_loss,
    perfect_network,
)  # fmt: skip


def draw_all(folder: Path) -> list[Path]:
    """Every figure, by the name of its function."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for draw in FIGURES:
        file = folder / f"{draw.__name__}.webp"
        draw().savefig(file, dpi=115, pil_kwargs={"quality": 80})
        files.append(file)
    return files


if __name__ == "__main__":
    draw_all(Path(__file__).parent / "figures")
