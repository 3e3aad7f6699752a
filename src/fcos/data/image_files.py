"""Where the images of a data set are: suffixes, folders and names."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fcos.data.annotations import Annotations
from fcos.data.text import Faults
from fcos.files import is_hidden

Name = TypeVar("Name")
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .tif .tiff .tga .webp .gif .ppm .pgm .pbm .pnm "
    ".jp2 .j2k .j2c .jpx .avif .heic .heif".split()
)
ARCHIVE_SUFFIXES = frozenset(".zip .tar .tgz .gz .bz2 .xz .zst .7z .rar".split())
DOCUMENT_SUFFIXES = frozenset(".pdf .svg .doc .docx .odt .ppt .pptx .odp .xls .xlsx .ods .html .htm".split())


def is_image(name: str | Path) -> bool:
    """Whether a file name has an image suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def folders_near(start: Path, *own: str) -> list[Path]:
    """Folders that commonly contain the images of annotations in `start`, nearest first.

    Names in `own` are tried in `start` and its parent folder, before the common names.
    """
    bases = [start, *start.absolute().parents[:3]]
    names = [(".", *(own if base in bases[:2] else ()), "images", "JPEGImages") for base in bases]
    return [base / name for base, names in zip(bases, names, strict=True) for name in names]


def folders_of(source: Path) -> list[Path]:
    """Folders that may contain the images of an annotation file: near it, or named like its split.

    ``annotations/instances_val2017.json`` goes with ``val2017`` beside it, ``train.txt`` with
    ``images/train``, FiftyOne's ``labels.json`` with ``data``.
    """
    part = source.stem.rsplit("_", 1)[-1]
    return folders_near(source.parent, part, f"images/{part}", "data")


