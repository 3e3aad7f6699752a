"""Class names: reading the file that lists them, and matching them to other annotations or a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count, zip_longest
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
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON can contain, but no UTF-8 file
BACKGROUND = ("background", "__background__")


def read_names(name_file: Path) -> tuple[tuple[str, ...], bool]:
    """Class names, one per line, and whether the first line was ``background`` (which is removed).

    A blank line between names is rejected: skipping it would shift the ids of all classes after it.
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
    """Reject blank and duplicate names, all in one error.

    Names are in the order of their ids, from 0, or lines of the file `where`, starting at `first_line`.
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
    faults.raise_any("class name", "cannot be used", "give each class a unique name, one per line")


def check_name(name: object) -> None:
    """Raise a ValueError that explains why a class name is invalid."""
    if not isinstance(name, str):
        raise ValueError(f"the name is {described(name)}, not a string")
    if not name.strip():
        raise ValueError("the name is empty")
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"the name has {len(name):,} characters; the limit is {MAX_NAME_CHARACTERS:,}")
    if LONE_SURROGATE.search(name):
        raise ValueError("the name contains a lone surrogate, which is not valid text")


def check_number_of_classes(number: int, where: str) -> None:
    """Reject more classes than any data set has: a typo in one id must not create a billion names."""
    if number > MAX_CLASSES:
        raise DatasetError(
            f"{number:,} classes; the limit is {MAX_CLASSES:,}",
            where=where,
            fix="correct the class ids, or give the class names, so that invalid ids are reported",
        )


def numbered_names(records: Iterable[Record], first: int, where: str) -> list[str]:
    """Names ``class_1``, ``class_2``, ... (from `first`) for annotations without class names."""
    num_classes = max((int(record.labels.max(initial=-1)) + 1 for record in records), default=0)
    check_number_of_classes(num_classes, where)
    return [f"class_{class_id}" for class_id in range(first, first + num_classes)]


def write_names(names: Sequence[str], out: Path) -> None:
    """Write a name file in the format of xytpai/fcos: the first line is ``background``."""
    write_text(out, "\n".join(["background", *names]) + "\n")


def _lines(name_file: Path) -> list[str]:
    text = read_text(Path(name_file)).rstrip()
    return [line.strip() for line in text.split("\n")] if text else []  # splitlines() splits at U+2028 too


def is_no_class(name: str) -> bool:
    """Whether this is the name of an unused output: torchvision's 91 outputs have 11 of them."""
    return name.startswith("(no class ")


def with_names(
    annotations: Annotations, names: Sequence[str], category_ids: Sequence[int] = ()
) -> Annotations:
    """The annotations with labels in the order of `names`; category ids stay those of the file.

    Classes are matched by name, so training and evaluation files may order them differently. Exporters list
    classes that no box has: only classes in use must be among the names.

    Args:
        category_ids: ids for names that the file lacks, unless already taken.

    Raises:
        DatasetError: a box has a class that is not among the names (of a name file, a model or another
            split).
    """
    file_names, known = annotations.class_names, annotations.has_known_class
    label_of = {name: label for label, name in enumerate(names)}
    used = [file_names[label] for label in np.unique(annotations.labels[known])]
    if unknown := [name for name in used if name not in label_of]:
        raise DatasetError(
            f"classes that are not among the class names: {_listed(unknown)}",
            where=str(annotations.source),
            fix=f"add them to the class names, which are {_listed(names)}, or correct the annotations",
        )
    labels = annotations.labels.copy()  # invalid labels stay invalid, for `check` to report
    labels[~known & (labels < len(names))] = -1
    new_label = np.array([label_of.get(name, -1) for name in file_names], np.int64)
    labels[known] = new_label[annotations.labels[known]]
    id_of = dict(zip(file_names, annotations.category_ids, strict=True))
    taken = {None, *id_of.values()}
    fresh = count(max([*annotations.category_ids, *category_ids], default=0) + 1)
    for name, category_id in zip_longest(names, category_ids[: len(names)]):
        if name not in id_of:
            id_of[name] = next(fresh) if category_id in taken else category_id
            taken.add(id_of[name])
    return replace(
        annotations,
        class_names=tuple(names),
        category_ids=tuple(id_of[name] for name in names),
        labels=labels,
    )


def with_classes_of(
    annotations: Annotations, class_names: Sequence[str], category_ids: Sequence[int] = ()
) -> Annotations:
    """`with_names` of a model, or of training data; unused outputs keep their ids.

    Raises:
        DatasetError: the names differ; the message lists which.
    """
    only_file = [name for name in annotations.class_names if name not in class_names]
    only_model = [name for name in class_names if name not in annotations.class_names]
    only_model = [name for name in only_model if not is_no_class(name)]
    if only_file or only_model:
        raise DatasetError(
            "the classes of the annotations differ from those of the model (or of the training data): "
            f"only in the annotations: {_listed(only_file)}; only in the model: {_listed(only_model)}",
            where=str(annotations.source),
            fix="give annotations with these classes, or a name file with these names; names must match "
            "exactly",
        )
    return with_names(annotations, class_names, category_ids)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(repr(name) for name in names[:SHOWN_NAMES]) + more if names else "none"
