"""The splits of a data set: those in its folder, or random ones by image (with a seed)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcos.data.annotations import Annotations, select
from fcos.data.image_files import names_in
from fcos.data.names import is_no_class, read_names
from fcos.data.registry import format_named, read_annotations, recognize
from fcos.data.text import several
from fcos.errors import DatasetError
from fcos.files import read_text
from fcos.terminal import counted

# Words in file names. "trainval" is the training split only if there is no separate train (see `pick`).
TRAIN_WORDS = ("train", "training")
EVAL_WORDS = ("val", "valid", "validation", "eval", "dev")
TEST_WORDS = ("test", "testing")
WHICH_SPLIT = "set list_train / list_eval to the right one"
SPLIT_NAMES = frozenset((*TRAIN_WORDS, "trainval", *EVAL_WORDS, *TEST_WORDS))
SPLIT_FOLDERS = frozenset((*TRAIN_WORDS, "val", "valid", "validation", *TEST_WORDS))


@dataclass(frozen=True)
class Split:
    """One split of a data set: the arguments of `read_annotations`."""

    source: Path
    root: Path | None = None


@dataclass(frozen=True)
class Splits:
    """The splits in a folder; `evaluation` is None if there is only one."""

    format: str
    train: Split
    evaluation: Split | None = None  # to evaluate on while choosing settings
    test: Split | None = None  # for the final evaluation; only if train and evaluation exist too
    name_file: Path | None = None  # class names, if the format has a separate file for them
    notes: tuple[str, ...] = ()  # on files in the folder that belong to no split

    def all(self) -> list[Split]:
        """Every split."""
        return [split for split in (self.train, self.evaluation, self.test) if split is not None]


def find_splits(folder: Path) -> Splits:
    """Recognize a data set folder and its splits.

    Train and val are preferred to trainval and test: test is for the final evaluation, not for choosing
    settings. If the only split besides train is test, it is used for evaluation.
    """
    format = format_named(recognize(folder))
    if format.splits is not None:
        return format.splits(folder)
    assert format.files is not None
    files = format.files(folder)
    # Including the folder's name: Roboflow calls all files _annotations.coco.json.
    named = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    sources = pick(named, folder)
    name_file = name_file_beside(folder, sources[0]) if format.class_names == "none" else None
    found = arranged(format.name, sources, whole=Split(folder), name_file=name_file)
    used = {*sources, *(file for name, file in named.items() if found.evaluation and _is_train_and_val(name))}
    unused = [file for file in files if file not in used]
    return with_note(found, sources, unused, folder, "annotation file belongs", "annotation files belong")


def evaluation_part(source: Path, root: Path | None = None, format: str = "auto") -> Split:
    """What to evaluate on: the evaluation split of a folder with splits, or the whole source."""
    if format == "auto" and source.is_dir() and (part := find_splits(source).evaluation) is not None:
        return Split(part.source, root or part.root)
    return Split(source, root)


def split_folders(folder: Path) -> dict[str, Path]:
    """Folders called like a split: ``train``, ``valid``, ``val``, ``test``."""
    named = {name: folder / name for name in names_in(folder) if name.lower() in SPLIT_FOLDERS}
    return {name: path for name, path in named.items() if os.path.isdir(path)}


def split_annotations(
    annotations: Annotations, fraction: float, seed: int
) -> tuple[Annotations, Annotations]:
    """Split annotations into training and evaluation; `fraction` of the images are for evaluation.

    At least one image is, and never all. An image that is listed twice is in one split only. The order of the
    images is kept.
    """
    paths = [record.path for record in annotations]
    images = sorted(set(paths))
    if len(images) < 2:
        raise DatasetError("too few images to split", where=str(annotations.source), fix="add images")
    num_eval = min(max(round(fraction * len(images)), 1), len(images) - 1)
    chosen = np.random.default_rng(seed).permutation(len(images))[:num_eval]
    held_out = {images[index] for index in chosen}
    train = [index for index, path in enumerate(paths) if path not in held_out]
    evaluation = [index for index, path in enumerate(paths) if path in held_out]
    return select(annotations, train), select(annotations, evaluation)


def find_name_file(source: Path, root: Path | None = None, format: str = "auto") -> Path | None:
    """The name file next to annotations without class names; None for other formats."""
    known = format_named(recognize(source, root) if format == "auto" else format)
    if known.class_names != "none" or os.path.isdir(source):
        return None
    return name_file_beside(source.parent, source)


def read_with_classes_of(
    source: Path,
    class_names: Sequence[str],
    *,
    root: Path | None = None,
    names: Sequence[str] | Path | None = None,
    format: str = "auto",
) -> Annotations:
    """`read_annotations`; a source that does not name its classes gets those of a model or of training data.

    Without this, a list in which no box has the last class would have one class too few.
    """
    known = recognize(source, root) if format == "auto" else format
    if names is None and format_named(known).class_names != "all":
        names = [name for name in class_names if not is_no_class(name)]
        beside = find_name_file(source, root, known)
        own = names if beside is None else read_names(beside)[0]
        if beside == own_name_file(source) or sorted(own) == sorted(names) or len(own) != len(names):
            names = (
                own  # these give the list's ids; else as many other names may be the same classes, renamed
            )
    return read_annotations(source, root=root, names=names, format=known)


def own_name_file(source: Path) -> Path:
    """The name file of only this list: ``train.txt`` -> ``train_names.txt``, as `fcos convert` writes it."""
    return source.with_name(f"{source.stem}_names.txt")


def name_file_beside(folder: Path, source: Path | None) -> Path | None:
    """The name file of a list in a folder: its own, else the only one that does not belong to another list.

    Raises:
        DatasetError: there are several candidates.
    """
    files = [folder / name for name in names_in(folder) if _may_hold_names(name.lower())]
    files = [file for file in files if file != source]
    if source is None:
        return files[0] if len(files) == 1 else None
    if own_name_file(source) in files:
        return own_name_file(source)
    called_like = {file: re.sub("_?(names?|classes)$", "", file.stem) for file in files}
    related = [file for file in files if _rest(called_like[file]) == _rest(source.stem)]
    others = [folder / f"{stem}.txt" for stem in called_like.values()]
    files = related or [
        file for file, other in zip(files, others, strict=True) if other == file or not other.is_file()
    ]
    if len(files) > 1 and len(set(map(read_text, files))) > 1:
        what, right = f"hold the class names of {source.name}", own_name_file(source).name
        raise several(folder, what, files, f"rename the right one to {right}")
    return files[0] if files else None


def _may_hold_names(name: str) -> bool:
    if re.search("(file|image).?name", name):  # of images
        return False
    return name.endswith(".names") or name == "classes.txt" or ("name" in name and name.endswith(".txt"))


def pick(named: dict[str, Path], folder: Path) -> list[Path | None]:
    """Train, evaluation and test among named files, by the words in their names."""
    both = {name: file for name, file in named.items() if _is_train_and_val(name)}
    one = {name: file for name, file in named.items() if name not in both}
    train = _with_words(one, TRAIN_WORDS) or both
    if len(train) > 1:
        raise several(folder, "be the training split", train.values(), WHICH_SPLIT)
    parts: list[Path | None] = [next(iter(train.values()), None)]
    others = {name: file for name, file in one.items() if name not in train}
    others = _with_words(others, EVAL_WORDS + TEST_WORDS)
    rests = {_rest(name) for name in train}
    others = {name: file for name, file in others.items() if _rest(name) in rests} or others
    for words in (EVAL_WORDS, TEST_WORDS):
        found = _with_words(others, words)
        if len(found) > 1:
            raise several(folder, f"be the {words[0]} split", found.values(), WHICH_SPLIT)
        parts.append(next(iter(found.values()), None))
    return parts


def arranged(
    format: str,
    sources: Iterable[Path | None],
    *,
    root: Path | None = None,
    whole: Split | None = None,
    name_file: Path | None = None,
) -> Splits:
    """Assign train, evaluation and test sources to their roles; without a training split, use `whole`."""
    train, evaluation, test = (None if source is None else Split(source, root) for source in sources)
    if evaluation is None:
        evaluation, test = test, None
    if train is None:
        if whole is None:
            raise DatasetError("the data set has no 'train' split", fix="add 'train' to its data.yaml")
        return Splits(format, whole, name_file=name_file)
    return Splits(format, train, evaluation, test, name_file)


def with_note(
    splits: Splits, sources: Sequence[Path | None], unused: Sequence[Path], folder: Path, one: str, more: str
) -> Splits:
    """The splits with a note on files that belong to none; no note without a training split."""
    if sources[0] is None or not unused:
        return splits
    example = unused[0].relative_to(folder).as_posix()
    note = f"{counted(len(unused), one, more)} to no split, for example '{example}'"
    return replace(splits, notes=(*splits.notes, note))


def words_of(name: str) -> list[str]:
    """The words in a file name, in lower case."""
    return re.findall("[a-z]+", name.lower())


def _with_words(named: dict[str, Path], words: tuple[str, ...]) -> dict[str, Path]:
    return {name: file for name, file in named.items() if set(words) & set(words_of(name))}


def _is_train_and_val(name: str) -> bool:
    """``trainval`` and ``train_val``: both splits in one."""
    words = set(words_of(name))
    return "trainval" in words or ("train" in words and not words.isdisjoint(("val", "valid", "validation")))


def _rest(name: str) -> tuple[str, ...]:
    """A name without the words for its split: ``voc_test`` and ``voc_trainval`` belong together."""
    split_words = {*TRAIN_WORDS, "trainval", *EVAL_WORDS, *TEST_WORDS}
    return tuple(word for word in words_of(name) if word not in split_words)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly spaced over `range(count)`."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()]
