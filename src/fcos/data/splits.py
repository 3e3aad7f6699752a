"""The parts of a data set: those that a folder brings, and seeded ones made by picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcos.data import voc
from fcos.data.annotations import Annotations
from fcos.data.pictures import folders_like, is_picture, names_in
from fcos.data.recognise import Format, coco_files, list_files, recognise, split_folders
from fcos.data.text import read_lines
from fcos.data.yolo_description import find_description, read_description
from fcos.errors import DatasetError
from fcos.files import read_text

# Words in file names. "trainval" stands for training only where it has no parts (see _pick).
TRAIN_WORDS = ("train", "training")
EVAL_WORDS = ("val", "valid", "validation", "eval", "dev")
TEST_WORDS = ("test", "testing")


@dataclass(frozen=True)
class Split:
    """One part of a data set: what `read_annotations` takes."""

    source: Path
    root: Path | None = None


@dataclass(frozen=True)
class Splits:
    """The parts that a folder holds; `evaluation` is None if there is only one.

    Attributes:
        train: to train on.
        evaluation: to measure on while choosing settings.
        test: to report once; only where train and evaluation exist besides.
        name_file: class names, where the format keeps them apart.
    """

    format: Format
    train: Split
    evaluation: Split | None = None
    test: Split | None = None
    name_file: Path | None = None

    def all(self) -> list[Split]:
        """Every part."""
        return [split for split in (self.train, self.evaluation, self.test) if split is not None]


def find_splits(folder: Path) -> Splits:
    """Recognise a data set folder and the split it brings.

    Train and val are preferred to trainval and test: test is to be reported once, not to choose settings by.
    Where there is only a test part beside the training part, it is the evaluation.
    """
    folder = Path(folder)
    format = recognise(folder)
    match format:
        case "voc":
            return _voc_splits(folder)
        case "yolo":
            return _yolo_splits(folder)
        case "coco":
            files = coco_files(folder)
        case "list":
            files = list_files(folder)
    # Roboflow's files are all called _annotations.coco.json, in folders named like the split.
    named = {(f"{file.parent.name} " if file.name[0] == "_" else "") + file.stem: file for file in files}
    parts = _as_splits(_pick(named, folder))
    name_file = _name_file(folder, parts[0]) if format == "list" else None
    return _splits(format, parts, Split(folder), name_file)


def split_annotations(
    annotations: Annotations, fraction: float, seed: int
) -> tuple[Annotations, Annotations]:
    """Training and evaluation parts; `fraction` of the pictures go to evaluation, at least one, never all.

    A picture that is listed twice is on one side only. The order of the pictures is kept.
    """
    paths = [record.path for record in annotations]
    pictures = sorted(set(paths))
    if len(pictures) < 2:
        raise DatasetError("too few pictures to split", where=str(annotations.source), fix="add pictures")
    num_eval = min(max(round(fraction * len(pictures)), 1), len(pictures) - 1)
    chosen = np.random.default_rng(seed).permutation(len(pictures))[:num_eval]
    held_out = {pictures[index] for index in chosen}
    train = [index for index, path in enumerate(paths) if path not in held_out]
    evaluation = [index for index, path in enumerate(paths) if path in held_out]
    return select(annotations, train), select(annotations, evaluation)


def select(annotations: Annotations, indices: Sequence[int]) -> Annotations:
    """The pictures of these indices, in this order."""
    chosen = np.asarray(indices, np.int64)
    first, last = annotations.first_box[chosen], annotations.first_box[chosen + 1]
    counts = last - first
    first_box = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    boxes = np.arange(first_box[-1]) + np.repeat(first - first_box[:-1], counts)
    return replace(
        annotations,
        boxes_xyxy=annotations.boxes_xyxy[boxes],
        labels=annotations.labels[boxes],
        is_crowd=annotations.is_crowd[boxes],
        is_difficult=annotations.is_difficult[boxes],
        areas=annotations.areas[boxes],
        first_box=first_box,
        image_ids=annotations.image_ids[chosen],
        sizes_hw=annotations.sizes_hw[chosen],
        _paths=annotations._paths[chosen],
        _wheres=None if annotations._wheres is None else annotations._wheres[chosen],
    )


def _name_file(folder: Path, train: Split | None) -> Path | None:
    """The name file of a folder of lists; of several, the one called like the training list."""
    files = [folder / name for name in names_in(folder) if _may_hold_names(name.lower())]
    if len(files) > 1 and train is not None:
        rest = _rest(train.source.stem)
        files = [file for file in files if _rest(re.sub("names?$", "", file.stem)) == rest]
    return files[0] if len(files) == 1 else None


def _may_hold_names(name: str) -> bool:
    return name.endswith(".names") or name == "classes.txt" or ("name" in name and name.endswith(".txt"))


def _voc_splits(folder: Path) -> Splits:
    # Only `convert` writes one: it keeps the order of the classes, which xml files cannot.
    name_file = folder / "names.txt" if (folder / "names.txt").is_file() else None
    sets = folders_like(folder, "ImageSets/Main")
    files = {Path(name).stem.lower(): sets[0] / name for name in names_in(sets[0])} if sets else {}
    # Only the four names that VOC defines: the folder also holds a file per class (cat_train.txt).
    named = {part: files[part] for part in ("train", "val", "test", "trainval") if part in files}
    named = {part: file for part, file in named.items() if read_text(file).strip()}
    parts = [named.get("train"), named.get("val"), named.get("test")]
    if parts[0] is None or parts[1] is None:
        parts = [named.get("trainval") or parts[0], parts[1] or parts[2], None]
    annotations = voc.annotation_folder(folder)
    # ``train`` and ``val`` with folders of their own, or within ``Annotations``
    subfolders = split_folders(folder if annotations is None else annotations)
    if subfolders and not any(parts):
        return _splits("voc", _as_splits(_pick(subfolders, folder)), Split(folder), name_file)
    root = None if annotations == folder else folder  # of xml files alone, images are nearby
    return _splits("voc", _as_splits(parts, folder), Split(folder, root), name_file)


def _yolo_splits(folder: Path) -> Splits:
    file = find_description(folder)
    if file is not None:
        there = read_description(file).splits
        keys = [key if key in there else None for key in ("train", "val", "test")]
        return _splits("yolo", [Split(file.with_name(f"{file.name}:{key}")) if key else None for key in keys])
    lists = {Path(name).stem: folder / name for name in names_in(folder) if name.lower().endswith(".txt")}
    parts = _pick({name: file for name, file in lists.items() if _names_pictures(file)}, folder)
    if parts[0] is not None:
        return _splits("yolo", _as_splits(parts))
    named = {sub.name: sub for images in folders_like(folder, "images") for sub in _subfolders(images)}
    for sub in _subfolders(folder):
        images = folders_like(sub, "images")
        if images or any(map(is_picture, names_in(sub))):
            named.setdefault(sub.name, images[0] if images else sub)
    return _splits("yolo", _as_splits(_pick(named, folder)), Split(folder))


def _names_pictures(file: Path) -> bool:
    """Whether a text file is a list of images."""
    try:
        lines = read_lines(file)
    except DatasetError:
        return False
    return bool(lines) and all(is_picture(line) for _, line in lines)


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in names_in(folder) if (folder / name).is_dir()]


def _pick(named: dict[str, Path], folder: Path) -> list[Path | None]:
    """Train, evaluation and test among named files, by the words in their names."""
    train = _with_words(named, TRAIN_WORDS) or _with_words(named, ("trainval",))
    if len(train) > 1:
        raise _ambiguous(folder, "training", train)
    parts: list[Path | None] = [next(iter(train.values()), None)]
    others = _with_words(named, EVAL_WORDS + TEST_WORDS)
    rests = {_rest(name) for name in train}
    others = {name: file for name, file in others.items() if _rest(name) in rests} or others
    for words in (EVAL_WORDS, TEST_WORDS):
        found = _with_words(others, words)
        if len(found) > 1:
            raise _ambiguous(folder, words[0], found)
        parts.append(next(iter(found.values()), None))
    return parts


def _splits(
    format: Format, parts: Iterable[Split | None], whole: Split | None = None, name_file: Path | None = None
) -> Splits:
    train, evaluation, test = parts
    if evaluation is None:
        evaluation, test = test, None
    if train is None:
        if whole is None:
            raise DatasetError("the data set has no 'train' part", fix="add 'train' to its data.yaml")
        return Splits(format, whole, name_file=name_file)
    return Splits(format, train, evaluation, test, name_file)


def _as_splits(parts: Iterable[Path | None], root: Path | None = None) -> list[Split | None]:
    return [None if part is None else Split(part, root) for part in parts]


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())


def _with_words(named: dict[str, Path], words: tuple[str, ...]) -> dict[str, Path]:
    return {name: file for name, file in named.items() if set(words) & set(_words(name))}


def _rest(name: str) -> tuple[str, ...]:
    """A name without the word for its part: ``voc_test`` and ``voc_trainval`` belong together."""
    split_words = {*TRAIN_WORDS, "trainval", *EVAL_WORDS, *TEST_WORDS}
    return tuple(word for word in _words(name) if word not in split_words)


def _ambiguous(folder: Path, part: str, found: dict[str, Path]) -> DatasetError:
    names = ", ".join(str(file.relative_to(folder)) for file in found.values())
    return DatasetError(
        f"several files could be the {part} part: {names}",
        where=str(folder),
        fix="name the one that you mean as list_train / list_eval",
    )