def some_of(names: Sequence[Name]) -> Sequence[Name]:
    """A few evenly spaced names: the first ones may all be missing."""
    return names[:: max(1, len(names) // 10)]


def find_root(folders: Iterable[Path], some_names: Iterable[str]) -> Path:
    """The first folder that contains one of the names; the first of all if none does."""
    folders, some_names = list(folders), list(some_names)
    found = (folder for folder in folders if any(os.path.isfile(folder / name) for name in some_names))
    return next(found, folders[0])


def slashed(name: str) -> str:
    r"""The name of an image in an annotation file, with / instead of Windows' \."""
    return name.replace("\\", "/")


def names_in(folder: Path) -> list[str]:
    """Sorted names in a folder, without hidden ones; empty if the folder does not exist."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_hidden(name))
    except (OSError, ValueError):
        return []


def folders_like(base: Path, name: str) -> list[Path]:
    """Folders ``base/name``, ignoring case (``labels``, ``Labels``); the exact name comes first."""
    found = [base]
    for part in Path(name).parts:
        found = [
            parent / there
            for parent in found
            for there in sorted(names_in(parent), key=lambda there, part=part: (there != part, there))  # type: ignore[misc]
            if there.lower() == part.lower() and os.path.isdir(parent / there)
        ]
    return found


class FilesByStem:
    """Finds files of a kind by name without suffix; every folder is listed once."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self.wanted = wanted
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, folder: Path, stem: str) -> list[Path]:
        """Every file of the folder with this stem: ``cat.jpg`` and ``cat.png`` for ``cat``."""
        if folder not in self._folders:
            by_stem = self._folders.setdefault(folder, {})
            for name in filter(self.wanted, names_in(folder)):
                by_stem.setdefault(os.path.splitext(name)[0], []).append(folder / name)
        return self._folders[folder].get(stem, [])


class ImageFolder(FilesByStem):
    """Finds the images of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(is_image)
        self.folder = folder

    def find_all(self, stem: str) -> list[Path]:
        """Every image called `stem` (which may contain subfolders)."""
        place = self.folder / stem
        return self.find(place.parent, place.name)

    def same_name(self, name: str) -> Path | None:
        """The image with this name, ignoring the case of its suffix; None unless there is exactly one."""
        stem, suffix = os.path.splitext(name)
        found = [path for path in self.find_all(stem) if path.suffix.lower() == suffix.lower()]
        exact = [path for path in found if path.suffix == suffix]
        return next(iter(exact or found), None) if len(exact or found) == 1 else None


def common_root(annotations: Annotations) -> Path:
    """The deepest folder that contains every image."""
    return Path(os.path.commonpath([os.path.abspath(record.path.parent) for record in annotations]))


def relative_name(path: Path, root: Path | None) -> str:
    """Name of an image relative to `root` (with /), or its full path if it is elsewhere."""
    absolute = Path(os.path.abspath(path))  # not resolve(): a linked image is named by its link
    if root is not None and absolute.is_relative_to(os.path.abspath(root)):
        return absolute.relative_to(os.path.abspath(root)).as_posix()
    return absolute.as_posix()


def unique_stems(
    annotations: Annotations, root: Path | None = None, *, without: str = ""
) -> list[PurePosixPath]:
    """Each image's name below `root`, checked to be unique without its suffix.

    VOC and YOLO match an image to its annotation file by that name, so ``a.jpg`` and ``a.png`` cannot both
    exist. Folders called `without` are omitted from the name.
    """
    root = root if root is not None else common_root(annotations)
    names: list[PurePosixPath] = []
    first_of: dict[PurePosixPath, Path] = {}
    faults = Faults()
    for record in annotations:
        *folders, file_name = PurePosixPath(relative_name(record.path, root).lstrip("/")).parts
        name = PurePosixPath(*(part for part in folders if part.lower() != without), file_name)
        first = first_of.setdefault(name.with_suffix(""), record.path)
        if first is not record.path:
            faults.add(record.where, f"'{record.path}' would share its annotation file with '{first}'")
        if any(map(is_hidden, name.parts)):
            faults.add(record.where, f"'{record.path}' is hidden, so it would be ignored when read")
        elif not is_image(file_name):
            faults.add(record.where, f"'{record.path}' has no image suffix, so it would be ignored when read")
        names.append(name)
    faults.raise_any(
        "image", "cannot be matched to an annotation file", "rename the images, or remove duplicates"
    )
    return names


def place_images(
    annotations: Annotations, names: Sequence[PurePosixPath], folder: Path, *, copy: bool
) -> None:
    """Link (or copy) the images, under these names, into a data set folder."""
    faults = Faults()
    paths = [record.path for record in annotations]
    for path in paths:
        if not os.path.isfile(path):
            faults.add(str(path), "not found")
    faults.raise_any("image", "cannot be found", "give the folder of images with --root")
    for path, name in zip(paths, names, strict=True):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(path, target)
        else:
            target.symlink_to(path.absolute())


def common_images(first: Annotations, second: Annotations) -> list[tuple[Path, Path]]:
    """Images that are in both, by path or by content.

    Only files of equal size are compared by content, so this stays cheap for large data sets.
    """
    by_path = {os.path.realpath(record.path): record.path for record in first}
    by_size: dict[int, list[Path]] = {}
    for path in by_path.values():
        by_size.setdefault(_file_size(path), []).append(path)
    by_digest: dict[int, dict[bytes, Path]] = {}  # of the sizes that are in both
    pairs = []
    for record in second:
        same = by_path.get(os.path.realpath(record.path))
        if same is None and (size := _file_size(record.path)) > 0:
            if size not in by_digest:
                by_digest[size] = {_digest(path): path for path in reversed(by_size.get(size, []))}
            same = by_digest[size].get(_digest(record.path)) if by_digest[size] else None
        if same is not None:
            pairs.append((same, record.path))
    return pairs


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes()).digest()


def _file_size(path: Path) -> int:
    return path.stat().st_size if os.path.isfile(path) else -1
