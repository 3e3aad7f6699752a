"""The data set of `fcos quickstart`: real handwritten digits on real photos, nothing to download.

1,797 digits of 8 x 8 gray levels and three photos, all in `samples`. The metrics are honest: training and
evaluation images share no digit and no pixel of a photo. Each image depends only on (seed, split, its
number), so a longer data set begins with the images of a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcos.config.load import settings_text
from fcos.data.annotations import Annotations, Record
from fcos.data.formats.list import write_lines
from fcos.data.names import write_names
from fcos.data.samples import load_digits, photographs
from fcos.errors import DatasetError
from fcos.files import check_writable, read_text, write_text

Split = Literal["train", "eval"]

# The settings in train.json besides the paths; chosen for two CPU cores and five minutes.
QUICKSTART_SETTINGS: dict[str, Any] = {
    "classes": 10,
    "model": "fcos_mobilenetv2",
    "pretrain": "everyday",
    "epochs": 2,
    "precision": "fp32",  # not the fastest on this machine: results must be the same everywhere
    "nbatch_train": 4,
    "lr_base": 0.0006,  # 0.001 is unstable at this batch size: 0.55 and 0.69 AP in two runs
    "lr_backbone": 1.0,  # digits are unlike photos
    "nbatch_eval": 8,
    "view_size": 320,
    "short_side": 240,
    "horizontal_flip": False,  # a mirrored 2 is not a digit
}

CLASS_NAMES = tuple("0123456789")

IMAGE_SIZES_HW = ((256, 256), (240, 288), (240, 320))
DIGIT_SIZES = (24.0, 128.0)  # height of the scan in pixels, log-uniform
MAX_ANGLE = 20.0  # degrees; from about 30, many 1s of this data set look like a 7
MAX_DIGITS = 8
SHARE_EMPTY = 0.05
MAX_HIDDEN = 0.3  # fraction of a digit's ink, and of the smaller of two boxes, that others may cover
CONTRASTS = (45.0, 130.0)  # gray levels between the ink and the brightest (or darkest) background
SHARE_NEAR = 0.3  # fraction of digits placed where they may overlap another
PLACES_TRIED = 20
MAX_ENLARGING = 1.8  # of a photo, beyond filling the image

CELLS = 8  # of a scanned digit, each way
SHARPENING = 1.0  # without it the small holes of 6, 8 and 9 close
PEN_LEVELS = (0.42, 0.58)  # gray level at which ink begins; lower gives a broader pen
INK = 0.5  # a half-covered pixel belongs to the digit: box sides are off by half a pixel at most

# Digits in the file are ordered by writer, so the writers at its end are not those at its beginning: a random
# split would be easier (nearest neighbor: 98.7 % instead of 97.1 %).
NUM_TRAIN_DIGITS = 1250
PHOTO_PARTS: dict[Split, tuple[float, float]] = {"train": (0.0, 0.62), "eval": (0.63, 1.0)}  # of the width

README = """\
Handwritten digits on photographs, made by `fcos quickstart`. Boxes: train.txt and eval.txt, one image per
line, `name.jpg ymin xmin ymax xmax class_id ...`; class 1 is the second line of names.txt. Training:
`fcos train train.json`.

The digits of train and eval were written by different people, and no pixel of a photograph is in both.

Digits: Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), UCI, CC BY 4.0, by scikit-learn.
Photographs: china.jpg by danielbuechele, flower.jpg by vultilion (Flickr), both CC BY 2.0, by scikit-learn;
Grace Hopper by the U.S. Navy, public domain, by matplotlib. All cropped, scaled and recolored.
"""


@dataclass(frozen=True)
class Material:
    """The source material of the images of one split."""

    photos: tuple[Image.Image, ...]  # RGB
    digits: NDArray[np.float32]  # (N, 8, 8), 0 is paper, 1 is ink, sharpened (so some are beyond both)
    labels: NDArray[np.int64]  # (N,) the digit that was written


@dataclass
class Drawn:
    """One digit on an image."""

    cover: NDArray[np.float32]  # (h, w) in [0, 1], how much of each pixel its ink covers
    top_left: tuple[int, int]  # y, x of `cover` on the image
    visible: NDArray[np.float32]  # `cover` minus the parts hidden by later digits
    label: int
    color: NDArray[np.float32]  # RGB of the ink, 0 to 255

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The smallest box of whole pixels around the visible ink, image pixels."""
        y, x = self.top_left
        ink = self.visible >= INK
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        return x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1

    @property
    def window(self) -> tuple[slice, slice]:
        """Where `cover` lies on the image."""
        (y, x), (height, width) = self.top_left, self.cover.shape
        return slice(y, y + height), slice(x, x + width)


