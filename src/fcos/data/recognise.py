"""Which of the four formats a file or folder of annotations has, by looking at it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from fcos.data import image_list, voc, yolo
from fcos.data.pictures import is_picture
from fcos.data.text import read_lines
from fcos.errors import DatasetError

Format = Literal["list", "coco", "voc", "yolo"]
FORMATS: tuple[Format, ...] = ("list", "coco", "voc", "yolo")

WHAT_IS_KNOWN = (
    "known are: a list (name.jpg ymin xmin ymax xmax class_id ...), COCO JSON, Pascal VOC (Annotations "
    "folder, ImageSets file), YOLO (data.yaml, obj.data, or txt files beside pictures)"
)


def recognise(source: Path, root: Path | None = None) -> Format:
    """The format of an annotation file or a data set folder."""
    source = Path(source)
    file, _ = yolo.split_source(source)
    if not file.exists():
        raise DatasetError("annotations not found", where=str(source), fix="correct the path")
    if source.is_dir():
        return _recognise_folder(source)
    match file.suffix.lower():
        case ".json":
            return "coco"
        case ".yaml" | ".yml" | ".data":
            return "yolo"
        case ".txt" | "":
            return _recognise_text(source, root)
    raise _unknown(source)


def coco_files(folder: Path) -> list[Path]:
    """COCO files where they usually are in a folder; captions, keypoints and the like are left out."""
    places = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
    files = [file for place in places for file in sorted(folder.glob(place))]
    return [file for file in files if _looks_like_coco(file)]


def list_files(folder: Path) -> list[Path]:
    """Files of a folder that are annotation lists with boxes."""
    return [file for file in sorted(folder.glob("*.txt")) if _has_list_lines(_some_lines(file))]


def _recognise_folder(folder: Path) -> Format:
    if yolo_description(folder) is not None:
        return "yolo"
    if voc.annotation_folder(folder) is not None:
        return "voc"
    if coco_files(folder):
        return "coco"
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return "yolo"
    if list_files(folder):
        return "list"
    pictures = (path for path in folder.rglob("*") if is_picture(path))
    labels = [yolo.label_file(picture) for picture in _first(pictures, 20)]
    if any(_is_label_file(file) for file in [*labels, *_first(folder.rglob("*.txt"), 20)]):
        return "yolo"
    raise _unknown(folder)


def yolo_description(folder: Path) -> Path | None:
    """``data.yaml``, ``dataset.yaml`` or ``obj.data`` of a folder."""
    names = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _recognise_text(source: Path, root: Path | None) -> Format:
    if "ImageSets" in source.parts:
        return "voc"
    lines = _some_lines(source, None)
    if not lines:
        raise DatasetError("the file is empty", where=str(source), fix="give a file that names pictures")
    if _has_list_lines(lines):
        return "list"
    if _is_label_file(source):
        raise DatasetError(
            "these are the YOLO labels of one picture", where=str(source), fix="give the folder, or data.yaml"
        )
    if all(is_picture(line) for line in lines):
        # Only names: pictures of a YOLO set, or of a list without a single box.
        pairs = yolo.list_pairs(source, root, limit=20)
        return "yolo" if any(label_file.is_file() for _, label_file in pairs) else "list"
    if voc.annotation_folder(source, root) is not None:
        return "voc"
    # Most likely a list with mistakes: its reader says which lines.
    if any(is_picture(word) for word in lines[0].split()):
        return "list"
    raise _unknown(source)


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


def _is_label_file(file: Path) -> bool:
    lines = _some_lines(file)
    try:
        rows = [[float(word) for word in line.split()] for line in lines]
    except ValueError:
        return False
    return bool(rows) and all(len(row) >= 5 and row[0].is_integer() for row in rows)


def _looks_like_coco(file: Path) -> bool:
    """A look at the name, and at the beginning or all of the text: parsing large files takes a minute."""
    if file.name.startswith(("captions", "person_keypoints", "image_info", "panoptic", "stuff")):
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        begin = text.read(1_000_000)
    is_whole = len(begin) < 1_000_000
    return begin.lstrip().startswith("{") and ('"images"' in begin or not is_whole)


def _some_lines(file: Path, limit: int | None = 50) -> list[str]:
    try:
        return [line for _, line in read_lines(file)[:limit]]
    except DatasetError:
        return []


def _first(paths: Iterable[Path], count: int) -> list[Path]:
    return [path for path, _ in zip(paths, range(count), strict=False)]


def _unknown(source: Path) -> DatasetError:
    return DatasetError(
        "no annotations of a known format",
        where=str(source),
        fix=f"{WHAT_IS_KNOWN}; or force one with the format",
    )
