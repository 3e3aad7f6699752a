"""The interface of an annotation format (`DataFormat`), and detecting and reading the format of a source.

A format is a module of `fcos.data.formats` with one object `FORMAT`, which commands, settings, detection,
splits, conversion and the data check use.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fcos.data.annotations import Annotations, Record
from fcos.data.image_files import ARCHIVE_SUFFIXES
from fcos.data.names import read_all_names, read_names
from fcos.data.text import read_lines, several
from fcos.errors import DatasetError
from fcos.files import check_regular, without_part
from fcos.format_names import FORMAT_NAMES

if TYPE_CHECKING:
    from fcos.data.splits import Splits

NO_IMAGES = "no images in the annotations"

# How a format is detected: of all signs that apply, the one with the largest number decides. The arguments
# for a text file are its path, the folder of the images, and its non-blank lines.
FolderSign = tuple[int, Callable[[Path], bool]]
TextSign = tuple[int, Callable[[Path, Path | None, list[str]], bool]]


@dataclass(frozen=True)
class DataFormat:
    """One format of annotations."""

    name: str  # of the module; the value of `--format` and `data_format`
    looks_like: str  # short description of its files, for messages
    # Of files that may be a source, lower case. Files with a suffix that several formats share are text
    # files, which `text_signs` tell apart.
    suffixes: tuple[str, ...]
    # ``(source, *, root=None, names=None)``: `root` is the folder of the images, `names` the class names in
    # the order of the labels.
    read: Callable[..., Annotations]
    folder_signs: tuple[FolderSign, ...]  # how a folder of this format is recognized
    text_signs: tuple[TextSign, ...] = ()
    # The annotation files in a folder, each of which is a source; splits are recognized by their names.
    files: Callable[[Path], Sequence[Path]] | None = None
    splits: Callable[[Path], Splits] | None = None  # of a folder, for a format without `files`
    class_names: Literal["none", "some", "all"] = "some"  # how many of its classes a source names
    first_class_id: int | None = None  # None: classes have names or their own ids
    in_pixels: bool = True  # boxes are in pixels, not normalized to [0, 1]
    box_word: str = "box"  # the format's word for a box
    # For messages: the location of a box in its file, and a description of its unknown class, if they are
    # more specific than the number of the box.
    box_places: Callable[[Annotations], Callable[[Record, int], tuple[str, str] | None]] | None = None
    # ``(annotations, out, *, root=None, copy_images=False)``: images below `root` are named relative to it.
    # None: the format can only be read.
    write: Callable[..., None] | None = None
    written_suffix: str = ""  # of the file written; empty: a folder, which also contains the images
    names_beside: Callable[[Path], Path | None] = lambda out: None  # the separate file of class names, if any
    keeps: frozenset[str] = field(default=frozenset())  # which of "crowd", "difficult", "ids" and "areas"


def format_named(name: str) -> DataFormat:
    """The format with this name."""
    found = import_module(f"fcos.data.formats.{name}").FORMAT
    assert isinstance(found, DataFormat)
    return found


@cache
def all_formats() -> tuple[DataFormat, ...]:
    """All formats."""
    return tuple(map(format_named, FORMAT_NAMES))


def read_annotations(
    source: Path, *, root: Path | None = None, names: Sequence[str] | Path | None = None, format: str = "auto"
) -> Annotations:
    """Read annotations of any format.

    Args:
        source: annotation file or data set folder.
        root: folder of the images; default: near the annotations.
        names: class names without background, or the file that lists them; sets the order of the labels;
            other classes are rejected.
        format: a format's name, or "auto" to detect it.
    """
    source = Path(source)
    known = format_named(recognize(source, root) if format == "auto" else format)
    if isinstance(names, Path):  # where ids begin with 0, a first line `background` has one as well
        names = read_all_names(names) if known.first_class_id == 0 else read_names(names)[0]
    if root is not None and not os.path.isdir(root):
        fix = "correct root_train / root_eval / --root"
        raise DatasetError("the folder of images does not exist", where=str(root), fix=fix)
    if known.files is not None and source.is_dir():
        files = known.files(source)
        if not files:
            raise DatasetError("no annotation file in the folder", where=str(source), fix="give a file")
        if len(files) > 1:
            raise several(source, "be meant", files, "give one of the files")
        source = files[0]
    with np.errstate(invalid="ignore"):  # a coordinate "inf" is for `check` to report, not for numpy
        annotations = known.read(source, root=root, names=names)
    if len(annotations) == 0:
        raise DatasetError(NO_IMAGES, where=str(source), fix="give annotations with images")
    return annotations


def recognize(source: Path, root: Path | None = None) -> str:
    """The name of the format of an annotation file or a data set folder."""
    source = Path(source)
    file = Path(without_part(str(source)))
    if not os.path.exists(file):
        raise DatasetError("annotations not found", where=str(source), fix="correct the path")
    if os.path.isdir(source):
        found = _strongest(
            [(sign, format) for format in all_formats() for sign in format.folder_signs], source
        )
    else:
        check_regular(file)
        found = _of_file(file, root)
    if found is None:
        formats = ", ".join(format.looks_like for format in all_formats())
        raise DatasetError(
            "no annotations in a known format",
            where=str(source),
            fix=f"use one of {formats}; or set the format with --format (data_format in train.json)",
        )
    return found.name


def _of_file(file: Path, root: Path | None) -> DataFormat | None:
    """By suffix; formats that share a suffix are told apart by the text."""
    suffix = file.suffix.lower()
    if suffix in ARCHIVE_SUFFIXES:
        raise DatasetError("this is an archive", where=str(file), fix="unpack it, and give the folder")
    formats = [format for format in all_formats() if suffix in format.suffixes]
    if len(formats) < 2:
        return formats[0] if formats else None
    with file.open("rb") as opened:
        head = opened.read(4096)
    is_utf16 = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    if head.startswith(b"%PDF-") or (b"\0" in head and not is_utf16):
        return None  # binary: a document, an archive or an image, whatever its name
    lines = [line for _, line in read_lines(file)]
    if not lines:
        raise DatasetError("the file is empty", where=str(file), fix="give a file with images")
    signs = [(sign, format) for format in formats for sign in format.text_signs]
    return _strongest(signs, file, root, lines)


def _strongest(
    signs: Sequence[tuple[tuple[int, Callable[..., bool]], DataFormat]], *source: Any
) -> DataFormat | None:
    by_strength = sorted(signs, key=lambda sign: sign[0][0], reverse=True)
    return next((format for (_, holds), format in by_strength if holds(*source)), None)
