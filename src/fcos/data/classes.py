"""The classes of a file and the classes of a model: the same names, whatever their order and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fcos.data.annotations import Annotations
from fcos.errors import DatasetError

SHOWN_NAMES = 10


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
            "the classes of the annotations are not those of the model: "
            f"only in the annotations: {_listed(only_file)}; only in the model: {_listed(only_model)}",
            where=str(annotations.source),
            fix="give the annotations that belong to this model, or a names file with the model's names; "
            "names are compared letter by letter",
        )
    new_label = np.array([class_names.index(name) for name in file_names], np.int64)
    labels = annotations.labels.copy()
    known = (labels >= 0) & (labels < len(file_names))  # the others stay, for `check` to report
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
