"""The annotation list of xytpai/fcos: one line per image, with its boxes as numbers after its name.

``name.jpg ymin xmin ymax xmax class_id ymin xmin ymax xmax class_id ...``, pixels of the upright image,
class ids from 1 (0 is background). A name alone is an image without boxes. The order yxyx is converted to
xyxy here and nowhere else.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.data.image import read_header, upright
from fcos.data.image_files import (
    IMAGE_SUFFIXES,
    find_root,
    folders_of,
    is_image,
    names_in,
    relative_name,
    slashed,
    some_of,
)
from fcos.data.names import numbered_names, read_names, with_names, write_names
from fcos.data.numbers import EXACT, number
from fcos.data.registry import DataFormat
from fcos.data.splits import find_name_file, own_name_file
from fcos.data.text import Faults, number_text, read_lines
from fcos.errors import DatasetError
from fcos.files import read_bytes, read_text, write_text
from fcos.terminal import counted

_SUFFIXES = "|".join(map(re.escape, sorted(IMAGE_SUFFIXES)))
# Greedy: the name ends at the last suffix in the line.
_NAME_AND_REST = re.compile(rf"(.*(?:{_SUFFIXES}))(?:\s(.*))?", re.IGNORECASE)
_NOT_SPACED = re.compile(rf"(?:{_SUFFIXES})[\"']?[,;:|]\s*[-+.\d]", re.IGNORECASE)  # name.jpg,12,34,56,78,1
_QUOTED = re.compile(rf"([\"']).*(?:{_SUFFIXES})\1", re.IGNORECASE)  # "my name.jpg" 12 34 56 78 1

Line = tuple[int, str, NDArray[np.float64]]  # line number, image name, (N, 5) ymin xmin ymax xmax class_id


def read(source: Path, *, root: Path | None = None, names: Sequence[str] | None = None) -> Annotations:
    """Read a list; `root` is the folder of images (default: found near the list).

    Invalid class ids (0, or above the number of names) stay as labels out of range, for `check` to report
    all of them. Ids refer to the given `names`. If the list has its own name file, they refer to that, and
    classes are matched by name: the lists of two splits may number classes differently.
    """
    lines = _parse(source)
    folder = root or find_root(folders_of(source), some_of([name for _, name, _ in lines]))
    records = [
        Record.make(
            folder / name,
            numbers[:, [1, 0, 3, 2]],
            numbers[:, 4].astype(np.int64) - 1,
            image_id,
            where=f"{source}, line {line_number}",
        )
        for image_id, (line_number, name, numbers) in enumerate(lines, start=1)
    ]
    name_file = find_name_file(source, root, "list") if names is None else own_name_file(source)
    own_names = names
    if name_file is not None and os.path.isfile(name_file):
        own_names = read_names(name_file)[0]
    if own_names is None:
        own_names = numbered_names(records, 1, str(source))
    annotations = Annotations.from_records(records, own_names, source=source, format="list")
    if names is None or tuple(names) == tuple(own_names):
        return annotations
    return replace(with_names(annotations, names), category_ids=tuple(range(1, len(names) + 1)))


def write(
    annotations: Annotations, out: Path, *, root: Path | None = None, copy_images: bool = False
) -> None:
    """Write a list and its class names; images stay where they are."""
    write_names(annotations.class_names, own_name_file(out))
    write_lines(annotations, out, root=root)


def write_lines(annotations: Annotations, out: Path, *, root: Path | None = None) -> None:
    """Write only a list; names are relative to `root` if the images are below it, else absolute paths."""
    lines, faults = [], Faults()
    for record in map(_upright, annotations):
        name = relative_name(record.path, root)
        if split_line(name) != (name, []) or name.strip() != name:
            faults.add(record.where, f"image name '{name}' cannot be separated from the numbers after it")
        x1, y1, x2, y2 = record.boxes_xyxy.T
        numbers = np.stack([y1, x1, y2, x2, record.labels + 1.0], axis=1)
        lines.append(" ".join([name, *map(number_text, numbers.ravel().tolist())]))
    faults.raise_any("image", "cannot be written to a list", "rename the images")
    write_text(out, "\n".join(lines) + "\n")


def _upright(record: Record) -> Record:
    """Turn boxes upright: a list states no sizes, by which their frame could be recognized later."""
    if record.size_hw is not None:
        with suppress(DatasetError):  # an image that cannot be opened, for `check` to report
            return upright(record, read_header(record.path))
    return record


def split_line(line: str) -> tuple[str, list[str]]:
    """Image name (may contain spaces) and the words after it.

    The name ends with the last word that has an image suffix; if there is none, it is the first word.
    """
    match = _NAME_AND_REST.fullmatch(line)
    name, rest = (match[1], match[2] or "") if match else (*line.split(maxsplit=1), "")[:2]
    return name, rest.split()


def parse_numbers(words: Sequence[str]) -> NDArray[np.float64]:
    """`(N, 5)`: ymin, xmin, ymax, xmax, class id. Raises a ValueError that explains what is wrong."""
    if len(words) % 5:
        raise ValueError(f"{counted(len(words), 'number')} after the image name, but a box has 5")
    numbers = np.array([number(word) for word in words]).reshape(-1, 5)
    class_ids = numbers[:, 4]
    if not np.array_equal(class_ids, np.floor(class_ids)) or not (np.abs(class_ids) <= EXACT).all():
        raise ValueError("every fifth number is a class id and must be an integer")
    return numbers


def _parse(source: Path) -> list[Line]:
    lines: list[Line] = []
    faults = Faults()
    for line_number, line in read_lines(source):
        name, words = split_line(line)
        with faults.at(f"{source}, line {line_number}"):
            if _NOT_SPACED.search(line):
                raise ValueError("numbers must be separated by spaces")
            if _QUOTED.match(line):
                raise ValueError("image names must not be quoted")
            lines.append((line_number, slashed(name), parse_numbers(words)))
    format = "name.jpg ymin xmin ymax xmax class_id ymin xmin ymax xmax class_id ..."
    faults.raise_any("line", "cannot be read", f"the format of a line is: {format}")
    return lines


def _list_files(folder: Path) -> list[Path]:
    """Files of a folder that are annotation lists with boxes."""
    files = [folder / name for name in names_in(folder) if name.lower().endswith(".txt")]
    return [file for file in files if os.path.isfile(file) and _is_list(file)]


def _is_list(file: Path) -> bool:
    """Whether a file is a list with boxes; a list in another encoding raises an error, so none is missed."""
    content = read_bytes(file)
    encoding = "utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
    lines = map(str.strip, content.decode(encoding, "replace").splitlines())
    # The first images may be without boxes; a line with boxes ends with a class id.
    is_list = _has_boxes(list(islice((line for line in lines if line[-1:].isdigit()), 50)))
    if is_list:
        read_text(file)
    return is_list


def _has_boxes(lines: Sequence[str]) -> bool:
    """Whether some line is a name with boxes after it."""
    for line in lines:
        name, words = split_line(line)
        with suppress(ValueError):
            if words and len(parse_numbers(words)) and is_image(name):
                return True
    return False


FORMAT = DataFormat(
    name="list",
    looks_like="a list (name.jpg ymin xmin ymax xmax class_id ...)",
    suffixes=(".txt", ""),
    read=read,
    folder_signs=((50, lambda folder: bool(_list_files(folder))),),
    text_signs=(
        (80, lambda file, root, lines: _has_boxes(lines)),
        (50, lambda file, root, lines: all(map(is_image, lines))),  # without a single box
        # most likely a list with mistakes: the reader reports the lines
        (30, lambda file, root, lines: any(map(is_image, lines[0].split()))),
        (20, lambda file, root, lines: bool(_NOT_SPACED.search(lines[0]) or _QUOTED.match(lines[0]))),
    ),
    files=_list_files,
    class_names="none",
    first_class_id=1,
    write=write,
    written_suffix=".txt",
    names_beside=own_name_file,
)
