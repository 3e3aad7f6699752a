"""Which of the four formats a file or folder of annotations has, by looking at it."""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Literal

from fcos.data import image_list, voc
from fcos.data.pictures import ARCHIVE_SUFFIXES, PICTURE_SUFFIXES, folders_like, is_picture, names_in
from fcos.data.text import read_lines
from fcos.data.yolo_description import YAML_SUFFIXES, find_description, split_source
from fcos.data.yolo_layout import LabelFiles, is_label_file, list_pairs
from fcos.errors import DatasetError
from fcos.files import check_regular, files_below, read_bytes

Format = Literal["list", "coco", "voc", "yolo"]
FORMATS: tuple[Format, ...] = ("list", "coco", "voc", "yolo")

WHAT_IS_KNOWN = (
    "known are: a list (name.jpg ymin xmin ymax xmax class_id ...), COCO JSON, Pascal VOC (Annotations "
    "folder, ImageSets file), YOLO (data.yaml, obj.data, or txt files beside pictures)"
)


def recognise(source: Path, root: Path | None = None) -> Format:
    """The format of an annotation file or a data set folder."""
    source = Path(source)
    file, _ = split_source(source)
    if not os.path.exists(file):
        raise DatasetError("annotations not found", where=str(source), fix="correct the path")
    if os.path.isdir(source):
        return _recognise_folder(source)
    check_regular(file)
    match file.suffix.lower():
        case suffix if suffix in ARCHIVE_SUFFIXES:
            raise DatasetError("this is an archive", where=str(source), fix="unpack it, and give the folder")
        case ".json":
            return "coco"
        case suffix if suffix in (*YAML_SUFFIXES, ".data"):
            return "yolo"
        case ".txt" | "":
            return _recognise_text(source, root)
    raise _unknown(source)


def coco_files(folder: Path) -> list[Path]:
    """COCO files where they usually are in a folder; captions, keypoints and the like are left out."""
    files = [folder / name for name in names_in(folder)]
    files += [place / name for place in folders_like(folder, "annotations") for name in names_in(place)]
    files += [folder / sub / "_annotations.coco.json" for sub in names_in(folder)]
    return [
        file
        for file in files
        if file.suffix.lower() == ".json" and os.path.isfile(file) and _looks_like_coco(file)
    ]


def list_files(folder: Path) -> list[Path]:
    """Files of a folder that are annotation lists with boxes."""
    files = [folder / name for name in names_in(folder) if name.lower().endswith(".txt")]
    return [file for file in files if os.path.isfile(file) and _is_list(file)]


def _is_list(file: Path) -> bool:
    """Whether a file is a list with boxes; refuses one in another encoding, which must not be overlooked."""
    try:
        return _has_list_lines([line for _, line in read_lines(file)[:50]])
    except DatasetError:
        content = read_bytes(file)
        encoding = "utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "latin-1"
        lines = content.decode(encoding, "replace").splitlines()[:50]
        if _has_list_lines([line.strip() for line in lines if line.strip()]):
            raise
        return False


def _recognise_folder(folder: Path) -> Format:
    if find_description(folder) is not None:
        return "yolo"
    if voc.annotation_folder(folder) is not None:
        return "voc"
    if coco_files(folder):
        return "coco"
    if folders_like(folder, "images") and folders_like(folder, "labels"):
        return "yolo"
    if list_files(folder):
        return "list"
    parts = split_folders(folder)
    if any(voc.annotation_folder(part) is not None for part in parts.values()):
        return "voc"
    labels = LabelFiles()
    pictures = files_below(folder, *PICTURE_SUFFIXES)
    some = [labels.of(picture) for picture, _ in zip(pictures, range(20), strict=False)]
    texts = [file for file, _ in zip(files_below(folder, ".txt"), range(20), strict=False)]
    if any(is_label_file(file) for file in [*filter(None, some), *texts]):
        return "yolo"
    raise _unknown(folder)


def split_folders(folder: Path) -> dict[str, Path]:
    """Folders called like a part of a data set: ``train``, ``valid``, ``val``, ``test``."""
    words = {"train", "training", "val", "valid", "validation", "test", "testing"}
    return {
        name: folder / name
        for name in names_in(folder)
        if name.lower() in words and os.path.isdir(folder / name)
    }


def _recognise_text(source: Path, root: Path | None) -> Format:
    if "imagesets" in (part.lower() for part in source.parts):
        return "voc"
    if _is_binary(source):
        raise _unknown(source)
    lines = [line for _, line in read_lines(source)]
    if not lines:
        raise DatasetError("the file is empty", where=str(source), fix="give a file that names pictures")
    if _has_list_lines(lines):
        return "list"
    if is_label_file(source):
        raise DatasetError(
            "these are the YOLO labels of one picture", where=str(source), fix="give the folder, or data.yaml"
        )
    if all(is_picture(line) for line in lines):
        # Only names: pictures of a YOLO set, or of a list without a single box.
        has_labels = any(pair.label_file for pair in list_pairs(source, root, limit=20))
        return "yolo" if has_labels else "list"
    if voc.annotation_folder(source, root) is not None:
        return "voc"
    # Most likely a list with mistakes: its reader says which lines.
    if any(is_picture(word) for word in lines[0].split()):
        return "list"
    raise _unknown(source)


def _is_binary(file: Path) -> bool:
    """Whether a file is no text in any encoding: a document, an archive, an image, whatever its name."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    is_utf16 = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    return head.startswith(b"%PDF-") or (b"\0" in head and not is_utf16)


def _has_list_lines(lines: list[str]) -> bool:
    """Whether some line is a name with boxes behind it."""
    for line in lines:
        name, words = image_list.split_line(line)
        try:
            if words and len(image_list.parse_numbers(words)) and is_picture(name):
                return True
        except ValueError:
            continue
    return False


def _looks_like_coco(file: Path) -> bool:
    """A look at the name, and at the beginning or all of the text: parsing large files takes a minute."""
    if file.name.startswith(("captions", "person_keypoints", "image_info", "panoptic", "stuff")):
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        begin = text.read(1_000_000)
    is_whole = len(begin) < 1_000_000
    return begin.lstrip().startswith("{") and ('"images"' in begin or not is_whole)


def _unknown(source: Path) -> DatasetError:
    return DatasetError(
        "no annotations of a known format",
        where=str(source),
        fix=f"{WHAT_IS_KNOWN}; or force one with the format",
    )