def make_digits(folder: Path, *, num_train: int, num_eval: int, seed: int = 0) -> None:
    """Write the data set in the usual form: images, two lists, names, train.json, README.txt.

    Raises:
        DatasetError: the folder contains something else; nothing is overwritten.
    """
    readme = folder / "README.txt"
    check_writable(folder)
    is_ours = readme.is_file() and read_text(readme) == README
    if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(
            "this folder is not empty, and is not a quickstart data set",
            where=str(folder),
            fix="choose another folder: fcos quickstart --out FOLDER",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(readme, README)
    write_names(CLASS_NAMES, folder / "names.txt")
    _write_split(folder, "train", num_train, seed)
    _write_split(folder, "eval", num_eval, seed)
    settings = {
        "root_train": "images/train",
        "list_train": "train.txt",
        "root_eval": "images/eval",
        "list_eval": "eval.txt",
        "name_file": "names.txt",
        **QUICKSTART_SETTINGS,
        "seed": seed,
    }
    write_text(folder / "train.json", settings_text(settings))


def _write_split(folder: Path, split: Split, count: int, seed: int) -> None:
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    for left_over in images.glob("*.jpg"):  # of an earlier, longer data set
        left_over.unlink()
    material = load_material(split)
    records = []
    for number in range(1, count + 1):
        rng = np.random.default_rng((seed, int(split == "eval"), number))
        image, digits = draw_image(material, rng)
        path = images / f"{number:04}.jpg"
        Image.fromarray(image).save(path, quality=90)
        boxes, labels = [digit.box_xyxy for digit in digits], [digit.label for digit in digits]
        records.append(Record.make(path, boxes, labels, number, size_hw=image.shape[:2]))
    listed = folder / f"{split}.txt"
    annotations = Annotations.from_records(records, CLASS_NAMES, source=listed, format="list")
    write_lines(annotations, listed, root=images)


@cache
def load_material(split: Split) -> Material:
    """Digits and parts of photos that belong only to this split."""
    digits, labels = load_digits()
    chosen = slice(None, NUM_TRAIN_DIGITS) if split == "train" else slice(NUM_TRAIN_DIGITS, None)
    photos = []
    for path in photographs():
        with Image.open(path) as photo:
            photos.append(photo.convert("RGB"))
    left, right = PHOTO_PARTS[split]
    return Material(
        tuple(p.crop((round(left * p.width), 0, round(right * p.width), p.height)) for p in photos),
        sharpen((digits[chosen] / 16).astype(np.float32)),
        labels[chosen].astype(np.int64),
    )


def draw_image(material: Material, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[Drawn]]:
    """An image `(H, W, 3)` with its digits, bottom layer first."""
    size_hw = IMAGE_SIZES_HW[rng.integers(len(IMAGE_SIZES_HW))]
    canvas = draw_background(material.photos[rng.integers(len(material.photos))], size_hw, rng)
    num_digits = 0 if rng.random() < SHARE_EMPTY else int(rng.integers(1, MAX_DIGITS + 1))
    drawn: list[Drawn] = []
    for _ in range(num_digits):
        label = int(rng.integers(len(CLASS_NAMES)))
        digit = material.digits[rng.choice(np.flatnonzero(material.labels == label))]
        size = float(np.exp(rng.uniform(*np.log(DIGIT_SIZES))))
        cover = digit_cover(digit, size, rng.uniform(-MAX_ANGLE, MAX_ANGLE), rng.uniform(*PEN_LEVELS))
        for _ in range(PLACES_TRIED):
            top_left = _propose_place(size_hw, cover.shape, drawn, rng)
            new = Drawn(cover, top_left, cover, label, np.zeros(3, np.float32))
            color = readable_color(canvas[new.window], rng)
            if color is not None and not any(_hides(new, below) for below in drawn):
                new.color = color
                _draw(new, canvas, drawn)
                drawn.append(new)
                break
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), drawn


def _propose_place(
    size_hw: tuple[int, int], cover_hw: tuple[int, ...], drawn: Sequence[Drawn], rng: np.random.Generator
) -> tuple[int, int]:
    """Top left corner of a digit: anywhere, or near an existing one."""
    room = np.array(size_hw) - cover_hw
    if drawn and rng.random() < SHARE_NEAR:
        other = drawn[int(rng.integers(len(drawn)))]
        first = np.subtract(other.top_left, cover_hw, dtype=np.int64)
        last = np.add(other.top_left, other.cover.shape, dtype=np.int64)
    else:
        first, last = np.zeros(2, np.int64), room
    y, x = np.clip(rng.integers(first, last + 1), 0, room)
    return int(y), int(x)


