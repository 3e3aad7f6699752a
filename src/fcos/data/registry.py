"""The interface of an annotation format (`DataFormat`), and detecting and reading the format of a source.

A format is a module of `fcos.data.formats` with one object `FORMAT`; commands, settings, recognition, splits,
conversion and the data check take it from there.
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

# How a format is detected: of all signs that apply, the one with the largest number decides. A text
# file is given as its path, the folder of the images, and the lines that are not blank.
FolderSign = tuple[int, Callable[[Path], bool]]
TextSign = tuple[int, Callable[[Path, Path | None, list[str]], bool]]


@dataclass(frozen=True)
class DataFormat:
    """One format of annotations."""

    name: str  # of the module; what `--format` and `data_format` take
    looks_like: str  # its files in a few words, for messages
    # Of files that may be given as source, lower case. One that several formats have is that of a text file,
    # which `text_signs` tell.
    suffixes: tuple[str, ...]
    # ``(source, *, root=None, names=None)``: `root` is the folder of the images, `names` the class names in
    # the order of the labels.
    read: Callable[..., Annotations]
    folder_signs: tuple[FolderSign, ...]  # what distinguishes it from other formats
    text_signs: tuple[TextSign, ...] = ()
    # The annotation files in a folder, each of which is a source; their names tell the splits.
    files: Callable[[Path], Sequence[Path]] | None = None
    splits: Callable[[Path], Splits] | None = None  # of a folder, for a format without `files`
    class_names: Literal["none", "some", "all"] = "some"  # how many of its classes a source names
    first_class_id: int | None = None  # None: classes have names or their own ids
    in_pixels: bool = True  # boxes are written in pixels, not as fractions of the image
    box_word: str = "box"  # what a box is called in its file
    # Where a box of an image stands, and what its file says of a class that is not known, if there is more to
    # say than its number.
    box_places: Callable[[Annotations], Callable[[Record, int], tuple[str, str] | None]] | None = None
    # ``(annotations, out, *, root=None, copy_images=False)``: images below `root` are named relative to it.
    # None: the format is only read.
    write: Callable[..., None] | None = None
    written_suffix: str = ""  # of the file that is written; empty: it is a folder that holds the images too
    names_beside: Callable[[Path], Path | None] = lambda out: None  # where names are written apart from boxes
    keeps: frozenset[str] = field(default=frozenset())  # which of "crowd", "difficult", "ids" and "areas"


def format_named(name: str) -> DataFormat:
    """The format of this name."""
    found = import_module(f"fcos.data.formats.{name}").FORMAT
    assert isinstance(found, DataFormat)
    return found


@cache
def all_formats() -> tuple[DataFormat, ...]:
    """Every format there is."""
    return tuple(map(format_named, FORMAT_NAMES))


def read_annotations(
    source: Path, *, root: Path | None = None, names: Sequence[str] | Path | None = None, format: str = "auto"
) -> Annotations:
    """Read annotations of any format.

    Args:
        source: annotation file or data set folder.
        root: folder of the images; without it they are expected near the annotations.
        names: class names without background, or the file that lists them; sets the order of the labels, and
            refuses other classes.
        format: to force a format.
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
        raise DatasetError(NO_IMAGES, where=str(source), fix="give a source that names some")
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
    """By the suffix; among formats that share it by the text."""
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
        return None  # no text in any encoding: a document, an archive, an image, whatever its name
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
