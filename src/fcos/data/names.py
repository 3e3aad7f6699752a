"""Class names: the file that lists them, and matching those of annotations with given ones, or a model's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fcos.data.annotations import Annotations, Record
from fcos.data.numbers import cut, described
from fcos.data.text import Faults
from fcos.errors import DatasetError
from fcos.files import read_text, write_text

MAX_CLASSES = 2**16
MAX_NAME_CHARACTERS = 1000
SHOWN_NAMES = 10
HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")  # which JSON can hold and no file can
BACKGROUND = ("background", "__background__")


def read_names(name_file: Path) -> tuple[tuple[str, ...], bool]:
    """Class names, one per line, and whether the first line was ``background`` (it is left out).

    A blank line between names is refused: skipping it would shift the ids of all classes after it.
    """
    lines = _lines(name_file)
    had_background = bool(lines) and lines[0].lower() in BACKGROUND
    names = lines[1:] if had_background else lines
    check_names(names, where=str(name_file), first_line=1 + had_background)
    return tuple(names), had_background


def read_all_names(name_file: Path) -> list[str]:
    """Class names, one per line, as YOLO numbers them: a line ``background`` is class 0 like any other."""
    names = _lines(name_file)
    check_names(names, where=str(name_file), first_line=1)
    return names


def check_names(names: Sequence[str], *, where: str, first_line: int | None = None) -> None:
    """Refuse names that are blank, or that two classes have, all at once.

    They are in the order of their ids, from 0, or lines of the file `where` from `first_line` on.
    """
    if not names:
        raise DatasetError("no class names", where=where, fix="write one class name per line")
    check_number_of_classes(len(names), where)
    faults = Faults()
    seen: set[str] = set()
    for number, name in enumerate(names, start=first_line or 0):
        with faults.at(f"{where}, {'line' if first_line else 'class'} {number}"):
            check_name(name)
            if name in seen:
                raise ValueError(f"class '{cut(name)}' appears twice")
            seen.add(name)
    faults.raise_any("class name", "cannot be used", "give each class a name of its own, one per line")


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a class, with a ValueError that says why."""
    if not isinstance(name, str):
        raise ValueError(f"the name is {described(name)}, not a text")
    if not name.strip():
        raise ValueError("the name is empty")
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"the name has {len(name):,} characters; the limit is {MAX_NAME_CHARACTERS:,}")
    if HALF_OF_A_PAIR.search(name):
        raise ValueError("the name contains half of a surrogate pair, which is not text")


def check_number_of_classes(count: int, where: str) -> None:
    """Refuse more classes than any data set has: a slip in one id must not make names by the billion."""
    if count > MAX_CLASSES:
        raise DatasetError(
            f"{count:,} classes; the limit is {MAX_CLASSES:,}",
            where=where,
            fix="correct the class ids, or give the class names, so that ids beyond them are reported",
        )


def numbered_names(records: Iterable[Record], first: int, where: str) -> list[str]:
    """Names ``class_1``, ``class_2``, ... (from `first`) for annotations that have none."""
    num_classes = max((int(record.labels.max(initial=-1)) + 1 for record in records), default=0)
    check_number_of_classes(num_classes, where)
    return [f"class_{class_id}" for class_id in range(first, first + num_classes)]


def write_names(names: Sequence[str], out: Path) -> None:
    """Write a name file as the seed has it: first line ``background``."""
    write_text(out, "\n".join(["background", *names]) + "\n")


def match_names(found: Sequence[str], names: Sequence[str], *, where: str) -> list[int]:
    """Label of each class that an annotation file names, when the names are given from outside.

    Matching is by name, so a training and an evaluation file may order their classes differently.
    """
    label_of = {name: label for label, name in enumerate(names)}
    unknown = [name for name in found if name not in label_of]
    if unknown:
        raise DatasetError(
            f"classes that are not in the name file: {_listed(unknown)}",
            where=where,
            fix=f"add them to the name file, or correct the annotations (the names are {_listed(names)})",
        )
    return [label_of[name] for name in found]


def _lines(name_file: Path) -> list[str]:
    text = read_text(Path(name_file)).rstrip()
    return [line.strip() for line in text.split("\n")] if text else []  # splitlines() splits at U+2028 too


def is_no_class(name: str) -> bool:
    """Whether this is the name of an output that stands for no class: torchvision's 91 have 11 of them."""
    return name.startswith("(no class ")


def with_classes_of(
    annotations: Annotations, class_names: Sequence[str], category_ids: Sequence[int] = ()
) -> Annotations:
    """The annotations with the labels of a model; category ids stay those of the file.

    Args:
        annotations: of any order of classes.
        class_names: of the model.
        category_ids: of the model; outputs that stand for no class keep theirs.

    Raises:
        DatasetError: the names differ; it lists which.
    """
    file_names = annotations.class_names
    only_file = [name for name in file_names if name not in class_names]
    only_model = [name for name in class_names if name not in file_names and not is_no_class(name)]
    if only_file or only_model:
        raise DatasetError(
            "the classes of the annotations differ from those of the model: "
            f"only in the annotations: {_listed(only_file)}; only in the model: {_listed(only_model)}",
            where=str(annotations.source),
            fix="give the annotations that belong to this model, or a names file with the model's names; "
            "names must match exactly",
        )
    new_label = np.array([class_names.index(name) for name in file_names], np.int64)
    labels = annotations.labels.copy()
    known = annotations.has_known_class  # the others stay, for `check` to report
    labels[known] = new_label[labels[known]]
    category_of = dict(zip(file_names, annotations.category_ids, strict=True))
    for name, category_id in zip(class_names, category_ids, strict=False):
        if name not in category_of:
            taken = set(category_of.values())
            category_of[name] = category_id if category_id not in taken else max(taken) + 1
    return replace(
        annotations,
        class_names=tuple(class_names),
        category_ids=tuple(category_of[name] for name in class_names),
        labels=labels,
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(repr(name) for name in names[:SHOWN_NAMES]) + more if names else "none"
