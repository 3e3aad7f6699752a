"""Which format a file or folder of annotations has, by its signs, and reading it."""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcos.data.annotations import Annotations
from fcos.data.image_files import ARCHIVE_SUFFIXES, check_root
from fcos.data.registry import Format, all_formats, format_named
from fcos.data.text import read_lines
from fcos.errors import DatasetError
from fcos.files import check_regular, without_part


def read_annotations(
    source: Path, *, root: Path | None = None, names: Sequence[str] | None = None, format: str = "auto"
) -> Annotations:
    """Read annotations of any format.

    Args:
        source: annotation file or data set folder.
        root: folder of the images; without it they are expected near the annotations.
        names: class names without background; sets the order of the labels, and refuses other classes.
        format: to force a format.
    """
    source = Path(source)
    known = format_named(recognise(source, root) if format == "auto" else format)
    check_root(root)
    if known.files is not None and source.is_dir():
        source = _only_file(source, known.files(source))
    with np.errstate(invalid="ignore"):  # a coordinate "inf" is for `check` to report, not for numpy
        annotations = known.read(source, root=root, names=names)
    if len(annotations) == 0:
        raise DatasetError(
            "no images in the annotations", where=str(source), fix="give a source that names some"
        )
    return annotations


def recognise(source: Path, root: Path | None = None) -> str:
    """The name of the format of an annotation file or a data set folder."""
    source = Path(source)
    file = Path(without_part(str(source)))
    if not os.path.exists(file):
        raise DatasetError("annotations not found", where=str(source), fix="correct the path")
    if os.path.isdir(source):
        found = _of_folder(source)
    else:
        check_regular(file)
        found = _of_file(file, root)
    if found is None:
        formats = ", ".join(format.looks_like for format in all_formats())
        raise DatasetError(
            "no annotations of a known format",
            where=str(source),
            fix=f"known are: {formats}; or force one with --format (in train.json data_format)",
        )
    return found.name


def _of_folder(folder: Path) -> Format | None:
    signs = [(sign, format) for format in all_formats() for sign in format.folder_signs]
    signs.sort(key=lambda pair: -pair[0].strength)
    return next((format for sign, format in signs if sign.holds(folder)), None)


def _of_file(file: Path, root: Path | None) -> Format | None:
    """By the suffix; among formats that share it by the text."""
    suffix = file.suffix.lower()
    if suffix in ARCHIVE_SUFFIXES:
        raise DatasetError("this is an archive", where=str(file), fix="unpack it, and give the folder")
    formats = [format for format in all_formats() if suffix in format.suffixes]
    if len(formats) < 2:
        return formats[0] if formats else None
    if _is_binary(file):
        return None
    lines = [line for _, line in read_lines(file)]
    if not lines:
        raise DatasetError("the file is empty", where=str(file), fix="give a file that names images")
    signs = [(sign, format) for format in formats for sign in format.text_signs]
    signs.sort(key=lambda pair: -pair[0].strength)
    return next((format for sign, format in signs if sign.holds(file, root, lines)), None)


def _is_binary(file: Path) -> bool:
    """Whether a file is no text in any encoding: a document, an archive, an image, whatever its name."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    is_utf16 = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    return head.startswith(b"%PDF-") or (b"\0" in head and not is_utf16)


def _only_file(folder: Path, files: Sequence[Path]) -> Path:
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(file.relative_to(folder)) for file in files)
    raise DatasetError(
        f"the folder holds {len(files)} annotation files: {names}"
        if files
        else "no annotation file in the folder",
        where=str(folder),
        fix="give one of the files",
    )