def draw_background(
    photo: Image.Image, size_hw: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A random crop `(H, W, 3)` of a photo, scaled, randomly mirrored, lighter or darker."""
    height, width = size_hw
    enlarging = math.exp(rng.uniform(0, math.log(MAX_ENLARGING)))
    scale = max(height / photo.height, width / photo.width) * enlarging
    crop_height, crop_width = height / scale, width / scale
    top = rng.uniform(0, photo.height - crop_height)
    left = rng.uniform(0, photo.width - crop_width)
    crop = photo.resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, left + crop_width, top + crop_height)
    )
    pixels = np.asarray(crop, np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.clip(pixels * rng.uniform(0.6, 1.25) * rng.uniform(0.9, 1.1, 3), 0, 255).astype(np.float32)


def digit_cover(
    digit: NDArray[np.float32], size: float, angle: float, pen_level: float
) -> NDArray[np.float32]:
    """Scale and rotate a scanned digit smoothly, and threshold its gray level at `pen_level`.

    Args:
        digit: `(8, 8)`, 0 is paper, 1 is ink.
        size: side of the scan on the image, pixels.
        angle: degrees, counter-clockwise.
        pen_level: gray level at which ink begins.

    Returns:
        `(h, w)` in [0, 1], how much of each pixel is covered; cropped to the ink.
    """
    paper = np.pad(digit, 2)  # room for strokes that extend beyond the scan
    cells_per_pixel = CELLS / size
    side = math.ceil(size * math.sqrt(2)) + 2
    cos, sin = (turn(math.radians(angle)) * cells_per_pixel for turn in (math.cos, math.sin))
    center = len(paper) / 2
    gray = Image.fromarray(paper).transform(
        (side, side),
        Image.Transform.AFFINE,
        (cos, -sin, center - (cos - sin) * side / 2, sin, cos, center - (sin + cos) * side / 2),
        Image.Resampling.BICUBIC,
    )
    # The gray level at the edge of a stroke changes by about 1 per cell, so this edge is one pixel wide.
    cover = np.clip((np.asarray(gray) - pen_level) / cells_per_pixel + 0.5, 0, 1)
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def sharpen(digits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add to each cell of `(N, 8, 8)` its difference from the mean of its 3 x 3 neighborhood."""
    padded = np.pad(digits, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.asarray(digits + SHARPENING * (digits - windows.mean(axis=(3, 4))), np.float32)


def readable_color(behind: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32] | None:
    """A random ink color `(3,)` that is readable on these pixels; None if no ink is."""
    darkest, brightest = np.quantile(luminance(behind), (0.05, 0.95))
    contrast = rng.uniform(*CONTRASTS)
    # A bright or a dark ink, with the wanted contrast to the background, or as close to it as possible.
    candidates = [min(brightest + contrast, 255.0), max(darkest - contrast, 0.0)]
    room = [candidates[0] - brightest, darkest - candidates[1]]
    fits = [candidate for candidate, space in zip(candidates, room, strict=True) if space >= CONTRASTS[0]]
    if not fits:
        return None
    wanted = fits[rng.integers(len(fits))]
    color = rng.uniform(0, 255, 3)
    for _ in range(12):  # when one channel saturates, the others must change more
        color = np.clip(color + wanted - luminance(color), 0, 255)
    return color.astype(np.float32)


def luminance(rgb: NDArray[Any]) -> NDArray[Any]:
    """Perceived brightness of `(..., 3)`, 0 to 255 (ITU-R BT.601)."""
    return np.asarray(rgb @ np.array([0.299, 0.587, 0.114], np.float32))


def _shared_windows(a: Drawn, b: Drawn) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Where two digits overlap, in the pixels of each; None if they do not."""
    (ay, ax), (by, bx) = a.top_left, b.top_left
    top, bottom = max(ay, by), min(ay + a.cover.shape[0], by + b.cover.shape[0])
    left, right = max(ax, bx), min(ax + a.cover.shape[1], bx + b.cover.shape[1])
    if top >= bottom or left >= right:
        return None
    in_a = slice(top - ay, bottom - ay), slice(left - ax, right - ax)
    in_b = slice(top - by, bottom - by), slice(left - bx, right - bx)
    return in_a, in_b


def _hides(new: Drawn, below: Drawn) -> bool:
    """Whether two digits would overlap too much, or too much of the lower one would be hidden."""
    shared = _shared_windows(new, below)
    if shared is None:
        return False
    in_new, in_below = shared
    smaller = min(new.cover.size, below.cover.size)
    hidden = (below.visible[in_below] * new.cover[in_new]).sum()
    left = below.visible.sum() - hidden
    return bool(new.cover[in_new].size > MAX_HIDDEN * smaller or left < (1 - MAX_HIDDEN) * below.cover.sum())


def _draw(new: Drawn, canvas: NDArray[np.float32], drawn: Sequence[Drawn]) -> None:
    """Draw ink on the canvas, and update what is visible of the digits below."""
    behind = canvas[new.window]
    behind += new.cover[..., None] * (new.color - behind)
    for below in drawn:
        shared = _shared_windows(new, below)
        if shared is not None:
            in_new, in_below = shared
            below.visible = below.visible.copy()
            below.visible[in_below] *= 1 - new.cover[in_new]
