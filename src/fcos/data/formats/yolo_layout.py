"""Find the images of a YOLO source, and the label file of each.

A label file is named after its image, ``0.txt`` or ``0.jpg.txt``; it is next to the image, or in ``labels``
if the image is in ``images``. The case of suffixes and of these two folders is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fcos.data.formats.yolo_description import (
    SPLITS,
    YAML_SUFFIXES,
    Description,
    existing,
    find_description,
    is_name_file,
    names_near,
    read_description,
    split_source,
)
from fcos.data.image_files import (
    IMAGE_SUFFIXES,
    FilesByStem,
    ImageFolder,
    folders_like,
    folders_near,
    is_image,
    names_in,
    slashed,
    some_of,
)
from fcos.data.numbers import number
from fcos.data.splits import SPLIT_FOLDERS
from fcos.data.text import Faults, read_lines
from fcos.errors import DatasetError
from fcos.files import data_below

SAMPLED_LINES = 50


class Pair(NamedTuple):
    """An image and its label file; either may be missing."""

    image: Path
    label_file: Path | None


def find_layout(source: Path, root: Path | None) -> tuple[list[Pair], Description]:
    """The images of a ``data.yaml``, ``obj.data``, list of images, or folder; and their description."""
    file, split = split_source(source)
    is_folder = os.path.isdir(file)
    describes = file.suffix.lower() in (*YAML_SUFFIXES, ".data")
    described_by = find_description(file) if is_folder else file if describes else None
    notes: list[str] = []
    if described_by is not None:
        description = read_description(described_by)
        pairs = _described_pairs(description, split, root)
        notes += description.notes
        others = [f"{described_by.name}:{other}" for other in description.splits if other != split]
        if others and file == source:
            notes.append(f"only the split '{split}' was read; others: {', '.join(others)}")
        if description.class_names is None:
            description = names_near(described_by.parent) or description
    else:
        pairs = _folder_pairs(file, root) if is_folder else list_pairs(file, root)
        description = names_near(file if is_folder else file.parent) or Description(file, None)
    folder = file if is_folder else file.parent
    if is_folder and described_by is None:
        notes += _notes_on_parts([pair.image for pair in pairs], file)
    if description.class_names and description.file.parent not in (folder, folder.absolute()):
        notes.append(f"the class names are from {description.file}")
    _check_labels_are_of_one_image(pairs)
    return pairs, replace(description, notes=tuple(notes))


def list_pairs(source: Path, root: Path | None, limit: int | None = None) -> list[Pair]:
    """A text file of image paths; labels may be near it even if the images are elsewhere (`root`)."""
    bases = [root, source.parent] if root else folders_near(source.parent)
    lines = [slashed(line) for _, line in read_lines(source)[:limit]]
    images = listed_files(lines, bases)
    finder = LabelFiles()
    labels = [finder.of(image) for image in images]
    paths = [Path(line) for line in lines]
    for leave_out in range(max((len(path.parts) for path in paths), default=0)):
        if any(labels):
            break
        labels = [finder.of(source.parent / _without(path, leave_out)) for path in paths]
    return [Pair(image, label_file) for image, label_file in zip(images, labels, strict=True)]


def listed_files(lines: list[str], bases: list[Path]) -> list[Path]:
    """The files in a list of images, all resolved by one rule: a missing one is not searched for elsewhere.

    The rule is a base folder and a number of leading folders to drop, for lists from another machine. The
    smallest number is used that finds some of the images, or a folder of images.
    """
    paths = [Path(line) for line in lines]
    finders = {base: ImageFolder(base) for base in bases}
    sample = paths[:: max(1, len(paths) // SAMPLED_LINES)]
    depth = max((len(path.parts) for path in sample), default=1)
    for leave_out in range(depth):
        fits = {
            base: (
                sum(finder.same_name(_without(path, leave_out)) is not None for path in sample),
                any(_names_folder_of_images(base, path, leave_out) for path in sample),
            )
            for base, finder in finders.items()
        }
        base = max(bases, key=fits.__getitem__)
        if any(fits[base]):
            break
    else:
        base, leave_out = bases[0], 0
    names = [_without(path, leave_out) for path in paths]
    return [finders[base].same_name(name) or base / name for name in names]


def _without(path: Path, leave_out: int) -> str:
    return str(Path(*path.parts[min(leave_out, len(path.parts) - 1) :]))


def _names_folder_of_images(base: Path, path: Path, leave_out: int) -> bool:
    folder = Path(_without(path, leave_out)).parent
    return folder != Path() and any(map(is_image, names_in(base / folder)))


class LabelFiles(FilesByStem):
    """Finds label files."""

    def __init__(self) -> None:
        super().__init__(lambda name: name.lower().endswith(".txt") and not is_name_file(name))
        self.claimed: set[Path] = set()  # the label files of all images looked up so far
        self._folders_of: dict[Path, list[Path]] = {}

    def of(self, image: Path) -> Path | None:
        """The label file of an image.

        Raises:
            DatasetError: there are two with different contents.
        """
        folder, name = image.parent, image.name
        if folder not in self._folders_of:
            self._folders_of[folder] = [*labels_folders(folder), folder]
        stems = (os.path.splitext(name)[0], name)
        found = [
            path for place in self._folders_of[folder] for stem in stems for path in self.find(place, stem)
        ]
        self.claimed.update(found)
        if len(found) > 1 and len({tuple(read_lines(path)) for path in found}) > 1:
            raise DatasetError(
                f"several label files for one image: {', '.join(map(str, found))}",
                where=str(image),
                fix="keep only the right one",
            )
        return found[0] if found else None


def labels_folders(folder: Path) -> list[Path]:
    """``.../labels/train`` for ``.../images/train``; empty if no part of the path is ``images``."""
    return _counterparts(folder, "images", "labels")


def _counterparts(folder: Path, name: str, other: str) -> list[Path]:
    parts = _parts_with(name, folder)
    places = [place for place, part in enumerate(parts) if part.lower() == name]
    if not places:
        return []
    return folders_like(Path(*parts[: places[-1]]), str(Path(other, *parts[places[-1] + 1 :])))


def _parts_with(name: str, folder: Path) -> tuple[str, ...]:
    """The parts of a path; if none has this name, the parts of the absolute path."""
    is_there = name in map(str.lower, folder.parts)
    return folder.parts if is_there else Path(os.path.abspath(folder)).parts


def is_label_file(file: Path) -> bool:
    """Whether a txt file contains rows of numbers: a class and a box or more."""
    try:
        rows = [[number(word) for word in line.split()] for _, line in read_lines(file)[:50]]
    except (DatasetError, ValueError):
        return False
    return bool(rows) and all(len(row) >= 5 and row[0].is_integer() for row in rows)


def _check_labels_are_of_one_image(pairs: list[Pair]) -> None:
    """Reject label files that match two images, ``0.jpg`` and ``0.png``."""
    image_of: dict[Path, Path] = {}
    faults = Faults()
    for image, label_file in pairs:
        if label_file is not None and image_of.setdefault(label_file, image) != image:
            faults.add(str(label_file), f"belongs to '{image_of[label_file].name}' or to '{image.name}'")
    faults.raise_any(
        "label file", "of two images", "remove one of the images, or rename its label file to .jpg.txt"
    )


def _notes_on_parts(images: list[Path], folder: Path) -> Iterator[str]:
    """The note on split folders that are read together with images outside of any split."""
    inside = [image.relative_to(folder).parts[:-1] for image in images if image.is_relative_to(folder)]
    parts = [next((part for part in parents if part.lower() in SPLIT_FOLDERS), None) for parents in inside]
    if None in parts and any(parts):
        names = ", ".join(sorted({f"'{part}'" for part in parts if part}))
        yield f"the images of {names} are read together with images outside of any split"


def _described_pairs(description: Description, split: str, root: Path | None) -> list[Pair]:
    file = description.file
    if split not in description.splits:
        there = ", ".join(description.splits) or "none"
        raise DatasetError(f"no split '{split}'", where=str(file), fix=f"its splits are: {there}")
    # Exporters write paths of their own machine or "../train/images": fall back to folders next to the file.
    bases = (file.parent / description.base, file.parent)
    pairs: list[Pair] = []
    for entry in description.splits[split]:
        found = (existing(base, entry, words=SPLITS[split]) for base in bases)
        place = next(filter(None, found), None)
        if place is None:
            raise DatasetError(
                f"'{entry}' (split '{split}') does not exist",
                where=str(file),
                fix="correct 'path' or the split" if file.suffix != ".data" else f"correct '{split} = ...'",
            )
        pairs += _folder_pairs(place, root) if os.path.isdir(place) else list_pairs(place, root)
    return pairs


def _folder_pairs(source: Path, root: Path | None) -> list[Pair]:
    """A folder of images, of label files, or of ``images`` and ``labels``; with a `root`, of its labels."""
    folders = folders_like(source, "images")
    if len(folders) == 1 and folders_like(source, "labels"):
        return _folder_pairs(folders[0], root)
    images = sorted(data_below(source, *IMAGE_SUFFIXES))
    labels = LabelFiles()
    if images and root is None:
        pairs = [Pair(image, labels.of(image)) for image in images]
        return pairs + _without_image(source, labels.claimed)
    if root is not None:
        source = next(iter(labels_folders(source)), source)
    files = sorted(path for path in data_below(source, ".txt") if not is_name_file(path.name))
    in_labels = "labels" in map(str.lower, _parts_with("labels", source))
    files = [f for f in files if in_labels or "labels" in map(str.lower, f.parts) or is_label_file(f)]
    stems = [file.relative_to(source).with_suffix("").as_posix() for file in files]
    if root is not None and not files:
        fix = "give the folder of the labels with --root, or omit --root"
        raise DatasetError("no label files in the folder", where=str(source), fix=fix)
    parts = ["images" if part.lower() == "labels" else part for part in _parts_with("labels", source)]
    beside = _counterparts(source, "labels", "images")
    folders = [root] if root else [*beside, Path(*parts), *folders_near(source)]
    finders = [ImageFolder(folder) for folder in folders]
    finder = next((f for f in finders if any(_images_of(f, stem) for stem in some_of(stems))), finders[0])
    pairs = [
        Pair(next(iter(_images_of(finder, stem)), finder.folder / f"{stem}.jpg"), file)
        for stem, file in zip(stems, files, strict=True)
    ]
    if finder.folder not in beside:  # others may contain images of other splits
        return pairs
    labeled = {pair.image for pair in pairs}
    return pairs + [
        Pair(image, None)
        for image in sorted(data_below(finder.folder, *IMAGE_SUFFIXES))
        if image not in labeled
    ]


def _images_of(finder: ImageFolder, stem: str) -> list[Path]:
    """The images that a label file ``0.txt`` or ``0.jpg.txt`` may belong to."""
    exact = finder.same_name(stem) if is_image(stem) else None
    found = [exact] if exact else finder.find_all(stem)
    if len(found) > 1:
        raise DatasetError(
            f"the labels '{stem}.txt' match several images: {', '.join(path.name for path in found)}",
            where=str(finder.folder),
            fix="remove the other image",
        )
    return found


def _without_image(images: Path, used: set[Path]) -> list[Pair]:
    """Label files without an image, for `check` to report."""
    image_of: dict[Path, Path] = {}
    for folder in (*labels_folders(images), images):
        for file in sorted(data_below(folder, ".txt")):
            is_no_label = file in used or is_name_file(file.name)
            if not is_no_label and (folder != images or is_label_file(file)):
                image_of.setdefault(file, (images / file.relative_to(folder)).with_suffix(".jpg"))
    return [Pair(image, file) for file, image in image_of.items()]
